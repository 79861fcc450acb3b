"""`maasdam run`: answers in this process, as words or as JSON."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import typer

from maasdam.cli.output import JSON, emit, in_workspace

if TYPE_CHECKING:
    from maasdam.core import Answer


def run(
    name: str = typer.Argument(..., help="NAME, NAME:3 or NAME@prod."),
    inputs: list[str] = typer.Argument(..., help="Image files, audio files, prompts ('-' reads one from stdin), or .npz."),
    chat: bool = typer.Option(
        False, "--chat", help="Text: take each prompt as a user's message, with the model's chat template."
    ),
    max_tokens: int = typer.Option(None, "--max-tokens", min=1, help="Text: how many tokens at most."),
    temperature: float = typer.Option(None, "--temperature", min=0.0, help="Text: 0 is greedy."),
    seed: int = typer.Option(None, "--seed", help="Text: the same seed gives the same text."),
    top_k: int = typer.Option(5, "--top-k", min=1, help="Images: how many labels."),
    device: str = typer.Option("cpu", "--device", help="cpu or cuda."),
    as_json: bool = JSON,
) -> None:
    """Answer inputs in this process, without a service.

    Example: maasdam run mobilenet photo.jpg other.jpg --json
    """
    from maasdam.core import Sampling
    from maasdam.operations import run as job
    from maasdam.tasks.torchless import without_torch

    without_torch()
    with in_workspace() as workspace:
        sampling = Sampling(max_tokens=max_tokens, temperature=temperature, seed=seed)
        answers: list[tuple[str, Answer]] = []
        with job.opened(workspace, name, device) as model:
            for given in inputs:
                text = sys.stdin.read() if given == "-" else given
                payload = job.payload_of(model.version.task, text, sampling=sampling, top_k=top_k, chats=chat)
                answers.append((given, model.answer(payload, None if as_json else _print_piece)))
                if not as_json:
                    _print_answer(given, answers[-1][1])
            version = model.version
        if as_json:
            document: dict[str, Any] = {"model": version.model, "version": version.version, "task": version.task}
            document["answers"] = [{"input": given, **job.to_json(answer)} for given, answer in answers]
            emit(document, True, "")


def _print_piece(piece: str) -> None:
    sys.stdout.write(piece)
    sys.stdout.flush()


def _print_answer(given: str, answer: Answer) -> None:
    from maasdam.core import TextPiece
    from maasdam.tasks import giving

    if isinstance(answer, TextPiece):
        typer.echo()  # the text itself is out already, piece by piece
        return
    for line in giving(answer).lines(answer):
        typer.echo(f"{given}: {line}")
