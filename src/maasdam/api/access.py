"""Who may call what. Knows paths, scopes and keys; never bodies or models. Everything not listed needs a key.

    HTTP: path, headers -> `caller`, `check` -\
    any other wire: a secret, a scope -> `remembered`, or `admit` and `permit`
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from urllib.parse import urlsplit

from maasdam.api.body import Headers, header
from maasdam.core import ANONYMOUS, Caller
from maasdam.errors import Forbidden, Unauthenticated

OPEN = frozenset({"/", "/health", "/healthz", "/livez", "/readyz", "/v2/health/live", "/v2/health/ready"})
"""Paths that need no key."""
DOCS = frozenset({"/docs", "/openapi.json"})
"""Paths that need none where the operator says so."""

SCOPES: tuple[tuple[str, str], ...] = (
    # the first prefix that fits decides; a path that none fits needs any valid key
    ("/v1/", "infer"),
    ("/v2/repository/index", "infer"),
    ("/v2/repository/", "deploy"),
    ("/v2/logging", "admin"),
    ("/v2", "infer"),
    ("/rerank", "infer"),
    ("/tokenize", "infer"),
    ("/detokenize", "infer"),
    ("/admin/keys", "admin"),
    ("/admin/usage", "admin"),
    ("/admin/requests", "admin"),
    ("/admin", "deploy"),
)
KEY_HEADERS = (b"authorization", b"api-key", b"x-api-key")
"""Where a key may be: `Bearer KEY` in the first, bare in the others, as some clients send it. The first there is counts."""
NO_KEY = "no API key; send the header 'Authorization: Bearer KEY' (make one with: maasdam keys create NAME)"
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})


class Gate:
    """Tells who calls, or refuses."""

    def __init__(
        self,
        authenticate: Callable[[str], Awaitable[Caller]] | None,
        has_public_docs: bool = False,
        seen: Callable[[str], Caller | None] = lambda secret: None,
    ) -> None:
        """`authenticate` says who holds a secret, or raises; with None everyone is ANONYMOUS, from this machine only.

        `seen` says it where that was found out a moment ago.
        """
        self._authenticate = authenticate
        self._seen = seen
        self._open = OPEN | DOCS if has_public_docs else OPEN

    async def caller(self, path: str, headers: Headers) -> Caller:
        """Who calls. Raises Unauthenticated; without keys Forbidden for who is not on this machine."""
        if self._authenticate is None:
            _check_is_local(headers)
            return ANONYMOUS
        if path in self._open:
            return ANONYMOUS
        return await self.admit(secret_of(*(header(headers, name) for name in KEY_HEADERS)))

    def holder(self, headers: Headers, scope: str) -> Callable[[], Caller | None] | None:
        """What tells, at any time, who calls with these headers, where that is known without a look at the database and the
        key has the scope; None where nobody may with them."""
        try:
            if self._authenticate is None:
                _check_is_local(headers)
                return lambda: ANONYMOUS
            secret = secret_of(*(header(headers, name) for name in KEY_HEADERS))
        except (Unauthenticated, Forbidden):
            return None
        if secret is None:
            return None
        return partial(self.remembered, secret, scope)

    def remembered(self, secret: str | None, scope: str | None) -> Caller | None:
        """Who holds a secret, where that is known without a look at the database and the key has the scope; else None."""
        if self._authenticate is None:
            return ANONYMOUS
        caller = None if secret is None else self._seen(secret)
        return caller if caller is not None and (scope is None or scope in caller.scopes) else None

    def check(self, path: str, caller: Caller) -> None:
        """Raise Forbidden where the caller's key lacks the scope that `path` needs."""
        if path not in self._open:
            self.permit(caller, next((scope for prefix, scope in SCOPES if path.startswith(prefix)), None))

    async def admit(self, secret: str | None) -> Caller:
        """Who holds a key's secret; without keys anyone. Raises Unauthenticated, also for None."""
        if self._authenticate is None:
            return ANONYMOUS
        if secret is None:
            raise Unauthenticated(NO_KEY)
        return await self._authenticate(secret)

    def permit(self, caller: Caller, scope: str | None) -> None:
        """Raise Forbidden where the caller's key lacks a scope; any key has None."""
        if self._authenticate is not None and scope is not None and scope not in caller.scopes:
            raise Forbidden(
                f"this key lacks the scope '{scope}'; use one that has it: maasdam keys create NAME --scope {scope}"
            )


def secret_of(authorization: bytes | None, *plain: bytes | None) -> str | None:
    """The secret in `Authorization: Bearer KEY`, else in the first header there is that is nothing but a key.

    None: there is none. Raises Unauthenticated where one can't be read.
    """
    if authorization is None:
        secret = next((value for value in plain if value is not None), None)
        if secret is None:
            return None
    else:
        scheme, _, secret = authorization.partition(b" ")
        if scheme.lower() != b"bearer" or not secret.strip():
            raise Unauthenticated("the Authorization header is not 'Bearer KEY'")
    try:
        return secret.strip().decode("ascii")
    except UnicodeDecodeError:
        raise Unauthenticated("this is no API key of this service; list them with: maasdam keys list") from None


def _check_is_local(headers: Headers) -> None:
    """Without keys, a page in the operator's browser must not reach the service by a name of its own."""
    host = (header(headers, b"host") or b"localhost").decode("latin-1")
    origin = header(headers, b"origin")
    names = [_name(f"//{host}")]
    if origin is not None:
        names.append(_name(origin.decode("latin-1")))
    if any(name not in LOOPBACK_NAMES for name in names):
        raise Forbidden("without keys this service answers only to localhost; start it without --no-auth to serve others")


def _name(url: str) -> str | None:
    """The host's name, None where there is none to be read."""
    try:
        return urlsplit(url).hostname
    except ValueError:  # a bracket that is not closed, say
        return None
