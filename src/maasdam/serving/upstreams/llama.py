"""GGUF files, run by llama.cpp's server in a process of its own, which is asked as any upstream is. Knows that process.

It listens on this machine alone, under a key that is made for it and kept in memory; it ends with whoever started it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import psutil

from maasdam.core import Artifact
from maasdam.engines.processor import available_threads
from maasdam.errors import Crashed, InvalidModel, LimitExceeded, MissingExtra
from maasdam.serving.upstreams.place import Upstream
from maasdam.settings import Settings

log = logging.getLogger("maasdam.serving")

NAME = "model"
MOST_CONTEXT = 8192
"""Tokens that its cache has room for, of all texts that are written at once: a file may speak of millions."""
STREAMS = 8
"""Texts written at once; others wait."""
END_SECONDS = 5.0


class CacheRoom:
    """Its cache's tokens, which all texts share; where they are used up all of them fail. What one could come to is kept for
    it, or it waits in turn. Used in one event loop."""

    def __init__(self, tokens: int) -> None:
        self._all = self._free = tokens
        self._turn = asyncio.Lock()
        self._is_freed = asyncio.Event()

    @asynccontextmanager
    async def kept(self, tokens: int) -> AsyncIterator[None]:
        """For so many, or for one text alone."""
        tokens = min(tokens, self._all)
        async with self._turn:
            while self._free < tokens:
                self._is_freed.clear()
                await self._is_freed.wait()
            self._free -= tokens
        try:
            yield
        finally:
            self._free += tokens
            self._is_freed.set()


class LlamaProcess:
    """One file, opened. Thread-safe."""

    def __init__(self, process: subprocess.Popen[bytes], url: str, key: str, context: int) -> None:
        self.room = CacheRoom(context)
        self.upstream = Upstream(f"{url}/v1", NAME)
        self.key = key
        self._process = process
        self._is_closed = False

    @property
    def memory_bytes(self) -> int | None:
        """What it holds."""
        with suppress(psutil.Error):
            return int(psutil.Process(self._process.pid).memory_info().rss)
        return None

    def kill(self) -> None:
        """End what hangs; `when_over` tells of it."""
        self._process.kill()

    def when_over(self, tell: Callable[[str], None]) -> None:
        """`tell`, from a thread of its own, how it ended, unless it was closed."""

        def wait() -> None:
            status = self._process.wait()
            if not self._is_closed:
                tell(f"llama.cpp's process ended with {f'signal {-status}' if status < 0 else f'status {status}'}")

        threading.Thread(target=wait, name="llama.cpp", daemon=True).start()

    def close(self) -> None:
        """End it."""
        self._is_closed = True
        self._process.terminate()
        try:
            self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


async def opened(artifact: Artifact, settings: Settings) -> LlamaProcess:
    """The artifact's file in a process of its own, which answers. Raises MissingExtra, InvalidModel, LimitExceeded, Crashed."""
    from maasdam.sources.gguf import FILE  # it reads headers, and nothing of it is needed before

    seconds, key = settings.load_seconds, secrets.token_urlsafe(32)
    context = min(int(artifact.settings["context_length"]), MOST_CONTEXT)
    asked = {
        "path": str(artifact.path / FILE), "name": NAME, "key": key, "context": context, "streams": STREAMS,
        "threads": settings.threads or available_threads(), "memory_bytes": settings.host_memory_bytes,
    }  # fmt: skip
    process = await asyncio.to_thread(_started)
    assert process.stdin is not None and process.stdout is not None
    try:
        process.stdin.write(json.dumps(asked).encode() + b"\n")
        process.stdin.flush()
        async with asyncio.timeout(seconds):
            line = await asyncio.to_thread(process.stdout.readline)
    except BaseException as error:
        process.kill()
        process.wait()
        if isinstance(error, TimeoutError):
            raise LimitExceeded(f"llama.cpp did not open the file within {seconds:,.0f} s (setting load_seconds)") from None
        if isinstance(error, OSError):
            raise Crashed("llama.cpp's process ended before it was told what to open") from error
        raise
    said = json.loads(line) if line else {"error": None, "url": None}
    if said["url"] is None:
        status = process.wait()
        if said["error"] is None:
            raise Crashed(f"llama.cpp died of the file (status {status})")
        if said["error"].startswith(("ImportError", "ModuleNotFoundError")):
            raise MissingExtra("xllamacpp is not installed; run: pip install 'maasdam[gguf]'")
        raise InvalidModel(f"llama.cpp does not open the file: {said['error']}")
    return LlamaProcess(process, said["url"], key, context)


def _started() -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("llama_child.py"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
