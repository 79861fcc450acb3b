"""Which web pages may call this service from a browser (CORS). Knows origins and headers; no key, no route.

Off unless the setting `cors_origins` names some. A page still needs a key; none is ever sent by the browser by itself.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from maasdam.api.body import Headers, header
from maasdam.errors import InvalidInput

EXPOSED = (
    b"x-request-id, maasdam-request-id, maasdam-compute-seconds, maasdam-joules, maasdam-energy-method, maasdam-grams-co2e, "
    b"traceresponse, inference-header-content-length, retry-after"
)
"""Headers of answers that a page's script may read."""
METHODS = b"GET, POST, PUT, DELETE, HEAD"
REMEMBERED_SECONDS = 600
_ORIGIN = re.compile(r"https?://[^/\s?#@,]+")
_NAMES = re.compile(rb"[A-Za-z0-9_, -]{1,1000}")


@dataclass(frozen=True, slots=True)
class Origins:
    """Those that may."""

    names: frozenset[bytes]
    is_any: bool = False

    @staticmethod
    def of(setting: str) -> Origins:
        """Read the setting: origins separated by commas, or `*`. Raises InvalidInput."""
        names = [name.strip() for name in setting.split(",") if name.strip()]
        for name in names:
            if name != "*" and not _ORIGIN.fullmatch(name):
                raise InvalidInput(f"setting cors_origins has '{name}'; write origins as https://app.example.com, or *")
        return Origins(frozenset(name.lower().encode() for name in names), "*" in names)

    def headers(self, asked: Headers) -> Headers:
        """What to add to the answer to a request with these headers."""
        if not self.names:
            return []
        origin = header(asked, b"origin")
        if origin is None or not (self.is_any or origin.lower() in self.names):
            return [(b"vary", b"Origin")]
        return [(b"access-control-allow-origin", origin), (b"access-control-expose-headers", EXPOSED), (b"vary", b"Origin")]

    def preflight(self, method: str, asked: Headers) -> Headers | None:
        """The headers of the answer to a browser's question before a request; None where this is none, or it may not."""
        if method != "OPTIONS" or header(asked, b"access-control-request-method") is None or len(self.headers(asked)) < 2:
            return None
        names = header(asked, b"access-control-request-headers")
        allowed = [(b"access-control-allow-headers", names)] if names is not None and _NAMES.fullmatch(names) else []
        age = (b"access-control-max-age", b"%d" % REMEMBERED_SECONDS)
        return [(b"access-control-allow-methods", METHODS), *allowed, age]
