"""The journal: on disk when `append` returns, whole or not at all."""

from __future__ import annotations

import errno
import itertools
import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from maasdam.accounts import journal
from maasdam.accounts.journal import Journal, discard, is_written, read
from maasdam.errors import ServiceError, StorageFailure


def payloads(folder: Path) -> list[bytes]:
    return [payload for path in sorted(folder.glob("*.journal")) for payload, _ in read(path, 0)]


def only(folder: Path) -> Path:
    (path,) = folder.glob("*.journal")
    return path


def test_what_was_appended_is_read_from_any_frame_on(tmp_path: Path) -> None:
    made = Journal(tmp_path / "j")
    for word in (b"one", b"two" * 1000, b"three"):
        made.append(word)
    ends = [end for _, end in read(only(tmp_path / "j"), 0)]
    assert payloads(tmp_path / "j") == [b"one", b"two" * 1000, b"three"]
    assert [payload for payload, _ in read(only(tmp_path / "j"), ends[0])] == [b"two" * 1000, b"three"]
    assert ends[-1] == journal.length(only(tmp_path / "j")) and not list(read(only(tmp_path / "j"), ends[-1]))
    assert only(tmp_path / "j").stat().st_mode & 0o077 == 0 and (tmp_path / "j").stat().st_mode & 0o077 == 0
    made.close()
    assert ends[-1] == only(tmp_path / "j").stat().st_size, "the room that is left over is given back"


def test_what_a_kill_left_half_written_is_none(tmp_path: Path) -> None:
    made = Journal(tmp_path)
    made.append(b"whole")
    first = journal.length(only(tmp_path))
    made.append(b"cut off")
    made.close()
    whole = only(tmp_path).read_bytes()
    for length in range(len(whole)):
        only(tmp_path).write_bytes(whole[:length])
        assert payloads(tmp_path) == ([b"whole"] if length >= first else [])
        if length > first + 8:  # and where the file had been given room
            only(tmp_path).write_bytes(whole[:length] + bytes(4096))
            assert payloads(tmp_path) == [b"whole"]
    only(tmp_path).write_bytes(whole[:first] + bytes(4096))  # the power went while the file grew
    assert payloads(tmp_path) == [b"whole"]
    discard(only(tmp_path))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("gone", [0, 1, 2])
def test_what_a_kill_left_of_a_long_frame_in_its_room_is_none(tmp_path: Path, gone: int) -> None:
    made = Journal(tmp_path)
    made.append(b"whole")
    first = journal.length(only(tmp_path))
    made.append(os.urandom(2 * 4096))
    made.close()
    data = bytearray(only(tmp_path).read_bytes())
    begin, end = max(gone * 4096, first), min((gone + 1) * 4096, len(data))  # one page of it never came to the disk
    data[begin:end] = bytes(end - begin)
    whole = bytes(data)
    for room in (0, 5000):
        only(tmp_path).write_bytes(whole + bytes(room))
        assert payloads(tmp_path) == [b"whole"]
        assert journal.length(only(tmp_path)) == journal.length(only(tmp_path), first) == first
    discard(only(tmp_path))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("room", [0, 5000])
def test_a_last_frame_that_was_whole_is_kept_where_it_was_changed(tmp_path: Path, room: int) -> None:
    made = Journal(tmp_path)
    made.append(b"first")
    made.append(b"second")
    made.close()
    data = only(tmp_path).read_bytes().replace(b"second", b"secind")
    only(tmp_path).write_bytes(data + bytes(room))
    discard(only(tmp_path))
    assert [path.name.endswith(".journal.damaged") for path in tmp_path.iterdir()] == [True]


def test_a_file_that_is_damaged_is_read_up_to_there_and_kept(tmp_path: Path) -> None:
    made = Journal(tmp_path)
    for word in (b"first", b"second", b"third"):
        made.append(word)
    made.close()
    data = bytearray(only(tmp_path).read_bytes())
    data[data.index(b"second")] ^= 1
    only(tmp_path).write_bytes(data)
    assert payloads(tmp_path) == [b"first"]
    discard(only(tmp_path))
    assert [path.name.endswith(".journal.damaged") for path in tmp_path.iterdir()] == [True]


def test_a_full_disk_is_an_error_leaves_nothing_half_and_room_mends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Journal(tmp_path)
    made.append(b"before")
    real = os.pwrite

    def full(file: int, data: bytes, at: int) -> int:
        if at > 100:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(file, data[:10], at)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(StorageFailure, match="No space left"):
        made.append(b"x" * 200)
    assert payloads(tmp_path) == [b"before"]
    monkeypatch.undo()
    made.append(b"after")
    assert payloads(tmp_path) == [b"before", b"after"]
    made.close()


def test_a_full_disk_is_not_filled_with_files_of_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Journal(tmp_path)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    for _ in range(5):
        with pytest.raises(StorageFailure, match="No space left"):
            made.append(b"x")
    assert not list(tmp_path.iterdir())
    monkeypatch.undo()
    made.append(b"after")
    assert payloads(tmp_path) == [b"after"]
    made.close()


def test_a_sync_that_fails_takes_the_frame_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Journal(tmp_path)
    made.append(b"before")

    def broken(file: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", broken)
    with pytest.raises(StorageFailure, match="Input/output"):
        made.append(b"lost")
    monkeypatch.undo()
    made.append(b"after")
    assert payloads(tmp_path) == [b"before", b"after"]
    made.close()


@pytest.mark.parametrize("is_folder", [False, True])
def test_a_file_that_is_removed_is_made_again_with_all_it_held(tmp_path: Path, is_folder: bool) -> None:
    folder = tmp_path / "j"
    made = Journal(folder)
    made.append(b"one")
    only(folder).unlink()
    if is_folder:
        folder.rmdir()
    made.append(b"two")
    assert payloads(folder) == [b"one", b"two"]
    made.close()


def test_a_file_belongs_to_its_writer_until_that_ends(tmp_path: Path) -> None:
    made, other = Journal(tmp_path), Journal(tmp_path)
    made.append(b"one")
    assert is_written(only(tmp_path))
    other.append(b"two")
    assert len(list(tmp_path.iterdir())) == 2
    made.close()
    other.close()
    assert not any(is_written(path) for path in tmp_path.iterdir())
    with pytest.raises(ServiceError):
        made.append(b"three")


def test_long_files_are_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "FILE_BYTES", 1000)
    made = Journal(tmp_path)
    words = [b"%d" % n * 100 for n in range(30)]
    for word in words:
        made.append(word)
    assert payloads(tmp_path) == words
    assert len(list(tmp_path.iterdir())) > 2 and all(path.stat().st_size < 1500 for path in tmp_path.iterdir())
    made.close()


def test_a_slow_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Journal(tmp_path)
    slow, fast = itertools.count(step=0.002), itertools.count(step=1e-6)
    monkeypatch.setattr(journal, "time", SimpleNamespace(perf_counter=lambda: next(slow), time_ns=time.time_ns))
    for _ in range(32):
        made.append(b"x")
    assert made.is_slow
    monkeypatch.setattr(journal, "time", SimpleNamespace(perf_counter=lambda: next(fast), time_ns=time.time_ns))
    for _ in range(32):
        made.append(b"x")
    assert not made.is_slow
    made.close()


def test_a_disk_is_not_slow_because_python_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Journal(tmp_path)
    times = itertools.accumulate(itertools.cycle((0.0, 0.0001, 0.0, 0.005, 0.0, 0.005)))  # two of three waited for its lock
    monkeypatch.setattr(journal, "time", SimpleNamespace(perf_counter=lambda: next(times), time_ns=time.time_ns))
    for _ in range(32):
        made.append(b"x")
    assert not made.is_slow
    made.close()
