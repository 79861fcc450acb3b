"""Answer one request: a lease on a replica, chunks, what it cost, and one durable row in the ledger.

Knows requests, replicas and accounts. Refuses to know HTTP, tensors' meaning and how an engine runs.

    request -> lease (version, replica) -> replica.submit or .answer -> chunk, chunk, last chunk
                                                           \\- written -> ledger row durable -> only then handed out

Exactly one row is written whatever happens: answered (200), refused or broken (the error's HTTP status), or the
caller went away (499). A door gives `write`, which makes its words of a chunk: they exist before a row says 200, so an
answer that could not be written is an error's row, and costs nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from maasdam.core import Chunk, Cost, Entry, Facts, Request, Units, total_cost
from maasdam.engines.mailbox import as_they_come
from maasdam.errors import Asleep, DeadlineExceeded, EngineFailure, Left, MaasdamError
from maasdam.serving.deadlines import Deadlines
from maasdam.serving.replica import Cancel, Replica
from maasdam.serving.router import Lease
from maasdam.serving.scheduler import settle
from maasdam.tasks import check_door
from maasdam.telemetry.requests import LONGEST

if TYPE_CHECKING:
    from maasdam.artifacts.catalog import Version

CLIENT_CLOSED, CLIENT_GONE = 499, "client_closed"
"""Status and error code of a request whose caller went away."""
JOULES_PER_KWH = 3.6e6
Written = TypeVar("Written")
Queued = TypeVar("Queued")
"""A row on its way to the disk."""
LEAST_WAIT_SECONDS = 0.25
"""An error's row is waited for so long at least: most are durable by then."""
TOO_LATE = "no answer within the time limit; try again when the service is less busy"
BEGUN = datetime.min.replace(tzinfo=UTC)
"""When a request was that has no row yet."""
UNMEASURED = "compute seconds were not measured"


class Routes(Protocol):
    """What inference needs of the router."""

    def lease(self, name: str) -> Lease:
        """A ready replica, held until it is released; raises NotFound, NotReady, Asleep."""
        ...

    async def woken(self, asleep: Asleep) -> Lease:
        """The same once it is loaded. Raises NotFound, NotReady, Overloaded."""
        ...


class Outbox(Protocol[Queued]):
    """What inference needs of the outbox, the seam that rows and counts leave through."""

    def record(self, entry: Entry, done: Callable[[BaseException | None], None]) -> Queued:
        """`done` is called once the row is durable, or with why it is not; it is counted too."""
        ...

    def restate(self, row: Queued, status: int, error_code: str) -> bool:
        """Another status, an error's, for a row that is not being written yet; False where it is too late for that."""
        ...

    def first_chunk(self, entry: Entry, seconds: float) -> None:
        """The first piece of a streamed answer came."""
        ...


class Inference:
    """The one way from a request to its answer; every door calls it."""

    def __init__(
        self,
        routes: Routes,
        outbox: Outbox[Any],
        *,
        grams_co2e_per_kwh: float = 0.0,
        refuse_if_lost: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`grams_co2e_per_kwh` 0 is unknown.

        `refuse_if_lost` raises StorageFailure while nothing can be recorded: then no model runs for nothing.
        """
        self._routes = routes
        self.outbox = outbox
        self._grams_co2e_per_joule = grams_co2e_per_kwh / JOULES_PER_KWH
        self._refuse_if_lost = refuse_if_lost
        self._clock = clock
        self.deadlines = Deadlines(clock)

    async def whole(
        self,
        request: Request,
        write: Callable[[list[Chunk], Entry], Awaitable[Written]],
        check: Callable[[Facts], None] | None = None,
    ) -> Written:
        """Whole answers to a request's payloads, one chunk each, written as one; one row for all.

        `check` raises where the replica that will answer can't give what is asked for; the entry that `write` gets says
        what it cost. Raises what the replica, `check` and `write` raise, DeadlineExceeded.
        """
        account = Account(self, request)
        try:
            try:
                chunks = await self.ask(account, check)
                account.add_up()
                answer = await write(chunks, account.entry)
            except BaseException as error:
                shown = await account.failed(error)
                if shown is error:
                    raise
                raise shown from error
            await account.answered(request.deadline)
            return answer
        finally:
            account.release()

    def begin(
        self,
        request: Request,
        check: Callable[[Facts], None],
        write: Callable[[list[Chunk], Entry, Callable[[Any], None]], None],
        done: Callable[[Any], None],
    ) -> Callable[[], None]:
        """As `whole`, by callbacks: no task and no future. What this gives cancels it, for a caller that went away.

        `write` gives what it wrote, or its error, to its third argument. `done` hears of what was written once the row is
        durable, or of the error whose row was written. What is wrong before the replica takes the request is raised, and has
        no row: the caller goes the other way, which says so.
        """
        answering = _Answering(self, request, write, done)
        answering.begin(check)
        return answering.cancel

    def begin_stream(
        self,
        request: Request,
        write: Callable[[Chunk, Entry], Written],
        hear: Callable[[Written | BaseException, bool], None],
    ) -> Callable[[], None]:
        """Have `hear` told of all payloads' chunks as they come, written, and whether one is the last, which it hears of once
        the row is durable; or of the error that ends it, once that has its row. The deadline holds for the first one.

        What this gives cancels it, for a caller that went away.
        """
        streaming = _Streaming(self, request, write, hear)
        streaming.begin(lambda facts: None)
        return streaming.cancel

    async def stream(self, request: Request, write: Callable[[Chunk, Entry], Written]) -> AsyncGenerator[Written]:
        """What `begin_stream` tells, to be awaited. Closing the generator cancels."""

        def begin(tell: Callable[[tuple[Written, bool] | BaseException], None]) -> Callable[[], None]:
            def hear(piece: Written | BaseException, is_last: bool) -> None:
                tell(piece if isinstance(piece, BaseException) else (piece, is_last))

            return self.begin_stream(request, write, hear)

        async with aclosing(as_they_come(begin, itemgetter(1))) as pieces:
            async for piece, _ in pieces:
                yield piece

    async def note(self, entry: Entry, until: float) -> None:
        """Write a row of what no model was asked for, and wait for it until then: it costs nothing, and need not be certain."""
        durable = _Durable()
        self.outbox.record(entry, durable.tell)
        with contextlib.suppress(MaasdamError, TimeoutError):
            await durable.wait(self.deadlines, until)

    def restate(self, row: Any) -> bool:
        """Let a row be that of a late answer; False where it is being written already."""
        return self.outbox.restate(row, DeadlineExceeded.http_status, DeadlineExceeded.code)

    def now(self) -> float:
        """Monotonic seconds, as deadlines are in."""
        return self._clock()

    def lease(self, account: Account) -> Replica:
        """The replica that will answer, held for the account. Raises NotFound, NotReady, Asleep, StorageFailure."""
        self._refuse_if_lost()
        try:
            lease = account.lease = self._routes.lease(account.request.model)
        except Asleep as asleep:
            account.meets(asleep.group.version)
            raise
        account.meets(lease.version)
        return lease.replica

    async def leased(self, account: Account, asleep: Asleep | None = None) -> Replica:
        """The same, loaded first where it is asleep. Raises NotFound, NotReady, Overloaded, StorageFailure."""
        try:
            if asleep is None:
                return self.lease(account)
        except Asleep as found:
            asleep = found
        lease = account.lease = await self._routes.woken(asleep)
        account.meets(lease.version)
        return lease.replica

    async def ask(self, account: Account, check: Callable[[Facts], None] | None) -> list[Chunk]:
        """The answer of a replica that stays, whole."""
        while True:
            try:
                replica = self.lease(account)
            except Asleep as asleep:
                deadline = account.request.deadline
                async with asyncio.timeout(None if deadline is None else deadline - self._clock()):
                    replica = await self.leased(account, asleep)
            if check is not None:
                check(replica.facts)
            try:
                return await self._submitted(account, replica)
            except Left:
                account.release()
                await asyncio.sleep(0)  # the router may be still to hear of it

    async def _submitted(self, account: Account, replica: Replica) -> list[Chunk]:
        waiter: asyncio.Future[list[Chunk]] = asyncio.get_running_loop().create_future()
        told = partial(settle, waiter)
        deadline = account.request.deadline
        late = None if deadline is None else self.deadlines.add(deadline, partial(told, TimeoutError()))
        try:
            cancel = replica.submit(account.request, told)
            try:
                chunks = await waiter
            except BaseException:
                account.see(cancel())
                raise
        finally:
            if late is not None:
                self.deadlines.remove(late)
        account.see(chunks)
        return chunks


class Account:
    """One request's units, cost and row."""

    __slots__ = ("_inference", "_is_added_up", "_is_settled", "began", "entry", "lease", "request")

    def __init__(self, inference: Inference, request: Request) -> None:
        caller = request.caller
        self._inference = inference
        self.request = request
        name = request.model[:LONGEST]
        self.entry = Entry(request.id, BEGUN, caller.key_id, caller.name, name, request.endpoint, 0, 0.0, items=0)
        self.lease: Lease | None = None
        self.began = inference.now()
        self._is_added_up = False
        self._is_settled = False

    def release(self) -> None:
        """The replica may go."""
        if self.lease is not None:
            self.lease.release()

    def meets(self, version: Version) -> None:
        """This version will answer. Raises what its task's door does."""
        entry = self.entry
        entry.model, entry.version, entry.task = version.model, version.version, version.task
        check_door(version.task, self.request.endpoint)

    def see(self, chunks: Sequence[Chunk]) -> None:
        """Add up what the chunks, one a payload, are metered as."""
        if not chunks:
            return
        entry, first = self.entry, chunks[0]
        is_one = len(chunks) == 1
        units = first.units if is_one else _sum([chunk.units for chunk in chunks])
        entry.items, entry.audio_seconds = units.items, units.audio_seconds
        entry.prompt_tokens, entry.completion_tokens = units.prompt_tokens, units.completion_tokens
        cost = first.cost if is_one else total_cost(chunk.cost for chunk in chunks)
        if cost is not None:
            entry.compute_seconds, entry.joules, entry.energy_method = cost

    def take_over(self, part: Account) -> None:
        """Add what a part of the request took; who answered it answers the request."""
        entry, other = self.entry, part.entry
        if other.version is not None:
            entry.model, entry.version, entry.task = other.model, other.version, other.task
        both = [
            Cost(e.compute_seconds, e.joules, e.energy_method or "") for e in (entry, other) if e.compute_seconds is not None
        ]
        cost = total_cost(both)
        if cost is not None:
            entry.compute_seconds, entry.joules, entry.energy_method = cost

    def add_up(self) -> None:
        """Complete the entry, which the answer may show."""
        inference, entry = self._inference, self.entry
        entry.seconds = inference.now() - self.began
        if entry.energy_method is None:
            entry.energy_method = UNMEASURED
        if entry.joules is not None and inference._grams_co2e_per_joule > 0:
            entry.grams_co2e = entry.joules * inference._grams_co2e_per_joule
        self._is_added_up = True

    async def answered(self, deadline: float | None) -> None:
        """Write the row of an answer, and wait until it is durable. Raises DeadlineExceeded, and the row says so then."""
        if self._is_settled:
            return
        row, durable = self._record(200)
        try:
            await durable.wait(self._inference.deadlines, deadline)
        except TimeoutError:
            if self._inference.restate(row):
                raise DeadlineExceeded(TOO_LATE) from None
            await durable.wait(self._inference.deadlines, None)  # it is being written, which waits for nobody

    async def settle(self, status: int, error_code: str) -> None:
        """Write the row of an error, once, and wait until it is durable, but not for long beyond the deadline."""
        if self._is_settled:
            return
        _, durable = self._record(status, error_code)
        deadline = self.request.deadline
        until = None if deadline is None else max(deadline, self._inference.now() + LEAST_WAIT_SECONDS)
        with contextlib.suppress(TimeoutError):  # it stays queued
            await durable.wait(self._inference.deadlines, until)

    async def failed(self, error: BaseException) -> BaseException:
        """Write the row of a request that `error` ended; the error to raise."""
        if isinstance(error, GeneratorExit | asyncio.CancelledError):
            self.gone()
            return error
        shown = _shown(error)
        await self.settle(shown.http_status, shown.code)
        return shown

    def gone(self) -> None:
        """Write the row of a request whose caller went away, unless it has one."""
        if not self._is_settled:
            self.note(CLIENT_CLOSED, CLIENT_GONE, lambda error: None)

    def note(self, status: int, error_code: str | None, done: Callable[[BaseException | None], None]) -> Any:
        """Write the row, which is the request's only one."""
        self._is_settled = True
        if not self._is_added_up:
            self.add_up()
        entry = self.entry
        entry.at, entry.status, entry.error_code = datetime.now(UTC), status, error_code
        return self._inference.outbox.record(entry, done)

    def _record(self, status: int, error_code: str | None = None) -> tuple[Any, _Durable]:
        durable = _Durable()
        return self.note(status, error_code, durable.tell), durable


class _Answering(Account):
    """One request that is answered whole, by callbacks."""

    __slots__ = ("_answer", "_cancel", "_check", "_done", "_is_answered", "_late", "_row", "_write")

    def __init__(
        self,
        inference: Inference,
        request: Request,
        write: Callable[[list[Chunk], Entry, Callable[[Any], None]], None],
        done: Callable[[Any], None],
    ) -> None:
        super().__init__(inference, request)
        self._write = write
        self._done: Callable[[Any], None] | None = done
        self._late: tuple[int, int] | None = None
        self._cancel: Cancel | None = None
        self._check: Callable[[Facts], None] | None = None
        self._is_answered = False
        self._answer: Any = None
        self._row: Any = None

    def begin(self, check: Callable[[Facts], None]) -> None:
        """Ask the replica. Raises what is known to be wrong at once."""
        self._check = check
        try:
            replica = self._inference.lease(self)
            check(replica.facts)
            self._cancel = self._ask(replica)
        except BaseException:
            self.release()
            raise
        self._start_clock()

    def _ask(self, replica: Replica) -> Cancel:
        return replica.submit(self.request, self._hear)

    def _wait(self, asleep: Asleep | None = None) -> None:
        """Its replica is asleep, or left: ask one that is up, as soon as there is one."""
        self.release()
        waiting = asyncio.ensure_future(self._inference.leased(self, asleep))
        waiting.add_done_callback(self._go_on)

        def cancel() -> Sequence[Chunk]:
            waiting.cancel()
            return ()

        self._cancel = cancel

    def _go_on(self, waiting: asyncio.Task[Replica]) -> None:
        if waiting.cancelled():
            self.release()
            return
        try:
            replica = waiting.result()
            if self._done is None or self._is_answered:
                self.release()
                return
            if self._check is not None:
                self._check(replica.facts)
            self._cancel = self._ask(replica)
        except Left:
            self._wait()
        except Exception as error:
            if self._done is not None and not self._is_answered:
                self._is_answered = True
                self._fail(error)

    def _start_clock(self) -> None:
        deadline = self.request.deadline
        if deadline is not None and self._done is not None:
            self._late = self._inference.deadlines.add(deadline, self._give_up)

    def cancel(self) -> None:
        """The caller went away."""
        if self._done is None:
            return
        self._done = None
        self._stop_clock()
        if not self._is_answered and self._cancel is not None:
            self.see(self._cancel())
        self.gone()
        self.release()
        self._let_go()

    def _hear(self, outcome: list[Chunk] | BaseException) -> None:
        if self._done is None or self._is_answered:
            return
        if isinstance(outcome, Left):
            self._wait()
            return
        self._is_answered = True
        if isinstance(outcome, BaseException):
            self._fail(outcome)
            return
        self.see(outcome)
        self.add_up()
        try:
            self._write(outcome, self.entry, self._keep)
        except Exception as error:
            self._fail(error)

    def _keep(self, answer: Any) -> None:
        """It is written: now its row."""
        if self._done is None or self._row is not None:
            return
        if isinstance(answer, BaseException):
            self._fail(answer)
            return
        self._answer = answer
        self._row = self.note(200, None, self._end)

    def _end(self, error: BaseException | None) -> None:
        """The row is durable, or can't be."""
        done, self._done = self._done, None
        self._let_go()
        if done is not None:
            self._stop_clock()
            self.release()
            done(self._answer if error is None else error)

    def _let_go(self) -> None:
        """Of whoever may still call this. They and it would keep each other, and all that was asked, until Python's collector
        comes: it took a tenth of a small request's time, and stopped everything for tens of ms."""
        self._cancel = self._check = None
        self._row = _TOLD
        self._write = _nowhere

    def _fail(self, error: BaseException) -> None:
        shown = self._answer = _shown(error)
        self._stop_clock()
        self._row = self.note(shown.http_status, shown.code, lambda _: self._end(None))
        deadline = self.request.deadline
        if deadline is not None and self._done is not None:  # the row stays queued; the caller need not wait for it
            until = max(deadline, self._inference.now() + LEAST_WAIT_SECONDS)
            self._late = self._inference.deadlines.add(until, lambda: self._end(None))

    def _give_up(self) -> None:
        """It is late: while the replica works, or while its row waits."""
        self._late = None
        if self._row is None:
            self._is_answered = True
            if self._cancel is not None:
                self.see(self._cancel())
            self._fail(DeadlineExceeded(TOO_LATE))
        elif self._inference.restate(self._row):
            self._answer = DeadlineExceeded(TOO_LATE)
            self._end(None)

    def _stop_clock(self) -> None:
        if self._late is not None:
            self._inference.deadlines.remove(self._late)
            self._late = None


class _Streaming(_Answering):
    """One request that is answered in pieces."""

    __slots__ = ("_left", "_newest", "_piece", "_tell")

    def __init__(
        self,
        inference: Inference,
        request: Request,
        write: Callable[[Chunk, Entry], Any],
        hear: Callable[[Any, bool], None],
    ) -> None:
        super().__init__(inference, request, lambda chunks, entry, written: None, lambda last: hear(last, True))
        self._piece = write
        self._tell = hear
        self._newest: dict[int, Chunk] = {}
        """Of each payload."""
        self._left = 0
        """Payloads whose answers go on."""

    def begin(self, check: Callable[[Facts], None]) -> None:
        """Ask the replica. Whatever is wrong is told: a stream has no other way to go."""
        try:
            self._cancel = self._ask(self._inference.lease(self))
        except Asleep as asleep:
            self._wait(asleep)
        except Left:
            self._wait()
        except Exception as error:
            self._fail(error)
            return
        self._start_clock()

    def _ask(self, replica: Replica) -> Cancel:
        request = self.request
        stops: list[Callable[[], object]] = []
        self._left = len(request.payloads)

        def cancel() -> list[Chunk]:
            for stop in stops:
                stop()
            return list(self._newest.values())

        try:
            for i, payload in enumerate(request.payloads):
                stops.append(replica.stream(replace(request, payloads=(payload,), deadline=None), partial(self._take, i)))
        except BaseException:
            cancel()
            raise
        return cancel

    def _take(self, number: int, chunk: Chunk | BaseException) -> None:
        if self._done is None or self._is_answered:
            return
        if isinstance(chunk, Left) and not self._newest:
            if self._cancel is not None:
                self._cancel()
            self._wait()
            return
        if isinstance(chunk, BaseException):
            self._break(chunk)
            return
        try:
            if not self._newest:
                self._stop_clock()
                self._inference.outbox.first_chunk(self.entry, self._inference.now() - self.began)
            if number:
                chunk = chunk._replace(number=number)
            self._newest[number] = chunk
            self._left -= chunk.is_last
            if self._left:
                self._tell(self._piece(chunk, self.entry), False)
                return
            self._is_answered = True
            self.see(list(self._newest.values()))
            self.add_up()
            self._keep(self._piece(chunk, self.entry))
        except Exception as error:
            self._break(error)
            return
        deadline = self.request.deadline
        if deadline is not None and self._done is not None:  # that was the first piece's; the row has as long again
            self._late = self._inference.deadlines.add(self._inference.now() + deadline - self.began, self._give_up)

    def _break(self, error: BaseException) -> None:
        """What was given until now is metered."""
        if not self._is_answered and self._cancel is not None:
            self.see(self._cancel())
        self._is_answered = True
        self._fail(error)


_TOLD = object()
"""In place of a row that is durable, or can't be."""


def _nowhere(chunks: list[Chunk], entry: Entry, written: Callable[[Any], None]) -> None:
    """Nobody waits for what would be written."""


def _shown(error: BaseException) -> MaasdamError:
    """What of an error is told."""
    if isinstance(error, TimeoutError):
        return DeadlineExceeded(TOO_LATE)
    return error if isinstance(error, MaasdamError) else EngineFailure(f"{type(error).__name__}: {error}")


class _Durable:
    """Whether a row is on disk; waited for as often as need be."""

    __slots__ = ("_error", "_is_told", "_waiter")

    def __init__(self) -> None:
        self._is_told = False
        self._error: BaseException | None = None
        self._waiter: asyncio.Future[None] | None = None

    def tell(self, error: BaseException | None) -> None:
        """It is; or what is in the way."""
        self._is_told, self._error = True, error
        if self._waiter is not None:
            settle(self._waiter, error)

    async def wait(self, deadlines: Deadlines, until: float | None) -> None:
        """Return once it is. Raises what is in the way, TimeoutError."""
        if not self._is_told:
            waiter = self._waiter = asyncio.get_running_loop().create_future()
            late = None if until is None else deadlines.add(until, partial(settle, waiter, TimeoutError()))
            try:
                await waiter
            finally:
                if late is not None:
                    deadlines.remove(late)
        elif self._error is not None:
            raise self._error


def _sum(many: Sequence[Units]) -> Units:
    def total(values: Sequence[Any]) -> Any:
        known = [value for value in values if value is not None]
        return sum(known) if known else None

    return Units(
        items=sum(units.items for units in many),
        prompt_tokens=total([units.prompt_tokens for units in many]),
        completion_tokens=total([units.completion_tokens for units in many]),
        audio_seconds=total([units.audio_seconds for units in many]),
        cached_tokens=total([units.cached_tokens for units in many]),
    )
