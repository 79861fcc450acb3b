"""One durable row a request, whatever becomes of it, before the answer's last chunk."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from tests.fakes import FakeOutbox
from tests.waiting import until

from maasdam.core import ANONYMOUS, Caller, Chunk, Cost, Entry, Facts, Request, TextPayload, TextPiece, Units
from maasdam.engines.mailbox import told
from maasdam.errors import (
    DeadlineExceeded,
    EngineFailure,
    InvalidPayload,
    MaasdamError,
    NotFound,
    ServiceError,
    TooManyRequests,
)
from maasdam.operations.infer import Inference
from maasdam.serving.replica import Cancel, Done, Hear, whole
from maasdam.serving.router import Lease


class Says:
    """A replica that says its words, one a chunk; `error` comes instead of the last."""

    facts = Facts()
    waiting = 0

    def __init__(self, *words: str, delay: float = 0.0, error: BaseException | None = None) -> None:
        self.words, self.delay, self.error = words, delay, error
        self.begun = self.closed = 0
        self.in_flight = 0

    def submit(self, request: Request, done: Done) -> Cancel:
        return whole([self.answer(request) for _ in request.payloads], done)

    def stream(self, request: Request, hear: Hear) -> Callable[[], object]:
        return told(self.answer(request), hear, lambda chunk: chunk.is_last)

    async def answer(self, request: Request) -> AsyncGenerator[Chunk]:
        self.begun += 1
        try:
            for i, word in enumerate(self.words):
                await asyncio.sleep(self.delay)
                is_last = i == len(self.words) - 1
                if is_last and self.error:
                    raise self.error
                units = Units(prompt_tokens=5, completion_tokens=i + 1)
                cost = Cost(0.5, 1.0, "estimate: fake") if is_last else None
                yield Chunk(TextPiece(word, (i,), "stop" if is_last else None), units, is_last, cost)
        finally:
            self.closed += 1

    def close(self) -> None:
        pass


def inference(replica: Says | None, ledger: Any = None, **options: Any) -> tuple[Inference, Any]:
    def lease(name: str) -> Lease:
        if replica is None:
            raise NotFound(f"no model '{name}' is deployed")
        return Lease(SimpleNamespace(model="bard", version=3, task="text-generation"), replica)

    ledger = ledger or FakeOutbox()
    made = Inference(SimpleNamespace(lease=lease), ledger, grams_co2e_per_kwh=400.0, **options)
    return made, ledger


def itself(chunk: Chunk, entry: Entry) -> Chunk:
    return chunk


async def the_first(chunks: list[Chunk], entry: Entry) -> Chunk:
    return chunks[0]


async def all_of_them(chunks: list[Chunk], entry: Entry) -> list[Chunk]:
    return chunks


def asked(deadline: float | None = None, caller: Caller = ANONYMOUS, prompts: str = "x") -> Request:
    payloads = tuple(TextPayload(prompt=prompt) for prompt in prompts)
    return Request("r1", "bard", payloads, caller, "/v1/completions", deadline)


async def test_an_answer_in_one_piece_is_folded_metered_and_priced() -> None:
    infer, ledger = inference(Says("to ", "be ", "or"))
    shown: list[tuple[float | None, float]] = []

    async def write(chunks: list[Chunk], entry: Entry) -> Chunk:
        shown.append((entry.joules, entry.seconds))
        return chunks[0]

    chunk = await infer.whole(asked(caller=Caller("k1", "bob", frozenset({"infer"}))), write)
    assert chunk.value == TextPiece("to be or", (0, 1, 2), "stop")
    (row,) = ledger.rows
    assert (row.request_id, row.key_id, row.caller, row.model, row.version, row.status) == ("r1", "k1", "bob", "bard", 3, 200)
    assert (row.prompt_tokens, row.completion_tokens, row.compute_seconds, row.joules) == (5, 3, 0.5, 1.0)
    assert row.grams_co2e == pytest.approx(400 / 3.6e6) and row.energy_method == "estimate: fake"
    ((joules, seconds),) = shown
    assert joules == 1.0 and seconds > 0


class Held(FakeOutbox):
    """Rows that are durable once that is said. `is_early`: none is being written yet."""

    def __init__(self, is_early: bool = False) -> None:
        super().__init__()
        self.done: list[Callable[[BaseException | None], None]] = []
        self.is_early = is_early

    def record(self, entry: Any, done: Callable[[BaseException | None], None]) -> int:
        self.rows.append(entry)
        self.done.append(done)
        return 0

    def restate(self, row: int, status: int, error_code: str) -> bool:
        if self.is_early:
            self.rows[row].status, self.rows[row].error_code = status, error_code
        return self.is_early

    async def recorded(self) -> None:
        await until(lambda: self.rows)


@pytest.mark.parametrize("is_stream", [False, True])
async def test_the_last_chunk_waits_for_the_durable_row(is_stream: bool) -> None:
    ledger = Held()
    infer, _ = inference(Says("a", "b"), ledger)
    got: list[Chunk] = []

    async def read() -> None:
        if is_stream:
            async for chunk in infer.stream(asked(), itself):
                got.append(chunk)
        else:
            got.append(await infer.whole(asked(), the_first))

    task = asyncio.create_task(read())
    await ledger.recorded()
    assert len(ledger.rows) == 1 and ledger.rows[0].status == 200
    assert [chunk.is_last for chunk in got] == ([False] if is_stream else [])
    ledger.done[0](None)
    await task
    assert got[-1].is_last


async def test_an_answer_that_can_not_be_written_is_an_errors_row_whatever_its_form() -> None:
    def breaks(chunk: Chunk, entry: Entry) -> Chunk:
        if chunk.is_last:
            raise TypeError("Type is not JSON serializable: numpy.float64")
        return chunk

    async def breaks_too(chunks: list[Chunk], entry: Entry) -> None:
        raise TypeError("Type is not JSON serializable: numpy.float64")

    infer, ledger = inference(Says("a", "b"))
    with pytest.raises(EngineFailure, match="not JSON serializable"):
        await infer.whole(asked(), breaks_too)
    with pytest.raises(EngineFailure, match="not JSON serializable"):
        await infer.whole(asked(prompts="xyz"), breaks_too)
    got = []
    with pytest.raises(EngineFailure, match="not JSON serializable"):
        async for chunk in infer.stream(asked(), breaks):
            got.append(chunk)
    assert [chunk.is_last for chunk in got] == [False]
    assert [row.status for row in ledger.rows] == [500, 500, 500]


@pytest.mark.parametrize("is_stream", [False, True])
async def test_what_a_request_cost_is_known_when_its_answer_is_written(is_stream: bool) -> None:
    infer, ledger = inference(Says("a", "b"))
    shown: list[Any] = []

    def write(chunk: Chunk, entry: Entry) -> None:
        shown.append((len(ledger.rows), entry.joules if chunk.is_last else None, entry.seconds))

    async def write_whole(chunks: list[Chunk], entry: Entry) -> None:
        write(chunks[0], entry)

    if is_stream:
        async for _ in infer.stream(asked(), write):
            pass
    else:
        await infer.whole(asked(), write_whole)
    assert shown[-1] == (0, 1.0, ledger.rows[0].seconds)


async def test_an_answer_whose_row_can_not_be_written_is_not_given() -> None:
    infer, outbox = inference(Says("a", "b"), FakeOutbox(ServiceError("the journal can't be written: disk full")))
    with pytest.raises(ServiceError, match="disk full"):
        await infer.whole(asked(), the_first)
    got = []
    with pytest.raises(ServiceError, match="disk full"):
        async for chunk in infer.stream(asked(), itself):
            got.append(chunk.is_last)
    assert got == [False]
    assert len(outbox.rows) == 2 and outbox.first_chunks == 1, "once each"


async def test_an_answer_that_is_late_while_its_row_waits_is_an_error_in_its_row_too() -> None:
    outbox = Held(is_early=True)
    infer, _ = inference(Says("a"), outbox)
    with pytest.raises(DeadlineExceeded):
        await infer.whole(asked(time.monotonic() + 0.05), the_first)
    assert [(row.status, row.error_code) for row in outbox.rows] == [(504, "deadline_exceeded")]


async def test_an_answer_whose_row_is_being_written_waits_for_it_and_is_given() -> None:
    outbox = Held()
    infer, _ = inference(Says("a"), outbox)
    late = asyncio.create_task(infer.whole(asked(time.monotonic() + 0.05), the_first))
    await outbox.recorded()
    asyncio.get_running_loop().call_later(0.15, outbox.done[0], None)
    assert (await late).is_last
    assert [row.status for row in outbox.rows] == [200]


async def test_who_goes_away_while_the_row_waits_leaves_one_row() -> None:
    outbox = Held()
    infer, _ = inference(Says("a"), outbox)
    leaves = asyncio.create_task(infer.whole(asked(), the_first))
    await outbox.recorded()
    leaves.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaves
    outbox.done[0](None)
    assert [row.status for row in outbox.rows] == [200]


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
            async for _ in infer.stream(asked(), itself):
                pass
        else:
            await infer.whole(asked(), the_first)
    (row,) = ledger.rows
    assert row.status == status
    if is_stream:
        assert row.completion_tokens == 1, "what was given is metered"


async def test_an_unknown_model_and_a_used_up_quota_are_rows_too() -> None:
    infer, ledger = inference(None)
    with pytest.raises(NotFound):
        await infer.whole(asked(), the_first)
    assert ledger.rows[0].status == 404 and ledger.rows[0].version is None and ledger.rows[0].items == 0

    def used_up() -> None:
        raise TooManyRequests("10 requests a minute; wait")

    infer, ledger = inference(Says("a"), refuse_if_lost=used_up)
    with pytest.raises(TooManyRequests):
        await infer.whole(asked(), the_first)
    assert ledger.rows[0].status == 429


async def test_a_name_of_any_length_is_cut_for_the_ledger() -> None:
    infer, ledger = inference(None)
    with pytest.raises(NotFound):
        await infer.whole(replace(asked(), model="x" * 100_000), the_first)
    assert len(ledger.rows[0].model) == 200


async def test_a_caller_who_goes_away_is_one_row_499_and_the_replica_hears_of_it() -> None:
    replica = Says("a", "b", "c", delay=0.01)
    infer, ledger = inference(replica)
    async with aclosing(infer.stream(asked(), itself)) as chunks:
        await anext(chunks)
    assert [row.status for row in ledger.rows] == [499]
    await until(lambda: replica.closed == 1)
    task = asyncio.create_task(infer.whole(asked(), the_first))
    await until(lambda: replica.begun == 2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [row.status for row in ledger.rows] == [499, 499]
    await until(lambda: replica.closed == 2)


async def test_closing_after_the_last_chunk_adds_no_row() -> None:
    infer, ledger = inference(Says("a"))
    async with aclosing(infer.stream(asked(), itself)) as chunks:
        assert (await anext(chunks)).is_last
    assert [row.status for row in ledger.rows] == [200]


async def test_the_deadline_bounds_a_whole_answer_and_the_first_piece_of_a_stream() -> None:
    import time

    replica = Says("a", "b", "c", delay=0.1)
    infer, ledger = inference(replica)
    with pytest.raises(DeadlineExceeded):
        await infer.whole(asked(time.monotonic() + 0.15), the_first)
    await asyncio.sleep(0)  # it is told, and ends in its turn
    assert ledger.rows[0].status == 504 and replica.closed == 1
    got = [chunk async for chunk in infer.stream(asked(time.monotonic() + 0.15), itself)]
    assert len(got) == 3
    with pytest.raises(DeadlineExceeded):
        async for _ in infer.stream(asked(time.monotonic() + 0.05), itself):
            pass


async def test_several_payloads_are_one_row_with_their_sum() -> None:
    infer, ledger = inference(Says("a", "b"))
    chunks = await infer.whole(asked(prompts="xyz"), all_of_them)
    assert len(chunks) == 3
    (row,) = ledger.rows
    assert (row.items, row.prompt_tokens, row.completion_tokens, row.compute_seconds) == (3, 15, 6, 1.5)


async def test_one_bad_payload_of_several_ends_all_and_is_one_row() -> None:
    replica = Says("a", "b", error=InvalidPayload("no"))
    infer, ledger = inference(replica)
    with pytest.raises(InvalidPayload):
        await infer.whole(asked(prompts="xyz"), all_of_them)
    assert [row.status for row in ledger.rows] == [400] and replica.closed == 3
