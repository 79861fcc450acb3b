"""A model of another server as a version of ours. Knows what it says of itself, and the catalog; never how it is asked.

address, names -> its list of models -> upstream.json, the version's whole artifact -> deployed as any other
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from maasdam.artifacts.names import check_name
from maasdam.core import FEATURES, SPEECH_RECOGNITION, TEXT_GENERATION
from maasdam.errors import InvalidInput
from maasdam.operations.workspace import Workspace
from maasdam.serving.upstreams.client import Client
from maasdam.serving.upstreams.place import UPSTREAM, Upstream, checked_key_env, checked_url, chosen

TASKS_ELSEWHERE = (TEXT_GENERATION, FEATURES, SPEECH_RECOGNITION)
"""What another server's answers are read of."""


def registered(
    workspace: Workspace, name: str, url: str, key_env: str | None, model: str | None = None, task: str | None = None
) -> str:
    """NAME:VERSION of a server's model, which is asked whether it has it: a new version, unless the newest is the same.

    `key_env` names the variable that holds its key, in this process and in the one that serves. `model` is what the server
    calls it, `task` what it does where the server does not say so. Raises InvalidInput, NotReady, UpstreamFailure.
    """
    check_name(name)
    place = Upstream(checked_url(url), model or name, checked_key_env(key_env))
    place.key()
    models = asyncio.run(_listed(place))
    place = Upstream(place.url, chosen(name, model, models), place.key_env)
    task = task or _task(models[place.model])
    if task not in TASKS_ELSEWHERE:
        raise InvalidInput(f"no upstream does '{task:.60}' here; those that can be asked do: {', '.join(TASKS_ELSEWHERE)}")
    with workspace.store.workspace() as folder:
        files = folder / "files"
        files.mkdir()
        place.write(files)
        artifact = workspace.store.add(files, format=UPSTREAM, layout=UPSTREAM, task=task, engine=UPSTREAM, signature=None)
    newest = max((v for v in _versions(workspace, name)), key=lambda v: v.version, default=None)
    if newest is None or newest.digest != artifact.digest:
        newest = workspace.catalog.register(name, artifact, source=place.url, recipe=UPSTREAM, report=None)
    return f"{name}:{newest.version}"


def _versions(workspace: Workspace, name: str) -> list[Any]:
    return [version for version in workspace.catalog.versions() if version.model == name]


async def _listed(place: Upstream) -> Mapping[str, Mapping[str, Any]]:
    client = Client(place, most_bytes=0, most_connections=1, answer_seconds=5.0)
    try:
        return await client.models()
    finally:
        await client.close()


def _task(told: Mapping[str, Any]) -> str:
    said = told.get("task")
    return said if isinstance(said, str) else TEXT_GENERATION
