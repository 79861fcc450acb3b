"""The whole main job, three times, on what ships with the project.

Knows the order of a model's way and what a right answer is. Refuses to know how any step is done, and how it looks.

    build each starter -> promote -> deploy -> start the service -> ask it every shipped sample over HTTP -> compare

*Right* means: every shipped sample is asked; image and speech answers over HTTP equal what the report says of the same
build, sample by sample; text over HTTP equals, token by token, what the same build generates in this process.
"""

from __future__ import annotations

import csv
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maasdam.children import started
from maasdam.core import (
    IMAGE_CLASSIFICATION,
    SPEECH_RECOGNITION,
    TEXT_GENERATION,
    Progress,
    Sampling,
    TextPayload,
    TextPiece,
    silent,
)
from maasdam.errors import NotFound, ServiceError
from maasdam.operations.reports import report_of

if TYPE_CHECKING:
    import httpx

    from maasdam.artifacts.catalog import Version as Version
    from maasdam.operations.workspace import Workspace

READY_SECONDS = 120.0
"""How long the service may take to bring three small models up."""
TOKENS_PER_PROMPT = 32
"""How far each text prompt is continued."""
WORDS_PER_PROMPT = 8
"""How much of each shipped text is the prompt."""


@dataclass(frozen=True, slots=True)
class Starter:
    """A model that ships with the project: its name in the catalog and its folder."""

    name: str
    folder: Path
    task: str

    @property
    def model(self) -> Path:
        """The model's folder, in Hugging Face layout."""
        return self.folder / "model"

    @property
    def samples(self) -> Path:
        """Labelled evaluation samples, none of them trained on."""
        return self.folder / "samples"

    @property
    def calibrate(self) -> Path | None:
        """Calibration samples other than the evaluation's, where the recipe wants any."""
        path = self.folder / "calibrate"
        return path if path.is_dir() else None

    @property
    def recipe(self) -> Path:
        """The recipe, with its limits."""
        return self.folder / "recipe.toml"


@dataclass(frozen=True, slots=True)
class Answered:
    """What one model answered over HTTP."""

    starter: Starter
    samples: int
    """Samples asked."""
    wrong: tuple[str, ...]
    """One sentence per answer that is not what the same build says in this process."""
    example: str
    """One question and its answer, for people."""


@dataclass(frozen=True, slots=True)
class ServiceProcess:
    """A service that runs beside this process."""

    address: str
    key: str
    process: subprocess.Popen[bytes]


def starters() -> tuple[Starter, ...]:
    """The three starters: of the checkout, else those installed with the package. Raises NotFound where neither is there."""
    given = os.environ.get("MAASDAM_STARTERS")
    root = Path(given) if given else Path(__file__).resolve().parents[3] / "starters"
    if not given and not _holds_models(root):
        root = _installed()  # a checkout that is not installed is none of the packages that this asks
    if not _holds_models(root):
        raise NotFound(f"the starter models are not at {root}; install maasdam again, or set MAASDAM_STARTERS")
    return (
        Starter("digits", root / "images", IMAGE_CLASSIFICATION),
        Starter("bard", root / "text", TEXT_GENERATION),
        Starter("spoken-digits", root / "speech", SPEECH_RECOGNITION),
    )


def _holds_models(place: Path) -> bool:
    return (place / "images" / "model").is_dir()


def _installed() -> Path:
    """Where a wheel puts the starters: share/maasdam/starters below the environment it was installed into."""
    import importlib.metadata

    for file in importlib.metadata.files("maasdam") or ():
        if file.as_posix().endswith("share/maasdam/starters/images/recipe.toml"):
            return Path(str(file.locate())).resolve().parents[1]
    return Path(sys.prefix) / "share" / "maasdam" / "starters"


def build_all(workspace: Workspace, progress: Progress = silent) -> list[Version]:
    """Build, promote and deploy each starter. A build whose report failed is not promoted: VerificationFailed says why."""
    from maasdam.operations.build import BuildSpec, build

    versions = []
    for starter in starters():

        def tell(stage: str, done: int = 0, total: int | None = None, name: str = starter.name) -> None:
            progress(f"{name}: {stage}", done, total)

        recipe, data, calibrate = str(starter.recipe), starter.samples, starter.calibrate
        spec = BuildSpec(starter.name, str(starter.model), starter.task, recipe, data=data, calibrate=calibrate)
        version = build(workspace, spec, progress=tell)
        workspace.catalog.promote(f"{version.model}:{version.version}")
        workspace.catalog.deploy(version.model)
        versions.append(version)
    return versions


@contextmanager
def service(workspace: Workspace, port: int, models: list[str]) -> Iterator[ServiceProcess]:
    """Run `maasdam serve` as its own process with a fresh key; yields once every model answers; stops it at the end.

    Raises ServiceError, with the end of its log, when it does not come up.
    """
    import httpx

    _, secret = workspace.keys.create("quickstart", ["infer", "admin"])
    port = port or _free_port()
    log = workspace.settings.home / "serve.log"
    address = f"http://127.0.0.1:{port}"
    with log.open("wb") as out:
        words = ["-m", "maasdam", "serve", "--port", str(port)]
        environ, grace = {"MAASDAM_HOME": str(workspace.settings.home)}, workspace.settings.shutdown_grace_seconds + 10
        with started(words, out, environ, grace) as process:
            with httpx.Client(base_url=address, headers={"Authorization": f"Bearer {secret}"}, timeout=10) as client:
                _wait_until_ready(client, process, models, log)
            yield ServiceProcess(address, secret, process)


def ask_all(workspace: Workspace, own: ServiceProcess, versions: list[Version], progress: Progress = silent) -> list[Answered]:
    """Ask the service every shipped sample of every model and compare with what the same build says in this process."""
    import httpx

    headers = {"Authorization": f"Bearer {own.key}"}
    answers = []
    with httpx.Client(base_url=own.address, headers=headers, timeout=120) as client:
        for starter, version in zip(starters(), versions, strict=True):
            ask = _ask_text if starter.task == TEXT_GENERATION else _ask_files
            answers.append(ask(client, workspace, starter, version, progress))
    return answers


@dataclass(frozen=True, slots=True)
class _Route:
    """How a file is sent, what in the answer counts, and how it is told beside what is right."""

    path: str
    kind: str
    fields: Mapping[str, str]
    answer: Callable[[Any], Any]
    says: Callable[[Any], str]
    truth: str


_ROUTES = {
    IMAGE_CLASSIFICATION: _Route(
        "/v1/images/classifications", "image/png", {"top_k": "3"}, lambda reply: reply["data"][0]["label"],
        lambda reply: "{label} ({score:.2f}); it is".format(**reply["data"][0]), "label",
    ),
    SPEECH_RECOGNITION: _Route(
        "/v1/audio/transcriptions", "audio/wav", {}, lambda reply: reply["text"],
        lambda reply: f"{reply['text']}; it says", "transcription",
    ),
}  # fmt: skip


def _ask_files(client: httpx.Client, workspace: Workspace, starter: Starter, version: Version, progress: Progress) -> Answered:
    route, rows = _ROUTES[starter.task], _metadata(starter.samples)
    reported = {sample["name"]: sample["candidate"] for sample in report_of(version).samples}
    wrong, sentences = [], []
    for i, row in enumerate(rows):
        progress(f"{starter.name}: ask over HTTP", i, len(rows))
        name, truth = row["file_name"], row[route.truth]
        file = {"file": (name, (starter.samples / name).read_bytes(), route.kind)}
        reply = _json(client.post(route.path, data={"model": starter.name, **route.fields}, files=file))
        answer = route.answer(reply)
        if str(answer) != str(reported.get(name)):
            wrong.append(f"{name}: '{answer}' over HTTP, '{reported.get(name)}' in the report")
        sentences.append((" " not in truth, i, f"{name} → {route.says(reply)} {truth}"))
    return Answered(starter, len(rows), tuple(wrong), min(sentences)[-1])  # the first of several words, else the first


def _ask_text(client: httpx.Client, workspace: Workspace, starter: Starter, version: Version, progress: Progress) -> Answered:
    from maasdam.operations.run import opened

    prompts = _prompts(starter.samples)
    wrong = []
    with opened(workspace, f"{version.model}:{version.version}") as model:
        for i, prompt in enumerate(prompts):
            progress(f"{starter.name}: ask over HTTP", i, len(prompts))
            here = model.answer(TextPayload(prompt=prompt, sampling=Sampling(max_tokens=TOKENS_PER_PROMPT, temperature=0.0)))
            question = {
                "model": starter.name,
                "prompt": prompt,
                "max_tokens": TOKENS_PER_PROMPT,
                "temperature": 0,
                "return_token_ids": True,
            }
            choice = _json(client.post("/v1/completions", json=question))["choices"][0]
            assert isinstance(here, TextPiece)
            if list(choice["token_ids"]) != list(here.token_ids):
                wrong.append(f"prompt {i}: tokens over HTTP differ from those generated in this process")
            streamed = "".join(_stream(client, question))
            if streamed != choice["text"]:
                wrong.append(f"prompt {i}: the streamed text differs from the text in one piece")
    chat = {
        "model": starter.name,
        "messages": [{"role": "user", "content": "What news from Rome?"}],
        "max_tokens": TOKENS_PER_PROMPT,
        "seed": 1,
    }
    answer = _json(client.post("/v1/chat/completions", json=chat))["choices"][0]["message"]["content"]
    example = f"What news from Rome? → {' '.join(answer.split())}"
    return Answered(starter, len(prompts), tuple(wrong), example)


def _stream(client: httpx.Client, question: dict[str, Any]) -> Iterator[str]:
    with client.stream("POST", "/v1/completions", json=question | {"stream": True}) as reply:
        for line in reply.iter_lines():
            if line.startswith("data: ") and line != "data: [DONE]":
                for choice in json.loads(line[6:])["choices"]:
                    yield choice["text"]


def _metadata(folder: Path) -> list[dict[str, str]]:
    with (folder / "metadata.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def _prompts(folder: Path) -> list[str]:
    """The opening words of every shipped text."""
    prompts = []
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_text().splitlines():
            if line.strip():
                prompts.append(" ".join(json.loads(line)["text"].split()[:WORDS_PER_PROMPT]))
    return prompts


def _json(reply: httpx.Response) -> Any:
    if reply.status_code != 200:
        raise ServiceError(f"{reply.request.method} {reply.request.url.path} answered {reply.status_code}: {reply.text[:500]}")
    return reply.json()


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def _wait_until_ready(client: httpx.Client, process: subprocess.Popen[bytes], models: list[str], log: Path) -> None:
    import httpx

    deadline = time.monotonic() + READY_SECONDS
    waiting = list(models)
    while waiting:
        if process.poll() is not None or time.monotonic() > deadline:
            end = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
            what = "stopped" if process.poll() is not None else f"was not ready within {READY_SECONDS:.0f} s"
            raise ServiceError(f"the service {what}; the end of {log}:\n{end}")
        with suppress(httpx.TransportError):
            waiting = [m for m in waiting if client.get(f"/v2/models/{m}/ready").status_code != 200]
        if waiting:
            time.sleep(0.1)
