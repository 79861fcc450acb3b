"""Fixtures that every room's tests may use."""

from __future__ import annotations

import fnmatch
import os
from pathlib import Path
from typing import Any

import pytest

from tests.databases import (  # noqa: F401  fixtures
    database,
    database_url,
    empty_database_url,
    postgres_database,
    postgres_server,
    sqlite_template,
)

os.environ.setdefault("MAASDAM_GRPC_PORT", "0")  # services side by side can't all have 8081; those that need gRPC choose a port
os.environ.setdefault("MAASDAM_MEASURE_SECONDS", "2")  # figures that no test looks at take no longer than it takes to have them
LONG = ("e2e", "docs")
"""Folders of tests that take minutes each."""
REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def starters() -> Path:
    """The folder of the starter models that ship with the project."""
    return REPOSITORY / "starters"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The real models and data that are not committed; skips with a reason where they are missing."""
    path = Path(os.environ.get("MAASDAM_SHARED_DATA", REPOSITORY.parent / "shared" / "data"))
    if not path.is_dir():
        pytest.skip("shared data is not here")
    return path


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--report-skips FILE`: a skip that is not on the list fails the run."""
    parser.addoption("--report-skips", default=None, help="file of 'test id pattern | reason' lines; other skips fail the run")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Those that take minutes first: at the end one core would wait for the other."""
    items.sort(key=lambda item: item.path.parent.name not in LONG)


def pytest_terminal_summary(terminalreporter: Any, exitstatus: int, config: pytest.Config) -> None:
    """Name the skips that nobody agreed to."""
    for line in _unlisted_skips(terminalreporter, config):
        terminalreporter.write_line(f"SKIP NOT ON THE LIST: {line}", red=True)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Fail a run that skipped what it may not skip."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if exitstatus == 0 and _unlisted_skips(reporter, session.config):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def _unlisted_skips(reporter: Any, config: pytest.Config) -> list[str]:
    path = config.getoption("--report-skips")
    if not path or reporter is None:
        return []
    lines = [line for line in Path(path).read_text().splitlines() if line.strip() and not line.startswith("#")]
    allowed = [tuple(part.strip() for part in line.split("|", 1)) for line in lines]
    out = []
    for report in reporter.stats.get("skipped", []):
        reason = str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr)
        if not any(fnmatch.fnmatch(report.nodeid, pattern) and part in reason for pattern, part in allowed):
            out.append(f"{report.nodeid}: {reason}")
    return out
