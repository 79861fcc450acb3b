"""The longest time that one request's reading keeps everybody else from Python's lock.

    python -m benchmarks.parse_holds [--rounds 5] [CASE ...]

The whole application runs in this process on the models that ship with the project, without sockets; a second thread
notes the gaps between its own turns. Such a gap is a hold of the lock, or the machine's doing: so each body is sent
several times and the least of the longest gaps counts. Each body is the worst of its kind that is let in.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.served import add_mlp, open_home

from maasdam.api.http import application
from maasdam.operations.service import open_service
from maasdam.operations.workspace import Workspace
from maasdam.sources import ingest

STARTERS = Path(__file__).parents[1] / "starters"
TASKS = {"bard": ("text", "text-generation"), "digits": ("images", "image-classification")}
CHAT, COMPLETIONS, IMAGES, SPEECH = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/images/classifications",
    "/v1/audio/transcriptions",
)
INFER = "/v2/models/mlp/infer"
JSON, FORM = b"application/json", b"multipart/form-data; boundary=x"
PIECE = 64 * 1024
"""A body comes in pieces of this size, as from a socket."""

Case = tuple[str, bytes, Callable[[], bytes]]


def _chat(messages: bytes) -> Callable[[], bytes]:
    return lambda: b'{"model":"bard","max_tokens":1,"messages":[' + messages + b"]}"


def _prompt(prompt: bytes) -> Callable[[], bytes]:
    return lambda: b'{"model":"bard","max_tokens":1,"prompt":' + prompt + b"}"


def _tensor(shape: bytes, data: bytes, kind: bytes = b"FP32") -> Callable[[], bytes]:
    return lambda: b'{"inputs":[{"name":"x","shape":[%b],"datatype":"%b","data":[%b]}]}' % (shape, kind, data)


def _form(parts: bytes) -> Callable[[], bytes]:
    return lambda: parts + b"\r\n--x--\r\n"


def _part(head: bytes, body: bytes = b"") -> bytes:
    return b"--x\r\nContent-Disposition: form-data; " + head + b"\r\n\r\n" + body + b"\r\n"


FILE = b'name="file"; filename="a"'
CASES: dict[str, Case] = {
    "66,000 empty messages": (CHAT, JSON, _chat(b",".join([b"{}"] * 66_000))),
    "22,000 messages": (CHAT, JSON, _chat(b",".join([b'{"role":"user","content":"hi"}'] * 22_000))),
    "22,000 messages of parts": (
        CHAT,
        JSON,
        _chat(b",".join([b'{"role":"user","content":[{"type":"text","text":"hi"}]}'] * 15_000)),
    ),
    "190,000 numbers for messages": (CHAT, JSON, _chat(b",".join([b"1"] * 190_000))),
    "65,000 unknown fields": (
        CHAT,
        JSON,
        _chat(b'{"role":"user","content":"a"}],' + b",".join(b'"k%d":1' % i for i in range(65_000)) + b',"z":['),
    ),
    "8 MB of text": (COMPLETIONS, JSON, _prompt(b'"' + b"hello " * 1_350_000 + b'"')),
    "8 MB of escapes": (COMPLETIONS, JSON, _prompt(b'"' + b"\\u00e9" * 1_350_000 + b'"')),
    "8 MB of text in a message": (CHAT, JSON, _chat(b'{"role":"user","content":"' + b"hello " * 1_350_000 + b'"}')),
    "190,000 tokens": (COMPLETIONS, JSON, _prompt(b"[" + b",".join([b"5"] * 190_000) + b"]")),
    "190,000 long numbers": (COMPLETIONS, JSON, _prompt(b"[" + b",".join([b"0.1234567890123456789e-17"] * 190_000) + b"]")),
    "15,000 numbers of 499 digits": (COMPLETIONS, JSON, _prompt(b"[" + b",".join([b"9" * 499] * 15_000) + b"]")),
    "15,000 fractions of 499 digits": (COMPLETIONS, JSON, _prompt(b"[" + b",".join([b"1." + b"9" * 497] * 15_000) + b"]")),
    "190,000 fractions of 24 digits": (COMPLETIONS, JSON, _prompt(b"[" + b",".join([b"1." + b"9" * 22] * 190_000) + b"]")),
    "25,000 numbers of 40 digits": (COMPLETIONS, JSON, _prompt(b"[" + b",".join([b"1." + b"9" * 38] * 25_000) + b"]")),
    "39,000 objects": (COMPLETIONS, JSON, _prompt(b"[" + b",".join(b'{"k%07d":{}}' % i for i in range(39_000)) + b"]")),
    "39,000 objects for messages": (CHAT, JSON, _chat(b",".join(b'{"k%07d":{}}' % i for i in range(39_000)))),
    "95,000 lists in lists": (COMPLETIONS, JSON, _prompt(b"[" + b",".join([b"[[]]"] * 95_000) + b"]")),
    "2,600,000 lists": (COMPLETIONS, JSON, _prompt(b"[" + b",".join([b"[]"] * 2_600_000) + b"]")),
    "8 MB of brackets": (COMPLETIONS, JSON, lambda: b"[" * 8_000_000),
    "32 MB of base64": (IMAGES, JSON, lambda: b'{"model":"digits","image":"' + b"QUJD" * 8_000_000 + b'"}'),
    "16 MB of whole numbers": (INFER, JSON, _tensor(b"987500,8", b",".join([b"7"] * 7_900_000))),
    "16 MB of long numbers": (INFER, JSON, _tensor(b"125000,8", b",".join([b"0.1234567890123"] * 1_000_000))),
    "16 MB of numbers of 499 digits": (INFER, JSON, _tensor(b"4000,8", b",".join([b"1." + b"9" * 497] * 32_000))),
    "16 MB of one number": (INFER, JSON, _tensor(b"1", b"1." + b"9" * 16_000_000)),
    "16 MB of lists": (INFER, JSON, _tensor(b"5200000,0", b",".join([b"[]"] * 5_200_000))),
    "16 MB of strings": (INFER, JSON, _tensor(b"5200000", b",".join([b'""'] * 5_200_000), b"BYTES")),
    "16 MB of one string": (INFER, JSON, _tensor(b"1", b'"' + b"a" * 16_000_000 + b'"', b"BYTES")),
    "1,500,000 parameters": (
        INFER,
        JSON,
        lambda: b'{"parameters":{' + b",".join(b'"k%d":1' % i for i in range(1_500_000)) + b'},"inputs":[]}',
    ),
    "20,000 fields": (
        INFER,
        JSON,
        lambda: (
            b'{"inputs":[{"name":"x","shape":[1,8],"datatype":"FP32","data":['
            + b"7," * 100_000
            + b'7],"parameters":{'
            + b",".join(b'"%d":1' % i for i in range(9_900))
            + b"}}]}"
        ),
    ),
    "60 MB of line ends in a file": (
        IMAGES,
        FORM,
        _form(_part(b'name="model"', b"digits") + _part(FILE, b"\r\n--" * 15_000_000)),
    ),
    "60 MB in a file": (SPEECH, FORM, _form(_part(b'name="model"', b"digits") + _part(FILE, b"abc\n" * 15_000_000))),
    "a million parts": (IMAGES, FORM, _form(_part(b'name="a"') * 1_000_000)),
    "60 MB of a part's headers": (SPEECH, FORM, _form(b"--x\r\n" + b"a: b\r\n" * 10_000_000)),
    "60 MB of one header": (SPEECH, FORM, _form(b"--x\r\na: " + b"b" * 60_000_000)),
    "60 MB of a field": (SPEECH, FORM, _form(_part(b'name="model"', b"x" * 60_000_000))),
}


async def _send(app: Any, case: Case, body: bytes) -> int:
    """One request; its status."""
    path, kind, _ = case
    status: list[int] = []
    sent = 0

    async def receive() -> dict[str, Any]:
        nonlocal sent
        await asyncio.sleep(0)
        piece = body[sent : sent + PIECE]
        sent += PIECE
        return {"type": "http.request", "body": piece, "more_body": sent < len(body)}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            status.append(message["status"])

    headers = [(b"host", b"localhost"), (b"content-type", kind), (b"content-length", b"%d" % len(body))]
    scope = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b"", "headers": headers}
    scope |= {"http_version": "1.1", "scheme": "http", "server": ("localhost", 80), "client": ("127.0.0.1", 1), "root_path": ""}
    await app(scope, receive, send)
    return status[0]


class Watcher:
    """A thread that asks for the lock again and again; `longest` is the longest it waited, in seconds."""

    def __init__(self) -> None:
        self.longest = 0.0
        self._is_over = False
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        last = time.perf_counter()
        while not self._is_over:
            time.sleep(0.0002)
            now = time.perf_counter()
            self.longest = max(self.longest, now - last)
            last = now


def _open(home: Path) -> Workspace:
    workspace = open_home(home)
    add_mlp(workspace)
    for name, (folder, task) in TASKS.items():
        artifact = ingest(str(STARTERS / folder / "model"), workspace.store, task=task)
        report = {"passed": True, "failures": []}
        workspace.catalog.register(name, artifact, source="starters", recipe="none", report=report, passes=[])
        workspace.catalog.deploy(name)
    return workspace


async def _measure(workspace: Workspace, names: list[str], rounds: int) -> None:
    service = open_service(workspace)
    app = application(service, has_keys=False)
    await service.start()
    while not service.router.is_ready:  # noqa: ASYNC110  it has no event to wait for
        await asyncio.sleep(0.05)
    watcher = Watcher()
    print(f"{'body':32} {'bytes':>12} {'status':>6} {'hold ms':>8} {'reading s':>9}")
    for name in names:
        body = CASES[name][2]()
        gc.collect()
        held, took, status = [], [], 0
        for _ in range(rounds):
            await asyncio.sleep(0.05)
            watcher.longest, began = 0.0, time.perf_counter()
            status = await _send(app, CASES[name], body)
            took.append(time.perf_counter() - began)
            await asyncio.sleep(0.01)
            held.append(watcher.longest)
        print(f"{name:32} {len(body):>12,} {status:>6} {min(held) * 1e3:>8.1f} {min(took):>9.2f}", flush=True)
    await service.stop()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help="default: all")
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    sys.setswitchinterval(0.0005)  # else Python's own five milliseconds are added to every gap
    with tempfile.TemporaryDirectory() as home, _open(Path(home)) as workspace:
        asyncio.run(_measure(workspace, asked.cases or list(CASES), asked.rounds))


if __name__ == "__main__":
    main()
