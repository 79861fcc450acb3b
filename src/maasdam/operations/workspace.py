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
        return Workspace(settings, database, store, Catalog(database), Keys(database), Ledger(database, prices), umask)

    def shared(self, path: Path) -> None:
        """Let others read a file that a person asked for outside the home, as far as the process's own mask has it."""
        path.chmod(0o666 & ~self.umask)

    def close(self) -> None:
        """Write what the ledger holds and let go of the database."""
        self.ledger.close()
        self.database.dispose()
        os.umask(self.umask)

    def __enter__(self) -> Workspace:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


OURS = ("artifacts", "loading", "logs", "maasdam.db*")


def _tighten(home: Path) -> None:
    """Folder and files are their owner's alone, also those of an earlier version; what is somebody else's is left as it is.

    A home that is more than ours (/tmp, the user's own home folder) is left open, and only what we made in it is closed.
    """
    mode = home.stat().st_mode
    if mode & stat.S_ISVTX or home in (Path("/"), Path.home()):
        paths = [path for pattern in OURS for path in home.glob(pattern)]
        paths += [inner for path in paths if path.is_dir() and path.stat().st_mode & 0o077 for inner in path.rglob("*")]
    else:
        paths = [home, *(home.rglob("*") if mode & 0o077 else home.iterdir())]
    for path in paths:
        with suppress(OSError):
            is_open = path.lstat().st_mode & 0o077
            if is_open and not path.is_symlink():
                path.chmod(path.stat().st_mode & 0o700)
