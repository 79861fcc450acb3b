"""Ids that callers bring along: of a request, and of the trace it is part of. Knows their forms; never what they are of."""

from __future__ import annotations

import re

_ID = re.compile(rb"[A-Za-z0-9._~:@/+=-]{5,128}")
_TRACE = re.compile(rb"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")


def well_formed(request_id: bytes | None) -> str | None:
    """A caller's own id of a request, to be sent back; None where there is none, or none to be repeated: it has
    5 to 128 characters that stand in a header, a log and a URL as they are.

    It is never the ledger's: whoever chose that could have a second request for nothing.
    """
    return request_id.decode() if request_id is not None and _ID.fullmatch(request_id) else None


def id_headers(request_id: str, theirs: bytes | None) -> list[tuple[bytes, bytes]]:
    """A request's ids, to be sent back: the service's own, or the caller's and the service's beside it."""
    own = request_id.encode()
    if theirs is None or well_formed(theirs) is None:
        return [(b"x-request-id", own)]
    return [(b"x-request-id", theirs), (b"maasdam-request-id", own)]


def trace_of(traceparent: bytes | None) -> str | None:
    """The trace id of a W3C traceparent: 00-<32 hexadecimal digits>-<16>-<2>."""
    found = None if traceparent is None else _TRACE.fullmatch(traceparent)
    return None if found is None else found[1].decode()
