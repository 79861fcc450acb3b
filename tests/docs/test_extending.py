"""The recipes of docs/extending.md, followed to the letter in a copy of the project."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

STEP = re.compile(r"(?P<says>(?:[^\n]+\n)+)\n(?P<indent> *)```python\n(?P<block>.*?)\n(?P=indent)```", re.DOTALL)
WHERE = re.compile(r"(?P<how>[Nn]ew file,|[Aa]fter|[Ii]nstead of)\s+`(?P<what>[^`]+)`:$")
FILE = re.compile(r"`((?:src|tests)/[\w/]+\.py)`")


@dataclass(frozen=True)
class Step:
    """One block of the page: what file it goes into, and where."""

    file: str
    how: str
    line: str
    """After or instead of which."""
    block: str

    def follow(self, root: Path) -> None:
        path = root / self.file
        if self.how == "new file,":
            assert not path.exists(), path
            path.write_text(self.block + "\n")
            return
        text = path.read_text()
        assert text.count(f"\n{self.line}\n") == 1, (path, self.line)
        new = self.block if self.how == "instead of" else f"{self.line}\n{self.block}"
        path.write_text(text.replace(f"\n{self.line}\n", f"\n{new}\n"))

    def undo(self, root: Path) -> None:
        path = root / self.file
        if self.how == "new file,":
            assert path.read_text() == self.block + "\n"
            path.unlink()
            return
        text = path.read_text()
        assert text.count(f"\n{self.block}\n") == 1, (path, self.block)
        path.write_text(text.replace(f"\n{self.block}\n", f"\n{self.line}\n" if self.how == "instead of" else "\n"))


def steps(repository: Path, section: str) -> list[Step]:
    """What a section of the page says, in order."""
    page = (repository / "docs" / "extending.md").read_text()
    text = page.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    out, file = [], ""
    for found in STEP.finditer(text):
        says = found["says"].rstrip()
        where = WHERE.search(says)
        assert where is not None, says
        named = FILE.findall(says)
        file = named[-1] if named else file
        block = "\n".join(line.removeprefix(found["indent"]) for line in found["block"].splitlines())
        out.append(Step(file, where["how"].lower(), where["what"], block))
    assert len(out) == text.count("```python")
    return out


@pytest.fixture(scope="module")
def copy(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project as it is."""
    root = tmp_path_factory.mktemp("project")
    for name in ("src", "tests", "docs", "tools"):
        shutil.copytree(repository / name, root / name, ignore=shutil.ignore_patterns("__pycache__", "gallery*"))
    shutil.copy(repository / "pyproject.toml", root)
    return root


@pytest.fixture(scope="module")
def followed(repository: Path, copy: Path) -> Iterator[Path]:
    """The project with the engine, the scheme, the route and the setting of the page."""
    for section in ("An engine", "A quantisation scheme", "A route", "A setting"):
        for step in steps(repository, section):
            step.follow(copy)
    yield copy


def run(root: Path, *words: str) -> str:
    """A command of Python's in the copy; what it prints."""
    environment = os.environ | {"PYTHONPATH": f"{root / 'src'}{os.pathsep}{root}", "MAASDAM_HOME": str(root / "home")}
    done = subprocess.run([sys.executable, *words], cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_without_its_blocks_there_is_no_such_task_and_with_them_there_is_what_there_is(repository: Path, copy: Path) -> None:
    recipe = steps(repository, "A task")
    assert len(recipe) == 6
    before = {step.file: (copy / step.file).read_text() for step in recipe}
    for step in reversed(recipe):
        step.undo(copy)
    words = ["-c", "from maasdam.tasks import TASKS; print(*TASKS)"]
    (copy / "src/maasdam/sources").rename(copy / "src/maasdam/sources_aside")  # it says what such a model takes, by name
    others = run(copy, *words).split()
    assert others[:3] == ["image-classification", "text-generation", "automatic-speech-recognition"]
    assert "audio-classification" not in others and "feature-extraction" in others
    (copy / "src/maasdam/sources_aside").rename(copy / "src/maasdam/sources")
    for step in recipe:
        step.follow(copy)
    assert {file: (copy / file).read_text() for file in before} == before
    assert run(copy, *words).split()[-1] == "audio-classification"


def test_the_engine_runs_the_cases_of_every_engine(followed: Path) -> None:
    told = run(followed, "-m", "pytest", "-n", "0", "-q", "tests/engines/test_conformance.py", "-k", "onnx-reference")
    assert re.search(r"^[1-9]\d* passed", told, re.MULTILINE) and "failed" not in told
    script = (
        "from maasdam.operations.doctor import _engine; found = _engine('onnx-reference'); print(found.works, *found.devices)"
    )
    assert run(followed, "-c", script).strip() == "True cpu"
    script = "from maasdam.engines import engines_for; print(*engines_for('onnx'))"
    assert run(followed, "-c", script).split() == ["onnxruntime", "onnx-reference", "openvino"]


SCHEME = """
import tempfile, pathlib, numpy as np
from tests.engines.networks import CNN, MLP, artifact
from maasdam.artifacts.store import Store
from maasdam.engines import open_engine
from maasdam.pipeline.passes import PassContext, find_pass
from dataclasses import replace
root = pathlib.Path(tempfile.mkdtemp())
(root / "m").mkdir(), (root / "out").mkdir(), (root / "work").mkdir()
source = replace(artifact(root / "m", CNN, "onnx", "onnxruntime"), signature=CNN.signature)
use = find_pass("quantize", "a test")
settings = use.check({"scheme": "weights-fp16"}, "a test")
assert use.wants(source, settings) == "onnx" and use.reads(settings) == ()
context = PassContext(store=Store(root / "store"), work=root / "work", checkpoints=root / "work")
made = use.run(source, root / "out", settings, context)
engine = open_engine(replace(source, path=root / "out", engine=made.engine), threads=1)
got, wanted = engine.run(CNN.inputs), CNN.expected(CNN.inputs)
np.testing.assert_allclose(got["logits"], wanted["logits"], rtol=2e-3, atol=2e-3)
assert not np.allclose(got["logits"], wanted["logits"], rtol=1e-6, atol=1e-6)
print(made.facts)
"""


def test_the_scheme_is_a_scheme_everywhere(followed: Path) -> None:
    assert "1 constants kept in float16" in run(followed, "-c", SCHEME)
    run(followed, "tools/docs.py")
    row = next(x for x in (followed / "docs/compression.md").read_text().splitlines() if x.startswith("| `weights-fp16`"))
    assert "kept in 16 bits, computed in 32" in row
    assert "| `keep_alive_seconds` | `MAASDAM_KEEP_ALIVE_SECONDS` | `75` |" in (followed / "docs/settings.md").read_text()


ROUTE = """
import asyncio, httpx
from pathlib import Path
from maasdam.tasks import TASKS
from tests.served import open_home
from maasdam.api.http import application
from maasdam.operations.service import open_service
async def main():
    with open_home(Path("home")) as workspace:
        app = application(open_service(workspace), False)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as client:
            told = (await client.get("/v1/tasks")).json()
            sounds = {"name": "audio-classification", "takes": "audio files", "doors": ["/v1/audio/classifications"]}
            assert sounds in told["tasks"] and len(told["tasks"]) == len(TASKS)
            assert (await client.get("/v1/tasks?page=2")).json()["error"]["type"] == "invalid_request_error"
            assert (await client.delete("/v1/tasks")).status_code == 405
            assert "/v1/tasks" in (await client.get("/openapi.json")).json()["paths"]
asyncio.run(main())
"""


def test_the_route_answers_and_refuses_as_others_do(followed: Path) -> None:
    run(followed, "-c", ROUTE)


def test_the_setting_is_read_from_where_settings_are(followed: Path) -> None:
    script = "from maasdam.settings import load; print(load(environ={'MAASDAM_KEEP_ALIVE_SECONDS': '5'}).keep_alive_seconds)"
    assert run(followed, "-c", script).split() == ["5"]
    assert "timeout_keep_alive=service.settings.keep_alive_seconds" in (followed / "src/maasdam/api/http.py").read_text()
