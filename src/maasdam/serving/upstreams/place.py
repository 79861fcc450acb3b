"""Where a model of another server is found. Knows an address and names; never asks anybody."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import httpx

from maasdam.errors import InvalidInput, InvalidModel

UPSTREAM: Final = "upstream"
"""What its artifact's format, layout and engine are called."""
LLAMA: Final = "llama.cpp"
"""The engine of GGUF files: its own server, in a process that is asked as an upstream is."""
ELSEWHERE = (UPSTREAM, LLAMA)
"""Engines that are asked over HTTP."""
FILE = "upstream.json"
LONGEST = 512
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_KEY = re.compile(r"[!-~]{1,4096}")


@dataclass(frozen=True, slots=True)
class Upstream:
    """One model of one server."""

    url: str
    """What stands before /chat/completions: http://host:8000/v1."""
    model: str
    """What the server calls it."""
    key_env: str | None = None
    """The environment variable that holds the key, in the process that serves; None: it asks for none."""

    def key(self, environ: Mapping[str, str] = os.environ) -> str | None:
        """The key, as it is now. Raises InvalidInput where the variable holds none that could be sent."""
        if self.key_env is None:
            return None
        value = environ.get(self.key_env, "").strip()
        if not value:
            raise InvalidInput(f"the environment variable {self.key_env} is not set where it is needed; set it to the key")
        if not _KEY.fullmatch(value):
            raise InvalidInput(f"the environment variable {self.key_env} holds no key: it has blanks or is no ASCII")
        return value

    def write(self, folder: Path) -> None:
        """Into a folder that becomes its artifact."""
        (folder / FILE).write_text(json.dumps(asdict(self), indent=1))


def read_upstream(folder: Path) -> Upstream:
    """Of an artifact's folder. Raises InvalidModel."""
    try:
        place = Upstream(**json.loads((folder / FILE).read_text()))
        return Upstream(checked_url(place.url), place.model, checked_key_env(place.key_env))
    except (OSError, ValueError, TypeError, InvalidInput) as error:
        raise InvalidModel(f"its {FILE} can't be read; deploy it again with --upstream") from error


def checked_url(url: str) -> str:
    """The address as it is kept, /v1 where it names no path. Raises InvalidInput: what is wrong, without what may be secret."""
    try:
        parts = urlsplit(url)
        port = parts.port
        host = httpx.URL(url).host  # some names can be no host's
    except (ValueError, httpx.InvalidURL) as error:
        raise InvalidInput("the upstream's address can't be read; send one such as http://host:8000/v1") from error
    if parts.scheme not in ("http", "https") or not host or port == 0:
        raise InvalidInput("the upstream's address is no http:// or https:// with a host; send one such as http://host:8000/v1")
    if parts.username is not None or parts.password is not None:
        raise InvalidInput("the upstream's address holds a name or password; give the key by --key-env")
    if parts.query or parts.fragment or len(url) > LONGEST or not url.isascii() or not url.isprintable() or " " in url:
        raise InvalidInput("the upstream's address may hold host, port and path, in ASCII, and nothing behind them")
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/') or '/v1'}"


def checked_key_env(name: str | None) -> str | None:
    """The name of the variable. Raises InvalidInput, which does not repeat it: it may be the key itself."""
    if name is not None and not _NAME.fullmatch(name):
        raise InvalidInput("--key-env takes the name of an environment variable, never the key itself: letters, digits and _")
    return name


def chosen(name: str, wanted: str | None, models: Mapping[str, Mapping[str, Any]]) -> str:
    """Which of a server's models is meant: the wanted one, else that of our name, else its only one. Raises InvalidInput."""
    if wanted is None and (name in models or len(models) != 1):
        wanted = name
    if wanted is None:
        return next(iter(models))
    if wanted not in models:
        some = ", ".join(f"'{model:.100}'" for model in list(models)[:10]) or "none"
        raise InvalidInput(f"the upstream has no model '{wanted}'; it has: {some}. Name one with --upstream-model")
    return wanted
