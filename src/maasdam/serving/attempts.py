"""Which versions were being loaded when a process died. Knows a folder of notes; never engines or the catalog.

A model that crashes its engine takes its process with it; tried first again at each start, it would do so for ever, and each
worker of a service would die of it in turn. So a note lies in the home while a version loads in a process that answers
requests, one for each load. One that nobody holds any more was left by a process that died: its version is loaded in a process
of its own from then on, until it has loaded there.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from glob import escape
from pathlib import Path
from urllib.parse import quote

from maasdam.artifacts.store import sync

LOOK_SECONDS = 0.02
"""How often is looked whether it is one's turn."""


class LoadAttempts:
    """The notes in one folder. Several processes, and several services, share it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def were_fatal(self, model: str, version: int) -> bool:
        """Whether loading it ended a process, also one that ended a moment ago."""
        return bool(self._left(model, version))

    def forgive(self, model: str, version: int) -> None:
        """It has loaded in a process of its own: it was not to blame."""
        for path in self._left(model, version):
            path.unlink(missing_ok=True)

    @contextmanager
    def noted(self, model: str, version: int) -> Iterator[None]:
        """A note lies in the folder while inside the `with`."""
        self._folder.mkdir(mode=0o700, exist_ok=True)
        path = self._folder / f"{_name(model, version)}.{secrets.token_hex(4)}.json"
        begun = path.with_suffix(".begun")  # nobody may see it without its lock, and take it for one that was left
        handle = os.open(begun, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            begun.rename(path)
            sync(self._folder)
            yield
        finally:
            path.unlink(missing_ok=True)
            os.close(handle)

    @asynccontextmanager
    async def turn(self, model: str, version: int) -> AsyncIterator[None]:
        """Nobody else is inside such a `with` of this version; who dies there leaves it."""
        self._folder.mkdir(mode=0o700, exist_ok=True)
        path = self._folder / f"{_name(model, version)}.turn"
        handle = await _its_turn(path)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
            os.close(handle)

    def _left(self, model: str, version: int) -> list[Path]:
        """The notes of this version that nobody holds."""
        name = _name(model, version)
        paths = [self._folder / f"{name}.json", *self._folder.glob(f"{escape(name)}.*.json")]  # an earlier version's, and ours
        return [path for path in paths if _is_left(path)]


def _name(model: str, version: int) -> str:
    return f"{quote(model, safe='')}:{version}"


async def _its_turn(path: Path) -> int:
    """A handle that has the lock of this file."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            while not _is_locked(handle):  # noqa: ASYNC110  another process lets go of it, and tells nobody
                await asyncio.sleep(LOOK_SECONDS)
            if _is_at(path, handle):
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # who had it before has removed it: others wait at another one


def _is_at(path: Path, handle: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(handle))
    except FileNotFoundError:
        return False


def _is_left(path: Path) -> bool:
    try:
        handle = os.open(path, os.O_RDWR)
    except OSError:
        return False
    try:
        return _is_locked(handle)
    finally:
        os.close(handle)


def _is_locked(handle: int) -> bool:
    """Whether it was free, and is this process's now. It never is on a file system without locks."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
