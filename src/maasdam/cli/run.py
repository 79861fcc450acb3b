"""`maasdam run`: answers, as words, as JSON, as a conversation, or as a file of a line an input."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from maasdam.cli.output import JSON, emit, in_workspace, progress_bar

if TYPE_CHECKING:
    from maasdam.core import Answer, Sampling
    from maasdam.operations.run import OpenedModel
    from maasdam.operations.run_inputs import Input

ANEW = "/new"
_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""What a terminal would obey, of the words of a model."""


def run(
    name: str = typer.Argument(..., help="NAME, NAME:3 or NAME@prod."),
    inputs: list[str] = typer.Argument(
        None,
        help="Files of the model's kind, folders, patterns, .npz, prompts; tables (.jsonl, .csv) with a column prompt or"
        " file_name; '-' is standard input.",
    ),
    out: Path = typer.Option(
        None, "--out", help="A .jsonl or .csv that gets a line for each input; run it again to go on where it was broken off."
    ),
    chat: bool = typer.Option(
        False, "--chat", help="Text: a prompt is a user's message, in the model's chat template; without inputs, talk."
    ),
    max_tokens: int = typer.Option(None, "--max-tokens", min=1, help="Text: how many tokens at most."),
    temperature: float = typer.Option(None, "--temperature", min=0.0, help="Text: 0 is greedy."),
    seed: int = typer.Option(None, "--seed", help="Text: the same seed gives the same text."),
    top_k: int = typer.Option(None, "--top-k", min=1, help="Images: how many labels or boxes at most."),
    device: str = typer.Option(None, "--device", help="cpu or cuda, in this process; default cpu."),
    here: bool = typer.Option(False, "--here", help="Load it in this process also where the running service has it."),
    as_json: bool = JSON,
) -> None:
    """Answer inputs: by this home's service where it runs the model, else in this process.

    Example: maasdam run mobilenet photos/ --out labels.jsonl
    """
    if not inputs and not chat and sys.stdin.isatty():
        raise typer.BadParameter("name what to answer: files, folders, prompts; '-' reads standard input")
    if out is not None and not inputs and chat:
        raise typer.BadParameter("a conversation gets no line for each input; leave --out out")
    from maasdam.core import Sampling
    from maasdam.operations.run import opened, version_of
    from maasdam.operations.run_inputs import How, inputs_of
    from maasdam.tasks.torchless import without_torch

    without_torch()
    with in_workspace() as workspace:
        how = How(Sampling(max_tokens=max_tokens, temperature=temperature, seed=seed), top_k, chat)
        version = version_of(workspace, name)
        found = inputs_of(version.task, inputs or ([] if chat else ["-"]), how)  # before anything is loaded
        with opened(workspace, f"{version.model}:{version.version}", device, here) as model:
            if model.url is not None:
                typer.echo(f"the service at {model.url} answers (--here loads the model in this process)", err=True)
            if not found:
                _talk(model, how.sampling)
            elif out is not None:
                _batch(model, found, out, as_json)
            else:
                _answers(model, found, as_json)


def _answers(model: OpenedModel, inputs: list[Input], as_json: bool) -> None:
    from maasdam.operations.run import to_json

    answers: list[dict[str, Any]] = []
    for each in inputs:
        answer = model.answer(each.payload(), None if as_json else print_piece)
        if as_json:
            answers.append({"input": each.name, **to_json(answer)})
        else:
            _print_answer(each.name, answer)
    if as_json:
        version = model.version
        document = {"model": version.model, "version": version.version, "task": version.task, "answers": answers}
        emit(document, True, "")


def _batch(model: OpenedModel, inputs: list[Input], out: Path, as_json: bool) -> None:
    from maasdam.operations.batch import answer_all
    from maasdam.operations.run import to_json
    from maasdam.tasks import giving

    async def answer(each: Input) -> tuple[dict[str, Any], Any]:
        given = await model.reply(each.payload, each.name)
        return to_json(given), giving(given).shown(given)

    named = f"{model.version.model}:{model.version.version}"
    try:
        with progress_bar() as progress:
            counts = answer_all(inputs, out, named, answer, model.width, progress)
    except KeyboardInterrupt:
        typer.echo(f"broken off; what is answered is in {out}, and the same command goes on from there", err=True)
        raise typer.Exit(130) from None
    document = {"out": out, "had": counts.had, "answered": counts.answered, "errors": counts.wrong}
    said = f"{out}: {counts.answered:,} answered" + (f", {counts.had:,} were there" if counts.had else "")
    emit(document, as_json, said + (f", {counts.wrong:,} are errors, which their lines say" if counts.wrong else ""))


def _talk(model: OpenedModel, sampling: Sampling) -> None:
    """Until the end of standard input. A break ends an answer, and takes it and its question back."""
    from maasdam.core import TextPayload, TextPiece
    from maasdam.errors import InvalidPayload

    is_terminal = sys.stdin.isatty()
    if is_terminal:
        typer.echo(
            f"{model.version.model}:{model.version.version}. {ANEW} begins anew, Ctrl-C ends an answer, Ctrl-D all.", err=True
        )
    said: list[dict[str, Any]] = []
    while True:
        if is_terminal:
            typer.echo("> ", nl=False, err=True)
        try:
            line = sys.stdin.readline()
        except KeyboardInterrupt:
            line = ""
        if not line:
            return
        if line.strip() == ANEW:
            said = []
        elif line.strip():
            asked = [*said, {"role": "user", "content": line.rstrip("\n")}]
            try:
                answer = model.answer(TextPayload(messages=tuple(asked), sampling=sampling), print_piece)
            except KeyboardInterrupt:
                typer.echo()
                continue
            except InvalidPayload as error:
                typer.echo(f"{error} ({ANEW} begins anew)", err=True)
                continue
            typer.echo()
            assert isinstance(answer, TextPiece)
            said = [*asked, {"role": "assistant", "content": answer.text}]


def print_piece(piece: str) -> None:
    """A model's words as they come; on a terminal nothing that it would obey."""
    sys.stdout.write(_OBEYED.sub("\ufffd", piece) if sys.stdout.isatty() else piece)
    sys.stdout.flush()


def _print_answer(given: str, answer: Answer) -> None:
    from maasdam.core import TextPiece
    from maasdam.tasks import giving

    if isinstance(answer, TextPiece):
        typer.echo()  # the text itself is out already, piece by piece
        return
    for line in giving(answer).lines(answer):
        typer.echo(f"{given}: {line}")
