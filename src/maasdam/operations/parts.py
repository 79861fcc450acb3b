"""A request that comes in parts, as speech does: each part is asked by itself, and all of them are one row.

Knows accounts and their rows. Refuses to know what the parts are, and sockets.

    part -> ask -> chunk ... part -> ask -> chunk -> answered | failed | gone: one row, with what all parts took
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from maasdam.core import Chunk, Entry, Facts, Payload, Request, Units
from maasdam.operations.infer import Account, Inference


class Parts:
    """One request, whose payloads are those it is asked with. What was metered of a part that was asked again counts once."""

    def __init__(self, inference: Inference, request: Request, check: Callable[[Facts], None]) -> None:
        """`check` raises where the replica that will answer can't give what is asked for."""
        self._inference = inference
        self._check = check
        self._account = Account(inference, request)

    async def ask(self, payload: Payload, seconds: float) -> Chunk:
        """The answer to one part, within so many seconds. Raises what the replica and `check` raise, DeadlineExceeded."""
        deadline = self._inference.now() + seconds
        part = Account(self._inference, replace(self._account.request, payloads=(payload,), deadline=deadline))
        try:
            return (await self._inference.ask(part, self._check))[0]
        finally:
            part.release()
            self._account.take_over(part)

    async def answered(self, units: Units) -> Entry:
        """All parts are answered, and metered as this: returns once the row is durable. Raises StorageFailure."""
        self._meter(units)
        self._account.add_up()
        await self._account.answered(None)
        return self._account.entry

    async def failed(self, error: BaseException, units: Units) -> BaseException:
        """One part failed: the row says so, and this gives the error to be shown. A cancelled one is as if the caller left."""
        self._meter(units)
        return await self._account.failed(error)

    def gone(self, units: Units) -> None:
        """The caller went away, or wants no answer; it gets a row with what was done until then."""
        self._meter(units)
        self._account.gone()

    def _meter(self, units: Units) -> None:
        entry = self._account.entry
        entry.items, entry.audio_seconds = units.items, units.audio_seconds
