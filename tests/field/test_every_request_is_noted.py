"""Every request leaves one line, one count, and, where a valid key was refused, a row; and it can be found again."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.api.conftest import Running, own_service, wait_for  # noqa: F401  fixtures
from tests.served import add_mlp, open_home, serving

from maasdam.accounts.ledger import NO_MODEL
from maasdam.telemetry import logs
from maasdam.telemetry.logs import LogFile, configure, lines_of, logging_to

FIELDS = ["request_id", "trace_id", "method", "route", "status", "seconds", "key_id", "model", "version"]
TENSOR = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}]}
TRACE = "0af7651916cd43dd8448eb211c80319c"
CHAT: dict[str, Any] = {"model": "text", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}


class Lines(logging.Handler):
    """The request lines, read."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[dict[str, Any]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines += [json.loads(line) for line in str(record.msg).splitlines()]


@pytest.fixture
def lines() -> Any:
    logger = logging.getLogger(logs.REQUESTS)
    handler = Lines()
    logger.addHandler(handler)
    before = logger.level
    logger.setLevel(logging.INFO)
    yield handler.lines
    logger.setLevel(before)
    logger.removeHandler(handler)


def counts(client: httpx.Client) -> dict[str, float]:
    """maasdam_requests_total by status."""
    found: dict[str, float] = {}
    for status, value in re.findall(r'maasdam_requests_total\{.*?status="(\d+)".*?\} (\S+)', client.get("/metrics").text):
        found[status] = found.get(status, 0) + float(value)
    return found


@pytest.mark.parametrize(
    ("ask", "status", "route", "model", "version", "reason", "has_row"),
    [
        ({"url": "/v2/models/doubles/infer", "json": TENSOR}, 200, "/v2/models/{model}/infer", "doubles", 1, None, True),
        ({"url": "/v1/chat/completions", "json": CHAT}, 200, "/v1/chat/completions", "text", 1, None, True),
        ({"url": "/v1/chat/completions", "json": CHAT | {"stream": True}}, 200, "/v1/chat/completions", "text", 1, None, True),
        ({"method": "GET", "url": "/v1/models/text"}, 200, "/v1/models/{model}", "text", None, None, False),
        ({"method": "HEAD", "url": "/health"}, 200, "/health", None, None, None, False),
        ({"method": "HEAD", "url": "/v1/models/text"}, 200, "/v1/models/{model}", "text", None, None, False),
        (
            {"url": "/v1/chat/completions", "json": CHAT | {"temperature": 9}},
            *(400, "/v1/chat/completions", "text", None, "invalid_value", True),
        ),
        (
            {"url": "/v2/models/doubles/infer", "content": b"{"},
            *(400, "/v2/models/{model}/infer", "doubles", None, "invalid_request", True),
        ),
        (
            {"url": "/v2/models/doubles/infer", "json": {"inputs": [TENSOR["inputs"][0] | {"name": "z"}]}},
            *(400, "/v2/models/{model}/infer", "doubles", 1, "invalid_tensor", True),
        ),
        (
            {"url": "/v1/chat/completions", "json": CHAT, "headers": {"Authorization": "Bearer nope"}},
            *(401, "/v1/chat/completions", None, None, "invalid_api_key", False),
        ),
        ({"method": "GET", "url": "/admin/keys"}, 403, "/admin/keys", None, None, "insufficient_scope", True),
        ({"method": "GET", "url": "/nowhere"}, 404, "/nowhere", None, None, "not_found", True),
        (
            {"url": "/v1/chat/completions", "json": CHAT | {"model": "ghost"}},
            *(404, "/v1/chat/completions", "ghost", None, "model_not_found", True),
        ),
        ({"method": "PATCH", "url": "/v1/models"}, 405, "/v1/models", None, None, "method_not_allowed", True),
        (
            {"url": "/v1/chat/completions", "content": b"{" + b" " * 3_000_000},
            *(413, "/v1/chat/completions", None, None, "too_large", True),
        ),
        (
            {"url": "/v1/chat/completions", "data": {"model": "text"}},
            *(415, "/v1/chat/completions", None, None, "unsupported_media_type", True),
        ),
    ],
)
def test_a_request_is_one_line_one_count_and_perhaps_a_row(
    own_service: Running,
    lines: list[dict[str, Any]],
    ask: dict[str, Any],
    status: int,
    route: str,
    model: str | None,
    version: int | None,
    reason: str | None,
    has_row: bool,
) -> None:
    with own_service.client() as chief, own_service.client(own_service.key) as client:
        before = counts(chief)
        given = {"method": "POST", "headers": {}} | ask
        given["headers"] = {"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"} | given["headers"]
        answer = client.request(**given)
        assert answer.status_code == status, answer.text
        request_id = answer.headers["x-request-id"]
        wait_for(lambda: any(line["request_id"] == request_id for line in lines))
        (line,) = (line for line in lines if line["request_id"] == request_id)
        assert [name for name in line if name in FIELDS] == FIELDS and line["event"] == "request"
        told = tuple(line[name] for name in ("method", "route", "status", "model", "version", "trace_id"))
        assert told == (given["method"], route, status, model, version, TRACE) and line.get("reason") == reason
        assert (line["parent_id"], line["span_id"]) == ("b7ad6b7169203331", request_id[-16:])
        is_known = status != 401 and route != "/health"
        assert (line["key_id"] is not None) == is_known and line["seconds"] > 0
        after = counts(chief)
        grown = {code: after[code] - before.get(code, 0) for code in after if after[code] != before.get(code, 0)}
        grown["200"] = grown.get("200", 0) - 1  # the asking for the metrics
        assert {code: more for code, more in grown.items() if more} == {str(status): 1}
        refusals = f'maasdam_refusals_total{{reason="{reason}",status="{status}"}} 1.0'
        assert (refusals in chief.get("/metrics").text) == (reason is not None)
        if has_row:
            wait_for(lambda: bool(own_service.rows(request_id)))  # a refusal waits for its row no longer than a second
        rows = own_service.rows(request_id)
        assert [row.status for row in rows] == ([status] if has_row else [])
        if has_row and status >= 400:
            assert (rows[0].price, rows[0].items, rows[0].caller) == (None, 0, "tests") and rows[0].error_code is not None


def test_a_malformed_request_is_noted_too(own_service: Running, lines: list[dict[str, Any]]) -> None:
    with own_service.client() as chief:
        for given in (b"rubbish\r\n\r\n", b"GET /v1/models HTTP/1.1\r\n\r\n"):
            with socket.create_connection(("127.0.0.1", own_service.port), timeout=5) as it:
                it.sendall(given)
                assert it.recv(1000).startswith(b"HTTP/1.1 400 ")
        wait_for(lambda: len([line for line in lines if line.get("reason") == "malformed_request"]) == 2)
        assert 'maasdam_refusals_total{reason="malformed_request",status="400"} 2.0' in chief.get("/metrics").text


def test_a_client_that_goes_away_is_noted(own_service: Running, lines: list[dict[str, Any]]) -> None:
    own_service.engines["text"].delay = 0.05
    body = json.dumps(CHAT | {"max_tokens": 50}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {own_service.key}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    before = own_service.engines["text"].given
    with socket.create_connection(("127.0.0.1", own_service.port), timeout=5) as it:
        it.sendall(head.encode() + body)
        wait_for(lambda: own_service.engines["text"].given > before + 1)
    wait_for(lambda: any(line["status"] == 499 for line in lines))
    (line,) = (line for line in lines if line["status"] == 499)
    assert (line["model"], line["version"]) == ("text", 1)
    wait_for(lambda: len(own_service.rows(line["request_id"])) == 1)
    assert own_service.rows(line["request_id"])[0].error_code == "client_closed"


def test_names_that_callers_make_up_are_one_row_of_usage(own_service: Running) -> None:
    with own_service.client() as chief:
        for i in range(20):
            assert chief.post("/v1/chat/completions", json=CHAT | {"model": f"made-up-{i}"}).status_code == 404
            assert chief.post(f"/v2/models/made-up-{i}/infer", json=TENSOR).status_code == 404
        assert chief.post("/v1/chat/completions", json=CHAT | {"temperature": 9}).status_code == 400
        rows = {row["name"]: row["requests"] for row in chief.get("/admin/usage").json()["usage"]}
        assert rows == {NO_MODEL: 40, "text": 1}


def test_a_request_is_found_by_its_id(tmp_path: Path) -> None:
    """A real service: its log is kept in the home, as JSON to the last line, and nothing is said of migrations."""
    home = tmp_path / "home"
    home.mkdir()
    workspace = open_home(home)
    add_mlp(workspace)
    record, key = workspace.keys.create("tests", ["infer", "admin"])
    workspace.close()
    row = {"name": "x", "shape": [1, 8], "datatype": "FP32", "data": [0] * 8}
    with serving(home, key) as running, running.client() as client:
        good = client.post("/v2/models/mlp/infer", json={"inputs": [row]}).headers["x-request-id"]
        bad = client.post("/v2/models/mlp/infer", json={"inputs": []}).headers["x-request-id"]
        for request_id, status in ((good, 200), (bad, 400)):
            wait_for(lambda path=f"/admin/requests/{request_id}": client.get(path).json().get("log"))
            found = client.get(f"/admin/requests/{request_id}").json()
            assert found["ledger"]["status"] == status and found["ledger"]["key_id"] == record.id
            assert [line["status"] for line in found["log"] if line["event"] == "request"] == [status]
            command = [sys.executable, "-m", "maasdam", "requests", request_id]
            env = os.environ | {"MAASDAM_HOME": str(home)}
            told = json.loads(subprocess.run([*command, "--json"], capture_output=True, text=True, env=env, check=True).stdout)
            assert told == found
        shown = subprocess.run(command, capture_output=True, text=True, env=env, check=True).stdout
        assert bad in shown and "invalid_request" in shown
        for wrong in ("0" * 32, "..%2f..", "x" * 300):
            assert client.get(f"/admin/requests/{wrong}").status_code == 404
        subprocess.run([*command[:-1], "0" * 32], capture_output=True, env=env, check=False)
        running.stop()
    log = home / "logs" / "maasdam.log"
    assert log.stat().st_mode & 0o777 == 0o600
    for text in (log.read_text(), running.log.read_text()):
        assert all(json.loads(line) for line in text.splitlines()) and "alembic" not in text


def test_the_log_is_bounded_and_searched_through_its_older_files(tmp_path: Path) -> None:
    file = LogFile(tmp_path / "logs" / "a.log", 2000, 2)
    with logging_to("info", file):
        for i in range(100):
            logging.getLogger("maasdam.test").info("line %d", i, extra={"request_id": f"{i:032x}"})
    assert sorted(path.name for path in file.path.parent.iterdir()) == ["a.log", "a.log.1", "a.log.2"]
    assert all(path.stat().st_size <= 2000 for path in file.path.parent.iterdir())
    assert [line["event"] for line in lines_of(f"{99:032x}", file)] == ["line 99"]
    older = json.loads(file.path.with_name("a.log.2").read_text().splitlines()[0])["request_id"]
    assert len(lines_of(older, file)) == 1 and lines_of(f"{0:032x}", file) == []


SEVERAL = """
import logging, sys
from pathlib import Path
from maasdam.telemetry.logs import LogFile, logging_to
with logging_to("info", LogFile(Path(sys.argv[1]), 20_000, 100)):
    print("ready", flush=True)
    sys.stdin.readline()
    for n in range(2000):
        logging.getLogger("maasdam.test").info("%s %d", sys.argv[2], n)
"""


def test_two_services_that_keep_one_log_lose_no_line(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    both = [subprocess.Popen([sys.executable, "-c", SEVERAL, str(path), name], **pipes) for name in "ab"]
    for one in both:
        assert one.stdout.readline() == "ready\n"
    for one in both:
        one.stdin.write("go\n")
        one.stdin.flush()
    for one in both:
        one.communicate(timeout=60)
    kept = [*tmp_path.iterdir()]
    told = [json.loads(line)["event"] for file in kept for line in file.read_text().splitlines()]
    assert sorted(told) == sorted(f"{name} {n}" for name in "ab" for n in range(2000))
    older = [file.stat().st_size for file in kept if file != path]
    assert len(older) > 5 and all(19_000 < size < 21_000 for size in older), "one of them rotates, not each"


def test_a_log_that_was_moved_is_begun_anew(tmp_path: Path) -> None:
    file = LogFile(tmp_path / "a.log", 0, 0)
    with logging_to("info", file):
        logging.getLogger("maasdam.test").info("one")
        file.path.rename(tmp_path / "b.log")
        logging.getLogger("maasdam.test").info("two")
    assert [json.loads((tmp_path / name).read_text())["event"] for name in ("a.log", "b.log")] == ["two", "one"]


LIBRARY = """
import os, sys, logging
from pathlib import Path
from maasdam.telemetry.logs import logging_to
with logging_to("info", None, Path(sys.argv[1])):
    os.write(2, b"[W:onnxruntime] \\x1b[31mslow\\nhalf a line")
    os.write(2, b" and its end\\n" + b"x" * 300_000)  # more than a pipe holds
    import warnings; warnings.warn("old")
    if len(sys.argv) > 2: os.write(2, b"terminate called"); os._exit(1)
print("after", file=sys.stderr)
"""


def test_what_libraries_print_is_in_the_log_as_json(tmp_path: Path) -> None:
    between = tmp_path / "logs" / "a.stderr"

    def run(*more: str) -> list[str]:
        command = [sys.executable, "-c", LIBRARY, str(between), *more]
        return subprocess.run(command, capture_output=True, text=True).stderr.splitlines()

    *lines, after = run()
    told = [json.loads(line)["event"] for line in lines]
    assert told[:2] == ["[W:onnxruntime] \x1b[31mslow", "half a line and its end"] or "old" in told[0]
    assert sum(len(event) for event in told if set(event) == {"x"}) == 300_000 and after == "after"
    assert any("UserWarning: old" in event for event in told)
    run("crash")
    (left,) = between.parent.iterdir()
    with left.open("rb") as writer:
        fcntl.flock(writer, fcntl.LOCK_EX)  # as if its process were alive
        assert "terminate called" not in "".join(run()) and b"terminate called" in left.read_bytes()
    assert "terminate called" in "".join(run()), "a crash's last words are told at the next start"
    assert list(between.parent.iterdir()) == []


def test_a_log_that_can_not_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    env = os.environ | {"MAASDAM_HOME": str(tmp_path), "MAASDAM_LOG_FILE": str(tmp_path / "file" / "a.log")}
    done = subprocess.run([sys.executable, "-m", "maasdam", "serve", "--port", "0"], capture_output=True, text=True, env=env)
    assert done.returncode == 1 and "log_file" in done.stderr and "Traceback" not in done.stderr


def test_the_level_of_the_log_is_that_of_its_lines(tmp_path: Path) -> None:
    file = LogFile(tmp_path / "a.log", 0, 0)
    before = logging.getLogger().handlers
    configure("warning", file=file)
    logging.getLogger("maasdam.test").info("quiet")
    logging.getLogger("maasdam.test").warning("loud")
    logging.getLogger().handlers = before
    assert [json.loads(line)["event"] for line in file.path.read_text().splitlines()] == ["loud"]
