"""One durable row a request, whatever becomes of it, before the answer's last chunk."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from contextlib import aclosing
from types import SimpleNamespace
from typing import Any

import pytest
from tests.fakes import FakeEnergy, FakeLedger

from maasdam.core import ANONYMOUS, Caller, Chunk, Request, TextPayload, TextPiece, Units
from maasdam.errors import (
    DeadlineExceeded,
    EngineFailure,
    InvalidPayload,
    MaasdamError,
    NotFound,
    ServiceError,
    TooManyRequests,
)
from maasdam.operations.infer import Inference, Limits, Receipt


class Says:
    """A replica that says its words, one a chunk; `error` comes instead of the last."""

    signature = None
    context_length = None
    in_flight = 0
    waiting = 0

    def __init__(self, *words: str, delay: float = 0.0, error: BaseException | None = None) -> None:
        self.words, self.delay, self.error = words, delay, error
        self.closed = 0

    async def answer(self, request: Request, max_tokens: int) -> AsyncIterator[Chunk]:
        try:
            for i, word in enumerate(self.words):
                await asyncio.sleep(self.delay)
                is_last = i == len(self.words) - 1
                if is_last and self.error:
                    raise self.error
                units = Units(prompt_tokens=5, completion_tokens=i + 1)
                yield Chunk(TextPiece(word, (i,), "stop" if is_last else None), units, is_last, 0.5 if is_last else None)
        finally:
            self.closed += 1

    def close(self) -> None:
        pass


def inference(replica: Says | None, ledger: Any = None, **options: Any) -> tuple[Inference, Any]:
    def route(name: str) -> Any:
        if replica is None:
            raise NotFound(f"no model '{name}' is deployed")
        return SimpleNamespace(model="bard", version=3, task="text-generation"), replica

    ledger = ledger or FakeLedger()
    made = Inference(SimpleNamespace(route=route), ledger, FakeEnergy(), Limits(16, 400.0), **options)  # type: ignore[arg-type]
    return made, ledger


def itself(chunk: Chunk) -> Chunk:
    return chunk


async def all_of_them(chunks: list[Chunk]) -> list[Chunk]:
    return chunks


def asked(deadline: float | None = None, caller: Caller = ANONYMOUS) -> tuple[Request, Receipt, Callable[[Chunk], Chunk]]:
    request = Request("r1", "bard", TextPayload(prompt="x"), caller, deadline)
    return request, Receipt("r1", "bard", "/v1/completions"), itself


async def test_an_answer_in_one_piece_is_folded_metered_and_priced() -> None:
    infer, ledger = inference(Says("to ", "be ", "or"))
    request, receipt, write = asked(caller=Caller("k1", "bob", frozenset({"infer"})))
    chunk = await infer.once(request, receipt, write)
    assert chunk.value == TextPiece("to be or", (0, 1, 2), "stop")
    (row,) = ledger.rows
    assert (row.request_id, row.key_id, row.caller, row.model, row.version, row.status) == ("r1", "k1", "bob", "bard", 3, 200)
    assert (row.prompt_tokens, row.completion_tokens, row.compute_seconds, row.joules) == (5, 3, 0.5, 1.0)
    assert row.grams_co2e == pytest.approx(400 / 3.6e6) and row.energy_method == "estimate: fake"
    assert receipt.joules == 1.0 and receipt.seconds > 0


class Slow(FakeLedger):
    """Rows become durable when told."""

    def __init__(self) -> None:
        super().__init__()
        self.futures: list[Future[None]] = []

    def record(self, entry: Any) -> Future[None]:
        self.rows.append(entry)
        self.futures.append(Future())
        return self.futures[-1]


@pytest.mark.parametrize("is_stream", [False, True])
async def test_the_last_chunk_waits_for_the_durable_row(is_stream: bool) -> None:
    ledger = Slow()
    infer, _ = inference(Says("a", "b"), ledger)
    got: list[Chunk] = []

    async def read() -> None:
        if is_stream:
            async for chunk in infer.stream(*asked()):
                got.append(chunk)
        else:
            got.append(await infer.once(*asked()))

    task = asyncio.create_task(read())
    await asyncio.sleep(0.05)
    assert len(ledger.rows) == 1 and ledger.rows[0].status == 200
    assert [chunk.is_last for chunk in got] == ([False] if is_stream else [])
    await asyncio.to_thread(ledger.futures[0].set_result, None)
    await task
    assert got[-1].is_last


async def test_an_answer_that_can_not_be_written_is_an_errors_row_whatever_its_form() -> None:
    def breaks(chunk: Chunk) -> Chunk:
        if chunk.is_last:
            raise TypeError("Type is not JSON serializable: numpy.float64")
        return chunk

    async def breaks_too(chunks: list[Chunk]) -> None:
        raise TypeError("Type is not JSON serializable: numpy.float64")

    infer, ledger = inference(Says("a", "b"))
    request, receipt, _ = asked()
    with pytest.raises(EngineFailure, match="not JSON serializable"):
        await infer.once(request, receipt, breaks)
    with pytest.raises(EngineFailure, match="not JSON serializable"):
        await infer.many(request, [TextPayload(prompt=p) for p in "xyz"], receipt, breaks_too)
    got = []
    with pytest.raises(EngineFailure, match="not JSON serializable"):
        async for chunk in infer.stream(request, receipt, breaks):
            got.append(chunk)
    assert [chunk.is_last for chunk in got] == [False]
    assert [row.status for row in ledger.rows] == [500, 500, 500]


@pytest.mark.parametrize("is_stream", [False, True])
async def test_what_a_request_cost_is_known_when_its_answer_is_written(is_stream: bool) -> None:
    infer, ledger = inference(Says("a", "b"))
    request, receipt, _ = asked()
    shown: list[Any] = []

    def write(chunk: Chunk) -> None:
        shown.append((len(ledger.rows), receipt.joules if chunk.is_last else None))

    if is_stream:
        async for _ in infer.stream(request, receipt, write):
            pass
    else:
        await infer.once(request, receipt, write)
    assert shown[-1] == (0, 1.0) and receipt.seconds == ledger.rows[0].seconds


async def test_an_answer_whose_row_can_not_be_written_is_not_given() -> None:
    class Full(FakeLedger):
        def record(self, entry: Any) -> Future[None]:
            future: Future[None] = Future()
            future.set_exception(ServiceError("the ledger can't be written: disk full"))
            return future

    counted: list[int] = []
    meters = SimpleNamespace(answered=lambda receipt, status: counted.append(status), first_chunk=lambda *_: None)
    infer, _ = inference(Says("a", "b"), Full(), meters=meters)
    with pytest.raises(ServiceError, match="disk full"):
        await infer.once(*asked())
    got = []
    with pytest.raises(ServiceError, match="disk full"):
        async for chunk in infer.stream(*asked()):
            got.append(chunk.is_last)
    assert got == [False]
    assert counted == [ServiceError.http_status] * 2, "what was answered, and once each"


class Held(FakeLedger):
    """Rows that are durable once that is said."""

    def __init__(self, is_late: bool = False) -> None:
        super().__init__()
        self.row: Future[None] = Future()
        self.is_late = is_late

    def record(self, entry: Any) -> Future[None]:
        self.rows.append(entry)
        return self.row

    def restate(self, row: Future[None], status: int, code: str | None = None) -> bool:
        return self.is_late


async def test_an_answer_is_counted_once_its_row_is_durable_and_as_what_was_answered() -> None:
    counted: list[int] = []
    meters = SimpleNamespace(answered=lambda receipt, status: counted.append(status), first_chunk=lambda *_: None)

    def asking(ledger: Held, deadline: float | None = None) -> asyncio.Task[Chunk]:
        infer, _ = inference(Says("a"), ledger, meters=meters)
        return asyncio.create_task(infer.once(*asked(deadline)))

    async def recorded(ledger: Held) -> None:
        async with asyncio.timeout(5):
            while not ledger.rows:  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.001)

    ledger = Held()
    answer = asking(ledger)
    await recorded(ledger)
    assert counted == []
    ledger.row.set_result(None)
    await answer
    assert counted == [200]
    with pytest.raises(DeadlineExceeded):
        await asking(Held(is_late=True), time.monotonic() + 0.2)
    assert counted == [200, 504]
    gone = Held()
    leaves = asking(gone)
    await recorded(gone)
    leaves.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaves
    assert counted == [200, 504, 499]


@pytest.mark.parametrize(
    ("error", "status", "raised"),
    [
        (InvalidPayload("no"), 400, InvalidPayload),
        (EngineFailure("no"), 500, EngineFailure),
        (ValueError("no"), 500, EngineFailure),
        (TimeoutError("no"), 504, DeadlineExceeded),
    ],
)
@pytest.mark.parametrize("is_stream", [False, True])
async def test_an_error_is_one_row_with_its_status(
    error: Exception, status: int, raised: type[MaasdamError], is_stream: bool
) -> None:
    infer, ledger = inference(Says("a", "b", error=error))
    with pytest.raises(raised):
        if is_stream:
            async for _ in infer.stream(*asked()):
                pass
        else:
            await infer.once(*asked())
    (row,) = ledger.rows
    assert row.status == status
    if is_stream:
        assert row.completion_tokens == 1, "what was given is metered"


async def test_an_unknown_model_and_a_used_up_quota_are_rows_too() -> None:
    infer, ledger = inference(None)
    with pytest.raises(NotFound):
        await infer.once(*asked())
    assert ledger.rows[0].status == 404 and ledger.rows[0].version is None and ledger.rows[0].items == 0

    def quota(request: Request) -> None:
        raise TooManyRequests("10 requests a minute; wait")

    infer, ledger = inference(Says("a"), quota=quota)
    with pytest.raises(TooManyRequests):
        await infer.once(*asked())
    assert ledger.rows[0].status == 429


async def test_a_name_of_any_length_is_cut_for_the_ledger() -> None:
    infer, ledger = inference(None)
    request, _, write = asked()
    with pytest.raises(NotFound):
        await infer.once(request, Receipt("r1", "x" * 100_000, "/v1/completions"), write)
    assert len(ledger.rows[0].model) == 200


async def test_a_caller_who_goes_away_is_one_row_499_and_the_replica_hears_of_it() -> None:
    replica = Says("a", "b", "c", delay=0.01)
    infer, ledger = inference(replica)
    async with aclosing(infer.stream(*asked())) as chunks:  # type: ignore[type-var]
        await anext(chunks)
    assert [row.status for row in ledger.rows] == [499] and replica.closed == 1
    task = asyncio.create_task(infer.once(*asked()))
    await asyncio.sleep(0.015)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [row.status for row in ledger.rows] == [499, 499] and replica.closed == 2


async def test_closing_after_the_last_chunk_adds_no_row() -> None:
    infer, ledger = inference(Says("a"))
    async with aclosing(infer.stream(*asked())) as chunks:  # type: ignore[type-var]
        assert (await anext(chunks)).is_last
    assert [row.status for row in ledger.rows] == [200]


async def test_the_deadline_bounds_a_whole_answer_and_the_first_piece_of_a_stream() -> None:
    import time

    replica = Says("a", "b", "c", delay=0.1)
    infer, ledger = inference(replica)
    with pytest.raises(DeadlineExceeded):
        await infer.once(*asked(time.monotonic() + 0.15))
    assert ledger.rows[0].status == 504 and replica.closed == 1
    got = [chunk async for chunk in infer.stream(*asked(time.monotonic() + 0.15))]
    assert len(got) == 3
    with pytest.raises(DeadlineExceeded):
        async for _ in infer.stream(*asked(time.monotonic() + 0.05)):
            pass


async def test_several_payloads_are_one_row_with_their_sum() -> None:
    infer, ledger = inference(Says("a", "b"))
    request, receipt, _ = asked()
    chunks = await infer.many(request, [TextPayload(prompt=p) for p in "xyz"], receipt, all_of_them)
    assert len(chunks) == 3
    (row,) = ledger.rows
    assert (row.items, row.prompt_tokens, row.completion_tokens, row.compute_seconds) == (3, 15, 6, 1.5)


async def test_one_bad_payload_of_several_ends_all_and_is_one_row() -> None:
    replica = Says("a", "b", error=InvalidPayload("no"))
    infer, ledger = inference(replica)
    request, receipt, _ = asked()
    with pytest.raises(InvalidPayload):
        await infer.many(request, [TextPayload(prompt=p) for p in "xyz"], receipt, all_of_them)
    assert [row.status for row in ledger.rows] == [400] and replica.closed == 3


async def test_many_rows_that_become_durable_in_a_thread_wake_everyone() -> None:
    class Threaded(FakeLedger):
        def record(self, entry: Any) -> Future[None]:
            future: Future[None] = Future()
            told: Callable[..., None] = future.set_result
            asyncio.get_running_loop().run_in_executor(None, told, None)
            return future

    infer, _ = inference(Says("a"), Threaded())
    for _ in range(20):
        async with asyncio.timeout(10):
            await asyncio.gather(*(infer.once(*asked()) for _ in range(50)))
