"""The door of OpenAI's realtime transcription sessions: websockets. Knows who may come in, and how many; a session is
`realtime_session`'s.
"""

from __future__ import annotations

from urllib.parse import parse_qs

from fastapi import APIRouter

from maasdam.api.body import Headers, Receive, header
from maasdam.api.correlation import id_headers
from maasdam.api.entrance import CALLER, REQUEST_ID, Entrance, Scope, Send
from maasdam.api.realtime_session import ENDPOINT, Session, check_model
from maasdam.api.realtime_settings import SessionSettings
from maasdam.core import Caller
from maasdam.errors import InvalidField, InvalidInput, NotReady, Overloaded
from maasdam.operations.service import Service

KEY_PROTOCOL, BETA_PROTOCOL, PROTOCOL = "openai-insecure-api-key.", "openai-beta.realtime-v1", "realtime"
"""What browsers, which can send no headers, offer as a websocket's protocols."""

OTHERS = 4
"""One of so many places is never taken by a key that has all the others."""


def routes(service: Service) -> APIRouter:
    """The route as it is documented; a websocket never gets here."""
    router = APIRouter(tags=["OpenAI"])

    @router.get(ENDPOINT)
    async def realtime(model: str | None = None, intent: str | None = None) -> None:
        """A websocket: OpenAI's realtime transcription sessions. Speech is written down while it is spoken."""
        raise InvalidInput(f"{ENDPOINT} is a websocket: open it with one, as ws://HOST{ENDPOINT}?intent=transcription")

    return router


class Realtime:
    """The door of all sessions of one process: an ASGI application of websockets."""

    def __init__(self, service: Service, entrance: Entrance) -> None:
        self._service = service
        self._entrance = entrance
        self._open: list[str | None] = []
        """The keys of the sessions that are open."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One session, from its handshake to its end. Raises what refuses it, while it can be refused."""
        service, headers = self._service, scope["headers"]
        offered = scope.get("subprotocols", [])
        key = next((one.removeprefix(KEY_PROTOCOL) for one in offered if one.startswith(KEY_PROTOCOL)), None)
        asked: Headers = [*headers, (b"x-api-key", key.encode("latin-1", "replace"))] if key else list(headers)

        async def admitted() -> Caller:
            caller = await self._entrance.gate.caller(ENDPOINT, asked)
            self._entrance.gate.check(ENDPOINT, caller)
            return caller

        await receive()  # that it connects
        caller = scope[CALLER] = await admitted()
        wanted = _asked_for(service, scope)
        most = service.settings.max_sessions
        if service.is_draining:
            raise NotReady("the service is stopping; connect again in a moment")
        key_id = caller.key_id
        if len(self._open) >= most:
            raise Overloaded(f"{most} realtime sessions are open, as many as max_sessions allows; try again later")
        if key_id is not None and self._open.count(key_id) >= most - most // OTHERS:
            count = most - most // OTHERS
            raise Overloaded(f"{count} realtime sessions of this key are open, which leaves others a place; close one of them")
        self._open.append(key_id)
        try:
            ids = id_headers(scope[REQUEST_ID], header(headers, b"x-request-id"))
            chosen = PROTOCOL if PROTOCOL in offered else None
            await send({"type": "websocket.accept", "subprotocol": chosen, "headers": ids})
            is_old = BETA_PROTOCOL in offered or (header(headers, b"openai-beta") or b"").startswith(b"realtime")
            session = Session(service, scope[REQUEST_ID], caller, wanted, is_old, receive, send, admitted)
            await session.run()
        finally:
            self._open.remove(key_id)


def _asked_for(service: Service, scope: Scope) -> SessionSettings:
    """What the address asks for. Raises InvalidField, NotFound, InvalidInput."""
    query = parse_qs(scope["query_string"].decode("latin-1"), keep_blank_values=True, max_num_fields=20)
    for name in query:
        if name not in ("model", "intent"):
            raise InvalidField(f"'{name[:40]}' is not known here; the address takes model and intent", name[:40])
    intent = query.get("intent", ["transcription"])[-1]
    if intent != "transcription":
        raise InvalidField(f"'intent' is '{intent[:40]}'; only transcription sessions are here", "intent")
    model = query.get("model", [""])[-1] or None
    if model is not None:
        check_model(service, model)
    return SessionSettings(model=model)
