"""From settings to a service of several workers. Knows what all of them are given; never what one does with it."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from socket import socket

from maasdam.operations.fleet import Standing, worst
from maasdam.operations.workspace import Workspace
from maasdam.workers.listeners import share, spread
from maasdam.workers.supervisor import Supervisor, counting_folder
from maasdam.workers.worker import Assignment

LIBRARIES = {
    "onnxruntime": ("onnxruntime",),
    "openvino": ("openvino",),
}
"""What engines import, by their names: those that are quick to import have none."""


Loaded = tuple[str, str | None, str, str, str | None]
"""Of a version in all workers: NAME:VERSION, task, engine, state, and why it failed."""


def supervise(
    workspace: Workspace,
    config: Path | None,
    *,
    has_keys: bool,
    secret: str,
    bound: socket,
    grpc: socket | None,
    on_ready: Callable[[Sequence[Loaded]], None],
) -> None:
    """Run workers until SIGTERM or SIGINT, then drain. `bound` has the address, and does not listen yet; so has `grpc`."""
    settings = workspace.settings
    if grpc is not None:
        share(grpc)
    with counting_folder(settings.home / "metrics") as counted, Connection(os.dup(sys.stderr.fileno()), readable=False) as err:
        given = Assignment(
            settings, config, has_keys, secret, counted, listeners=tuple(spread(bound, settings.workers)), grpc=grpc, stderr=err
        )
        libraries = [*_libraries(workspace), "maasdam.workers.preloaded"]
        supervisor = Supervisor(workspace, given, lambda standings: on_ready(_loaded(workspace, standings)), libraries)
        asyncio.run(supervisor.run())


def _libraries(workspace: Workspace) -> list[str]:
    """Of the engines that what is deployed needs."""
    engines = {version.engine for version in workspace.catalog.versions() if version.model in _deployed(workspace)}
    return [library for engine in sorted(engines) for library in LIBRARIES.get(engine, ())]


def _deployed(workspace: Workspace) -> set[str]:
    return {deployment.model for deployment in workspace.catalog.deployments()}


def _loaded(workspace: Workspace, standings: Sequence[Standing]) -> list[Loaded]:
    versions = {(one.model, one.version): one for one in workspace.catalog.versions()}
    loaded: list[Loaded] = []
    for model, number, state, reason, replicas in standings[0].versions if standings else ():
        state, reason, _ = worst((state, reason, replicas), model, number, standings[1:])
        version = versions[model, number]
        loaded.append((f"{model}:{number}", version.task, version.engine, state, reason))
    return loaded
