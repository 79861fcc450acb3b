"""Ids that callers bring along: of a request, and of the trace it is part of. Knows their forms; never what they are of."""

from __future__ import annotations

import re

from maasdam.telemetry.requests import Trace

_ID = re.compile(rb"[A-Za-z0-9._~:@/+=-]{5,128}")
_TRACE = re.compile(rb"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")


def well_formed(request_id: bytes | None) -> str | None:
    """A caller's own id of a request, to be sent back; None where there is none, or none to be repeated: it has
    5 to 128 characters that stand in a header, a log and a URL as they are.

    It is never the ledger's: whoever chose that could have a second request for nothing.
    """
    return request_id.decode() if request_id is not None and _ID.fullmatch(request_id) else None


def id_headers(request_id: str, theirs: bytes | None, traceparent: bytes | None = None) -> list[tuple[bytes, bytes]]:
    """A request's ids, to be sent back: the service's own, or the caller's and that beside it; and its place in a trace."""
    own, trace = request_id.encode(), trace_of(traceparent)
    traced = [] if trace is None else [(b"traceresponse", trace.response(request_id).encode())]
    if theirs is None or well_formed(theirs) is None:
        return [(b"x-request-id", own), *traced]
    return [(b"x-request-id", theirs), (b"maasdam-request-id", own), *traced]


def trace_of(traceparent: bytes | None) -> Trace | None:
    """What a W3C traceparent says: 00-<trace: 32 hexadecimal digits>-<span: 16>-<flags: 2>; later versions may have more.

    None where there is none, or none that is valid: then there is no trace. Only the flag that is known, sampled, is kept.
    """
    found = None if traceparent is None else _TRACE.fullmatch(traceparent)
    if found is None or (found[1] == b"00" and found[5] is not None):
        return None
    return Trace(found[2].decode(), found[3].decode(), f"{int(found[4], 16) & 1:02x}")
