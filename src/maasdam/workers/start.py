"""From settings to a service of several workers. Knows what all of them are given; never what one does with it."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

from maasdam.api.listening import Doors
from maasdam.operations.fleet import Standing, worst
from maasdam.operations.systemd import Notifier
from maasdam.operations.workspace import Workspace
from maasdam.workers.forks import PRELOADED, ForkServer
from maasdam.workers.listeners import share, spread
from maasdam.workers.supervisor import Supervisor, counting_folder
from maasdam.workers.worker import Assignment

__all__ = ["ForkServer", "supervise"]

IMPORTED = {"onnxruntime", "openvino"}
"""Engines, called as their libraries are, which workers share: others are quick to import, or run in hosts."""
Loaded = tuple[str, str | None, str, str, str | None]
"""Of a version in all workers: NAME:VERSION, task, engine, state, and why it failed."""


def supervise(
    workspace: Workspace,
    config: Path | None,
    *,
    has_keys: bool,
    secret: str,
    doors: Doors,
    notifier: Notifier,
    tell: Callable[[Sequence[Loaded]], None],
    forks: ForkServer,
) -> None:
    """Run workers until SIGTERM or SIGINT, then drain. `tell` hears what they have loaded, and `notifier` how they are.

    `forks` was begun before anything was opened.
    """
    settings, (bound, *shared) = workspace.settings, doors.http
    if doors.grpc is not None and not doors.passes_on:
        share(doors.grpc)
    with counting_folder(settings.home / "metrics") as counted, Connection(os.dup(sys.stderr.fileno()), readable=False) as err:
        given = Assignment(
            settings,
            config,
            has_keys,
            secret,
            counted,
            listeners=tuple(spread(bound, settings.workers)),
            grpc=doors.grpc,
            passes_on=doors.passes_on,
            stderr=err,
            shared=tuple(shared),
        )

        def on_ready(standings: Sequence[Standing]) -> None:
            loaded = _loaded(workspace, standings)
            tell(loaded)
            notifier.ready(f"{len(loaded)} models, {settings.workers} workers")

        libraries = [*_libraries(workspace), PRELOADED]
        forks.complete(libraries)
        supervisor = Supervisor(workspace, given, on_ready, libraries, notifier)
        asyncio.run(supervisor.run())


def _libraries(workspace: Workspace) -> list[str]:
    """Of the engines that what is deployed needs."""
    return sorted(IMPORTED & {version.engine for version in workspace.catalog.versions() if version.deployed})


def _loaded(workspace: Workspace, standings: Sequence[Standing]) -> list[Loaded]:
    versions = {(one.model, one.version): one for one in workspace.catalog.versions()}
    loaded: list[Loaded] = []
    for model, number, state, reason, replicas in standings[0].versions if standings else ():
        state, reason, _ = worst((state, reason, replicas), model, number, standings[1:])
        version = versions[model, number]
        loaded.append((f"{model}:{number}", version.task, version.engine, state, reason))
    return loaded
