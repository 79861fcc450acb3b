"""The gRPC door: the same meaning as over HTTP in its own codes, keys before messages, neighbours that come to no harm."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from tests.api.conftest import Running, wait_for

from maasdam.api import oip_proto
from maasdam.api.http import body_limits, gate_of
from maasdam.api.listening import bound_socket
from maasdam.api.oip_grpc import SERVICE, GrpcDoor
from maasdam.errors import TooLarge

Request, Response = oip_proto.message("ModelInferRequest"), oip_proto.message("ModelInferResponse")
Piece = oip_proto.message("ModelStreamInferResponse")
OK, X = grpc.StatusCode.OK, np.array([[1, 2]], np.float32)


class Door:
    """A gRPC door before a fake service, in the service's event loop."""

    def __init__(self, running: Running, has_keys: bool = True) -> None:
        self.running = running
        listener = bound_socket("127.0.0.1", 0)
        self.address = f"127.0.0.1:{listener.getsockname()[1]}"
        self.channel = grpc.insecure_channel(self.address)
        self.key = (("authorization", f"Bearer {running.admin_key}"),)

        async def opened() -> GrpcDoor:
            service = running.service
            door = GrpcDoor(service, gate_of(service, has_keys), body_limits(service.settings), listener)
            await door.start()
            return door

        self.door = self.run(opened())

    def run(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.running.loop).result(30)

    def stop(self, seconds: float) -> Any:
        async def begun() -> None:
            self.door.begin_stop(seconds)

        self.run(begun())
        return asyncio.run_coroutine_threadsafe(self.door.stopped(), self.running.loop)

    def method(self, name: str, reply: Any = Response, shape: str = "unary_unary") -> Any:
        """A call that sends what it is given as bytes."""
        call = getattr(self.channel, shape)
        return call(f"/{SERVICE}/{name}", request_serializer=_bytes, response_deserializer=reply.FromString)

    def call(self, name: str, asked: Any = b"", *, metadata: Any = None, timeout: float = 20) -> tuple[Any, Any]:
        """(code, answer or message)"""
        kind = oip_proto.message(f"{name}Response")
        try:
            return OK, self.method(name, kind)(asked, metadata=self.key if metadata is None else metadata, timeout=timeout)
        except grpc.RpcError as error:
            return error.code(), error.details()


def _bytes(asked: Any) -> bytes:
    return asked if isinstance(asked, bytes) else bytes(asked.SerializeToString())


def tensors(model: str = "doubles", x: Any = X, **more: Any) -> Any:
    asked = Request(model_name=model, raw_input_contents=[x.tobytes()], **more)
    asked.inputs.add(name="x", datatype="FP32", shape=x.shape)
    return asked


def text(prompt: str = "ab", model: str = "text", **parameters: Any) -> Any:
    asked = Request(model_name=model, id=prompt)
    asked.inputs.add(name="text_input", datatype="BYTES", shape=[1]).contents.bytes_contents.append(prompt.encode())
    for name, value in parameters.items():
        asked.parameters[name].int64_param = value
    return asked


@pytest.fixture(scope="module")
def door(fake_service: Running) -> Iterator[Door]:
    it = Door(fake_service)
    yield it
    it.channel.close()
    it.stop(5).result(10)


@pytest.fixture
def own_door(own_service: Running) -> Iterator[Door]:
    """A door and service of one's own, to be broken."""
    it = Door(own_service)
    yield it
    it.channel.close()
    it.stop(0).result(10)


def test_tensors_go_in_and_come_out_raw(door: Door) -> None:
    code, answer = door.call("ModelInfer", tensors(id="mine", model_version="1"))
    assert code is OK and (answer.id, answer.model_name, answer.model_version) == ("mine", "doubles", "1")
    assert (answer.outputs[0].name, answer.outputs[0].datatype, list(answer.outputs[0].shape)) == ("y", "FP32", [1, 2])
    assert np.frombuffer(answer.raw_output_contents[0], np.float32).tolist() == [2, 4]


def test_an_answer_says_its_place_in_a_trace(door: Door) -> None:
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    metadata = (*door.key, ("traceparent", f"00-{trace}-00f067aa0ba902b7-00"))
    _, call = door.method("ModelInfer").with_call(tensors(), metadata=metadata)
    told = dict(call.trailing_metadata())
    assert told["traceresponse"] == f"00-{trace}-{told['x-request-id'][-16:]}-00"


def test_an_answer_says_its_id_and_its_cost_and_has_its_row_and_its_line(door: Door, capfd: Any) -> None:
    _, call = door.method("ModelInfer").with_call(tensors(), metadata=(*door.key, ("x-request-id", "abc-1")))
    trailers = dict(call.trailing_metadata())
    assert trailers["x-request-id"] == "abc-1" and float(trailers["maasdam-compute-seconds"]) > 0
    (row,) = door.running.rows(trailers["maasdam-request-id"])
    assert (row.endpoint, row.status, row.model, row.items) == ("grpc:ModelInfer", 200, "doubles", 1)
    assert row.caller == "chief"


REFUSED: list[tuple[Any, grpc.StatusCode, str]] = [
    (tensors("ghost"), grpc.StatusCode.NOT_FOUND, "no model 'ghost'"),
    (tensors(model_version="9"), grpc.StatusCode.NOT_FOUND, "does not serve version 9"),
    (tensors(model_version="x"), grpc.StatusCode.NOT_FOUND, "versions are numbers"),
    (tensors("text"), grpc.StatusCode.INVALID_ARGUMENT, "takes no raw tensors"),
    (tensors(x=np.zeros((1, 3), np.float32)), grpc.StatusCode.INVALID_ARGUMENT, r"send \[-1, 2\]"),
    (tensors(x=np.full((1, 2), np.nan, np.float32)), grpc.StatusCode.INVALID_ARGUMENT, "NaN"),
    (tensors(parameters={"tempo": {"int64_param": 1}}), grpc.StatusCode.INVALID_ARGUMENT, "unknown parameter 'tempo'"),
    (tensors(parameters={"sequence_id": {"int64_param": 1}}), grpc.StatusCode.UNIMPLEMENTED, "no state"),
    (tensors(parameters={"timeout": {"int64_param": 0}}), grpc.StatusCode.INVALID_ARGUMENT, "microseconds"),
    (tensors(outputs=[{"name": "z"}]), grpc.StatusCode.INVALID_ARGUMENT, "this model gives: y"),
    (tensors(outputs=[{"name": "y"}, {"name": "y"}]), grpc.StatusCode.INVALID_ARGUMENT, "named twice"),
    (
        tensors(outputs=[{"name": "y", "parameters": {"binary_data": {"bool_param": True}}}]),
        grpc.StatusCode.INVALID_ARGUMENT,
        "unknown parameter 'outputs",
    ),
    (Request(model_name="doubles"), grpc.StatusCode.INVALID_ARGUMENT, "'inputs' is empty"),
    (b"\xff\xff\xff", grpc.StatusCode.INVALID_ARGUMENT, "no inference.ModelInferRequest"),
    (b"", grpc.StatusCode.NOT_FOUND, "no model ''"),
]


@pytest.mark.parametrize(("asked", "code", "says"), REFUSED, ids=[says for _, _, says in REFUSED])
def test_an_error_has_its_code_and_says_what_to_do(door: Door, asked: Any, code: grpc.StatusCode, says: str) -> None:
    import re

    got, message = door.call("ModelInfer", asked)
    assert got is code and re.search(says, message), message
    row = door.running.newest_row()
    assert row.status >= 400 and row.error_code and row.endpoint == "grpc:ModelInfer"


def test_a_key_is_asked_for_before_anything_is_read(door: Door) -> None:
    for metadata in ((), (("authorization", "Bearer wrong"),), (("authorization", "Basic x"),), (("api-key", "wrong"),)):
        assert door.call("ModelInfer", b"\xff" * 100_000, metadata=metadata)[0] is grpc.StatusCode.UNAUTHENTICATED
        assert door.call("RepositoryIndex", metadata=metadata)[0] is grpc.StatusCode.UNAUTHENTICATED
    for name in ("api-key", "x-api-key"):
        assert door.call("ModelInfer", tensors(), metadata=((name, door.running.key),))[0] is OK
    mine = (("authorization", f"bearer {door.running.key}"),)
    load = oip_proto.message("RepositoryModelLoadRequest")(model_name="doubles")
    code, says = door.call("RepositoryModelLoad", load, metadata=mine)
    assert code is grpc.StatusCode.PERMISSION_DENIED and "scope 'deploy'" in says
    assert door.call("LogSettings", metadata=mine)[0] is grpc.StatusCode.PERMISSION_DENIED
    assert door.call("ServerLive", metadata=())[1].live and door.call("ServerReady", metadata=())[1].ready


def test_reflection_needs_a_key_and_health_none(door: Door) -> None:
    lists = reflection_pb2_grpc.ServerReflectionStub(door.channel).ServerReflectionInfo
    asked = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol=SERVICE),
    ]
    with pytest.raises(grpc.RpcError) as caught:
        list(lists(iter(asked), timeout=10))
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    listed, described = list(lists(iter(asked), metadata=door.key, timeout=10))
    assert SERVICE in [service.name for service in listed.list_services_response.service]
    assert b"ModelStreamInfer" in described.file_descriptor_response.file_descriptor_proto[0]
    check = health_pb2_grpc.HealthStub(door.channel).Check
    for name in ("", SERVICE):
        wait_for(lambda name=name: check(health_pb2.HealthCheckRequest(service=name), timeout=10).status == 1)


@pytest.mark.parametrize(
    ("path", "says"),
    [
        (f"/{SERVICE}/SystemSharedMemoryRegister", "shared memory"),
        (f"/{SERVICE}/CudaSharedMemoryStatus", "shared memory"),
        (f"/{SERVICE}/TraceSetting", "traceparent"),
        (f"/{SERVICE}/Nothing", "not offered"),
        ("/other.Service/Call", "not offered"),
        ("/x", "not offered"),
    ],
)
def test_what_is_not_offered_is_refused_by_name(door: Door, path: str, says: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        door.channel.unary_unary(path)(b"", metadata=door.key, timeout=10)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    is_known = "SharedMemory" in path or "Trace" in path  # others come without their name: one byte of it could be no text
    assert path == "/x" or (says in caught.value.details() and (not is_known or path in caught.value.details()))


def test_a_text_comes_in_pieces_and_the_last_one_says_so(door: Door) -> None:
    stream = door.method("ModelStreamInfer", Piece, "stream_stream")
    pieces = list(stream(iter([text(max_tokens=5)]), metadata=door.key, timeout=20))
    assert "".join(p.infer_response.raw_output_contents[0][4:].decode() for p in pieces) == "abcde"
    assert [p.infer_response.parameters["triton_final_response"].bool_param for p in pieces] == [False] * 4 + [True]
    assert {p.infer_response.id for p in pieces} == {"ab"} and not any(p.error_message for p in pieces)
    whole = door.call("ModelInfer", text(max_tokens=5))[1]
    assert whole.raw_output_contents[0][4:] == b"abcde"


def test_a_stream_goes_on_after_an_error_and_answers_tensors_in_order(door: Door) -> None:
    stream = door.method("ModelStreamInfer", Piece, "stream_stream")
    many = [tensors(x=X * i, id=str(i)) for i in range(6)]
    asked = [*many[:3], tensors("ghost", id="lost"), b"\xff\xff", *many[3:]]
    pieces = list(stream(iter(asked), metadata=door.key, timeout=20))
    assert [p.infer_response.id for p in pieces if not p.error_message] == [str(i) for i in range(6)]
    answers = [np.frombuffer(p.infer_response.raw_output_contents[0], np.float32) for p in pieces if not p.error_message]
    assert [a[0] for a in answers] == [2 * i for i in range(6)]
    errors = {p.infer_response.id: p.error_message for p in pieces if p.error_message}
    assert "no model 'ghost'" in errors["lost"] and "no inference.ModelInferRequest" in errors[""]


def test_who_goes_away_cancels_the_work(own_door: Door) -> None:
    engine = own_door.running.engines["text"]
    engine.delay = 0.05
    stream = own_door.method("ModelStreamInfer", Piece, "stream_stream")
    pieces = stream(iter([text(max_tokens=50)]), metadata=own_door.key, timeout=20)
    next(pieces)
    pieces.cancel()
    wait_for(lambda: len(engine.cancelled) == 1)
    given = engine.given
    waits = own_door.method("ModelInfer").future(text(max_tokens=50), metadata=own_door.key, timeout=20)
    wait_for(lambda: engine.given > given)
    waits.cancel()
    wait_for(lambda: len(engine.cancelled) == 2)
    wait_for(lambda: [row.status for row in own_door.running.rows(engine.cancelled[0])] == [499])
    wait_for(lambda: own_door.door.calls.in_flight == 0 and own_door.door.calls.held == 0)


def test_a_deadline_is_kept(own_door: Door) -> None:
    own_door.running.engines["doubles"].gate.clear()
    assert own_door.call("ModelInfer", tensors(), timeout=0.2)[0] is grpc.StatusCode.DEADLINE_EXCEEDED
    asked = tensors(parameters={"timeout": {"int64_param": 100_000}})
    code, says = own_door.call("ModelInfer", asked)
    assert code is grpc.StatusCode.DEADLINE_EXCEEDED and "within the time limit" in says
    own_door.running.engines["doubles"].gate.set()


def test_a_full_queue_and_a_large_message_have_their_codes(own_door: Door) -> None:
    own_door.running.engines["doubles"].gate.clear()
    infer = own_door.method("ModelInfer")
    waiting = [infer.future(tensors(), metadata=own_door.key, timeout=20) for _ in range(30)]
    refused = [w for w in waiting if _waits(w) is grpc.StatusCode.UNAVAILABLE]
    assert refused and "retry-after" in dict(refused[0].trailing_metadata())
    own_door.running.engines["doubles"].gate.set()
    assert OK in [w.code() for w in waiting]
    for size in (2_050_000, 3_000_000):
        code, says = own_door.call("ModelInfer", b"\x00" * size)
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED, says
    assert own_door.call("ModelInfer", tensors())[0] is OK


def _waits(call: Any) -> Any:
    """The code of a call that ends soon; None for one that waits on."""
    try:
        error = call.exception(timeout=0.1)
    except grpc.FutureTimeoutError:
        return None
    return OK if error is None else error.code()


def test_what_is_in_flight_finishes_and_nothing_new_begins(own_door: Door) -> None:
    engine, watch = own_door.running.engines["doubles"], health_pb2_grpc.HealthStub(own_door.channel).Watch
    watched = watch(health_pb2.HealthCheckRequest(), timeout=20)
    assert next(watched).status == 1
    engine.gate.clear()
    waiting = own_door.method("ModelInfer").future(tensors(), metadata=own_door.key, timeout=20)
    wait_for(lambda: own_door.door.calls.in_flight == 1)
    stopped = own_door.stop(20)
    assert next(watched).status == 2, "not serving"
    late = grpc.insecure_channel(own_door.address)
    codes = []
    while not codes or codes[-1] is grpc.StatusCode.CANCELLED:  # one whose connection was just being taken
        with pytest.raises(grpc.RpcError) as caught:
            late.unary_unary(f"/{SERVICE}/ServerLive")(b"", timeout=5)
        codes.append(caught.value.code())
    assert codes[-1] is grpc.StatusCode.UNAVAILABLE and len(codes) <= 3
    assert not stopped.done()
    engine.gate.set()
    assert np.frombuffer(waiting.result().raw_output_contents[0], np.float32).tolist() == [2, 4]
    stopped.result(10)  # although somebody watches


def test_without_keys_it_answers(open_to_all: Running) -> None:
    it = Door(open_to_all, has_keys=False)
    assert it.call("ModelInfer", tensors(), metadata=())[0] is OK
    it.channel.close()
    it.stop(0).result(10)


BIG = [
    (b"\x3a\x00" * 500_000, grpc.StatusCode.INVALID_ARGUMENT, "more than 10000 fields"),
    (b"\x2a\x00" * 500_000, grpc.StatusCode.INVALID_ARGUMENT, "more than 10000 fields"),
    (b"\x0a\xff\xff\xff\x7f" + b"a" * 200_000, grpc.StatusCode.INVALID_ARGUMENT, "no inference.ModelInferRequest"),
    (b"\xff" * 200_000, grpc.StatusCode.INVALID_ARGUMENT, "no inference.ModelInferRequest"),
    (b"\x0b" * 200_000, grpc.StatusCode.INVALID_ARGUMENT, "no inference.ModelInferRequest"),
]


@pytest.mark.parametrize(("data", "code", "says"), BIG, ids=["raw", "inputs", "length", "varint", "groups"])
def test_a_large_message_that_is_none_is_refused_before_it_grows(door: Door, data: bytes, code: Any, says: str) -> None:
    got, message = door.call("ModelInfer", data)
    assert got is code and says in message, message
    got, message = door.call("ModelReady", b"\x0a" + b"\x80\x89\x7a" + b"a" * 2_000_000)
    assert got is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert door.call("ModelInfer", tensors())[0] is OK


def test_what_is_not_raw_has_the_limit_of_json() -> None:
    asked = Request(model_name="m", raw_input_contents=[b"x" * 300_000])
    asked.inputs.add(name="x", datatype="FP32", shape=[1]).contents.fp32_contents.extend([1.0] * 50_000)
    data = asked.SerializeToString()
    oip_proto.check_outline(data, 210_000)
    with pytest.raises(TooLarge, match="raw_input_contents, or raise max_json_tensor_bytes"):
        oip_proto.check_outline(data, 190_000)


def test_random_messages_are_refused_and_neighbours_answered(door: Door) -> None:
    chance = random.Random(7)
    base = tensors(id="x", parameters={"timeout": {"int64_param": 5_000_000}}).SerializeToString()

    def broken(i: int) -> bytes:
        if i % 3 == 0:
            return chance.randbytes(chance.randrange(200))
        data = bytearray(base)
        for _ in range(chance.randrange(1, 6)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        return bytes(data[: chance.randrange(1, len(data) + 1)]) if i % 3 == 1 else bytes(data)

    messages = [broken(i) for i in range(300)]
    allowed = {OK, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNIMPLEMENTED}
    with ThreadPoolExecutor(8) as pool:
        codes = list(pool.map(lambda data: door.call("ModelInfer", data)[0], messages))
        neighbours = list(pool.map(lambda _: door.call("ModelInfer", tensors())[1].raw_output_contents[0], range(50)))
    assert set(codes) <= allowed | {grpc.StatusCode.DEADLINE_EXCEEDED}, set(codes)
    assert {np.frombuffer(answer, np.float32).tolist()[0] for answer in neighbours} == {2}
    stream = door.method("ModelStreamInfer", Piece, "stream_stream")
    replies = list(stream(iter([*messages, tensors(id="last")]), metadata=door.key, timeout=30))
    assert len(replies) == 301 and not [p for p in replies if p.infer_response.id == "last"][-1].error_message


@pytest.mark.parametrize(
    "data",
    [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x00" * 5000, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 500],
    ids=["HTTP/1.1", "zeros", "frames"],
)
def test_bytes_that_are_no_grpc_harm_nobody(door: Door, data: bytes) -> None:
    import socket

    host, port = door.address.split(":")
    with socket.create_connection((host, int(port)), timeout=5) as raw:
        raw.sendall(data)
        with contextlib.suppress(ConnectionError):
            while raw.recv(4096):
                pass  # it says what it has to say, and hangs up
    assert door.call("ModelInfer", tensors())[0] is OK
