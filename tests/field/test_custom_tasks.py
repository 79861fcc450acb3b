"""Tasks of one's own: the page that documents them as it stands, and code that does what it should not."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
from PIL import Image
from tests.served import Process, add_mlp, open_home, serving
from tests.waiting import wait_until

from maasdam.core import CustomAnswer, CustomPayload, Signature, TensorSpec
from maasdam.errors import Crashed, EngineFailure, InvalidInput, InvalidModel, InvalidPayload, LimitExceeded, UnsafeModel
from maasdam.operations import carry
from maasdam.operations.run import opened
from maasdam.operations.workspace import Workspace
from maasdam.settings import Settings
from maasdam.sources import ingest
from maasdam.tasks import custom_code
from maasdam.tasks.custom import CustomTask

BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.M | re.S)
PATH = "/v1/custom"
SIGNATURE = Signature((TensorSpec("x", "float32", (None, 8)),), (TensorSpec("y", "float32", (None, 4)),))

# what each does wrong, and the error with a part of its words
HOSTILE: dict[str, tuple[str, type[Exception], str]] = {
    "raises": ("raise RuntimeError('it broke')", EngineFailure, "in its prepare: RuntimeError: it broke"),
    "says what is wrong": ("raise ValueError('send a word')", InvalidPayload, "send a word"),
    "leaves": ("sys.exit(3)", EngineFailure, "SystemExit"),
    "ends its process": ("os._exit(3)", Crashed, "ended by itself with status 3"),
    "ends its own life": ("os.kill(os.getpid(), 11)", Crashed, "SIGSEGV"),
    "calls itself for ever": ("return self.prepare(payload)", EngineFailure, "RecursionError"),
    "loops for ever": ("while True: pass", LimitExceeded, "longer than 2 s in its prepare"),
    "hangs with all signals blocked": (
        "signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65)); time.sleep(99)", LimitExceeded, "custom_seconds"),
    "leaks memory": ("self.held = [bytes([1]) * 2**24 for _ in range(99)]", LimitExceeded, "custom_memory_bytes"),
    "is named like what is missing": ("import nothing_of_this_name", EngineFailure, "ModuleNotFoundError"),
    "writes outside": ("open('/tmp/maasdam-was-here', 'w')", EngineFailure, "PermissionError"),
    "fills the disk": ("open('much', 'wb').write(bytes(65 * 2**20))", EngineFailure, "OSError"),
    "gives nothing": ("return None", EngineFailure, "gave a NoneType"),
    "gives no inputs": ("return []", EngineFailure, "a list of 1 to"),
    "gives text": ("return 'x' * 8", EngineFailure, "gave a str"),
    "gives lists for arrays": ("return [{'x': [[0.0] * 8]}]", EngineFailure, "it gives numpy arrays"),
    "gives too much": ("return [{'x': numpy.broadcast_to(numpy.ones((1, 8, 1)), (1, 8, 2**25))}]", EngineFailure, "256 MiB"),
    "gives another dtype": ("return [{'x': numpy.zeros((1, 8))}]", EngineFailure, "float64; send float32"),
    "gives another shape": ("return [{'x': numpy.zeros((1, 9), 'f4')}]", EngineFailure, "shape [1, 9]"),
    "gives another name": ("return [{'z': numpy.zeros((1, 8), 'f4')}]", EngineFailure, "no input 'z'"),
    "gives many rows": ("return [{'x': numpy.zeros((3, 8), 'f4')}]", EngineFailure, "3 rows"),
    "gives NaN": ("return [{'x': numpy.full((1, 8), numpy.nan, 'f4')}]", EngineFailure, "NaN"),
    "gives objects": ("return [{'x': numpy.array([[object()] * 8])}]", EngineFailure, "object"),
    "has a message that breaks": (
        "raise type('Odd', (Exception,), {'__str__': lambda s: 1 / 0})()", EngineFailure, "can't be read"),
    "has an endless message": ("raise RuntimeError('x' * 10**6)", EngineFailure, "xxxxxx"),
    "answers what nobody asked": (
        "[os.write(n, b'\\0\\0\\0\\1x') for n in range(3, 60) if os.path.exists(f'/proc/self/fd/{n}') and 'socket' in "
        "os.readlink(f'/proc/self/fd/{n}')]", EngineFailure, "what is no answer"),
}  # fmt: skip
BAD_ANSWERS: dict[str, tuple[str, str]] = {
    "NaN": ("float('nan')", "NaN or infinity"),
    "infinity": ("numpy.array([numpy.inf])", "NaN or infinity"),
    "bytes": ("b'x'", "a bytes"),
    "a set": ("{1}", "a set"),
    "an object": ("self", "it gives what JSON can hold"),
    "keys that are numbers": ("{1: 2}", "a dict"),
    "half a character": ("'\\ud800'", "half of a character"),
    "what holds itself": ("(lambda held: held.append(held) or held)([])", "holds itself"),
    "a complex number": ("1j", "a complex"),
    "too much": ("'x' * (33 * 2**20)", "at most"),
}


def code(folder: Path, prepare: str, finish: str = "return 'fine'", top: str = "") -> Path:
    """A file with a task, and its archive in a store that trusts it; where a model with it would be."""
    model = folder / "sha256" / "ab"
    model.mkdir(parents=True, exist_ok=True)
    file = folder / "mine.py"
    body = (
        f"import os, signal, sys, time\nimport numpy\n{top}\nclass Mine:\n    def prepare(self, payload):\n        {prepare}\n"
    )
    file.write_text(body + f"    def finish(self, outputs, payload):\n        {finish}\n")
    packed = custom_code.packed(f"{file}:Mine")
    (model / custom_code.CODE).write_bytes(packed)
    custom_code.trust(folder, packed)
    return model


def task(model: Path, **settings: Any) -> CustomTask:
    given = {"custom_seconds": 2.0, "custom_memory_bytes": 2**29} | settings
    return CustomTask(model, SIGNATURE, Settings(**given))


GOOD = "return [{'x': numpy.full((1, 8), float(payload), 'f4')}]"
ONE = CustomPayload(b"1", is_file=False)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> CustomTask:
    """One task whose payload is the code that it runs: each case is a payload, and the next is answered all the same."""
    folder = tmp_path_factory.mktemp("hostile")
    lines = (
        "exec('def made(self, payload):\\n    ' + payload.replace(chr(10), chr(10) + '    '), globals()); return made(self, 1)"
    )
    model = code(folder, f"{lines}", "return eval(payload)")
    return task(model)


@pytest.mark.parametrize("case", HOSTILE)
def test_code_that_does_wrong_harms_nobody_and_says_so(hostile: CustomTask, case: str) -> None:
    does, kind, words = HOSTILE[case]
    does = does.replace("self.prepare(payload)", "made(self, payload)")
    with pytest.raises(kind) as raised:
        hostile.prepare(CustomPayload(json.dumps(does).encode(), is_file=False))
    assert words in str(raised.value) and len(str(raised.value)) < 1000
    (made,) = hostile.prepare(CustomPayload(json.dumps(GOOD).encode(), is_file=False))
    assert made["x"].tolist() == [[1.0] * 8]


@pytest.mark.parametrize("case", BAD_ANSWERS)
def test_an_answer_that_is_no_json_is_refused(hostile: CustomTask, case: str) -> None:
    gives, words = BAD_ANSWERS[case]
    with pytest.raises((EngineFailure, LimitExceeded)) as raised:
        hostile.finish([], CustomPayload(json.dumps(gives).encode(), is_file=False))
    assert words in str(raised.value)
    assert hostile.finish([], CustomPayload(b'"[1, numpy.float32(2)]"', is_file=False)) == CustomAnswer("[1, 2.0]")


def test_a_process_that_forks_answers_once(tmp_path: Path) -> None:
    forking = task(code(tmp_path, f"os.fork(); {GOOD}"))
    assert [len(forking.prepare(ONE)) for _ in range(3)] == [1, 1, 1]


def test_what_it_prints_reaches_no_answer(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    printing = task(code(tmp_path, f"print('hello from inside'); os.write(1, b'and from below'); {GOOD}"))
    printing.prepare(ONE)
    wait_until(lambda: "below" in capfd.readouterr().err, 5)


def test_its_processes_end_with_it(tmp_path: Path) -> None:
    mine = task(code(tmp_path, GOOD, "return os.getpid()"))
    pid = int(json.loads(mine.finish([], ONE).json))  # type: ignore[union-attr]  # it is one of ours
    folder = Path(psutil.Process(pid).cwd())
    assert folder.is_dir()
    del mine
    wait_until(lambda: not psutil.pid_exists(pid) and not folder.exists(), 5)


def test_folders_of_processes_that_were_ended_on_the_spot_are_swept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    place = Path(tempfile.mkdtemp(prefix="swept-"))  # short: sockets of processes have their names below it
    request.addfinalizer(lambda: shutil.rmtree(place, ignore_errors=True))
    monkeypatch.setenv("TMPDIR", str(place))
    monkeypatch.setattr("tempfile.tempdir", str(place))
    model = code(tmp_path, GOOD)
    ends = f"import os, pathlib\nfrom tests.field.test_custom_tasks import task\nheld = task(pathlib.Path({str(model)!r}))\n"
    subprocess.run([sys.executable, "-c", ends + "os._exit(0)"], check=True, timeout=60)
    (left,) = place.glob("maasdam-task-*")
    first = task(model)
    assert left.is_dir(), "it may be being made"
    for folder in place.glob("maasdam-task-*"):
        os.utime(folder, (0, 0))
    second = task(model)
    assert not left.exists()
    assert len(list(place.glob("maasdam-task-*"))) == 2, "what is in use stays"
    assert first.prepare(ONE) and second.prepare(ONE)


@pytest.mark.parametrize(
    ("top", "words"),
    [
        ("import nothing_of_this_name", "ModuleNotFoundError: No module named 'nothing_of_this_name'"),
        ("def broken(:", "SyntaxError"),
        ("sys.exit()", "SystemExit"),
        ("os._exit(0)", "ended by itself with status 0 when it was imported"),
    ],
)
def test_code_that_does_not_load_says_why(tmp_path: Path, top: str, words: str) -> None:
    with pytest.raises((EngineFailure, Crashed)) as raised:
        task(code(tmp_path, GOOD, top=top))
    assert words in str(raised.value)


def test_code_that_nobody_trusted_here_is_not_run(tmp_path: Path) -> None:
    model = code(tmp_path, GOOD)
    for note in (tmp_path / custom_code.TRUSTED).iterdir():
        note.unlink()
    with pytest.raises(UnsafeModel, match="nobody has trusted on this machine"):
        task(model)
    custom_code.trust(tmp_path.parent, (model / custom_code.CODE).read_bytes())  # in no store: anyone may write to /tmp
    with pytest.raises(UnsafeModel, match="nobody has trusted on this machine"):
        task(model)
    (model / custom_code.CODE).write_bytes(b"PK no archive")
    custom_code.trust(tmp_path, b"PK no archive")
    with pytest.raises(InvalidModel, match="not as Maasdam writes it"):
        task(model)


@pytest.mark.parametrize(
    ("named", "words"),
    [
        ("gone.py:Mine", "nothing is at gone.py"),
        ("{here}/mine.py:not a name", "is no name of a class"),
        ("{here}/notes.txt:Mine", "is no name of a Python module"),
        ("{here}:Mine", "a folder without __init__.py"),
    ],
)
def test_a_name_that_leads_nowhere_is_refused(tmp_path: Path, named: str, words: str) -> None:
    here = tmp_path / "here"
    here.mkdir()
    for name in ("mine.py", "notes.txt"):
        (here / name).touch()
    with pytest.raises(InvalidInput) as raised:
        custom_code.packed(named.format(here=here))
    assert words in str(raised.value)


def test_an_installed_packages_task_is_found_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package of two modules and a file of words, which are all copied."""
    package, facts = tmp_path / "lengths", tmp_path / "lengths-1.0.dist-info"
    package.mkdir()
    facts.mkdir()
    (package / "__init__.py").touch()
    (package / "words.txt").write_text("short,long")
    (package / "inner.py").write_text(
        "from pathlib import Path\nWORDS = (Path(__file__).parent / 'words.txt').read_text().split(',')\n"
    )
    (package / "tasks.py").write_text(
        "from lengths.inner import WORDS\nclass Lengths:\n    def prepare(self, payload): return []\n"
        "    def finish(self, outputs, payload): return WORDS[len(payload) > 3]\n"
    )
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: lengths\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text("[maasdam.tasks]\nlengths = lengths.tasks:Lengths\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "lengths" in custom_code.offered() and custom_code.task_name("lengths") == "custom"
    packed = custom_code.packed("lengths")
    assert packed == custom_code.packed("lengths")
    home = tmp_path / "home" / "sha256"
    home.mkdir(parents=True)
    (home / custom_code.CODE).write_bytes(packed)
    custom_code.trust(home.parent, packed)
    (package / "tasks.py").unlink()  # what was copied is what runs
    lengths = task(home)
    assert lengths.finish([], CustomPayload(b"abcd")) == CustomAnswer('"long"')


# The page, and a service of it ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[tuple[str, str]]]:
    """The folder in which the page's first blocks were run, and all blocks."""
    folder = tmp_path_factory.mktemp("page")
    text = (repository / "docs" / "custom-tasks.md").read_text()
    blocks = BLOCK.findall(text)
    for name, (kind, content) in zip(("model.py", "colours.py", "pictures.py"), blocks, strict=False):
        assert kind == "python" and f"`{name}`" in text
        (folder / name).write_text(content)
    env = os.environ | {"MAASDAM_HOME": str(folder / "home"), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    env["PYTHONPATH"] = f"{repository / 'src'}:{env.get('PYTHONPATH', '')}"
    done = subprocess.run(["bash", "-e", "-c", blocks[3][1]], cwd=folder, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert '"colour": "green"' in done.stdout
    return folder, blocks


@pytest.fixture(scope="module")
def served(page: tuple[Path, list[tuple[str, str]]]) -> Iterator[Process]:
    workspace = open_home(page[0] / "home")
    add_mlp(workspace)
    endless = page[0] / "endless.py"
    endless.write_text(
        (page[0] / "colours.py").read_text().replace("pixels = ", "\n        while len(payload) > 500: pass\n        pixels = ")
    )
    artifact = ingest(str(page[0] / "colours.onnx"), workspace.store, task=f"{endless}:Colours", trust=True)
    report = {"passed": True, "failures": []}
    workspace.catalog.register("endless", artifact, source="made by tests", recipe="none", report=report, passes=[])
    workspace.catalog.deploy("endless")
    _, key = workspace.keys.create("test", ["infer"])
    workspace.close()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MAASDAM_CUSTOM_SECONDS", "1.5")
        with serving(page[0] / "home", key) as running:
            yield running


def test_the_page_is_true_to_the_letter(page: tuple[Path, list[tuple[str, str]]], served: Process) -> None:
    folder, blocks = page
    env = os.environ | {"MAASDAM_URL": served.url, "MAASDAM_KEY": served.key}
    said = subprocess.run(["bash", "-c", blocks[4][1]], cwd=folder, env=env, capture_output=True, text=True, timeout=60)
    answer, wanted = json.loads(said.stdout), json.loads(blocks[5][1])
    assert answer["usage"].pop("maasdam")["version"] == 1
    assert answer == wanted
    workspace = open_home(folder / "home")
    version = workspace.catalog.resolve("colours")
    workspace.close()
    assert version.task == "custom" and version.report is not None
    assert version.report["accuracy"]["metric"] == "score" and version.report["accuracy"]["candidate"] == 1.0


def test_a_call_that_hangs_leaves_the_others_alone(page: tuple[Path, list[tuple[str, str]]], served: Process) -> None:
    from concurrent.futures import ThreadPoolExecutor

    small = (page[0] / "pictures" / "red.png").read_bytes()
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(out, "PNG")
    big = out.getvalue()
    with served.client() as client, ThreadPoolExecutor(2) as pool:
        hanging = pool.submit(httpx.post, f"{served.url}{PATH}", headers=served.headers, data={"model": "endless"},
                              files={"file": big}, timeout=30)  # fmt: skip
        beside = client.post(PATH, data={"model": "endless"}, files={"file": small})
        assert beside.status_code == 200 and beside.json()["answer"]["colour"] == "red"
        other = client.post(
            "/v2/models/mlp/infer", json={"inputs": [{"name": "x", "shape": [1, 8], "datatype": "FP32", "data": [0] * 8}]}
        )
        assert other.status_code == 200 and not hanging.done()
        late = hanging.result()
        assert late.status_code == 422 and "longer than 1.5 s in its prepare" in late.json()["error"]["message"]
        assert client.post(PATH, data={"model": "endless"}, files={"file": small}).status_code == 200


BAD_REQUESTS: list[tuple[dict[str, Any], int, str]] = [
    ({"json": {"model": "colours"}}, 400, "'input' is missing"),
    ({"json": {"input": 1}}, 400, "'model' is missing"),
    ({"json": {"model": "colours", "input": 1, "top_k": 3}}, 400, "top_k"),
    ({"json": {"model": "colours", "input": "a word"}}, 400, "send a picture as a file"),
    ({"json": {"model": "gone", "input": 1}}, 404, "gone"),
    ({"json": [1]}, 400, "not a JSON object"),
    ({"json": {"model": 7, "input": None}}, 400, "'model'"),
    ({"content": b'{"model": "colours", "input": ' + b"[" * 500 + b"]" * 500 + b"}"}, 400, ""),
    ({"content": b'{"model": "colours", "input": 1' + b"0" * 400 + b"}"}, 400, "send a picture as a file"),
    ({"content": b'{"model": "colours", "input": NaN}'}, 400, ""),
    ({"content": b'{"model": "colours", "input": "\\ud800"}'}, 400, ""),
    ({"content": b"x", "headers": {"content-type": "text/plain"}}, 415, "multipart/form-data"),
    ({"data": {"model": "colours"}, "files": {"file": b""}}, 400, "no picture"),
    ({"data": {"model": "colours"}, "files": {"file": b"\x89PNG cut"}}, 400, "no picture"),
    ({"data": {"model": "colours"}, "files": {"photo": b"x"}}, 400, "no file"),
    ({"data": {"model": "colours", "size": "2"}, "files": {"file": b"x"}}, 400, "size"),
    ({"data": {}, "files": {"file": b"x"}}, 400, "'model'"),
    ({"data": {"model": "mlp"}, "files": {"file": b"x"}}, 400, ""),
]


@pytest.mark.parametrize(("sent", "status", "words"), BAD_REQUESTS)
def test_what_is_wrong_with_a_request_is_said(served: Process, sent: dict[str, Any], status: int, words: str) -> None:
    if "content" in sent and "headers" not in sent:
        sent = sent | {"headers": {"content-type": "application/json"}}
    with served.client() as client:
        answer = client.post(PATH, **sent)
    assert answer.status_code == status, answer.text
    assert words in answer.json()["error"]["message"]


def test_other_doors_name_this_one(served: Process) -> None:
    with served.client() as client:
        wrong = client.post("/v1/images/classifications", data={"model": "colours"}, files={"file": b"x"})
        assert wrong.status_code == 400 and f"use POST {PATH}" in wrong.text
        assert PATH in client.get("/openapi.json").json()["paths"]
        assert httpx.post(f"{served.url}{PATH}", json={"model": "colours", "input": 1}).status_code == 401


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    opened = open_home(tmp_path / "other")
    yield opened
    opened.close()


def test_another_machine_asks_again(page: tuple[Path, list[tuple[str, str]]], workspace: Workspace, tmp_path: Path) -> None:
    folder, _ = page
    there = open_home(folder / "home")
    file = carry.export(there, "colours", tmp_path / "colours.tar")
    there.close()
    with pytest.raises(UnsafeModel, match="Python code of its own task"):
        carry.import_(workspace, file)
    assert carry.import_(workspace, file, trust=True).task == "custom"
    with opened(workspace, "colours:1") as model:
        answer = model.answer(CustomPayload((folder / "pictures" / "red.png").read_bytes()))
    assert isinstance(answer, CustomAnswer) and json.loads(answer.json)["colour"] == "red"


def test_code_is_taken_only_with_trust_and_the_digest_covers_it(
    page: tuple[Path, list[tuple[str, str]]], workspace: Workspace, tmp_path: Path
) -> None:
    model, first = str(page[0] / "colours.onnx"), page[0] / "colours.py"
    with pytest.raises(UnsafeModel, match="--trust"):
        ingest(model, workspace.store, task=f"{first}:Colours")
    changed = tmp_path / "colours.py"
    changed.write_text(first.read_text() + "# changed\n")
    digests = {ingest(model, workspace.store, task=f"{file}:Colours", trust=True).digest for file in (first, first, changed)}
    assert len(digests) == 2
    with pytest.raises(InvalidInput, match="goes with code"):
        ingest(model, workspace.store, task="custom", trust=True)
