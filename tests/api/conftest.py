"""A whole service on fakes: real database, catalog, keys, ledger, router and HTTP; fake engines and processors."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from tests.fakes import DOUBLES, FakeEngine, FakeProcessor, FakeSequenceEngine
from tests.waiting import wait_until as wait_for

from maasdam.accounts.keys import Keys
from maasdam.accounts.ledger import Ledger
from maasdam.accounts.prices import Prices
from maasdam.api.connection import Head
from maasdam.api.http import application, connections
from maasdam.api.listening import bound_socket
from maasdam.api.sockets import SOCKET_OPTIONS
from maasdam.artifacts.catalog import Catalog
from maasdam.core import Artifact
from maasdam.database.engine import open_database
from maasdam.operations.service import Service, open_service
from maasdam.operations.workspace import JOURNALS
from maasdam.settings import Settings

MODELS = {
    "doubles": (None, "onnx"),
    "images": ("image-classification", "onnx"),
    "speech": ("automatic-speech-recognition", "onnx"),
    "text": ("text-generation", "genai"),
}


@dataclass
class FakeStore:
    """Artifacts by digest, without files."""

    artifacts: dict[str, Artifact] = field(default_factory=dict)

    def get(self, digest: str) -> Artifact:
        return self.artifacts[digest]

    intact = get

    def is_locked(self, name: str) -> bool | None:
        return None  # builds of another store


@dataclass
class Records:
    """A workspace with a fake store."""

    settings: Settings
    store: FakeStore
    database: Any
    catalog: Catalog
    keys: Keys
    ledger: Ledger
    prices: Prices


@dataclass
class Running:
    """A service that listens in a thread."""

    url: str
    port: int
    key: str
    admin_key: str
    service: Service
    records: Records
    engines: dict[str, Any]
    loop: asyncio.AbstractEventLoop
    """The one that it runs in."""
    heads: dict[bytes, Head]
    """Those that its connections know."""

    def client(self, key: str | None = None) -> httpx.Client:
        return httpx.Client(base_url=self.url, headers={"Authorization": f"Bearer {key or self.admin_key}"}, timeout=30)

    def rows(self, request_id: str) -> list[Any]:
        from sqlalchemy import select
        from sqlalchemy.orm import Session

        from maasdam.database.tables import LedgerRow

        self.records.ledger.take_in()
        with Session(self.records.ledger._reads) as session:
            return list(session.scalars(select(LedgerRow).where(LedgerRow.request_id == request_id)))

    def newest_row(self) -> Any:
        from sqlalchemy import select
        from sqlalchemy.orm import Session

        from maasdam.database.tables import LedgerRow

        self.records.ledger.take_in()
        with Session(self.records.ledger._reads) as session:
            return session.scalars(select(LedgerRow).order_by(LedgerRow.at.desc()).limit(1)).one_or_none()


def make_engine(artifact: Artifact, **options: Any) -> Any:
    # slow enough to have a thread: a test that holds an engine must not hold the event loop
    return FakeSequenceEngine() if artifact.layout == "genai" else FakeEngine(delay=0.0005)


def records(home: Path, settings: Settings) -> Records:
    database = open_database(f"sqlite:///{home / 'maasdam.db'}")
    ledger = Ledger(database, settings.home / JOURNALS)
    made = Records(settings, FakeStore(), database, Catalog(database), Keys(database), ledger, Prices({}))
    for name, (task, layout) in MODELS.items():
        digest = f"sha256:{name}"
        signature = None if layout == "genai" else DOUBLES
        artifact = Artifact(digest, home, "onnx", layout, task, "fake", signature, 1)
        made.store.artifacts[digest] = artifact
        made.catalog.register(name, artifact, source="fake", recipe="none", report={"passed": True}, passes=[])
        made.catalog.deploy(name)
    return made


class _Server(uvicorn.Server):
    """uvicorn's, which says in which event loop it runs."""

    loop: asyncio.AbstractEventLoop

    async def startup(self, sockets: Any = None) -> None:
        self.loop = asyncio.get_running_loop()
        await super().startup(sockets)


def run_in_thread(home: Path, settings: Settings, has_keys: bool = True) -> Iterator[Running]:
    made = records(home, settings)
    _, key = made.keys.create("tests", ["infer"])
    _, admin_key = made.keys.create("chief", ["infer", "deploy", "admin"])
    engines: dict[str, Any] = {}

    def open_engine(artifact: Artifact, **options: Any) -> Any:
        engines[artifact.digest.removeprefix("sha256:")] = engine = make_engine(artifact)
        return engine

    service = open_service(made, open_engine=open_engine, open_processor=lambda task, *about: FakeProcessor(task))
    listener = bound_socket("127.0.0.1", 0)
    port = listener.getsockname()[1]
    entrance = application(service, has_keys)
    made_by = connections(entrance)
    config = uvicorn.Config(
        entrance,
        http=made_by,
        loop="uvloop",
        **SOCKET_OPTIONS,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=2,
    )
    server = _Server(config)
    thread = threading.Thread(target=lambda: server.run(sockets=[listener]), daemon=True)
    thread.start()
    wait_for(lambda: server.started and service.router.is_ready, what="the service did not come up")
    yield Running(
        f"http://127.0.0.1:{port}", port, key, admin_key, service, made, engines, server.loop, made_by.keywords["heads"]
    )
    server.should_exit = True
    thread.join(20)


SMALL = Settings(max_body_bytes=2_000_000, request_timeout_seconds=3.0, queue_size=8, watts_per_core=10.0)


@pytest.fixture(scope="session")
def fake_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One service for many tests."""
    home = tmp_path_factory.mktemp("home")
    yield from run_in_thread(home, replace(SMALL, home=home))


@pytest.fixture
def own_service(tmp_path: Path) -> Iterator[Running]:
    """A service of one's own, to be broken."""
    yield from run_in_thread(tmp_path, replace(SMALL, home=tmp_path))


@pytest.fixture
def open_to_all(tmp_path: Path) -> Iterator[Running]:
    """A service without keys."""
    yield from run_in_thread(tmp_path, replace(SMALL, home=tmp_path), has_keys=False)


@pytest.fixture
def client(fake_service: Running) -> Iterator[httpx.Client]:
    """A client with every scope."""
    with fake_service.client() as it:
        yield it
