"""Everything a command or a service works on, opened in one place."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from sqlalchemy import Engine

from maasdam.accounts.keys import Keys
from maasdam.accounts.ledger import Ledger
from maasdam.accounts.prices import Prices
from maasdam.artifacts.catalog import Catalog
from maasdam.artifacts.store import Store
from maasdam.database.engine import open_database
from maasdam.errors import StorageFailure
from maasdam.settings import FILE, Settings, load


@dataclass(frozen=True, slots=True)
class Workspace:
    """Settings, and what stands on them. Close it, or use it in a `with`."""

    settings: Settings
    database: Engine
    store: Store
    catalog: Catalog
    keys: Keys
    ledger: Ledger

    @staticmethod
    def open(settings: Settings | None = None, config: Path | None = None) -> Workspace:
        """Open (and at first make) the home folder, the database and the store.

        `config` is the maasdam.toml that holds the prices; default ./maasdam.toml, else the one in the home folder.
        Raises StorageFailure, InvalidInput.
        """
        settings = settings or load()
        try:
            settings.home.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageFailure(f"can't make the home folder {settings.home}: {error}; set MAASDAM_HOME") from error
        prices = Prices.load(config) if config else Prices.load(FILE, settings.home / FILE)
        store = Store(settings.home / "artifacts")
        database = open_database(settings.resolved_database_url)
        return Workspace(settings, database, store, Catalog(database), Keys(database), Ledger(database, prices))

    def close(self) -> None:
        """Write what the ledger holds and let go of the database."""
        self.ledger.close()
        self.database.dispose()

    def __enter__(self) -> Workspace:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
