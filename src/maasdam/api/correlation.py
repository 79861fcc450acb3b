"""Ids that callers bring along: of a request, and of the trace it is part of. Knows their forms; never what they are of."""

from __future__ import annotations

import re

_ID = re.compile(rb"[A-Za-z0-9._~:@/+=-]{1,128}")
_TRACE = re.compile(rb"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")


def well_formed(request_id: bytes | None) -> str | None:
    """A caller's own id of a request, to be sent back; None where there is none, or it is none to be repeated.

    It is never the ledger's: whoever chose that could have a second request for nothing.
    """
    return request_id.decode() if request_id is not None and _ID.fullmatch(request_id) else None


def trace_of(traceparent: bytes | None) -> str | None:
    """The trace id of a W3C traceparent: 00-<32 hexadecimal digits>-<16>-<2>."""
    found = None if traceparent is None else _TRACE.fullmatch(traceparent)
    return None if found is None else found[1].decode()
