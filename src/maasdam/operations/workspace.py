"""Everything a command or a service works on, opened in one place."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
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
    prices: Prices
    umask: int = 0o022
    """The process's mask before: for files that people asked for elsewhere."""

    @staticmethod
    def open(settings: Settings | None = None, config: Path | None = None) -> Workspace:
        """Open (and at first make) the home folder, the database and the store. They are their owner's alone.

        Until `close`, whatever this process makes is for its owner alone; `shared` lifts that from one file.

        `config` is the maasdam.toml that holds the prices; default ./maasdam.toml, else the one in the home folder.
        Raises StorageFailure, InvalidInput.
        """
        settings = settings or load()
        umask = os.umask(0o077)
        try:
            try:
                settings.home.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise StorageFailure(f"can't make the home folder {settings.home}: {error}; set MAASDAM_HOME") from error
            _tighten(settings.home)
            prices = Prices.load(config) if config else Prices.load(FILE, settings.home / FILE)
            store = Store(settings.home / "artifacts")
            database = open_database(settings.resolved_database_url)
        except BaseException:
            os.umask(umask)
            raise
        ledger = Ledger(database, settings.home / JOURNALS)
        return Workspace(settings, database, store, Catalog(database), Keys(database), ledger, prices, umask)

    def shared(self, path: Path) -> None:
        """Let others read a file that a person asked for outside the home, as far as the process's own mask has it."""
        path.chmod(0o666 & ~self.umask)

    def close(self) -> None:
        """Let go of the database."""
        self.database.dispose()
        os.umask(self.umask)

    def __enter__(self) -> Workspace:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


JOURNALS = "journals"
"""In the home: what was answered, until it is in the database."""
OURS = (
    "artifacts",
    "batching",
    JOURNALS,
    "loading",
    "logs",
    "maasdam.db*",
    "maasdam.log*",
    "metrics",
    FILE.name,
    "serve.log",
    "service.json",
    ".service.json.*",
)
"""What we make in a home; a * is the beginning of what stands beside it."""


def _tighten(home: Path) -> None:
    """What we made in it is its owner's alone, also what an earlier version made; what is somebody else's is left as it is.

    So is the folder itself, if it is no more than ours: /tmp and the user's own home folder are left open.
    """
    is_shared = bool(home.stat().st_mode & stat.S_ISVTX) or home in (Path("/"), Path.home())
    paths = [path for pattern in OURS for path in home.glob(pattern)]
    paths += [inner for path in paths if _is_open_folder(path) for inner in path.rglob("*")]
    for path in paths if is_shared else [home, *paths]:
        with suppress(OSError):
            is_open = path.lstat().st_mode & 0o077
            if is_open and not path.is_symlink():
                path.chmod(path.stat().st_mode & 0o700)


def _is_open_folder(path: Path) -> bool:
    try:
        mode = path.lstat().st_mode
    except OSError:  # gone since
        return False
    return stat.S_ISDIR(mode) and bool(mode & 0o077)
