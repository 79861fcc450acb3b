"""One realtime transcription session: OpenAI's events in and out. Knows events, keys and clocks; sound is `realtime_items`'.

    read:  events -> settings | sound -> turns -> items
    hear:  items, one hearing at a time, in order -> deltas, transcripts, rows
    watch: the key is revoked, the time is over, the service stops -> the session ends

A session has at most one hearing under way; what a client sends beyond HELD_SECONDS of sound that nobody has heard yet is not
read before some of it was. Each item is one request: a row of its own, durable before its transcript is told.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

import orjson

from maasdam.api import errors, json_body
from maasdam.api.body import IN_THE_LOOP, Message, Receive
from maasdam.api.entrance import Send, new_request_id
from maasdam.api.realtime_items import SpokenItem, check_hears, usage_of
from maasdam.api.realtime_settings import SessionSettings, shown, shown_of_old, updated, updated_of_old
from maasdam.core import SPEECH_RECOGNITION, Caller, Request, Units
from maasdam.errors import Forbidden, InvalidField, InvalidInput, MaasdamError, NotReady, Unauthenticated
from maasdam.operations import deployments
from maasdam.operations.parts import Parts
from maasdam.operations.service import Service
from maasdam.tasks.pcm import from_a_law, from_mu_law
from maasdam.tasks.turns import TurnFinder

ENDPOINT = "/v1/realtime"
SESSION_SECONDS = 3600.0
HELD_SECONDS = 120.0
ITEMS_WAITING = 64
"""Items that wait to be heard."""
SHORTEST_COMMIT_SECONDS = 0.1
LONGEST_TURN_SECONDS = 300.0
"""Of speech without a pause: then an item ends."""
MOST_ERRORS = 200
"""Of one session, which ends with the last."""
TICK_SECONDS = 0.25
SPARE_SECONDS = 0.2
"""Of sound before speech beside what comes with a turn: so late its beginning may be found."""
NORMAL, GOING_AWAY, POLICY = 1000, 1001, 1008
"""Codes that a websocket closes with."""
NOT_HERE = ("response.", "conversation.item.", "output_audio_buffer.")
"""Beginnings of events that other sessions of OpenAI's know."""
FIELDS = {
    "input_audio_buffer.append": ("audio",),
    "input_audio_buffer.commit": (),
    "input_audio_buffer.clear": (),
    "session.update": ("session",),
    "transcription_session.update": ("session",),
}
"""Events that are taken, and what each has beside its type and id."""


def check_model(service: Service, name: str) -> None:
    """Raise NotFound where no such model is deployed, InvalidInput where it writes down no speech."""
    with contextlib.suppress(NotReady):
        task = deployments.served_version(service, name).version.task
        if task != SPEECH_RECOGNITION:
            raise InvalidField(f"model '{name[:80]}' does {task or 'raw tensors'}; name one for {SPEECH_RECOGNITION}", "model")


class _End(Exception):
    """The session is over, by what this service says."""

    def __init__(self, code: int, error: MaasdamError | None = None) -> None:
        super().__init__(str(error))
        self.code = code
        self.error = error


class Session:
    """One caller who speaks."""

    def __init__(
        self,
        service: Service,
        request_id: str,
        caller: Caller,
        wanted: SessionSettings,
        is_old: bool,
        receive: Receive,
        send: Send,
        admitted: Callable[[], Awaitable[Caller]],
    ) -> None:
        """`is_old`: the client speaks as before OpenAI changed its events' names. `admitted` raises once the key is none."""
        self._service = service
        self._id = request_id
        self._caller = caller
        self._wanted = wanted
        self._is_old = is_old
        self._receive = receive
        self._send_message = send
        self._admitted = admitted
        self._expires = time.time() + SESSION_SECONDS
        self._json = json_body.JsonLimits(service.settings.max_json_depth, service.settings.max_json_values)
        self._events = self._errors = 0
        self._item: SpokenItem | None = None
        """What is being said."""
        self._ended: deque[SpokenItem] = deque()
        """Committed or dropped, and not through with."""
        self._previous: str | None = None
        """The id of the item before."""
        self._turns: TurnFinder | None = None
        self._before = bytearray()
        """With turns: sound that is in no item yet."""
        self._origin = 0
        """Samples before that, since there are turns."""
        self._passed_ms = 0.0
        """How much sound there was before `_turns`."""
        self._news = asyncio.Event()
        self._progress = asyncio.Event()
        self._is_closing = False

    async def run(self) -> None:
        """Until the client goes, or is told to."""
        await self._send("session.created", session=self._shown())
        work = [asyncio.create_task(step()) for step in (self._read, self._hear, self._watch)]
        try:
            await asyncio.wait(work, return_when=asyncio.FIRST_COMPLETED)
            for task in work:
                if task.done():
                    task.result()
        except _End as end:
            with contextlib.suppress(OSError):
                if end.error is not None:
                    await self._tell_error(end.error, None)
                await self._send_message({"type": "websocket.close", "code": end.code, "reason": str(end.error or "")[:100]})
        except OSError:  # the client is gone
            pass
        finally:
            for task in work:
                task.cancel()
            await asyncio.gather(*work, return_exceptions=True)
            for item in (*self._ended, *([] if self._item is None else [self._item])):
                if item.is_asked and not item.is_over:
                    item.parts.gone(item.heard)

    async def _read(self) -> None:
        """What the client sends, until it goes."""
        while True:
            message = await self._receive()
            if message["type"] == "websocket.disconnect":
                return
            if self._is_closing:
                continue
            event_id = None
            try:
                event = await self._parsed(message)
                told = event.get("event_id")
                event_id = told[:200] if isinstance(told, str) else None
                await self._take(event)
            except MaasdamError as error:
                await self._refuse(error, event_id)
            while self._is_full and not self._is_closing:
                self._progress.clear()
                await self._progress.wait()

    async def _parsed(self, message: Message) -> dict[str, Any]:
        text = message.get("text")
        if text is None:
            raise InvalidInput("a binary message came; events are JSON in text messages, sound is base64 in them")
        data = text.encode("utf-8", "surrogatepass")
        small = len(data) <= IN_THE_LOOP
        event = json_body.parse(data, self._json) if small else await asyncio.to_thread(json_body.parse, data, self._json)
        if not isinstance(event, dict):
            raise InvalidInput("an event is a JSON object with a 'type'")
        return event

    async def _take(self, event: dict[str, Any]) -> None:
        """One event. Raises what is wrong with it."""
        kind = event.get("type")
        if not isinstance(kind, str):
            raise InvalidField("the event has no 'type', or one that is no text", "type", "missing_required_parameter")
        if kind not in FIELDS:
            why = "a transcription session has none of it" if kind.startswith(NOT_HERE) else "it is not known"
            raise InvalidField(f"event '{kind[:80]}': {why}; send one of {', '.join(FIELDS)}", "type")
        for name in event:
            if name not in ("type", "event_id", *FIELDS[kind]):
                raise InvalidField(f"'{name[:80]}' is not known in '{kind}'", name[:80], "unknown_parameter")
        takers = {"append": self._append, "commit": self._commit, "clear": self._clear, "update": self._update}
        await takers[kind.rpartition(".")[2]](event)

    async def _update(self, event: dict[str, Any]) -> None:
        is_old = event["type"] == "transcription_session.update"
        if not isinstance(event.get("session"), dict):
            raise InvalidField("'session' is no object; send one", "session", "missing_required_parameter")
        wanted = (updated_of_old if is_old else updated)(self._wanted, event["session"])
        if wanted.model is not None and wanted.model != self._wanted.model:
            check_model(self._service, wanted.model)
        if (wanted.format, wanted.turns) != (self._wanted.format, self._wanted.turns):
            if self._item is not None:
                raise InvalidField(
                    "format and turn detection can't change within what is being said; commit or clear it first", "session"
                )
            self._begin_turns()
        self._wanted = wanted
        self._is_old = self._is_old or is_old
        name = "transcription_session.updated" if is_old else "session.updated"
        await self._send(name, session=self._shown(is_old))

    async def _append(self, event: dict[str, Any]) -> None:
        audio = event.get("audio")
        if not isinstance(audio, str):
            raise InvalidField("'audio' is no text; send the sound in base64", "audio", "invalid_type")
        if self._wanted.model is None:
            place = "session.audio.input.transcription.model"
            raise InvalidField(
                f"no model is named yet; send a session.update with '{place}'", place, "missing_required_parameter"
            )
        try:
            data = json_body.from_base64(audio)
        except ValueError:
            raise InvalidField("'audio' is no base64", "audio") from None
        if self._wanted.format == "audio/pcm":
            if len(data) % 2:
                raise InvalidField(f"'audio' has {len(data)} bytes; samples of 16 bits have two each", "audio")
        else:
            data = (from_mu_law if self._wanted.format == "audio/pcmu" else from_a_law)(data)
        if self._wanted.turns is None:
            most = self._service.settings.max_audio_seconds
            if (0 if self._item is None else self._item.samples) + len(data) // 2 > most * self._wanted.rate:
                raise InvalidField(f"more than {most:g} s were sent since the last commit; commit or clear them", "audio")
            if data:
                self._item = self._item or self._new_item()
                self._item.add(data)
        else:
            await self._listen(data)
        self._news.set()

    async def _listen(self, samples: bytes) -> None:
        """Sound of which turns are found."""
        settings = self._wanted.turns
        assert settings is not None
        if self._turns is None:
            self._turns = TurnFinder(self._wanted.rate, settings)
        self._before += samples
        rate = self._wanted.rate
        is_short = len(samples) <= 2 * rate
        found = self._turns.hear(samples)
        for begins, place in found if is_short else await asyncio.to_thread(list, found):
            if begins and self._item is None:
                start = max(self._origin, place - settings.prefix_padding_ms * rate // 1000)
                self._forget(start)
                self._item = self._new_item()
                await self._send("input_audio_buffer.speech_started", item_id=self._item.id, audio_start_ms=self._ms(start))
            elif not begins and self._item is not None:
                self._item.add(self._taken(place))
                await self._send("input_audio_buffer.speech_stopped", item_id=self._item.id, audio_end_ms=self._ms(place))
                await self._end_item()
        if self._item is not None:
            self._item.add(self._taken(self._origin + len(self._before) // 2))
            if self._item.seconds >= LONGEST_TURN_SECONDS:
                self._turns.end()
                end = self._ms(self._origin)
                await self._send("input_audio_buffer.speech_stopped", item_id=self._item.id, audio_end_ms=end)
                await self._end_item()
        else:
            spare = (settings.prefix_padding_ms / 1000 + SPARE_SECONDS) * rate
            self._forget(self._origin + len(self._before) // 2 - int(spare))

    def _taken(self, place: int) -> bytes:
        """The sound up to a place, which is forgotten here."""
        data = bytes(self._before[: 2 * (place - self._origin)])
        self._forget(place)
        return data

    def _forget(self, place: int) -> None:
        if place > self._origin:
            del self._before[: 2 * (place - self._origin)]
            self._origin = place

    def _ms(self, place: int) -> int:
        return round(self._passed_ms + place * 1000 / self._wanted.rate)

    def _begin_turns(self) -> None:
        """Find turns anew, where sound goes on as something else."""
        self._passed_ms += (self._origin + len(self._before) // 2) * 1000 / self._wanted.rate
        self._turns, self._origin = None, 0
        self._before.clear()

    async def _commit(self, event: dict[str, Any]) -> None:
        seconds = 0.0 if self._item is None else self._item.seconds
        if seconds < SHORTEST_COMMIT_SECONDS:
            raise InvalidField(
                f"the buffer is too small: it has {seconds * 1000:.2f} ms of sound, and at least "
                f"{SHORTEST_COMMIT_SECONDS * 1000:.0f} ms are needed",
                None,
                "input_audio_buffer_commit_empty",
            )
        if self._turns is not None:
            self._turns.end()
        await self._end_item()

    async def _clear(self, event: dict[str, Any]) -> None:
        if self._item is not None:
            self._item.is_dropped = True
            self._ended.append(self._item)
            self._item = None
        if self._turns is not None:
            self._turns.end()
        self._forget(self._origin + len(self._before) // 2)
        self._news.set()
        await self._send("input_audio_buffer.cleared")

    def _new_item(self) -> SpokenItem:
        request_id = new_request_id()
        assert self._wanted.model is not None
        request = Request(request_id, self._wanted.model, (), self._caller, ENDPOINT)
        return SpokenItem(f"item_{request_id}", self._wanted, Parts(self._service.inference, request, check_hears))

    async def _end_item(self) -> None:
        """What was said is an item, and is to be written down."""
        item = self._item
        assert item is not None
        self._item, item.is_committed = None, True
        self._ended.append(item)
        self._news.set()
        before, self._previous = self._previous, item.id
        await self._send("input_audio_buffer.committed", item_id=item.id, previous_item_id=before)
        content = [{"type": "input_audio", "transcript": None}]
        shape = {"id": item.id, "object": "realtime.item", "type": "message", "status": "completed", "role": "user"}
        for name in ("created",) if self._is_old else ("added", "done"):
            await self._send(f"conversation.item.{name}", item=shape | {"content": content}, previous_item_id=before)

    async def _hear(self) -> None:
        """Hear what there is to hear, one hearing at a time."""
        while True:
            item = self._ended[0] if self._ended else self._item
            if item is None or not (item.is_due or item.is_dropped or (item.is_over and self._ended)):
                self._news.clear()
                self._progress.set()
                await self._news.wait()
                continue
            if item.is_over or item.is_dropped:
                if item.is_asked and not item.is_over:
                    item.parts.gone(item.heard)
                self._ended.popleft()
            else:
                await self._hear_item(item)
            self._progress.set()

    async def _hear_item(self, item: SpokenItem) -> None:
        name = "conversation.item.input_audio_transcription"
        was_committed = item.is_committed
        is_for_good = was_committed or item.is_long
        try:
            delta = await item.hear(self._service.settings.request_timeout_seconds)
            if delta and not item.is_dropped:
                await self._send(f"{name}.delta", item_id=item.id, content_index=0, delta=delta)
            if not was_committed or item.sound:
                return
            entry = await item.parts.answered(Units(audio_seconds=round(item.seconds, 6)))
            item.is_over = True
        except (OSError, asyncio.CancelledError):
            raise
        except Exception as error:
            if not is_for_good:  # it is heard again when there is more of it, and once it is whole: that tells what is wrong
                item.pass_over()
                return
            shown_error = await item.parts.failed(error, item.heard)
            item.is_over = True
            item.sound.clear()
            refused = errors.openai_error(errors.refusal(shown_error, item.id.removeprefix("item_")))
            await self._send(f"{name}.failed", item_id=item.id, content_index=0, error=refused)
            return
        told = {"item_id": item.id, "content_index": 0, "transcript": item.transcript, "usage": usage_of(entry)}
        await self._send(f"{name}.completed", **told)

    async def _watch(self) -> None:
        """Raise _End where the session is over."""
        while True:
            await asyncio.sleep(TICK_SECONDS)
            try:
                await self._admitted()
            except (Unauthenticated, Forbidden) as error:
                raise _End(POLICY, error) from None
            except MaasdamError:  # the database is away: who was let in stays
                pass
            if self._service.is_draining:
                await self._finish()
                raise _End(GOING_AWAY, NotReady("the service is stopping; connect again in a moment"))
            if time.time() >= self._expires:
                await self._finish()
                expired = InvalidField(
                    f"a session lasts {SESSION_SECONDS / 60:g} minutes; open another", None, "session_expired"
                )
                raise _End(NORMAL, expired)

    async def _finish(self) -> None:
        """What is being said is an item too; return once all are written down."""
        self._is_closing = True
        self._progress.set()
        if self._item is not None and self._item.seconds >= SHORTEST_COMMIT_SECONDS:
            await self._end_item()
        while self._ended:
            self._progress.clear()
            await self._progress.wait()

    @property
    def _is_full(self) -> bool:
        """Whether so much waits to be heard that no more is read."""
        held = [*self._ended, *([] if self._item is None else [self._item])]
        seconds = sum(len(item.sound) / 2 / item.wanted.rate for item in held)
        return len(self._ended) >= ITEMS_WAITING or seconds > HELD_SECONDS

    def _shown(self, is_old: bool = False) -> dict[str, Any]:
        return (shown_of_old if is_old else shown)(self._wanted, f"sess_{self._id}", int(self._expires))

    async def _refuse(self, error: MaasdamError, event_id: str | None) -> None:
        self._errors += 1
        if self._errors > MOST_ERRORS:
            raise _End(POLICY, InvalidInput(f"more than {MOST_ERRORS} events of this session were wrong"))
        await self._tell_error(error, event_id)

    async def _tell_error(self, error: MaasdamError, event_id: str | None) -> None:
        refused = errors.openai_error(errors.refusal(error, self._id))
        await self._send("error", error=refused | {"event_id": event_id})

    async def _send(self, kind: str, **told: Any) -> None:
        self._events += 1
        event = {"type": kind, "event_id": f"event_{self._id}_{self._events}", **told}
        await self._send_message({"type": "websocket.send", "text": orjson.dumps(event).decode()})
