"""API keys. Knows secrets (as hashes), scopes and revocation; refuses to know routes and requests.

A secret is `mdm_<id>_<43 characters>`, 256 random bits. Only its SHA-256 is kept: a random secret of this length needs
no slow hash.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from maasdam.core import Caller
from maasdam.database.tables import KeyRow
from maasdam.errors import InvalidInput, NotFound, Unauthenticated

SECRET = re.compile(r"mdm_([0-9a-f]{12})_[A-Za-z0-9_-]{43}")
SCOPES = ("infer", "deploy", "admin")
SEEN_SECONDS = 0.5
"""How long a checked key is taken as good: a revocation counts within a second."""
SEEN_AT_MOST = 10_000
OPERATOR = Caller(None, "operator", frozenset(SCOPES))
"""Who runs the service, on its own machine."""


@dataclass(frozen=True, slots=True)
class Key:
    """An API key without its secret."""

    id: str
    name: str
    scopes: tuple[str, ...]
    created_at: datetime
    revoked_at: datetime | None


class Keys:
    """The keys in one database. Thread-safe."""

    def __init__(self, database: Engine, clock: Callable[[], float] = time.monotonic) -> None:
        self._writes = database
        self._reads = database.execution_options(is_reader=True)
        self._clock = clock
        self._seen: dict[str, tuple[float, Caller]] = {}
        self._lock = threading.Lock()
        self.times_forgotten = 0
        """What was read before one of them is not taken as good after it."""
        self.operators_secret: str | None = None
        """A secret that may do everything and is in no database."""

    def create(self, name: str, scopes: Sequence[str] = ("infer",)) -> tuple[Key, str]:
        """A new key and its secret, which is told only here. Raises InvalidInput for unknown scopes."""
        unknown = sorted(set(scopes) - set(SCOPES))
        if unknown or not scopes:
            raise InvalidInput(f"no scope {', '.join(unknown) or '(none given)'}; the scopes are: {', '.join(SCOPES)}")
        if not 1 <= len(name) <= 100 or not name.isprintable():
            raise InvalidInput("a key's name has 1 to 100 printable characters; say who or what will use it")
        key_id = secrets.token_hex(6)
        secret = f"mdm_{key_id}_{secrets.token_urlsafe(32)}"
        row = KeyRow(
            id=key_id,
            name=name,
            hash=_hash(secret),
            scopes=[scope for scope in SCOPES if scope in scopes],
            created_at=datetime.now(UTC),
        )
        with Session(self._writes) as session, session.begin():
            session.add(row)
            session.flush()
            return _key(row), secret

    def list(self) -> list[Key]:
        """Every key, revoked ones too, oldest first."""
        with Session(self._reads) as session:
            return [_key(row) for row in session.scalars(select(KeyRow).order_by(KeyRow.created_at))]

    def revoke(self, key_id: str) -> Key:
        """Revoke the key of this id or this name. Raises NotFound, and InvalidInput for a name that several keys have."""
        with Session(self._writes) as session, session.begin():
            called_so = select(KeyRow).where((KeyRow.id == key_id) | (KeyRow.name == key_id))
            found = list(session.scalars(called_so)) if key_id.isprintable() else []  # not every database takes any text
            if not found:
                raise NotFound(f"no key '{key_id}'; see: maasdam keys list")
            rows = [row for row in found if row.revoked_at is None] or found[:1]
            if len(rows) > 1:
                ids = ", ".join(row.id for row in rows)
                raise InvalidInput(f"{len(rows)} keys are named '{key_id}'; name one by its id: {ids}")
            rows[0].revoked_at = rows[0].revoked_at or datetime.now(UTC)
            key = _key(rows[0])
        self.forget()
        return key

    def forget(self) -> None:
        """Take no key as good that is not looked up from now on."""
        with self._lock:
            self.times_forgotten += 1
            self._seen.clear()

    def seen(self, secret: str) -> Caller | None:
        """Who holds this secret, if that was found out within SEEN_SECONDS; reads nothing."""
        seen = self._seen.get(secret)
        return seen[1] if seen is not None and seen[0] > self._clock() else None

    def is_due(self, secret: str) -> bool:
        """Whether who holds this secret is known, but will not be for much longer."""
        seen = self._seen.get(secret)
        return seen is not None and seen[0] - SEEN_SECONDS / 2 < self._clock()

    def check(self, secret: str) -> Caller:
        """Who holds this secret, as the database has it now. Raises Unauthenticated for one that is unknown or revoked."""
        asked, now = self.times_forgotten, self._clock()
        try:
            caller = self._found(secret)
        except Unauthenticated:
            with self._lock:
                self._seen.pop(secret, None)
            raise
        with self._lock:
            if asked == self.times_forgotten:  # else it may have been revoked since it was read
                if len(self._seen) >= SEEN_AT_MOST:
                    self._seen.clear()
                self._seen[secret] = (now + SEEN_SECONDS, caller)
        return caller

    def _found(self, secret: str) -> Caller:
        own = self.operators_secret
        if own is not None and hmac.compare_digest(secret.encode("utf-8", "surrogatepass"), own.encode()):
            return OPERATOR
        shape = SECRET.fullmatch(secret)
        row = None
        if shape is not None:
            with Session(self._reads) as session:
                row = session.get(KeyRow, shape[1])
        if row is None or not hmac.compare_digest(row.hash, _hash(secret)):
            raise Unauthenticated("this API key is unknown; make one with: maasdam keys create NAME")
        if row.revoked_at is not None:
            raise Unauthenticated(f"the API key '{row.name}' was revoked; make another with: maasdam keys create NAME")
        return Caller(row.id, row.name, frozenset(row.scopes))


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def _key(row: KeyRow) -> Key:
    return Key(row.id, row.name, tuple(row.scopes), row.created_at, row.revoked_at)
