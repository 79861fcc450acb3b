"""What works on this machine, and what to install. Knows how to look; changes nothing, makes nothing.

Each engine's libraries are imported in a process of their own: an installation that crashes says so instead of taking
this process with it.
"""

from __future__ import annotations

import os
import platform
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from maasdam.children import last_line, run_python
from maasdam.core import Progress, silent
from maasdam.engines import ENGINES, installed_version
from maasdam.engines.processor import has_int8, instructions
from maasdam.settings import Settings

IMPORT_SECONDS = 120
LOW_DISK_BYTES = 2 * 2**30


@dataclass(frozen=True, slots=True)
class EngineState:
    """One engine: whether it can be used, with which versions, and what to do where not."""

    name: str
    works: bool
    layouts: tuple[str, ...]
    versions: dict[str, str]
    devices: tuple[str, ...] = ()
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """All that was found; `problems` are sentences that say what to do, empty where all is well."""

    engines: tuple[EngineState, ...]
    machine: dict[str, Any]
    energy: dict[str, Any]
    database: dict[str, Any]
    disk: dict[str, Any]
    problems: tuple[str, ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return asdict(self)


def examine(settings: Settings, progress: Progress = silent) -> Diagnosis:
    """Look at everything. Takes seconds: each engine's libraries are really imported."""
    engines = _engines(progress)
    progress("look at the energy counter, the database and the disk")
    energy, database, disk = _energy(settings), _database(settings), _disk(settings)
    problems = [f"{e.name}: {e.problem}" for e in engines if e.problem and ENGINES[e.name].extra is None]
    problems += [str(part["problem"]) for part in (database, disk) if part.get("problem")]
    return Diagnosis(tuple(engines), _machine(), energy, database, disk, tuple(problems))


def _engines(progress: Progress) -> list[EngineState]:
    engines: list[EngineState] = []
    with ThreadPoolExecutor(2) as pool:
        for name, engine in zip(ENGINES, pool.map(_engine, ENGINES), strict=True):
            engines.append(engine)
            progress(f"import engines, each in a process of its own ({name})", len(engines), len(ENGINES))
    return engines


def _engine(name: str) -> EngineState:
    info = ENGINES[name]
    versions = {library: version for library in info.libraries if (version := installed_version(library))}
    missing = [library for library in info.libraries if library not in versions]
    if missing:
        install = f"pip install 'maasdam[{info.extra}]'" if info.extra else "pip install --force-reinstall maasdam"
        return EngineState(name, False, info.layouts, versions, problem=f"{', '.join(missing)} not installed; run: {install}")
    done = run_python(["-c", f"import maasdam; {info.probe}"], seconds=IMPORT_SECONDS, environ={"OMP_NUM_THREADS": "1"})
    if done.returncode != 0:
        why = last_line(done.stderr, f"the import ended with status {done.returncode}")[:300]
        return EngineState(name, False, info.layouts, versions, problem=f"installed but does not import: {why}")
    return EngineState(name, True, info.layouts, versions, tuple(done.stdout.decode().split()))


def _machine() -> dict[str, Any]:
    import psutil

    from maasdam.engines.processor import available_threads

    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": available_threads(),
        "memory_bytes": psutil.virtual_memory().total,
        "has_int8": has_int8(),
        "instructions": names if (names := instructions()) is None else list(names),
    }


def _energy(settings: Settings) -> dict[str, Any]:
    from maasdam.telemetry.energy import RaplCounter, open_meter

    try:
        RaplCounter()
        rapl = "readable"
    except FileNotFoundError:
        rapl = "not there (virtual machines have none)"
    except (OSError, ValueError) as error:
        rapl = f"there, but not readable: {error}"
    return {"method": open_meter(settings.watts_per_core).method, "rapl": rapl}


def _database(settings: Settings) -> dict[str, Any]:
    """Looks without making or migrating anything."""
    import sqlalchemy
    from sqlalchemy.exc import SQLAlchemyError

    url = settings.resolved_database_url
    facts: dict[str, Any] = {"url": url}
    try:
        parsed = sqlalchemy.make_url(url)
        facts["url"] = parsed.render_as_string(hide_password=True)
        if parsed.get_backend_name() == "sqlite" and not Path(str(parsed.database)).exists():
            return facts | {"state": "not made yet; the first command makes it"}
        engine = sqlalchemy.create_engine(parsed)
        with engine.connect() as connection:
            schema = connection.execute(sqlalchemy.text("SELECT version_num FROM alembic_version")).scalar()
        engine.dispose()
        return facts | {"state": f"opens, schema {schema}"}
    except (SQLAlchemyError, ImportError) as error:
        why = " ".join(str(error).split())[:200]
        return facts | {"state": "does not open", "problem": f"the database does not open: {why}; see MAASDAM_DATABASE_URL"}


def _disk(settings: Settings) -> dict[str, Any]:
    home = settings.home
    there = next(p for p in (home, *home.parents) if p.exists())
    free = shutil.disk_usage(there).free
    problem = None
    if not os.access(there, os.W_OK | os.X_OK):
        problem = f"{there} can't be written to; set MAASDAM_HOME to a folder of yours"
    elif free < LOW_DISK_BYTES:
        problem = f"only {free / 2**30:.1f} GB are free at {there}; builds of large models need several times their size"
    return {"home": str(home), "exists": home.is_dir(), "free_bytes": free, "problem": problem}
