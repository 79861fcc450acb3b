"""gRPC under bytes that no client of good will sends: frames made by hand, bombs, floods, slow and silent callers.

Whatever comes, neighbours are answered, nothing grows beyond its limits, and what a valid key sent has its line and its row.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import random
import socket
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tests.api.conftest import Running, wait_for
from tests.api.test_grpc import OK, Door, X, tensors, text

from maasdam.api import oip_grpc_call, oip_proto
from maasdam.api.oip_grpc import SERVICE
from maasdam.errors import Overloaded

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST, SETTINGS, PING, GOAWAY, WINDOW, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
INFER = f"/{SERVICE}/ModelInfer"


@pytest.fixture
def door(own_service: Running) -> Iterator[Door]:
    """A gRPC door before a fake service of its own: 2 MB messages, 3 seconds."""
    it = Door(own_service)
    yield it
    it.channel.close()
    it.stop(0).result(10)


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes((kind, flags)) + struct.pack(">I", stream) + payload


def packed(headers: list[tuple[str, str]]) -> bytes:
    """HPACK, nothing indexed, nothing shortened."""

    def text(value: str) -> bytes:
        raw = value.encode()
        if len(raw) < 127:
            return bytes((len(raw),)) + raw
        rest, out = len(raw) - 127, b"\x7f"
        while rest > 127:
            out += bytes((rest & 127 | 128,))
            rest >>= 7
        return out + bytes((rest,)) + raw

    return b"".join(b"\x00" + text(name) + text(value) for name, value in headers)


def headers(door: Door, *more: tuple[str, str], path: str = INFER, key: str | None = None) -> list[tuple[str, str]]:
    secret = door.running.admin_key if key is None else key
    usual = [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "x")]
    return [*usual, ("te", "trailers"), ("content-type", "application/grpc"), ("authorization", f"Bearer {secret}"), *more]


def message(data: bytes, is_packed: bool = False, claims: int | None = None) -> bytes:
    return struct.pack(">BI", is_packed, len(data) if claims is None else claims) + data


class Wire:
    """One connection, by hand."""

    def __init__(self, door: Door) -> None:
        host, port = door.address.split(":")
        self.socket = socket.create_connection((host, int(port)), timeout=10)
        self.socket.sendall(PREFACE + frame(SETTINGS, 0, 0, b"") + frame(WINDOW, 0, 0, struct.pack(">I", 1 << 30)))

    def send(self, *frames: bytes) -> None:
        with contextlib.suppress(ConnectionError):  # it may have hung up
            self.socket.sendall(b"".join(frames))

    def read(self, seconds: float = 5.0) -> bytes:
        """What comes until a stream or the connection ends, or nothing comes any more."""
        self.socket.settimeout(seconds)
        told = b""
        with contextlib.suppress(ConnectionError, TimeoutError):
            while data := self.socket.recv(65536):
                told += data
                if any(self._ends(kind, flags) for kind, flags in _frames(told)):
                    break
        return told

    @staticmethod
    def _ends(kind: int, flags: int) -> bool:
        return kind in (RST, GOAWAY) or (kind in (HEADERS, DATA) and bool(flags & 1))

    def close(self) -> None:
        self.socket.close()


def _frames(data: bytes) -> Iterator[tuple[int, int]]:
    place = 0
    while place + 9 <= len(data):
        size = int.from_bytes(data[place : place + 3], "big")
        yield data[place + 3], data[place + 4]
        place += 9 + size


def answers(door: Door) -> None:
    """A neighbour is answered."""
    assert door.call("ModelInfer", tensors())[0] is OK


def asked(door: Door, *frames: bytes, seconds: float = 5.0) -> bytes:
    wire = Wire(door)
    try:
        wire.send(*frames)
        return wire.read(seconds)
    finally:
        wire.close()


def row_of(door: Door, status: int) -> Any:
    wait_for(lambda: door.running.newest_row() is not None and door.running.newest_row().status == status)
    return door.running.newest_row()


def test_a_call_made_by_hand_is_answered(door: Door) -> None:
    data = tensors().SerializeToString()
    told = asked(door, frame(HEADERS, 4, 1, packed(headers(door))), frame(DATA, 1, 1, message(data)))
    assert struct.pack("<2f", 2.0, 4.0) in told


def test_a_bomb_takes_no_more_than_a_message_may(door: Door) -> None:
    pack = zlib.compressobj(1, zlib.DEFLATED, 31)
    bomb = b"".join(pack.compress(bytes(1 << 20)) for _ in range(512)) + pack.flush()
    assert len(bomb) < 4_000_000
    process = psutil.Process()
    before = peak = process.memory_info().rss
    wire = Wire(door)
    wire.send(frame(HEADERS, 4, 1, packed(headers(door, ("grpc-encoding", "gzip")))))
    data = message(bomb[:2_000_000], is_packed=True, claims=min(len(bomb), 2_000_000))
    sent = [frame(DATA, 0, 1, data[i : i + 16_000]) for i in range(0, len(data), 16_000)]
    for one in sent:
        wire.send(one)
        peak = max(peak, process.memory_info().rss)
    until = time.monotonic() + 1.0
    while time.monotonic() < until:
        peak = max(peak, process.memory_info().rss)
        time.sleep(0.005)
    wire.close()
    assert peak - before < 64 << 20, f"{(peak - before) >> 20} MB"
    answers(door)
    small = zlib.compressobj(6, zlib.DEFLATED, 31)
    packed_small = small.compress(tensors(x=X).SerializeToString()) + small.flush()
    told = asked(
        door,
        frame(HEADERS, 4, 1, packed(headers(door, ("grpc-encoding", "gzip")))),
        frame(DATA, 1, 1, message(packed_small, is_packed=True)),
    )
    assert struct.pack("<2f", 2.0, 4.0) in told, "what is packed and small is read"


def test_what_grpc_itself_refuses_has_its_line_and_its_row(door: Door, caplog: Any) -> None:
    with caplog.at_level(logging.INFO, "maasdam.requests"):
        code, says = door.call("ModelInfer", bytes(2_500_000))
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED, says
        row = row_of(door, 499)
        wait_for(lambda: row.request_id in caplog.text)
    assert (row.endpoint, row.error_code, row.caller) == ("grpc:ModelInfer", "no_message", "chief")
    line = next(json.loads(part) for part in caplog.messages[-1].split("\n") if row.request_id in part)
    assert (line["status"], line["reason"]) == (499, "no_message")
    claimed = asked(door, frame(HEADERS, 4, 1, packed(headers(door))), frame(DATA, 0, 1, message(b"x", claims=(1 << 32) - 1)))
    assert claimed, "it is not waited for"
    answers(door)


def test_who_sends_no_message_is_told_in_time(door: Door) -> None:
    told = asked(door, frame(HEADERS, 5, 1, packed(headers(door))))
    assert b"no message" in told
    assert row_of(door, 400).error_code == "invalid_request"
    began = time.monotonic()
    told = asked(
        door, frame(HEADERS, 4, 1, packed(headers(door))), frame(DATA, 0, 1, message(b"abc", claims=900)), seconds=10.0
    )
    assert b"did not arrive within 3 s" in told and time.monotonic() - began < 9
    assert row_of(door, 408).error_code == "request_timeout"
    assert door.door.calls.open == 0
    answers(door)


def test_without_a_key_a_message_is_not_waited_for(door: Door) -> None:
    told = asked(
        door, frame(HEADERS, 4, 1, packed(headers(door, key="wrong"))), frame(DATA, 0, 1, message(b"x", claims=1_000_000))
    )
    assert b"grpc-status" in told or b"\x0216" in told, "UNAUTHENTICATED is 16"
    two = headers(door, ("authorization", f"Bearer {door.running.admin_key}"), key="wrong")
    data = message(tensors().SerializeToString())
    assert struct.pack("<2f", 2.0, 4.0) not in asked(door, frame(HEADERS, 4, 1, packed(two)), frame(DATA, 1, 1, data))


HEAD = [(":method", "POST"), (":scheme", "http"), (":path", INFER), (":authority", "x")]
ODD: dict[str, list[tuple[str, str]]] = {
    "wrong content type": [*HEAD, ("te", "trailers"), ("content-type", "application/json")],
    "no content type": [*HEAD, ("te", "trailers")],
    "GET": [(":method", "GET"), *HEAD[1:], ("te", "trailers"), ("content-type", "application/grpc")],
    "no path": [HEAD[0], HEAD[1], HEAD[3], ("content-type", "application/grpc")],
    "two paths": [*HEAD, (":path", f"/{SERVICE}/ServerLive"), ("te", "trailers"), ("content-type", "application/grpc")],
    "a pseudo header behind": [("te", "trailers"), ("content-type", "application/grpc"), *HEAD],
    "an unknown pseudo header": [*HEAD, (":secret", "1"), ("content-type", "application/grpc")],
    "capitals": [*HEAD, ("Content-Type", "application/grpc"), ("TE", "trailers")],
    "hop by hop": [*HEAD, ("connection", "close"), ("transfer-encoding", "chunked"), ("content-type", "application/grpc")],
    "lines in a value": [*HEAD, ("content-type", "application/grpc"), ("x-request-id", "abcde\r\nx: y")],
    "a wrong length": [*HEAD, ("content-length", "1"), ("te", "trailers"), ("content-type", "application/grpc")],
    "an unknown packing": [*HEAD, ("grpc-encoding", "zstd"), ("te", "trailers"), ("content-type", "application/grpc")],
    "a senseless timeout": [*HEAD, ("grpc-timeout", "99999999999H"), ("te", "trailers"), ("content-type", "application/grpc")],
}


def test_odd_headers_are_refused_or_read_as_they_should_be(door: Door) -> None:
    data = message(tensors().SerializeToString())
    for name, odd in ODD.items():
        sent = packed([*odd, ("authorization", f"Bearer {door.running.key}")])
        pieces = [sent[i : i + 16_000] for i in range(0, len(sent), 16_000)]
        frames = [frame(HEADERS, 4 if len(pieces) == 1 else 0, 1, pieces[0])]
        frames += [frame(CONTINUATION, 4 if i == len(pieces) - 1 else 0, 1, piece) for i, piece in enumerate(pieces) if i]
        told = asked(door, *frames, frame(DATA, 1, 1, data), seconds=2.0)
        assert b"abcde\r\n" not in told and b"Traceback" not in told, name
        assert told.count(struct.pack("<2f", 2.0, 4.0)) <= 1, name
        if name in ("GET", "no path"):
            assert struct.pack("<2f", 2.0, 4.0) not in told, name
        answers(door)


@pytest.mark.parametrize("flood", [[("x", "y" * 30_000)], [(f"x{i}", "y") for i in range(3000)]], ids=["one", "many"])
def test_metadata_is_bounded(door: Door, flood: list[tuple[str, str]]) -> None:
    options = [("grpc.max_metadata_size", 1 << 20), ("grpc.absolute_max_metadata_size", 1 << 20)]
    with grpc.insecure_channel(door.address, options) as channel:
        call = channel.unary_unary(INFER, request_serializer=bytes)
        with pytest.raises(grpc.RpcError) as caught:
            call(tensors().SerializeToString(), metadata=[*door.key, *flood], timeout=10)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    answers(door)


def test_a_path_that_is_no_text_ends_nothing(door: Door) -> None:
    head = packed(headers(door)).replace(b"ModelInfer", b"Model\xff\xd1\x00\xfe\xff")
    for _ in range(3):
        told = asked(door, frame(HEADERS, 4, 1, head), frame(DATA, 1, 1, message(b"")))
        assert b"not offered here" in told
        answers(door)


def test_random_frames_harm_nobody(door: Door) -> None:
    chance = random.Random(11)
    good = frame(HEADERS, 4, 1, packed(headers(door))) + frame(DATA, 1, 1, message(tensors().SerializeToString()))

    def broken(i: int) -> bytes:
        if i % 3 == 0:
            kinds = [
                frame(chance.randrange(11), chance.randrange(256), chance.randrange(5), chance.randbytes(chance.randrange(40)))
            ]
            return b"".join(kinds * chance.randrange(1, 5))
        data = bytearray(good)
        for _ in range(chance.randrange(1, 8)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        return bytes(data if i % 3 == 1 else data[: chance.randrange(1, len(data))])

    for i in range(150):
        wire = Wire(door)
        wire.send(broken(i))
        if i % 10 == 0:
            wire.read(0.05)
        wire.close()
    answers(door)
    wait_for(lambda: door.door.calls.in_flight == 0 and door.door.calls.open == 0 and door.door.calls.held == 0)


def test_streams_that_are_reset_at_once_leave_nothing(door: Door) -> None:
    wire = Wire(door)
    head, data = packed(headers(door)), message(tensors().SerializeToString())
    for i in range(300):
        stream = 2 * i + 1
        wire.send(frame(HEADERS, 4, stream, head), frame(DATA, 1, stream, data), frame(RST, 0, stream, struct.pack(">I", 8)))
    answers(door)
    wire.close()
    wait_for(lambda: door.door.calls.open == 0 and door.door.calls.in_flight == 0 and door.door.calls.held == 0)


def test_idle_streams_are_many_and_bounded(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oip_grpc_call, "MOST_CALLS", 100)
    wire = Wire(door)
    head = packed(headers(door, path=f"/{SERVICE}/ModelStreamInfer"))
    for i in range(100):
        wire.send(frame(HEADERS, 4, 2 * i + 1, head))
    wait_for(lambda: door.door.calls.open == 100)
    code, says = door.call("ModelInfer", tensors())
    assert code is grpc.StatusCode.UNAVAILABLE and "100 calls are open already" in says
    wire.close()
    wait_for(lambda: door.door.calls.open == 0)
    answers(door)


def test_who_reads_nothing_of_a_stream_holds_nobody_up(door: Door) -> None:
    wire = Wire(door)
    head = packed(headers(door, path=f"/{SERVICE}/ModelStreamInfer"))
    wire.send(frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 0)), frame(HEADERS, 4, 1, head))  # a window of no bytes
    wire.send(*[frame(DATA, 0, 1, message(text(max_tokens=3).SerializeToString())) for _ in range(20)])
    answers(door)
    wire.close()
    wait_for(lambda: door.door.calls.open == 0 and door.door.calls.in_flight == 0)


def test_watchers_who_read_nothing_keep_nobody_from_hearing_and_are_few(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oip_grpc_call, "MOST_STRANGERS", 20)
    watch = [(":method", "POST"), (":scheme", "http"), (":path", "/grpc.health.v1.Health/Watch"), (":authority", "x")]
    head = packed([*watch, ("te", "trailers"), ("content-type", "application/grpc")])
    wire = Wire(door)
    wire.send(frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 0)))  # a window of no bytes
    for i in range(19):
        wire.send(frame(HEADERS, 4, 2 * i + 1, head), frame(DATA, 1, 2 * i + 1, message(b"")))
    wait_for(lambda: door.door.calls.strangers == 19)
    told = health_pb2_grpc.HealthStub(door.channel).Watch(health_pb2.HealthCheckRequest(service=SERVICE), timeout=20)
    assert next(told).status == 1
    health = health_pb2_grpc.HealthStub(door.channel)
    with pytest.raises(grpc.RpcError) as caught:
        next(health.Watch(health_pb2.HealthCheckRequest(), timeout=10))
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE and "without a key" in caught.value.details()
    assert health.Check(health_pb2.HealthCheckRequest(), timeout=10).status == 1, "who asks once is not kept from it"
    assert door.call("ServerReady", metadata=())[1].ready
    answers(door)  # a key is asked for by this one
    stopped = door.stop(5)
    assert next(told).status == 2, "not serving"
    stopped.result(10)
    wire.close()


def test_probes_that_stay_make_room_for_those_that_do_not(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a message, and with one whose answer is not read."""
    monkeypatch.setattr(oip_grpc_call, "MOST_PROBES", 10)
    monkeypatch.setattr(oip_grpc_call, "MOST_CALLS", 10)
    wire = Wire(door)
    wire.send(frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 0)))  # a window of no bytes
    paths = (f"/{SERVICE}/ServerLive", "/grpc.health.v1.Health/Check")
    for i in range(30):
        usual = [(":method", "POST"), (":scheme", "http"), (":path", paths[i % 2]), (":authority", "x")]
        wire.send(frame(HEADERS, 4, 2 * i + 1, packed([*usual, ("te", "trailers"), ("content-type", "application/grpc")])))
        if i % 4 == 3:
            wire.send(frame(DATA, 1, 2 * i + 1, message(b"")))
    wait_for(lambda: len(door.door.calls.probes) == 10)
    for _ in range(12):
        assert health_pb2_grpc.HealthStub(door.channel).Check(health_pb2.HealthCheckRequest(), timeout=10).status == 1
        assert door.call("ServerLive", metadata=())[1].live
    answers(door)
    wire.close()
    wait_for(lambda: not door.door.calls.probes)


def test_a_probe_that_makes_room_hears_of_it(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oip_grpc_call, "MOST_PROBES", 10)
    is_over = threading.Event()

    def nothing() -> Iterator[bytes]:
        is_over.wait(60)
        yield from ()

    paths = (f"/{SERVICE}/ServerLive", "/grpc.health.v1.Health/Check")
    calls = [door.channel.stream_stream(paths[i % 2])(nothing(), timeout=60) for i in range(30)]
    try:
        wait_for(lambda: sum(call.is_active() for call in calls) == 10)
        codes = {call.code() for call in calls if not call.is_active()}
        assert codes == {grpc.StatusCode[Overloaded.grpc_status]}
    finally:
        is_over.set()


def test_a_probe_for_what_is_not_there_is_logged_as_it_was_answered(door: Door, caplog: Any) -> None:
    with caplog.at_level(logging.INFO, "maasdam.requests"):
        with pytest.raises(grpc.RpcError) as caught:
            health_pb2_grpc.HealthStub(door.channel).Check(health_pb2.HealthCheckRequest(service="none"), timeout=10)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND and "no such service" in caught.value.details()
        wait_for(lambda: "grpc:Check" in caplog.text)
    line = next(json.loads(part) for part in caplog.messages[-1].split("\n") if "grpc:Check" in part)
    assert (line["status"], line["reason"]) == (404, "not_found")


@pytest.mark.parametrize("name", ["ModelInfer", "ModelStreamInfer"])
def test_who_goes_away_while_its_key_is_looked_up_has_its_line(
    door: Door, monkeypatch: pytest.MonkeyPatch, caplog: Any, name: str
) -> None:
    monkeypatch.setattr(door.door.calls.gate, "remembered", lambda secret, scope: None)
    monkeypatch.setattr(door.door.calls.gate, "admit", lambda secret: asyncio.sleep(20))
    with caplog.at_level(logging.INFO, "maasdam.requests"):
        call = door.method(name, shape="stream_stream")(iter([tensors()]), metadata=door.key, timeout=20)
        wait_for(lambda: door.door.calls.open == 1)
        call.cancel()
        wait_for(lambda: f"grpc:{name}" in caplog.text and door.door.calls.open == 0)
    line = next(json.loads(part) for part in caplog.messages[-1].split("\n") if f"grpc:{name}" in part)
    assert (line["status"], line["reason"]) == (499, "no_message")


@pytest.mark.parametrize("is_streamed", [False, True])
def test_who_goes_away_before_its_model_is_asked_has_its_row_and_nothing_is_computed(
    door: Door, monkeypatch: pytest.MonkeyPatch, is_streamed: bool
) -> None:
    """While it waits for those that come beside it; while its message is read in a thread."""
    calls, engine = door.door.calls, door.running.engines["doubles"]
    monkeypatch.setattr(oip_grpc_call, "GATHER_SECONDS", 0.5)
    calls.gathering._wants, calls.in_flight = 5, 5
    answered, held = list(engine.batches), threading.Event()
    if is_streamed:
        read = oip_proto.decode
        monkeypatch.setattr(oip_proto, "decode", lambda *given: held.wait(10) and read(*given))
        stream = door.method("ModelStreamInfer", oip_proto.message("ModelStreamInferResponse"), "stream_stream")
        call = stream(iter([tensors(x=np.zeros((20_000, 2), np.float32))]), metadata=door.key, timeout=20)
        wait_for(lambda: calls.in_flight == 6)
    else:
        call = door.method("ModelInfer").future(tensors(), metadata=door.key, timeout=20)
        wait_for(lambda: calls.gathering._beginnings)
    call.cancel()
    row = row_of(door, 499)
    held.set()
    assert (row.error_code, row.model, row.price) == ("client_closed", "doubles", None)
    wait_for(lambda: calls.in_flight == 5 and not calls.gathering._beginnings)
    calls.in_flight = 0
    wait_for(lambda: not door.running.service.outbox._answered)
    assert engine.batches == answered
    assert len(door.running.rows(row.request_id)) == 1
