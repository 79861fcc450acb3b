"""The store: whole artifacts or none, whoever is killed and however full the disk."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from maasdam.artifacts.store import Store
from maasdam.core import Artifact, Signature, TensorSpec
from maasdam.errors import InvalidModel, NotFound, StorageFailure

SIGNATURE = Signature((TensorSpec("x", "float32", (None, 3), "NC", (0.0, 1.0)),), (TensorSpec("y", "float32", (None, 2)),))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def files(folder: Path, **contents: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in contents.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return folder


def add(store: Store, folder: Path, **changes) -> Artifact:
    facts = {
        "format": "onnx",
        "layout": "onnx",
        "task": "image-classification",
        "engine": "onnxruntime",
        "signature": SIGNATURE,
    }
    return store.add(folder, **(facts | changes))


def leftovers(store: Store) -> list[str]:
    return [path.name for path in (store.root / "tmp").iterdir()]


def test_what_was_added_reads_back(store: Store, tmp_path: Path) -> None:
    made = add(store, files(tmp_path / "m", model="abc", sub__weights="defg"), settings={"threads": 2}, parents=("sha256:x",))
    found = Store(store.root).get(made.digest)
    assert found == made
    assert (found.signature, found.settings, found.parents, found.size_bytes) == (SIGNATURE, {"threads": 2}, ("sha256:x",), 7)
    assert (found.path / "sub" / "weights").read_text() == "defg"
    assert (found.path / "artifact.json").is_file()
    store.check(made.digest)


def test_a_folder_of_the_workspace_is_moved_and_any_other_is_copied(store: Store, tmp_path: Path) -> None:
    mine = files(tmp_path / "mine", model="abc")
    add(store, mine)
    assert (mine / "model").read_text() == "abc" and not (mine / "artifact.json").exists()
    with store.workspace() as work:
        made = add(store, files(work / "out", model="other"))
        assert not (work / "out").exists()
    assert made.path.is_dir() and leftovers(store) == []


def test_an_artifact_of_the_store_can_be_added_under_other_facts(store: Store, tmp_path: Path) -> None:
    first = add(store, files(tmp_path / "m", model="abc"))
    second = add(store, first.path, settings={"precision": "bf16"})
    assert first.digest != second.digest
    store.check(first.digest), store.check(second.digest)


def test_the_digest_covers_names_bytes_and_facts_but_not_parents(store: Store, tmp_path: Path) -> None:
    base = add(store, files(tmp_path / "a", model="abc"))
    assert add(store, files(tmp_path / "b", model="abc"), parents=("sha256:y",)) == base
    others = [
        add(store, files(tmp_path / "c", model="abd")),
        add(store, files(tmp_path / "d", modem="abc")),
        add(store, files(tmp_path / "a"), task=None),
        add(store, files(tmp_path / "a"), engine="openvino"),
        add(store, files(tmp_path / "a"), settings={"threads": 1}),
        add(store, files(tmp_path / "a"), signature=None),
    ]
    assert len({base.digest, *(other.digest for other in others)}) == 7


def test_links_and_special_files_are_refused(store: Store, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("s")
    for number, make in enumerate((lambda p: p.symlink_to(secret), lambda p: p.symlink_to(tmp_path), os.mkfifo)):
        folder = files(tmp_path / f"m{number}", model="abc")
        make(folder / "odd")
        with pytest.raises(InvalidModel, match="odd"):
            add(store, folder)
    assert store.digests() == [] and leftovers(store) == []


def test_nothing_is_not_an_artifact(store: Store, tmp_path: Path) -> None:
    for folder in (files(tmp_path / "empty"), tmp_path / "missing"):
        with pytest.raises(InvalidModel, match="nothing to keep"):
            add(store, folder)


def test_content_that_is_not_the_expected_is_refused(store: Store, tmp_path: Path) -> None:
    digest = add(store, files(tmp_path / "a", model="abc")).digest
    assert add(store, tmp_path / "a", expect=digest).digest == digest
    with pytest.raises(InvalidModel, match="not what they were"):
        add(store, files(tmp_path / "b", model="abd"), expect=digest)
    assert store.digests() == [digest]


@pytest.mark.parametrize(
    "digest", ["", "sha256:", "sha256:abc", "md5:" + "a" * 64, "sha256:" + "A" * 64, "sha256:" + "../" * 21 + "a"]
)
def test_what_is_no_digest_is_not_found(store: Store, digest: str) -> None:
    with pytest.raises(NotFound):
        store.get(digest)


def test_changed_bytes_are_noticed(store: Store, tmp_path: Path) -> None:
    made = add(store, files(tmp_path / "m", model="abc"))
    (made.path / "model").write_text("abd")
    with pytest.raises(InvalidModel, match="changed on disk"):
        store.check(made.digest)


def test_a_pass_finds_what_it_made_until_that_is_gone(store: Store, tmp_path: Path) -> None:
    made = add(store, files(tmp_path / "m", model="abc"))
    for key in ("a" * 64, "any/../key: at all", "k" * 500):
        assert store.cached(key) is None
        store.remember(key, made, {"operators": 3})
        assert store.cached(key) == (made, {"operators": 3})
    assert store.collect(set()) == [made.digest]
    assert store.cached("a" * 64) is None
    assert sorted(path.parent for path in store.root.rglob("*.json")) == [store.root / "cache"] * 3


def test_collect_keeps_what_it_is_told_to(store: Store, tmp_path: Path) -> None:
    made = [add(store, files(tmp_path / str(n), model=str(n))).digest for n in range(4)]
    assert set(store.collect(set(made[:2]))) == set(made[2:])
    assert set(store.digests()) == set(made[:2]) and leftovers(store) == []
    with pytest.raises(NotFound, match="build it again"):
        store.get(made[3])


def test_a_lock_is_held_by_one_thread_at_a_time(store: Store) -> None:
    order: list[str] = []

    def second() -> None:
        with store.lock("key"):
            order.append("second")

    with store.lock("key"), store.lock("another"):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(0.2)
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]


def test_whether_a_lock_is_held_can_be_asked(store: Store) -> None:
    assert store.is_locked("key") is None
    with store.lock("key"):
        assert store.is_locked("key") is True
    assert store.is_locked("key") is False


def test_a_workspace_goes_whatever_happens(store: Store) -> None:
    with pytest.raises(ZeroDivisionError), store.workspace() as work:
        (work / "x").write_text("x")
        raise ZeroDivisionError
    assert leftovers(store) == []


ADDER = """
import os, signal, sys
from pathlib import Path
from maasdam.artifacts.store import Store
root, source, step = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
calls = 0
def counted(call):
    def wrapper(*words, **more):
        global calls
        calls += 1
        if calls == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*words, **more)
    return wrapper
os.fsync, os.rename, os.mkdir, os.open = counted(os.fsync), counted(os.rename), counted(os.mkdir), counted(os.open)
artifact = Store(root).add(source, format="onnx", layout="onnx", task=None, engine="onnxruntime", signature=None)
Store(root).remember("key", artifact, {})
print(artifact.digest)
"""


def test_killed_at_any_step_there_is_a_whole_artifact_or_none(tmp_path: Path) -> None:
    source = files(tmp_path / "m", model="abc" * 10_000, sub__weights="d" * 100_000)
    whole = add(Store(tmp_path / "whole"), source, task=None, signature=None).digest
    for step in range(1, 100):
        root = tmp_path / f"store{step}"
        child = subprocess.run(
            [sys.executable, "-c", ADDER, root, source, str(step)], capture_output=True, text=True, timeout=120
        )
        store = Store(root)  # sweeps
        assert leftovers(store) == [], step
        assert store.digests() in ([], [whole]), step
        for digest in store.digests():
            store.check(digest)
        assert store.cached("key") is None or store.cached("key")[0].digest == whole
        assert add(store, source, task=None, signature=None).digest == whole  # and the next one can do it
        if child.returncode == 0:
            assert step > 15 and child.stdout.strip() == whole
            return
        assert child.returncode == -9, child.stderr
    raise AssertionError("never finished")


def test_work_of_the_living_is_left_alone(tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from maasdam.artifacts.store import Store\n"
    code += "with Store(Path(sys.argv[1])).workspace() as work:\n    print(work, flush=True); sys.stdin.read()"
    child = subprocess.Popen(
        [sys.executable, "-c", code, tmp_path / "store"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    work = Path(child.stdout.readline().strip())
    assert work.is_dir()
    store = Store(tmp_path / "store")
    assert work.is_dir()
    child.kill()
    child.wait()
    with store.workspace() as mine:
        Store(tmp_path / "store")
        assert not work.exists() and mine.is_dir()
    assert leftovers(store) == []


def test_processes_that_add_the_same_content_at_once_get_the_same_artifact(tmp_path: Path) -> None:
    source = files(tmp_path / "m", model="abc" * 100_000)
    code = ADDER.replace("artifact = ", "sys.stdin.readline()\nartifact = ")
    children = [
        subprocess.Popen(
            [sys.executable, "-c", code, tmp_path / "store", source, "0"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    answers = []
    for child in children:  # all are waiting at the line before they add
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()
    answers = [child.communicate(timeout=120) for child in children]
    store = Store(tmp_path / "store")
    assert {out.strip() for out, _ in answers} == set(store.digests()), answers
    assert len(store.digests()) == 1 and leftovers(store) == []
    store.check(store.digests()[0])


def test_a_full_disk_is_said_so_and_leaves_nothing(tmp_path: Path) -> None:
    source = files(tmp_path / "m", model="a" * 300_000, other="b")
    code = """
import resource, sys
from pathlib import Path
from maasdam.artifacts.store import Store
from maasdam.errors import StorageFailure
store = Store(Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # no file may grow beyond: the same road as a full disk
try:
    store.add(Path(sys.argv[2]), format="onnx", layout="onnx", task=None, engine="onnxruntime", signature=None)
except StorageFailure as error:
    print(error)
"""
    run = subprocess.run([sys.executable, "-c", code, tmp_path / "store", source], capture_output=True, text=True, timeout=60)
    assert "is full; nothing was kept" in run.stdout, run.stderr
    store = Store(tmp_path / "store")
    assert store.digests() == [] and leftovers(store) == []


@pytest.mark.parametrize("way", ["shutil.copyfile(sys.argv[2], work / 'x')", "torch_like(work / 'x')"])
def test_a_disk_that_fills_while_a_pass_writes_is_said_so(tmp_path: Path, way: str) -> None:
    (tmp_path / "big").write_bytes(bytes(300_000))
    code = f"""
import errno, os, resource, shutil, sys
from pathlib import Path
from maasdam.artifacts.store import Store
from maasdam.errors import StorageFailure
def torch_like(path):
    try:
        path.write_bytes(bytes(300_000))
    except OSError as error:
        raise RuntimeError("[enforce fail at inline_container.cc:659] . unexpected pos 64 vs 0") from error
store = Store(Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    with store.workspace() as work:
        {way}
except StorageFailure as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "store", tmp_path / "big"], capture_output=True, text=True)
    assert "is full; nothing was kept" in done.stdout, done.stderr
    assert leftovers(Store(tmp_path / "store")) == []


def test_a_store_that_cannot_be_made_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageFailure, match="file"):
        Store(tmp_path / "file" / "store")
