"""The keeper of a service's engine hosts, wired. Knows the workspace; never requests."""

from __future__ import annotations

from typing import TYPE_CHECKING

from maasdam.operations.limits import memory_budget, memory_limit
from maasdam.serving.hosts.household import Stay
from maasdam.serving.hosts.local import LocalKeeper

if TYPE_CHECKING:
    from maasdam.operations.service import Records


def open_keeper(workspace: Records) -> LocalKeeper:
    """The keeper of a service's engine hosts."""
    settings = workspace.settings

    def stays() -> dict[str, Stay]:
        deployments = workspace.catalog.deployments()
        return {one.model: Stay(one.mode == "pin", one.idle_seconds) for one in deployments}

    def engines() -> set[str]:
        """Of what is deployed; PyTorch opens by transformers what has a task."""
        deployed = [version for version in workspace.catalog.versions() if version.deployed]
        through = {"transformers" for version in deployed if version.engine == "pytorch" and version.task is not None}
        return {version.engine for version in deployed} | through

    return LocalKeeper(
        settings,
        memory_limit(settings.host_memory_bytes),
        budget_bytes=memory_budget(settings),
        store=workspace.store,
        stays=stays,
        engines=engines,
    )
