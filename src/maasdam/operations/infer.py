"""Answer one request: quota, endpoint -> replica, chunks, what it cost, and one durable row in the ledger.

Knows requests, replicas and accounts. Refuses to know HTTP, tensors' meaning and how an engine runs.

    request -quota-> route -> replica.answer -> chunk, chunk, last chunk
                                                           \\- written -> ledger row durable -> only then handed out

Exactly one row is written whatever happens: answered (200), refused or broken (the error's HTTP status), or the
caller went away (499). A door gives `write`, which makes its words of a chunk: they exist before a row says 200, so an
answer that could not be written is an error's row, and costs nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from concurrent.futures import Future
from contextlib import aclosing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

from maasdam.accounts.ledger import Entry
from maasdam.core import Chunk, Payload, Request, TextPiece, Units
from maasdam.errors import DeadlineExceeded, EngineFailure, MaasdamError
from maasdam.serving.replica import Replica

if TYPE_CHECKING:
    from maasdam.artifacts.catalog import Version

CLIENT_CLOSED = 499
JOULES_PER_KWH = 3.6e6
LONGEST_NAME = 200
"""What is kept of a name that a caller made up, characters."""
NOTHING = Units(items=0)
Written = TypeVar("Written")
LEAST_WAIT_SECONDS = 0.25
"""An error's row is waited for so long at least: most are durable by then."""
TOO_LATE = "no answer within the time limit; try again when the service is less busy"


class Routes(Protocol):
    """What inference needs of the router."""

    def route(self, name: str) -> tuple[Version, Replica]:
        """A ready replica; raises NotFound, NotReady."""
        ...


class Rows(Protocol):
    """What inference needs of the ledger."""

    def record(self, entry: Entry) -> Future[None]:
        """Resolved once the row is durable."""
        ...

    def restate(self, row: Future[None], status: int, error_code: str) -> bool:
        """Another status, an error's, for a row that is not being written yet; False where it is too late for that."""
        ...


class Energy(Protocol):
    """What inference needs of the energy meter."""

    def joules(self, compute_seconds: float | None, wall: float) -> tuple[float | None, str]:
        """Joules, or None, and the method."""
        ...


class Meters(Protocol):
    """What inference needs of the metrics."""

    def answered(self, receipt: Receipt, status: int) -> None:
        """A request has ended."""
        ...

    def first_chunk(self, receipt: Receipt, seconds: float) -> None:
        """The first piece of a streamed answer came."""
        ...


@dataclass(slots=True)
class Receipt:
    """What a request was and cost. Complete before the last chunk is written; None is unmeasured."""

    request_id: str
    model: str
    """The model's name; as the caller wrote it where there is no such model."""
    endpoint: str
    version: int | None = None
    task: str | None = None
    units: Units = NOTHING
    seconds: float = 0.0
    compute_seconds: float | None = None
    joules: float | None = None
    energy_method: str | None = None
    grams_co2e: float | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """Settings that bear on one request."""

    max_tokens: int
    """Tokens generated when the caller names no limit."""
    grams_co2e_per_kwh: float
    """0 is unknown."""


Quota = Callable[[Request], None]
"""Raises TooManyRequests when the caller has used up what is theirs."""


class Inference:
    """The one way from a request to its answer; every door calls it."""

    def __init__(
        self,
        routes: Routes,
        ledger: Rows,
        energy: Energy,
        limits: Limits,
        *,
        meters: Meters | None = None,
        quota: Quota | None = None,
        refuse_if_lost: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`refuse_if_lost` raises StorageFailure while nothing can be recorded: then no model runs for nothing."""
        self._routes = routes
        self._ledger = ledger
        self._energy = energy
        self._limits = limits
        self._meters = meters
        self._quota = quota
        self._refuse_if_lost = refuse_if_lost
        self._clock = clock
        self._durable = _Durable()

    async def once(self, request: Request, receipt: Receipt, write: Callable[[Chunk], Written]) -> Written:
        """The whole answer as one chunk, written. Raises what the replica and `write` raise, DeadlineExceeded."""

        async def written(chunks: list[Chunk]) -> Written:
            return write(chunks[0])

        return await self.many(request, (request.payload,), receipt, written)

    async def many(
        self,
        request: Request,
        payloads: Sequence[Payload],
        receipt: Receipt,
        write: Callable[[list[Chunk]], Awaitable[Written]],
    ) -> Written:
        """Whole answers to several payloads of one request, run side by side, written as one; one row for all."""
        account = self._open(request, receipt)
        try:
            if request.deadline is None:
                chunks = await self._run(account, request, payloads)
            else:
                async with asyncio.timeout(request.deadline - self._clock()):
                    chunks = await self._run(account, request, payloads)
            account.add_up()
            answer = await write(chunks)
        except BaseException as error:
            shown = await account.failed(error)
            if shown is error:
                raise
            raise shown from error
        await account.answered(request.deadline)
        return answer

    async def stream(self, request: Request, receipt: Receipt, write: Callable[[Chunk], Written]) -> AsyncIterator[Written]:
        """Chunks as they come, written; the deadline holds for the first one. Closing the iterator cancels."""
        account = self._open(request, receipt)
        try:
            replica = self._route(account, request)
            async with aclosing(cast(Any, replica.answer(replace(request, deadline=None), self._limits.max_tokens))) as chunks:
                chunk = await self._first(chunks, request.deadline)
                if self._meters:
                    self._meters.first_chunk(receipt, self._clock() - account.began)
                while not chunk.is_last:
                    account.see([chunk])
                    yield write(chunk)
                    chunk = await anext(chunks)
            account.see([chunk])
            account.add_up()
            last = write(chunk)
            # the deadline was the first piece's; the row has as long again
            await account.answered(None if request.deadline is None else self._clock() + request.deadline - account.began)
        except BaseException as error:
            shown = await account.failed(error)
            if shown is error:
                raise
            raise shown from error
        yield last

    async def _first(self, chunks: AsyncIterator[Chunk], deadline: float | None) -> Chunk:
        if deadline is None:
            return await anext(chunks)
        async with asyncio.timeout(deadline - self._clock()):
            return await anext(chunks)

    def _open(self, request: Request, receipt: Receipt) -> _Account:
        return _Account(self, request, receipt)

    def _route(self, account: _Account, request: Request) -> Replica:
        self._refuse_if_lost()
        if self._quota:
            self._quota(request)
        version, replica = self._routes.route(request.model)
        account.receipt.model, account.receipt.version, account.receipt.task = version.model, version.version, version.task
        return replica

    async def _run(self, account: _Account, request: Request, payloads: Sequence[Payload]) -> list[Chunk]:
        replica = self._route(account, request)
        latest: dict[int, Chunk] = {}

        def fold(i: int, part: Request) -> Coroutine[Any, Any, Chunk]:
            def see(chunk: Chunk) -> None:
                latest[i] = chunk
                account.see(list(latest.values()))

            return _fold(replica.answer(part, self._limits.max_tokens), see)

        if len(payloads) == 1:
            return [await fold(0, request)]
        parts = [replace(request, id=f"{request.id}-{i}", payload=payload) for i, payload in enumerate(payloads)]
        return await self._side_by_side([fold(i, part) for i, part in enumerate(parts)])

    async def _side_by_side(self, folds: Sequence[Coroutine[Any, Any, Chunk]]) -> list[Chunk]:
        tasks = [asyncio.ensure_future(fold) for fold in folds]
        try:
            return list(await asyncio.gather(*tasks))
        except BaseException:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            raise


class _Account:
    """One request's units, cost and row."""

    def __init__(self, inference: Inference, request: Request, receipt: Receipt) -> None:
        self._inference = inference
        self._request = request
        self.receipt = receipt
        self.began = inference._clock()
        self._is_added_up = False
        self._is_settled = False

    def see(self, chunks: Sequence[Chunk]) -> None:
        """Add up what the chunks are metered as."""
        self.receipt.units = _sum([chunk.units for chunk in chunks])
        computed = [chunk.compute_seconds for chunk in chunks if chunk.compute_seconds is not None]
        if computed:
            self.receipt.compute_seconds = sum(computed)

    def add_up(self) -> None:
        """Complete the receipt, which the answer may show."""
        inference, receipt = self._inference, self.receipt
        receipt.seconds = inference._clock() - self.began
        receipt.joules, receipt.energy_method = inference._energy.joules(receipt.compute_seconds, receipt.seconds)
        per_kwh = inference._limits.grams_co2e_per_kwh
        if receipt.joules is not None and per_kwh > 0:
            receipt.grams_co2e = receipt.joules / JOULES_PER_KWH * per_kwh
        self._is_added_up = True

    async def answered(self, deadline: float | None) -> None:
        """Write the row of an answer, and wait until it is durable. Raises DeadlineExceeded, and the row says so then."""
        future = self._record(200)
        if future is None:
            return
        durable, ledger = self._inference._durable, self._inference._ledger
        with self._counted(200):
            try:
                await durable.wait(future, None if deadline is None else deadline - self._inference._clock())
            except TimeoutError:
                if ledger.restate(future, DeadlineExceeded.http_status, DeadlineExceeded.code):
                    raise DeadlineExceeded(TOO_LATE) from None
                await durable.wait(future)  # it is being committed, which waits for nobody

    async def settle(self, status: int, error_code: str) -> None:
        """Write the row of an error, once, and wait until it is durable, but not for long beyond the deadline."""
        future = self._record(status, error_code)
        if future is None:
            return
        deadline = self._request.deadline
        left = None if deadline is None else max(deadline - self._inference._clock(), LEAST_WAIT_SECONDS)
        with self._counted(status), contextlib.suppress(TimeoutError):  # it stays queued
            await self._inference._durable.wait(future, left)

    async def failed(self, error: BaseException) -> BaseException:
        """Write the row of a request that `error` ended; the error to raise."""
        if isinstance(error, GeneratorExit | asyncio.CancelledError):
            if self._record(CLIENT_CLOSED, "client_closed") is not None:
                self._count(CLIENT_CLOSED)
            return error
        shown: BaseException = error
        if isinstance(error, TimeoutError):
            shown = DeadlineExceeded(TOO_LATE)
        elif not isinstance(error, MaasdamError):
            shown = EngineFailure(f"{type(error).__name__}: {error}")
        if isinstance(shown, MaasdamError):
            await self.settle(shown.http_status, shown.code)
        else:
            await self.settle(500, MaasdamError.code)
        return shown

    def _record(self, status: int, error_code: str | None = None) -> Future[None] | None:
        if self._is_settled:
            return None
        self._is_settled = True
        inference, receipt, caller = self._inference, self.receipt, self._request.caller
        if not self._is_added_up:
            self.add_up()
        units = receipt.units
        entry = Entry(
            request_id=receipt.request_id,
            at=datetime.now(UTC),
            key_id=caller.key_id,
            caller=caller.name,
            model=receipt.model[:LONGEST_NAME],
            version=receipt.version,
            task=receipt.task,
            endpoint=receipt.endpoint,
            status=status,
            error_code=error_code,
            items=units.items,
            prompt_tokens=units.prompt_tokens,
            completion_tokens=units.completion_tokens,
            audio_seconds=units.audio_seconds,
            seconds=receipt.seconds,
            compute_seconds=receipt.compute_seconds,
            joules=receipt.joules,
            energy_method=receipt.energy_method,
            grams_co2e=receipt.grams_co2e,
        )
        return inference._ledger.record(entry)

    @contextlib.contextmanager
    def _counted(self, status: int) -> Iterator[None]:
        """Count the request once its row was waited for: as `status`, or as what the waiting raised, which is answered then."""
        try:
            yield
        except MaasdamError as error:
            self._count(error.http_status)
            raise
        except (asyncio.CancelledError, GeneratorExit):
            self._count(CLIENT_CLOSED)
            raise
        except BaseException:
            self._count(MaasdamError.http_status)
            raise
        self._count(status)

    def _count(self, status: int) -> None:
        if self._inference._meters:
            self._inference._meters.answered(self.receipt, status)


class _Durable:
    """Waits for rows. The ledger tells of a whole group at once; so the event loop is woken once for all of it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._told: list[tuple[asyncio.Future[None], Future[None]]] = []

    async def wait(self, row: Future[None], seconds: float | None = None) -> None:
        """Return once the row is on disk. Raises what the ledger says when it can't be written, TimeoutError."""
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[None] = loop.create_future()
        timer = None if seconds is None else loop.call_later(max(seconds, 0.0), _give_up, waiter)  # cheaper than a timeout()

        def tell(done: Future[None]) -> None:
            with self._lock:
                is_first = not self._told
                self._told.append((waiter, done))
            if is_first:
                with contextlib.suppress(RuntimeError):  # the loop has closed: nobody waits
                    loop.call_soon_threadsafe(self._wake)

        row.add_done_callback(tell)
        try:
            await waiter
        finally:
            if timer is not None:
                timer.cancel()

    def _wake(self) -> None:
        with self._lock:
            told, self._told = self._told, []
        for waiter, done in told:
            if waiter.done():
                continue
            error = done.exception()
            if error is None:
                waiter.set_result(None)
            else:
                waiter.set_exception(error)


def _give_up(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_exception(TimeoutError())


async def _fold(chunks: AsyncIterator[Chunk], see: Callable[[Chunk], None]) -> Chunk:
    """An answer that is not streamed: the pieces of text joined, other answers as they are. `see` is told each chunk."""
    async with aclosing(cast(Any, chunks)) as pieces:
        texts: list[str] = []
        token_ids: list[int] = []
        async for chunk in pieces:
            see(chunk)
            if not isinstance(chunk.value, TextPiece):
                return cast(Chunk, chunk)
            texts.append(chunk.value.text)
            token_ids.extend(chunk.value.token_ids)
            if chunk.is_last:
                whole = TextPiece("".join(texts), tuple(token_ids), chunk.value.finish_reason)
                return replace(cast(Chunk, chunk), value=whole)
    raise EngineFailure("the answer ended without a last piece")


def _sum(many: Sequence[Units]) -> Units:
    if len(many) == 1:
        return many[0]

    def total(values: Sequence[Any]) -> Any:
        known = [value for value in values if value is not None]
        return sum(known) if known else None

    return Units(
        items=sum(units.items for units in many),
        prompt_tokens=total([units.prompt_tokens for units in many]),
        completion_tokens=total([units.completion_tokens for units in many]),
        audio_seconds=total([units.audio_seconds for units in many]),
    )
