"""A version travels whole or not at all, and an archive can neither leave its folder nor bring code."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.served import add_mlp, open_home

from maasdam.errors import Conflict, InvalidInput, InvalidModel, MaasdamError, NotFound, StorageFailure
from maasdam.operations import carry
from maasdam.operations.workspace import Workspace


@pytest.fixture
def here(tmp_path: Path):
    with open_home(tmp_path / "here") as workspace:
        add_mlp(workspace)
        yield workspace


@pytest.fixture
def there(tmp_path: Path):
    with open_home(tmp_path / "there") as workspace:
        yield workspace


@pytest.fixture
def archive(here: Workspace, tmp_path: Path) -> Path:
    return carry.export(here, "mlp", tmp_path / "mlp.tar")


def is_untouched(workspace: Workspace) -> bool:
    tmp = list((workspace.store.root / "tmp").iterdir())
    return workspace.store.digests() == [] and workspace.catalog.versions() == [] and tmp == []


def rewritten(path: Path, change: Callable[[tarfile.TarInfo, bytes], tuple[tarfile.TarInfo, bytes] | None], *more) -> Path:
    """The archive with each member changed (None drops it) and `more` appended."""
    out = path.with_name("changed.tar")
    with tarfile.open(path) as old, tarfile.open(out, "w") as new:
        for member in old:
            changed = change(member, old.extractfile(member).read())
            if changed is not None:
                changed[0].size = len(changed[1])
                new.addfile(changed[0], io.BytesIO(changed[1]))
        for member, data in more:
            new.addfile(member, io.BytesIO(data))
    return out


def keep(member: tarfile.TarInfo, data: bytes) -> tuple[tarfile.TarInfo, bytes]:
    return member, data


def facts_changed(**changes: object):
    def change(member: tarfile.TarInfo, data: bytes) -> tuple[tarfile.TarInfo, bytes]:
        return (member, json.dumps(json.loads(data) | changes).encode()) if member.name == "version.json" else (member, data)

    return change


def test_a_version_arrives_with_its_report_and_the_same_digest(here: Workspace, there: Workspace, archive: Path) -> None:
    sent, came = here.catalog.resolve("mlp"), carry.import_(there, archive)
    for fact in ("model", "version", "digest", "task", "format", "engine", "source", "recipe", "passed", "report", "passes"):
        assert getattr(came, fact) == getattr(sent, fact), fact
    there.store.check(came.digest)
    assert there.store.get(came.digest).signature == here.store.get(sent.digest).signature
    assert carry.import_(there, archive).version == 2
    assert carry.import_(there, archive, "other").model == "other"
    assert list((there.store.root / "tmp").iterdir()) == []


def test_the_same_version_gives_the_same_bytes(here: Workspace, archive: Path, tmp_path: Path) -> None:
    assert carry.export(here, "mlp:1", tmp_path / "again.tar").read_bytes() == archive.read_bytes()


def test_export_neither_overwrites_nor_carries_changed_files(here: Workspace, archive: Path, tmp_path: Path) -> None:
    with pytest.raises(Conflict):
        carry.export(here, "mlp", archive)
    with pytest.raises(NotFound):
        carry.export(here, "ghost", tmp_path / "ghost.tar")
    with pytest.raises(StorageFailure):
        carry.export(here, "mlp", tmp_path / "no" / "folder" / "x.tar")
    model = here.store.get(here.catalog.resolve("mlp").digest).path / "model.onnx"
    model.write_bytes(model.read_bytes() + b"!")
    with pytest.raises(InvalidModel, match="changed on disk"):
        carry.export(here, "mlp", tmp_path / "changed.tar")
    assert {path.name for path in tmp_path.glob("*.tar*")} == {"mlp.tar"}


def test_changed_bytes_are_refused(there: Workspace, archive: Path) -> None:
    def flip(member: tarfile.TarInfo, data: bytes) -> tuple[tarfile.TarInfo, bytes]:
        at = len(data) - 10
        return member, data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :] if member.name.endswith(".onnx") else data

    with pytest.raises(InvalidModel):
        carry.import_(there, rewritten(archive, flip))
    assert is_untouched(there)


@pytest.mark.parametrize(
    "name", ["../evil", "/tmp/evil", "artifact/../../evil", "artifact/./evil", "evil", "artifact\\..\\evil", "artifact/a\nb"]
)
def test_a_member_outside_the_export_is_refused(there: Workspace, archive: Path, tmp_path: Path, name: str) -> None:
    member = tarfile.TarInfo(name)
    member.size = 4
    with pytest.raises(InvalidModel, match="no plain file"):
        carry.import_(there, rewritten(archive, keep, (member, b"evil")))
    assert is_untouched(there)
    assert not list(tmp_path.rglob("evil*")) and not Path("/tmp/evil").exists()


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.DIRTYPE]
)
def test_links_and_devices_are_refused(there: Workspace, archive: Path, kind: bytes) -> None:
    member = tarfile.TarInfo("artifact/odd")
    member.type, member.linkname = kind, "/etc/passwd"
    with pytest.raises(InvalidModel, match="no plain file"):
        carry.import_(there, rewritten(archive, keep, (member, b"")))
    assert is_untouched(there)


def test_a_sparse_member_cannot_fill_the_disk(there: Workspace, archive: Path) -> None:
    member = tarfile.TarInfo("artifact/bomb")
    member.pax_headers = {
        "GNU.sparse.major": "1",
        "GNU.sparse.minor": "0",
        "GNU.sparse.name": "artifact/bomb",
        "GNU.sparse.realsize": str(2**50),
    }
    member.size = 512
    with pytest.raises(MaasdamError):
        carry.import_(there, rewritten(archive, keep, (member, b"1\n0\n0\n".ljust(512, b"\0"))))
    assert is_untouched(there)


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_giant_header_is_not_read_into_memory(there: Workspace, tmp_path: Path, kind: bytes) -> None:
    header = tarfile.TarInfo("header")
    header.type, header.size = kind, 4 * 1024**3
    giant = tmp_path / "giant.tar"
    with giant.open("wb") as file:
        file.write(header.tobuf(tarfile.PAX_FORMAT))
        file.truncate(5 * 1024**3)  # a hole: takes no disk, but would all be read
    with pytest.raises(InvalidModel, match="a header of 4,294,967,296 bytes"):
        carry.import_(there, giant)
    assert is_untouched(there)


def test_two_members_of_one_name_are_refused(there: Workspace, archive: Path) -> None:
    member = tarfile.TarInfo("artifact/model.onnx")
    member.size = 4
    with pytest.raises(InvalidModel, match="twice"):
        carry.import_(there, rewritten(archive, keep, (member, b"evil")))
    assert is_untouched(there)


@pytest.mark.parametrize(
    "changes",
    [
        {"digest": "sha256:" + "0" * 64},
        {"digest": 3},
        {"model": "../x"},
        {"model": None},
        {"report": []},
        {"report": {"failures": []}},
        {"report": {"passed": "yes"}},
        {"passes": "none"},
        {"source": {}},
    ],
)
def test_facts_that_make_no_sense_are_refused(there: Workspace, archive: Path, changes: dict) -> None:
    with pytest.raises((InvalidModel, InvalidInput)):
        carry.import_(there, rewritten(archive, facts_changed(**changes)))
    assert is_untouched(there)


@pytest.mark.parametrize("missing", ["version.json", "artifact/artifact.json", "artifact/model.onnx"])
def test_an_archive_with_something_missing_is_refused(there: Workspace, archive: Path, missing: str) -> None:
    with pytest.raises(InvalidModel):
        carry.import_(there, rewritten(archive, lambda member, data: None if member.name == missing else (member, data)))
    assert is_untouched(there)


@pytest.mark.parametrize("text", [b"", b"no archive", b"\0" * 5000, b"\x1f\x8b" + b"x" * 600])
def test_what_is_no_archive_is_refused(there: Workspace, tmp_path: Path, text: bytes) -> None:
    (tmp_path / "x.tar").write_bytes(text)
    with pytest.raises(InvalidModel, match="not an export"):
        carry.import_(there, tmp_path / "x.tar")
    with pytest.raises(NotFound):
        carry.import_(there, tmp_path / "missing.tar")
    assert is_untouched(there)


def test_an_archive_cut_short_anywhere_is_refused(there: Workspace, archive: Path, tmp_path: Path) -> None:
    whole = archive.read_bytes()
    with tarfile.open(archive) as tar:
        end = max(member.offset_data + member.size for member in tar)  # padding follows
    for cut in (100, 512, end // 3, end // 2, end - 100, end - 1):
        (tmp_path / "cut.tar").write_bytes(whole[:cut])
        with pytest.raises(InvalidModel):
            carry.import_(there, tmp_path / "cut.tar")
    assert is_untouched(there)


def test_a_bad_name_is_refused_before_anything_is_kept(there: Workspace, archive: Path) -> None:
    with pytest.raises(InvalidInput):
        carry.import_(there, archive, "No Name")
    assert is_untouched(there)


def as_torchscript(member: tarfile.TarInfo, data: bytes) -> tuple[tarfile.TarInfo, bytes]:
    if member.name == "artifact/artifact.json":
        return member, json.dumps(
            json.loads(data) | {"layout": "torchscript", "format": "pytorch", "engine": "pytorch"}
        ).encode()
    if member.name == "artifact/model.onnx":
        member.name = "artifact/model.pt"
        return member, b"\x80\x02cos\nsystem\nX\x05\x00\x00\x00false\x85R."  # a bare pickle that runs a command
    return member, data


@pytest.mark.parametrize("trust", [False, True])
def test_an_archive_brings_no_code(there: Workspace, archive: Path, trust: bool) -> None:
    with pytest.raises(MaasdamError) as caught:
        carry.import_(there, rewritten(archive, as_torchscript), trust=trust)
    assert caught.value.http_status == 400
    assert is_untouched(there)


@pytest.mark.parametrize(
    "lie",
    [
        {"layout": "ir"},
        {"engine": "openvino-genai"},
        {"engine": "shell"},
        {"format": "zip"},
        {"layout": "keras", "engine": "tensorflow"},
    ],
)
def test_files_must_be_what_the_manifest_says(there: Workspace, archive: Path, lie: dict) -> None:
    def change(member: tarfile.TarInfo, data: bytes) -> tuple[tarfile.TarInfo, bytes]:
        return (
            (member, json.dumps(json.loads(data) | lie).encode()) if member.name.endswith("artifact.json") else (member, data)
        )

    with pytest.raises(InvalidModel):
        carry.import_(there, rewritten(archive, change))
    assert is_untouched(there)
