"""Answers that outlive their requests: kept for their key, continued, and written behind. Knows time and whose; no protocol.

keep, find, chain, delete
write(id, work) -> a task of this process, which beats; cancel through any process ends it within a beat
stop            -> what is still being written has failed
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from maasdam.accounts.responses import ENDED, QUEUED, RUNNING, Responses, StoredResponse, check_room
from maasdam.core import Caller
from maasdam.errors import InvalidField, MaasdamError, NotFound, Overloaded

__all__ = ["ENDED", "QUEUED", "RUNNING", "KeptResponses", "StoredResponse"]

log = logging.getLogger("maasdam.responses")

RESPONSE_ID = re.compile(r"resp_[0-9a-f]{32}")
BEAT_SECONDS = 1.0
TIDY_BEATS = 30
"""Between two removals of what was kept long enough."""
MOST_BEHIND = 256
"""Answers that one process writes in the background."""
MOST_OF_ONE_KEY = 64
"""Of them, so that others have a place."""


class KeptResponses:
    """The kept answers, as one process of the service has them."""

    def __init__(self, kept: Responses, tidies: bool) -> None:
        """`tidies`: whether this process removes what was kept long enough."""
        self._kept = kept
        self._tidies = tidies
        self._writing: dict[str, tuple[asyncio.Task[None], Mapping[str, Any]]] = {}
        self._places: dict[str, str] = {}
        """The keys of those that are being written, by response, from before they are kept."""
        self._beating: asyncio.Task[None] | None = None

    @property
    def keeps(self) -> bool:
        """Whether any are kept here."""
        return self._kept.days > 0

    def start(self) -> None:
        """Say from now on what is being written here, and tidy up."""
        self._beating = asyncio.create_task(self._beat())

    async def stop(self) -> None:
        """What is still being written has failed."""
        if self._beating is not None:
            self._beating.cancel()
        left = {response_id: body for response_id, (_, body) in self._writing.items()}
        tasks = [task for task, _ in self._writing.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        with contextlib.suppress(MaasdamError):  # else whoever reads them next says so
            for response_id, body in left.items():
                await asyncio.to_thread(self._kept.finish, response_id, {**body, "status": "failed", "error": ENDED})

    async def keep(self, caller: Caller, one: StoredResponse) -> None:
        """Keep an answer. Raises InvalidField, StorageFailure."""
        await asyncio.to_thread(self.keep_now, caller, one)

    def keep_now(self, caller: Caller, one: StoredResponse) -> None:
        """The same; it blocks."""
        self._kept.add(owner_of(caller), one)

    async def find(self, caller: Caller, response_id: str) -> StoredResponse:
        """One of the caller's. Raises NotFound."""
        return await asyncio.to_thread(self._kept.find, owner_of(caller), _checked(response_id))

    async def continued(self, caller: Caller, response_id: str, size: int) -> StoredResponse:
        """One of the caller's with all that it continues, to be continued by so many bytes. Raises NotFound, InvalidField."""
        one = await asyncio.to_thread(self._kept.chain, owner_of(caller), _checked(response_id))
        if one.status not in ("completed", "incomplete"):
            raise InvalidField(
                f"response '{one.id}' is {one.status}: only one that was written can be continued", "previous_response_id"
            )
        check_room(one, size)
        return one

    async def delete(self, caller: Caller, response_id: str) -> None:
        """Keep it no longer, and write it no further. Raises NotFound."""
        await asyncio.to_thread(self._kept.delete, owner_of(caller), _checked(response_id))
        self._end(response_id)

    async def cancel(self, caller: Caller, response_id: str) -> StoredResponse:
        """Have one that is written in the background written no further; one that ended stays as it is.

        Raises NotFound, and InvalidField for one that was not asked for in the background.
        """
        one = await self.find(caller, response_id)
        if not one.body["background"]:
            raise InvalidField(f"response '{one.id}' was not asked for with background: true; only such can be cancelled", None)
        one = await asyncio.to_thread(self._kept.cancel, owner_of(caller), response_id)
        self._end(response_id)
        return one

    async def write(
        self,
        caller: Caller,
        one: StoredResponse,
        work: Callable[[Callable[[Mapping[str, Any]], Awaitable[None]]], Awaitable[None]],
    ) -> None:
        """Keep a queued answer, and have `work` write it behind: it gives what it wrote to its argument, which keeps that.

        Raises Overloaded, InvalidField, StorageFailure.
        """
        if len(self._places) >= MOST_BEHIND:
            raise Overloaded(f"{MOST_BEHIND} answers are being written in the background; try again later")
        key = caller.key_id or ""
        if key and sum(other == key for other in self._places.values()) >= MOST_OF_ONE_KEY:
            raise Overloaded(f"{MOST_OF_ONE_KEY} answers to this key are being written in the background; try again later")

        async def done(body: Mapping[str, Any]) -> None:
            await asyncio.to_thread(self._kept.finish, one.id, body)

        async def write() -> None:
            try:
                await work(done)
            except Exception:  # the database is gone, say: without a beat it has failed
                log.exception("response %s could not be kept", one.id)
            finally:
                self._writing.pop(one.id, None)
                self._places.pop(one.id, None)

        self._places[one.id] = key
        try:
            await self.keep(caller, one)
        except BaseException:
            self._places.pop(one.id, None)
            raise
        self._writing[one.id] = asyncio.create_task(write()), one.body

    def _end(self, response_id: str) -> None:
        found = self._writing.get(response_id)
        if found is not None:
            found[0].cancel()

    async def _beat(self) -> None:
        beats = 0
        while True:
            try:
                if self._writing:
                    for response_id in await asyncio.to_thread(self._kept.beat, list(self._writing)):
                        self._end(response_id)
                if self._tidies and beats % TIDY_BEATS == 0:
                    await asyncio.to_thread(self._kept.tidy)
            except MaasdamError as error:  # said already by who looks after the database
                log.debug("no word of the responses: %s", error)
            except Exception:
                log.exception("no word of the responses")
            beats += 1
            await asyncio.sleep(BEAT_SECONDS)


def owner_of(caller: Caller) -> str:
    """Whose answers they are: the key's; without keys, everyone's who may call."""
    return caller.key_id or caller.name


def _checked(response_id: str) -> str:
    if not RESPONSE_ID.fullmatch(response_id):
        raise NotFound(f"no response '{response_id[:80]}' of this key; ids are resp_ and 32 hexadecimal digits")
    return response_id
