"""Where this home's service listens, and what lets its operator in. Knows one small file; never what is asked with it.

serve --announced--> HOME/service.json (mode 0600: url, pid, secret) --whereabouts--> status, on the same machine

Who can read the file is the operator: the secret in it is an administrator's for as long as that service lives.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

FILE = "service.json"


@dataclass(frozen=True, slots=True)
class Address:
    """A service that runs, or ran until it was killed."""

    url: str
    pid: int
    secret: str


@contextmanager
def announced(home: Path, url: str) -> Iterator[Address]:
    """Say in `home` that this process listens at `url` while the context lasts. Of several services the newest is kept."""
    address = Address(url, os.getpid(), secrets.token_urlsafe(32))
    path, new = home / FILE, home / f".{FILE}.{os.getpid()}"
    with suppress(FileNotFoundError):
        new.unlink()
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:  # noqa: PTH123  # with its mode from the start
        json.dump({"url": address.url, "pid": address.pid, "secret": address.secret}, file)
    new.replace(path)
    try:
        yield address
    finally:
        if whereabouts(home) == address:
            path.unlink(missing_ok=True)


def whereabouts(home: Path) -> Address | None:
    """The service last announced in `home`; None where there is none, or the file is not this user's to read."""
    try:
        data = json.loads((home / FILE).read_text())
        return Address(str(data["url"]), int(data["pid"]), str(data["secret"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
