"""Which versions were being loaded when a service died. Knows a folder of notes; never engines or the catalog.

A model that crashes its engine takes its process with it; tried first again at each start, it would do so for ever. So a
note lies in the home while a version loads in a service's own process. One that nobody holds any more was left by a service
that died: its version is loaded in a process of its own from then on, until it has loaded there.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

from maasdam.artifacts.store import sync
from maasdam.errors import InvalidModel

DeployedAt = Callable[[str], datetime | None]
"""When a model was deployed last; None: it is not."""


class LoadAttempts:
    """The notes in one folder. Several services may share it."""

    def __init__(self, folder: Path, deployed_at: DeployedAt) -> None:
        self._folder = folder
        self._deployed_at = deployed_at
        self._fatal: dict[str, datetime] = {}
        """Versions whose loading ended a service, and when it began."""
        for path in sorted(folder.glob("*.json")):
            noted = _left_behind(path)
            if noted is not None:
                self._fatal[path.name] = noted

    def were_fatal(self, model: str, version: int) -> bool:
        """Whether loading it ended a service."""
        return _name(model, version) in self._fatal

    def forgive(self, model: str, version: int) -> None:
        """It has loaded in a process of its own: it was not to blame."""
        if self._fatal.pop(_name(model, version), None) is not None:
            (self._folder / _name(model, version)).unlink(missing_ok=True)

    def refuse(self, model: str, version: int) -> None:
        """Raise InvalidModel for a version whose loading ended a service, unless it was deployed anew since."""
        name = _name(model, version)
        began = self._fatal.get(name)
        if began is None:
            return
        deployed = self._deployed_at(model)
        if deployed is not None and deployed > began:
            self._fatal.pop(name, None)
            return
        raise InvalidModel(
            f"the service died while it loaded {model}:{version}, at {began:%Y-%m-%d %H:%M} UTC, so it is not tried again; "
            f"to try it all the same: maasdam deploy {model}"
        )

    @contextmanager
    def noted(self, model: str, version: int) -> Iterator[None]:
        """A note lies in the folder while inside the `with`."""
        path = self._folder / _name(model, version)
        self._folder.mkdir(mode=0o700, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            with suppress(OSError):  # another replica, or another service, loads the same
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.truncate(handle, 0)
            os.pwrite(handle, json.dumps({"began": datetime.now(UTC).isoformat()}).encode(), 0)
            os.fsync(handle)
            sync(self._folder)
            yield
        finally:
            path.unlink(missing_ok=True)
            os.close(handle)


def _name(model: str, version: int) -> str:
    return f"{quote(model, safe='')}:{version}.json"


def _left_behind(path: Path) -> datetime | None:
    """When what the note tells of began, if nobody holds it any more."""
    try:
        handle = os.open(path, os.O_RDWR)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        began = datetime.fromisoformat(json.loads(os.pread(handle, 4096, 0))["began"])
    except BlockingIOError:
        return None
    except (OSError, ValueError, KeyError, TypeError):  # it died while it wrote the note
        return datetime.fromtimestamp(os.fstat(handle).st_mtime, UTC)
    else:
        return began
    finally:
        os.close(handle)
