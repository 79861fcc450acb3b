"""POST /v2/models/NAME[/versions/V]/infer, below the framework: the route where microseconds count.

Knows ASGI and where work is done. Refuses to know the protocol's meaning (`oip_call`), its JSON (`oip_json`) and engines.

    body -> oip_json -> OipCall -> operations.infer -> OipReply -> oip_json -> body
"""

from __future__ import annotations

import asyncio

from maasdam.api import body as bodies
from maasdam.api import oip_json
from maasdam.api.body import Receive
from maasdam.api.encodings import packed, wished
from maasdam.api.entrance import REQUEST_ID, Scope, Send, caller_of
from maasdam.api.fields import check_query
from maasdam.api.json_body import JsonLimits
from maasdam.api.measured import measured_headers
from maasdam.api.oip_call import OipCall, name_of
from maasdam.core import Chunk, Entry
from maasdam.errors import InvalidInput
from maasdam.operations.service import Service

JSON_LENGTH = b"inference-header-content-length"

Answer = tuple[bytes, int | None, list[tuple[bytes, bytes]]]
"""A body, the length of its JSON where binary data follows, and headers of what it cost."""


class InferRoute:
    """An ASGI application for the one route."""

    def __init__(self, service: Service, limits: bodies.BodyLimits) -> None:
        self._service = service
        self._limits = limits
        self._json = JsonLimits(service.settings.max_json_depth, service.settings.max_json_values)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one inference request. Raises what the entrance turns into the protocol's error."""
        headers = scope["headers"]
        name = name_of(**scope["path_params"])
        check_query(scope.get("query_string", b""))
        json_length = bodies.header(headers, JSON_LENGTH)
        limit = self._limits.json_tensors if json_length is None else self._limits.any
        data = await self._limits.read(scope, receive, limit)
        try:
            call = await self._read(name, data, json_length)
            settings = self._service.settings
            request = call.request(scope[REQUEST_ID], caller_of(scope), "/v2/infer", settings.request_timeout_seconds)
        except InvalidInput:
            self._service.check_model(name)
            raise

        async def write(chunks: list[Chunk], entry: Entry) -> Answer:
            loop, pool = asyncio.get_running_loop(), self._service.pool
            work = loop.run_in_executor(pool, call.reply, chunks, entry) if call.wants_classes else None
            reply = call.reply(chunks, entry) if work is None else await work
            if reply.nbytes <= bodies.IN_THE_LOOP:
                return *oip_json.encode(call, reply), measured_headers(entry)
            return *await loop.run_in_executor(pool, oip_json.encode, call, reply), measured_headers(entry)

        written, length, measured = await self._service.inference.whole(request, write, call.check)
        kind = b"application/json" if length is None else b"application/octet-stream"
        out = [(b"content-type", kind), *measured]
        coding = wished(bodies.header(headers, b"accept-encoding"))
        if coding is not None:
            written = await asyncio.get_running_loop().run_in_executor(self._service.pool, packed, written, coding)
            out += [(b"content-encoding", coding), (b"vary", b"Accept-Encoding")]
        out.append((b"content-length", b"%d" % len(written)))
        if length is not None:
            out.append((JSON_LENGTH, b"%d" % length))
        await send({"type": "http.response.start", "status": 200, "headers": out})
        await send({"type": "http.response.body", "body": written, "more_body": False})

    async def _read(self, name: str, data: bytes, json_length: bytes | None) -> OipCall:
        length = oip_json.json_length(json_length, data)
        if length > self._limits.json_tensors.most:
            raise self._limits.json_tensors.error(length)
        if length <= bodies.IN_THE_LOOP:
            return oip_json.decode(name, data, length, self._json)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._service.pool, oip_json.decode, name, data, length, self._json)
