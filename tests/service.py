"""A real service in its own process, and the command line in its own process, for tests."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.waiting import wait_until


@dataclass(frozen=True)
class Running:
    """A service: its address, a key with every scope, its process."""

    address: str
    key: str
    process: subprocess.Popen[bytes]
    log: Path

    def get(self, path: str, timeout: float = 30) -> tuple[int, bytes]:
        """Status and body of a GET with the key."""
        request = urllib.request.Request(self.address + path, headers={"Authorization": f"Bearer {self.key}"})
        try:
            with urllib.request.urlopen(request, timeout=timeout) as reply:
                return int(reply.status), reply.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()


def maasdam(home: Path, *words: str | Path, expect: int = 0) -> Any:
    """Run `maasdam WORDS --json` and return the document; fails the test on another exit status than expected."""
    done = subprocess.run(
        [sys.executable, "-m", "maasdam", *map(str, words), "--json"],
        capture_output=True,
        text=True,
        env=os.environ | {"MAASDAM_HOME": str(home)},
    )
    assert done.returncode == expect, f"maasdam {' '.join(map(str, words))}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr, done.stderr
    return json.loads(done.stdout) if done.stdout.strip() else done.stderr


def free_port() -> int:
    """A port nobody listens on just now."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@contextmanager
def service(home: Path, *models: str, flags: tuple[str, ...] = (), seconds: float = 120) -> Iterator[Running]:
    """`maasdam serve` on a free port, ready with `models`; stopped at the end."""
    scopes = ("--scope", "infer", "--scope", "deploy", "--scope", "admin")
    secret = maasdam(home, "keys", "create", "test", *scopes)["secret"]
    port = free_port()
    log = home / f"serve-{port}.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "maasdam", "serve", "--port", str(port), *flags],
            stdout=out,
            stderr=subprocess.STDOUT,
            env=os.environ | {"MAASDAM_HOME": str(home)},
        )
    running = Running(f"http://127.0.0.1:{port}", secret, process, log)
    try:
        paths = ["/v2/health/live", *(f"/v2/models/{model}/ready" for model in models)]
        wait_until(lambda: process.poll() is not None or all(_is_ok(running, path) for path in paths), seconds, log.read_text)
        assert process.poll() is None, f"it ended:\n{log.read_text()[-4000:]}"
        yield running
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _is_ok(running: Running, path: str) -> bool:
    try:
        return running.get(path)[0] == 200
    except (urllib.error.URLError, OSError):
        return False
