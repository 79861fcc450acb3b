"""Which builds run, which ended, and which were killed. Knows build rows and locks; refuses to know recipes.

    a build holds a lock of its own in its store while it runs; the system frees it when the process dies
    whoever looks next and finds the lock of a "running" row free knows that it runs no more, and notes it

A database that several stores share also has rows whose lock is elsewhere: those are judged by their heartbeat.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from maasdam.artifacts.catalog import BuildState, Catalog
    from maasdam.artifacts.store import Store

ALIVE_SECONDS = 600
"""A build of another store that was silent for longer is taken for dead."""


@contextmanager
def running(catalog: Catalog, store: Store, name: str) -> Iterator[str]:
    """A row for a build of `name`, which is known to run while inside the `with`; gives its id. Who is inside ends the row."""
    builds(catalog, store)  # those that were killed before are noted now
    build_id = uuid.uuid4().hex
    with store.lock(_key(build_id)):
        catalog.start_build(name, build_id)
        yield build_id


def builds(catalog: Catalog, store: Store) -> list[BuildState]:
    """The hundred latest builds, newest first; those whose process is gone are noted as interrupted first."""
    silent_since = datetime.now(UTC) - timedelta(seconds=ALIVE_SECONDS)

    def is_gone(build: BuildState) -> bool:
        held = store.is_locked(_key(build.id))
        return build.heartbeat_at < silent_since if held is None else not held

    catalog.interrupt_builds(is_gone)
    return catalog.builds()


def _key(build_id: str) -> str:
    return f"build-{build_id}"
