"""Engine hosts: answers as in this process, and a host that dies or lies harms nobody else."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from tests.served import MLP, add_mlp, open_home
from tests.waiting import until

from maasdam.children import Forked
from maasdam.core import (
    ANONYMOUS,
    AudioPayload,
    Chunk,
    Facts,
    ImagePayload,
    Request,
    Sampling,
    TensorPayload,
    TextPayload,
)
from maasdam.errors import Crashed, InvalidInput, InvalidTensor, NotReady, ServiceError, StorageFailure
from maasdam.operations.workspace import Workspace
from maasdam.serving.hosts import wire
from maasdam.serving.hosts.channel import packed
from maasdam.serving.hosts.hosted import HostReplica
from maasdam.serving.hosts.keeper import HostAddress, HostEnd, HostWork
from maasdam.serving.hosts.loading import HostLoader
from maasdam.serving.hosts.local import LocalKeeper
from maasdam.serving.hosts.memory import Tail, lent
from maasdam.serving.replica import Gone

GIGABYTES = 3 * 10**9


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    with open_home(tmp_path_factory.mktemp("hosts")) as opened:
        add_mlp(opened)
        yield opened


@asynccontextmanager
async def keeping(workspace: Workspace, memory_bytes: int | None = GIGABYTES) -> AsyncIterator[LocalKeeper]:
    keeper = LocalKeeper(workspace.settings, memory_bytes)
    try:
        yield keeper
    finally:
        await keeper.close()


def asking(rows: int = 1, name: str = "x", deadline: float | None = None) -> Request:
    tensors = {name: np.arange(rows * 8, dtype=np.float32).reshape(rows, 8) % 7}
    return Request("r", "mlp", (TensorPayload(tensors),), ANONYMOUS, deadline=deadline)


async def answered(replica: Any, request: Request) -> Chunk:
    (chunk,) = [chunk async for chunk in replica.answer(request)]
    return chunk


async def test_a_host_answers_what_an_engine_in_this_process_does(workspace: Workspace) -> None:
    from maasdam.engines import open_engine

    version = workspace.catalog.resolve("mlp")
    engine = open_engine(workspace.store.get(version.digest), threads=1)
    async with keeping(workspace) as keeper:
        replica = await HostLoader(keeper, workspace.settings)(version)
        assert replica.facts.signature == MLP and replica.facts.batching is not None and replica.facts.batching.is_independent
        for rows in (1, 3, 20_000, 200_000):  # the last two go as passed memory, both ways, and the last in a thread
            request = asking(rows)
            chunk = await answered(replica, request)
            assert isinstance(chunk.value, dict) and isinstance(request.payloads[0], TensorPayload)
            np.testing.assert_array_equal(chunk.value["y"], engine.run(request.payloads[0].tensors)["y"])
            assert chunk.units.items == rows and chunk.cost is not None and chunk.cost.cpu_seconds >= 0
        for rows in (1, 200_000):
            with pytest.raises(InvalidTensor, match="no input 'z'; this model takes: x"):
                await answered(replica, asking(rows, "z"))
        with pytest.raises(InvalidInput, match="no processor"):
            await answered(replica, Request("r", "mlp", (ImagePayload(b"GIF"),), ANONYMOUS))
        await until(lambda: replica.executions is not None and replica.executions.items == 4)
        assert replica.memory_bytes is not None and 5e6 < replica.memory_bytes < 5e8
        await until(lambda: 5e6 < keeper._hosts[replica.host_id].status.loaded_bytes < 5e8)
        await replica.leave()
        assert await keeper.readings() == []
    engine.close()


async def test_many_requests_of_one_turn_are_answered_each_with_its_own(workspace: Workspace) -> None:
    async with keeping(workspace) as keeper:
        replica = await HostLoader(keeper, workspace.settings)(workspace.catalog.resolve("mlp"))
        told: dict[int, Any] = {}
        for i in range(1, 101):
            replica.submit(asking(i), partial(told.__setitem__, i))
        cancelled = replica.submit(asking(), lambda outcome: told.setdefault(0, outcome))
        assert cancelled() == ()
        await until(lambda: len(told) == 100)
        assert all(chunk.value["y"].shape == (rows, 4) for rows, (chunk,) in told.items())


async def test_holders_share_a_host_and_a_second_replica_has_one_of_its_own(workspace: Workspace) -> None:
    version = workspace.catalog.resolve("mlp")
    async with keeping(workspace) as keeper:
        mine, others = HostLoader(keeper, workspace.settings), HostLoader(keeper, workspace.settings)
        first, shared = await asyncio.gather(mine(version), others(version))
        second = await mine(version)
        assert first.host_id == shared.host_id != second.host_id and len(await keeper.readings()) == 2
        await first.leave()
        await answered(shared, asking())
        await shared.leave()
        assert [reading.id for reading in await keeper.readings()] == [second.host_id]


async def test_a_host_that_is_killed_is_told_with_its_signal_and_nobody_waits_for_it(workspace: Workspace) -> None:
    version = workspace.catalog.resolve("mlp")
    async with keeping(workspace) as keeper:
        load = HostLoader(keeper, workspace.settings)
        killed, other = await load(version), await load(version)
        gone: list[Gone] = []
        killed.when_gone = gone.append
        (pid,) = [reading.pid for reading in await keeper.readings() if reading.id == killed.host_id]
        os.kill(pid, signal.SIGSTOP)
        told: list[Any] = []
        killed.submit(asking(), told.append)
        killed.stream(asking(), told.append)
        os.kill(pid, signal.SIGKILL)
        await until(lambda: bool(gone))
        assert [type(error) for error in told] == [NotReady, NotReady] and "is gone" in str(told[0])
        assert gone[0].is_crash and "SIGKILL" in gone[0].reason
        with pytest.raises(NotReady, match="is gone"):
            killed.submit(asking(), told.append)
        await killed.leave()
        assert (await answered(other, asking())).is_last


async def test_what_can_not_be_loaded_says_why_and_leaves_no_process(workspace: Workspace) -> None:
    work = HostWork("mlp", 9, "sha256:" + "0" * 64, "onnxruntime")
    version: Any = type("V", (), {"model": "mlp", "version": 9, "digest": work.digest, "engine": "onnxruntime"})
    async with keeping(workspace) as keeper:
        with pytest.raises(Exception, match="0000"):
            await HostLoader(keeper, workspace.settings)(version)
        assert await keeper.readings() == []


Lie = Callable[[socket.socket, list[Any]], object]


def asks_in(packet: bytes) -> list[Any]:
    return msgspec.msgpack.decode(packet[4 : 4 + int.from_bytes(packet[:4], "big")], type=list[wire.ToHost])


class Lied:
    """A keeper of one host that is made up, and says whatever it is told to."""

    def __init__(self, path: Path, says: Lie) -> None:
        self.path, self.says = path, says
        self.released: list[str] = []
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(str(path))
        self._listener.listen(1)
        threading.Thread(target=self._lie, daemon=True).start()

    def _lie(self) -> None:
        sock, _ = self._listener.accept()
        sock.send(packed(wire.Ready(Facts(MLP), True)))
        asks = asks_in(sock.recv(1 << 20))
        self.says(sock, asks)
        sock.close()
        self._listener.close()

    async def acquire(self, work: HostWork, held: Any) -> HostAddress:
        return HostAddress("liar", str(self.path), 1)

    async def release(self, host_id: str) -> None:
        self.released.append(host_id)

    async def ended(self, host_id: str) -> HostEnd:
        return HostEnd("was ended", True)


def whole(number: int, *arrays: wire.Array, memory: int = -1) -> wire.WholeAnswer:
    part = wire.AnswerPart(wire.ArrayList(list(arrays)), 1, None, None, None, True, None)
    return wire.WholeAnswer(number, [part], memory)


def array(*shape: int, name: str = "y", dtype: str = "float32", at: int = 0) -> wire.Array:
    return wire.Array(name, dtype, shape, at)


def one(asks: list[Any], *arrays: wire.Array, memory: int = -1, base: int = 0) -> bytes:
    """An answer to the first question, with 16 bytes of memory in its packet."""
    answer = whole(asks[0].number, *arrays, memory=memory)
    answer.base = base
    packet = packed(answer)
    return packet + bytes(-len(packet) % wire.ALIGNED + 16)


def with_handles(sock: socket.socket, packet: bytes, *handles: int) -> None:
    socket.send_fds(sock, [packet], list(handles))
    for handle in handles:
        os.close(handle)


def shrinks(sock: socket.socket, packet: bytes) -> None:
    """Memory that its sender cuts once it was passed."""
    handle = os.memfd_create("liar", os.MFD_ALLOW_SEALING)
    os.ftruncate(handle, 1 << 20)
    socket.send_fds(sock, [packet], [handle])
    os.ftruncate(handle, 0)


def handles_open() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


BILL = wire.AnswerPart(wire.ArrayList([array(1, 4)]), 1, -5, None, None, True, wire.Taken(float("nan"), None, ""))
LIES: dict[str, Lie] = {
    "garbage": lambda sock, asks: sock.send(os.urandom(4096)),
    "nothing": lambda sock, asks: None,
    "a byte": lambda sock, asks: sock.send(b"x"),
    "cut off": lambda sock, asks: sock.send(packed(whole(1))[:-3]),
    "no list": lambda sock, asks: sock.send(b"\0\0\0\1\x80"),
    "deep": lambda sock, asks: sock.send((60_000).to_bytes(4, "big") + b"\x91" * 60_000),
    "a length without end": lambda sock, asks: sock.send(b"\0\0\0\5\xdd\xff\xff\xff\xff"),
    "too long": lambda sock, asks: (sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20), sock.send(bytes(300_000))),
    "fewer bytes": lambda sock, asks: sock.send(one(asks, array(9, 4))),
    "huge shape": lambda sock, asks: sock.send(one(asks, array(1 << 50, 1 << 50))),
    "far away": lambda sock, asks: sock.send(one(asks, array(1, 4, at=1 << 40))),
    "before": lambda sock, asks: sock.send(one(asks, array(1, 4), base=-64)),
    "negative shape": lambda sock, asks: sock.send(one(asks, array(-1, 4))),
    "many axes": lambda sock, asks: sock.send(one(asks, array(*[1] * 99))),
    "no dtype": lambda sock, asks: sock.send(one(asks, array(1, 4, dtype="void"))),
    "another dtype": lambda sock, asks: sock.send(one(asks, array(1, 2, dtype="float64"))),
    "objects": lambda sock, asks: sock.send(one(asks, array(1, 4, dtype="object"))),
    "another name": lambda sock, asks: sock.send(one(asks, array(1, 4, name="z"))),
    "no tensors": lambda sock, asks: sock.send(one(asks)),
    "too many answers": lambda sock, asks: sock.send(packed(wire.WholeAnswer(asks[0].number, whole(1, array(1, 0)).parts * 2))),
    "no memory": lambda sock, asks: sock.send(one(asks, array(1, 4), memory=0)),
    "memory of others": lambda sock, asks: sock.send(one(asks, array(1, 4), memory=7)),
    "a pipe for memory": lambda sock, asks: with_handles(sock, one(asks, array(1, 4), memory=0), *os.pipe()),
    "less memory": lambda sock, asks: with_handles(sock, one(asks, array(1, 4, at=8), memory=0), lent([bytes(16)])),
    "memory that shrinks": lambda sock, asks: shrinks(sock, one(asks, array(999, 4), memory=0)),
    "ready twice": lambda sock, asks: sock.send(packed(wire.Ready(Facts(MLP), True))),
    "a bill": lambda sock, asks: sock.send(packed(wire.AnswerPiece(asks[0].number, BILL)) + bytes(99)),
}


@pytest.mark.parametrize("lie", LIES)
async def test_a_host_that_lies_is_hung_up_on_and_its_callers_hear_that_it_is_gone(tmp_path: Path, lie: str) -> None:
    handles = handles_open()
    keeper = Lied(tmp_path / "s", LIES[lie])
    replica = HostReplica("mlp:1", HostAddress("liar", str(tmp_path / "s"), 1), keeper, queue_size=9, max_answer_bytes=1 << 20)
    await replica.opened()
    gone: list[Gone] = []
    replica.when_gone = gone.append
    told: list[Any] = []
    for _ in range(3):
        replica.submit(asking(), told.append)
    await until(lambda: bool(gone))
    assert [type(error) for error in told] == [NotReady] * 3
    await replica.leave()
    assert keeper.released == ["liar"]
    await until(lambda: handles_open() <= handles + (lie == "memory that shrinks"))


async def test_a_host_that_writes_without_end_is_hung_up_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maasdam.serving.hosts.hosted.MOST_PIECES_BYTES", 10_000)

    def says(sock: socket.socket, asks: list[Any]) -> None:
        piece = wire.AnswerPart(wire.Written("x" * 90, (), None), 1, None, None, None, False, None)
        with contextlib.suppress(OSError):  # it is hung up on
            while True:
                sock.send(packed(wire.AnswerPiece(asks[0].number, piece)))

    keeper = Lied(tmp_path / "s", says)
    replica = HostReplica("mlp:1", HostAddress("liar", str(tmp_path / "s"), 1), keeper, queue_size=9, max_answer_bytes=1 << 20)
    await replica.opened()
    told: list[Any] = []
    replica.stream(asking(), told.append)
    await until(lambda: bool(told) and isinstance(told[-1], NotReady))
    assert len(told) < 100
    await replica.leave()


async def test_an_error_keeps_its_class_and_answers_to_nobody_are_dropped(tmp_path: Path) -> None:
    def says(sock: socket.socket, asks: list[Any]) -> None:
        sock.send(packed(whole(99, array(1, 4)), wire.Failed(1, wire.wrong(InvalidTensor("odd")))))
        sock.send(packed(wire.Failed(2, wire.Wrong("SystemExit", "no"))))
        sock.recv(10)

    keeper = Lied(tmp_path / "s", says)
    replica = HostReplica("mlp:1", HostAddress("liar", str(tmp_path / "s"), 1), keeper, queue_size=9, max_answer_bytes=1 << 20)
    await replica.opened()
    told: list[Any] = []
    replica.submit(asking(), told.append)
    replica.submit(asking(), told.append)
    await until(lambda: len(told) == 2)
    assert [type(error).__name__ for error in told] == ["InvalidTensor", "EngineFailure"]
    await replica.leave()


async def test_a_host_that_dies_while_it_loads_has_crashed(tmp_path: Path) -> None:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(str(tmp_path / "s"))
    listener.listen(1)
    keeper = Lied(tmp_path / "other", LIES["nothing"])
    replica = HostReplica("mlp:1", HostAddress("liar", str(tmp_path / "s"), 1), keeper, queue_size=9, max_answer_bytes=1)
    listener.accept()[0].close()
    with pytest.raises(Crashed, match="while mlp:1 was loaded, its process was ended"):
        await replica.opened()
    await replica.leave()
    listener.close()


def test_every_payload_travels_and_every_kind_of_tensor() -> None:
    import ml_dtypes

    made = [np.arange(6).reshape(2, 3).astype(kind) for kind in wire.DTYPES]
    made += [np.arange(4, dtype=np.float32).astype(ml_dtypes.bfloat16), np.array([b"a", "b"], object)]
    made.append(np.float32(3).reshape(()))
    made += [np.empty((0, 4), np.int64), np.arange(6).reshape(2, 3).T]
    tensors = TensorPayload({str(i): array for i, array in enumerate(made)})
    sound = AudioPayload(b"RIFF", "en", True, 3)
    text = TextPayload(messages=({"role": "user", "content": "hi"},), sampling=Sampling(max_tokens=3, stop=("x",)))
    said: list[Any] = []
    body: list[wire.Buffer] = []
    at = 0
    for payload in (tensors, ImagePayload(b"GIF", 2), sound, text):
        one, body, at = wire.payload_given(payload, False, body, at)
        said.append(one)
    ask = msgspec.msgpack.decode(msgspec.msgpack.encode(wire.Ask(1, "r", None, False, said)), type=wire.Ask)
    tail = b"".join(bytes(memoryview(part).cast("B")) if memoryview(part).nbytes else b"" for part in body)
    assert len(tail) == at
    again = [wire.payload_of(one, Tail(tail, 0)) for one in ask.payloads]
    assert again[1:] == [ImagePayload(b"GIF", 2), sound, text]
    assert isinstance(again[0], TensorPayload)
    for name, array in again[0].tensors.items():
        expected = made[int(name)]
        assert (array.dtype, array.shape) == (expected.dtype, expected.shape) and array.tolist() == expected.tolist()


def test_an_error_s_field_and_code_travel() -> None:
    from maasdam.errors import ContextExceeded, InvalidField

    for error in (InvalidField("m", "p", "c"), ContextExceeded(9, 8), NotReady("later")):
        again = wire.error_of(msgspec.msgpack.decode(msgspec.msgpack.encode(wire.wrong(error)), type=wire.Wrong))
        assert (type(again), str(again), again.code, again.http_status) == (
            type(error), str(error), error.code, error.http_status
        )  # fmt: skip
        assert getattr(again, "param", None) == getattr(error, "param", None)


def hangs(*given: Any) -> None:
    """Instead of a host."""
    threading.Event().wait()


@pytest.mark.parametrize("hanging", [1, 3])
async def test_a_host_that_does_not_even_begin_is_ended_and_another_tried(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, hanging: int
) -> None:
    monkeypatch.setattr("maasdam.serving.hosts.local.LOOK_SECONDS", 0.05)
    async with keeping(workspace) as keeper:
        forked: list[Forked] = []
        real = keeper._fork

        def fork(listener: Any, to_keeper: Any, work: HostWork) -> Forked:
            hangs_now = len(forked) < hanging
            monkeypatch.setattr("maasdam.serving.hosts.local.SPEAKS_SECONDS", 0.0 if hangs_now else 60.0)
            made = (
                Forked(hangs, (listener, to_keeper), name="hangs", outlives=True)
                if hangs_now
                else real(listener, to_keeper, work)
            )
            forked.append(made)
            return made

        monkeypatch.setattr(keeper, "_fork", fork)
        load = HostLoader(keeper, workspace.settings)(workspace.catalog.resolve("mlp"))
        if hanging == 3:
            with pytest.raises(Crashed, match="did not begin"):
                await load
        else:  # whoever connected while the first one hung is answered by the second, and knows nothing of it
            replica = await load
            assert (await answered(replica, asking())).units.items == 1
            assert [reading.pid for reading in await keeper.readings()] == [forked[1].pid]
            await replica.leave()
        await until(lambda: not any(process.is_alive for process in forked))
        assert len(forked) == (3 if hanging == 3 else 2) and await keeper.readings() == []


@pytest.mark.parametrize("error", [OSError("no process"), RuntimeError("can't start new thread"), StorageFailure("away")])
async def test_nothing_stays_of_a_host_that_could_not_be_started(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    async with keeping(workspace) as keeper:
        load, version = HostLoader(keeper, workspace.settings), workspace.catalog.resolve("mlp")

        def fork(*given: Any) -> Forked:
            raise error

        monkeypatch.setattr(keeper, "_fork", fork)
        with pytest.raises(ServiceError, match=str(error)):
            await load(version)
        handles = handles_open()
        with pytest.raises(ServiceError, match=str(error)):
            await load(version)
        assert not keeper._hosts and not keeper._over and handles_open() == handles
        monkeypatch.undo()

        def away() -> set[str]:
            raise StorageFailure("away")

        keeper._engines = away
        replica = await load(version)
        assert (await answered(replica, asking())).is_last
        await replica.leave()


async def test_who_went_while_it_waited_for_a_host_holds_none(workspace: Workspace) -> None:
    work = HostWork("mlp", 1, workspace.catalog.resolve("mlp").digest, "onnxruntime")
    async with keeping(workspace) as keeper:
        turn = keeper._turns.setdefault(work.name, asyncio.Lock())
        async with turn:
            late = asyncio.ensure_future(keeper.acquire(work, (), True, "dead"))
            await asyncio.sleep(0)
            await keeper.forget("dead")
        with pytest.raises(ServiceError, match="has ended"):
            await late
        assert not keeper._hosts, "no host was started for it"

        @asynccontextmanager
        async def admitted(*given: Any) -> AsyncIterator[int]:
            await keeper.forget("also dead")
            yield 0

        keeper.household.admitted = admitted  # type: ignore[method-assign]  # it dies just then
        with pytest.raises(ServiceError, match="has ended"):
            await keeper.acquire(work, (), True, "also dead")
        assert not keeper._hosts


async def test_a_host_that_says_late_that_it_leaves_gets_no_new_holders(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("maasdam.serving.hosts.local.ANSWER_SECONDS", 0.0)
    async with keeping(workspace) as keeper:
        load, version = HostLoader(keeper, workspace.settings), workspace.catalog.resolve("mlp")
        replica = await load(version)
        kept = keeper._hosts[replica.host_id]
        await until(lambda: kept.status.is_ready)
        gone: list[Gone] = []
        replica.when_gone = gone.append
        assert not await keeper.depart(replica.host_id, "its room is wanted")
        await until(lambda: bool(gone) and kept.is_leaving)
        other = await HostLoader(keeper, workspace.settings)(version)
        assert other.host_id != replica.host_id
        await asyncio.gather(replica.leave(), other.leave())
