"""The HTTP service: the application, its server, and its life from start to drain.

Knows FastAPI and uvicorn. Refuses to know engines and accounts; what it wires is constructed in `assembly`.

    HttpConnection (sockets) -> Entrance (id, key, limits) -> InferRoute (tensors) | FastAPI (everything else)
    GrpcDoor (a port of its own) beside it
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING, Any, Protocol

import uvicorn
from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.exceptions import HTTPException

from maasdam import __version__
from maasdam.api import admin, audio, classifications, custom, errors, oip, oip_generate, openai, reading, realtime, responses
from maasdam.api.access import Gate
from maasdam.api.body import BodyLimits, Limit, is_json, is_multipart, takes_forms_only
from maasdam.api.connection import HttpConnection
from maasdam.api.docs_page import page, welcome
from maasdam.api.entrance import REQUEST_ID, Entrance
from maasdam.api.errors import REFUSED
from maasdam.api.fields import only_known
from maasdam.api.listening import Doors, accepting
from maasdam.api.oip_at_once import AtOnce
from maasdam.api.oip_infer import InferRoute
from maasdam.api.openapi import document
from maasdam.api.routing import methods_of
from maasdam.api.sockets import SOCKET_OPTIONS
from maasdam.api.tls import HANDSHAKE_SECONDS, TlsPair
from maasdam.errors import InvalidField, InvalidInput, MaasdamError, MethodNotAllowed, NotFound, WrongContentType
from maasdam.operations.deployments import served_versions
from maasdam.operations.leaving import Leaving
from maasdam.operations.service import Service
from maasdam.operations.systemd import Notifier
from maasdam.settings import Settings

if TYPE_CHECKING:
    from maasdam.api.oip_grpc import GrpcDoor

log = logging.getLogger("maasdam.api")

DESCRIPTION = "Trained models as an API. The Open Inference Protocol under /v2, OpenAI's API under /v1."
KEEP_ALIVE_SECONDS = 75
BODIES_HELD = 4
"""As many bodies of the largest size may be in memory at once."""
_FORM = "multipart/form-data"
COLLECT_AFTER = (20_000, 50, 100)
"""Objects more than before, young collections, middle collections: see Python's gc.set_threshold."""
TURNS = 5
"""Of the event loop: it has looked at every socket by then, whatever held it up."""
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def application(service: Service, has_keys: bool = True) -> Entrance:
    """The whole ASGI application. Without keys everyone is let in, from this machine only."""
    settings = service.settings
    inside = FastAPI(
        title="Maasdam",
        version=__version__,
        description=DESCRIPTION,
        lifespan=_lifespan(service),
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json",
        dependencies=[Depends(only_known)],
    )
    doors = (oip, oip_generate, openai, responses, reading, audio, realtime, classifications, custom, admin)
    routers = [door.routes(service) for door in doors]
    for router in routers:
        inside.include_router(router)
    _plain_routes(inside, service)
    inside.openapi = partial(document, inside)  # type: ignore[method-assign]  # as FastAPI's own documents say to
    inside.state.methods = methods_of([*inside.routes, *(route for router in routers for route in router.routes)])
    inside.add_exception_handler(MaasdamError, _refuse)
    inside.add_exception_handler(Exception, _refuse)
    inside.add_exception_handler(RequestValidationError, _refuse_fields)
    inside.add_exception_handler(HTTPException, _refuse_http)
    limits = body_limits(settings)
    gate = gate_of(service, has_keys)
    entrance = Entrance(inside, InferRoute(service, limits), gate, limits, service)
    entrance.at_once = AtOnce(service, gate, limits)
    entrance.sockets = realtime.Realtime(service, entrance)
    return entrance


def connections(entrance: Entrance) -> partial[HttpConnection]:
    """What uvicorn makes for each connection: all of them know the heads that one has read."""
    return partial(HttpConnection, refuse=entrance.refuse_unread, at_once=entrance.at_once, heads={})


def gate_of(service: Service, has_keys: bool = True) -> Gate:
    """Who is let in."""
    return Gate(service.authenticate if has_keys else None, service.settings.public_docs, service.seen)


def body_limits(settings: Settings) -> BodyLimits:
    """What bodies may be, with what to do about one that is larger. No JSON may be larger than any body may."""

    def limit(name: str, instead: str = "") -> Limit:
        return Limit(min(getattr(settings, name), settings.max_body_bytes), f"send less, {instead}or raise {name}")

    return BodyLimits(
        any=limit("max_body_bytes"),
        json=limit("max_json_bytes"),
        json_media=limit("max_json_media_bytes", "send it as a form with a file, "),
        json_tensors=limit("max_json_tensor_bytes", "send the tensors as binary data (Inference-Header-Content-Length), "),
        seconds=settings.request_timeout_seconds,
        held_bytes=settings.max_body_bytes * BODIES_HELD,
    )


def serve(
    service: Service,
    has_keys: bool,
    doors: Doors,
    on_ready: Callable[[], None],
    lead: Leads | None = None,
    notifier: Notifier | None = None,
) -> None:
    """Run until SIGTERM or SIGINT, then drain. `on_ready` is called once all models are up or have failed.

    `lead`: who leads this worker, where there are several. `notifier` tells systemd.

    The process ends within the grace whatever hangs, and at once on a second signal: then this does not return.
    """
    entrance = application(service, has_keys)
    leaving = Leaving(service.settings.shutdown_grace_seconds, service.close_records)
    config = uvicorn.Config(
        entrance,
        http=connections(entrance),  # type: ignore[arg-type]  # called as the class is
        loop="uvloop",
        **SOCKET_OPTIONS,
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=leaving.finish_seconds,  # type: ignore[arg-type]  # asyncio takes any number
    )
    _allow_many_connections()
    logging.getLogger("uvicorn").setLevel(logging.WARNING)  # its start and stop are told by the command
    certificate = TlsPair.of(service.settings)
    open_grpc = None
    if doors.grpc is not None:
        from maasdam.api.oip_grpc import GrpcDoor  # it costs who does without it 10 MB

        limits = body_limits(service.settings)
        open_grpc = partial(GrpcDoor, service, gate_of(service, has_keys), limits, doors.grpc, certificate, doors.passes_on)
    _Server(config, service, leaving, on_ready, open_grpc, lead, certificate, notifier).run(sockets=list(doors.http))


class Led(Protocol):
    """A worker's server, as who leads it sees it."""

    should_exit: bool
    """Whether it was told to stop."""

    async def listen(self, listener: socket.socket) -> asyncio.AbstractServer:
        """Take connections from this listener too."""
        ...

    def unlisten(self, server: asyncio.AbstractServer) -> None:
        """Take no more of them."""
        ...

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal."""
        ...


class Leads(Protocol):
    """Who leads a worker, as its server sees it."""

    async def connect(self, server: Led) -> None:
        """Lead it from now on."""
        ...

    async def begin(self) -> None:
        """Return when callers may come."""
        ...

    async def opened(self) -> None:
        """They may."""
        ...

    def tick(self) -> None:
        """Some time has passed."""
        ...

    def leaving(self) -> None:
        """No more may."""
        ...


class _Server(uvicorn.Server):
    """uvicorn's server, which tells the service that it is stopping, and when it is up."""

    def __init__(
        self,
        config: uvicorn.Config,
        service: Service,
        leaving: Leaving,
        on_ready: Callable[[], None],
        open_grpc: Callable[[], GrpcDoor] | None = None,
        lead: Leads | None = None,
        certificate: TlsPair | None = None,
        notifier: Notifier | None = None,
    ) -> None:
        super().__init__(config)
        self._certificate = certificate
        self._notifier = notifier or Notifier()
        self._lead = lead
        self._open_grpc = open_grpc
        self._grpc: GrpcDoor | None = None
        self._service = service
        self._leaving = leaving
        self._on_ready: Callable[[], None] | None = on_ready

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn's, but the signal is not raised again once the service has drained: it exits by itself."""
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal."""
        if self.should_exit:
            self._leaving.at_once()
        self._leaving.begin()
        super().handle_exit(sig, frame)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's; from now on signals are heard of even where this thread hangs."""
        self._leaving.watch_signals()
        if self._lead is not None:
            await self._lead.connect(self)
        await super().startup([])
        if self._lead is not None:
            await self._lead.begin()
        if self.should_exit:
            return
        for one in sockets or ():
            await self.listen(one)
        if self._certificate is not None:
            self._following = asyncio.create_task(self._certificate.follow())
        if self._lead is not None:
            await self._lead.opened()
        if self._open_grpc is not None:
            self._grpc = self._open_grpc()
            await self._grpc.start()

    async def listen(self, listener: socket.socket) -> asyncio.AbstractServer:
        """Take connections from this listener too."""
        kind: Any = self.config.http_protocol_class
        made = partial(kind, config=self.config, server_state=self.server_state, app_state=self.lifespan.state)
        secure: dict[str, Any] = {}
        if self._certificate is not None and listener.family != socket.AF_UNIX:
            secure = {"ssl": self._certificate.context, "ssl_handshake_timeout": HANDSHAKE_SECONDS}
        server = await accepting(made, listener, **secure)
        self.servers.append(server)  # type: ignore[arg-type]  # it is one of the loop's
        return server

    def unlisten(self, server: asyncio.AbstractServer) -> None:
        """Take no more of them."""
        server.close()
        self.servers.remove(server)  # type: ignore[arg-type]  # it is one of them

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second."""
        if self._on_ready and self._service.is_loaded:
            _leave_alone_what_stays()
            self._on_ready()
            self._on_ready = None
            ready = sum(one.is_answering for one in served_versions(self._service))
            self._notifier.ready(f"{ready} models answer")
        self._notifier.alive()
        if self._lead is not None:
            self._lead.tick()
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Say not ready, then drain."""
        self._service.is_draining = True
        self._notifier.stopping()
        if self._lead is not None:
            self._lead.leaving()
        if self._grpc is not None:
            self._grpc.begin_stop(self._leaving.finish_seconds)
        await _turn()  # who has connected is taken,
        for server in self.servers:
            server.close()
        await _turn()  # and what they have sent is read: it would be reset, and was never refused
        await super().shutdown(sockets)

    async def _wait_tasks_to_complete(self) -> None:
        """As uvicorn's, which waits here until requests have finished: so do gRPC's."""
        await super()._wait_tasks_to_complete()
        if self._grpc is not None:
            await self._grpc.stopped()


async def _turn() -> None:
    for _ in range(TURNS):
        await asyncio.sleep(0)


def _leave_alone_what_stays() -> None:
    """Let Python's collector look only at what comes from now on: to walk through all that is loaded took a quarter of a small
    request's time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECT_AFTER)


def _allow_many_connections() -> None:
    """As many open files as the system lets us have: each connection is one."""
    import resource

    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _lifespan(service: Service) -> Callable[[FastAPI], Any]:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await service.start()
        try:
            yield
        finally:
            await service.stop()

    return lifespan


def _plain_routes(app: FastAPI, service: Service) -> None:
    @app.get("/health", tags=["Maasdam"])
    async def health() -> dict[str, Any]:
        """Whether the service is up, and how many models are. Needs no key."""
        now = [one.state for one in served_versions(service)]
        states = {state: now.count(state) for state in ("ready", "asleep", "waking", "loading", "failed")}
        status = "draining" if service.is_draining else "ok" if service.trouble is None else service.trouble
        return {"status": status, "version": __version__, "models": states}

    @app.get("/healthz", tags=["Maasdam"], include_in_schema=False)
    @app.get("/livez", tags=["Maasdam"], include_in_schema=False)
    async def live() -> dict[str, str]:
        """The process answers."""
        return {"status": "ok"}

    @app.get("/readyz", tags=["Maasdam"], include_in_schema=False)
    async def ready() -> Response:
        """As /v2/health/ready: 200 once everything deployed is up or has failed, else 503."""
        return JSONResponse({"ready": service.is_ready}, 200 if service.is_ready else 503)

    @app.get("/metrics", tags=["Maasdam"])
    async def metrics() -> Response:
        """Prometheus' text format."""
        return PlainTextResponse(await service.metrics_text(), media_type=METRICS_TYPE)

    @app.get("/", include_in_schema=False)
    async def root(request: Request) -> Response:
        """Where to go from here: a page for a browser, JSON for everyone else. Needs no key."""
        if "text/html" in request.headers.get("accept", ""):
            return HTMLResponse(welcome(__version__, service.settings.public_docs))
        return JSONResponse({"name": "maasdam", "version": __version__, "docs": "/docs", "health": "/health"})

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        """Every route, for people."""
        return HTMLResponse(page(app.openapi()))


async def _refuse(request: Request, error: Exception) -> Response:
    request_id = request.scope[REQUEST_ID]
    refused = errors.refusal(error, request_id)
    request.scope[REFUSED] = refused
    path = request.scope["path"]
    data, content_type = errors.body(refused, errors.door(path), path, request_id)
    headers = {name.decode(): value.decode() for name, value in errors.headers(refused)}
    if refused.closes:
        headers["connection"] = "close"
    return Response(data, refused.status, headers, media_type=content_type.decode())


async def _refuse_fields(request: Request, error: Exception) -> Response:
    """A body that doesn't fit its schema."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    place = [str(part) for part in first.get("loc", ()) if part not in ("body", "query", "path")]
    if request.method in ("POST", "PUT") and first.get("loc", ("",))[0] == "body":
        wrong = _wrong_kind(request)
        if wrong is not None:
            return await _refuse(request, wrong)
    where = ".".join(place) or "body"
    message = f"'{where}': {first['msg'][:1].lower()}{first['msg'][1:]}"
    return await _refuse(request, InvalidField(message, where, "invalid_value"))


def _wrong_kind(request: Request) -> WrongContentType | None:
    """The error where a route got a form for JSON, or JSON for a form."""
    kind = request.headers.get("content-type", "")
    takes = _FORM if takes_forms_only(request.scope["path"]) else "application/json"
    if is_json(kind.encode("latin-1")) == (takes != _FORM) or (takes == _FORM and is_multipart(kind.encode("latin-1"))):
        return None
    why = "no content type was sent" if not kind else f"content type '{kind[:60]}' is not read here"
    if kind.startswith("application/x-www-form-urlencoded"):
        why += " (curl -d sends it unless told otherwise)"
    return WrongContentType(f"{why}; send the header 'Content-Type: {takes}'")


async def _refuse_http(request: Request, error: Exception) -> Response:
    """What the framework itself refuses: no such route, wrong method, a broken form."""
    assert isinstance(error, HTTPException)
    path = request.scope["path"]
    if error.status_code == 404:
        return await _refuse(request, NotFound(f"no route {path[:100]}; GET /docs lists them"))
    if error.status_code == 405:
        route = getattr(request.scope.get("route"), "path", path)
        allowed = ", ".join(request.app.state.methods.get(route, ())) or (error.headers or {}).get("Allow", "")
        if request.method == "OPTIONS":
            return Response(status_code=204, headers={"Allow": allowed})
        response = await _refuse(
            request, MethodNotAllowed(f"{request.method[:20]} is not for {path[:100]}; it takes {allowed}")
        )
        response.headers["Allow"] = allowed
        return response
    if error.status_code < 500:
        return await _refuse(
            request, InvalidInput(f"the body can't be read: {error.detail}; check its content type and encoding")
        )
    return await _refuse(request, error)
