"""More models than fit: real hosts come and go under a budget, and nobody who asks hears of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.served import add_mlp, open_home
from tests.waiting import until

from maasdam.core import ANONYMOUS, Chunk, Entry, Request, TensorPayload
from maasdam.errors import NoRoom
from maasdam.operations.service import Service, open_service
from maasdam.operations.workspace import Workspace

NAMES = ("a", "b", "c")


@pytest.fixture
def workspace(tmp_path: Path) -> Any:
    with open_home(tmp_path) as opened:
        for width, name in enumerate(NAMES, 64):
            add_mlp(opened, name, width)
        yield opened


@asynccontextmanager
async def serving(workspace: Workspace, **settings: Any) -> AsyncIterator[Service]:
    service = open_service(replace(workspace, settings=replace(workspace.settings, **settings)))
    await service.start()
    try:
        yield service
    finally:
        await service.stop()


async def ask(service: Service, name: str) -> Any:
    async def written(chunks: list[Chunk], entry: Entry) -> Any:
        return chunks[0].value

    tensors = {"x": np.ones((1, 8), np.float32)}
    request = Request(f"{name}-{id(tensors)}", name, (TensorPayload(tensors),), ANONYMOUS, "/v2/infer")
    return (await service.inference.whole(request, written))["y"]


def states(service: Service) -> list[str]:
    return [group.state for group in service.router.groups()]


async def test_idle_models_leave_and_wake_while_they_are_asked(workspace: Workspace) -> None:
    for name in NAMES:
        workspace.catalog.deploy(name, mode="on-demand", idle_seconds=0.001)
    async with serving(workspace) as service:
        assert states(service) == ["asleep"] * 3
        assert service.hosts is not None
        first = {name: await ask(service, name) for name in NAMES}

        async def on_and_on(name: str) -> None:
            for _ in range(40):
                np.testing.assert_array_equal(await ask(service, name), first[name])
                await asyncio.sleep(0.002)

        async def send_away() -> None:
            while True:
                await service.hosts.household.tick()

        sending = asyncio.create_task(send_away())
        await asyncio.gather(*(on_and_on(name) for name in NAMES))
        await until(lambda: states(service) == ["asleep"] * 3)
        sending.cancel()
        await until(lambda: not service.hosts or not service.hosts.household._lodgers())
        assert await service.hosts.readings() == []
        assert "nobody asked for it" in str(service.router.find("a").reason)


async def test_under_a_budget_the_least_recently_used_leaves_and_the_pinned_one_stays(workspace: Workspace) -> None:
    async with serving(workspace, memory_budget="8GB") as service:
        await until(lambda: states(service) == ["ready"] * 3)
        assert service.hosts is not None
        held = [reading.memory_bytes for reading in await service.hosts.readings()]
        assert len(held) == 3 and min(held) > 5e6
        for name in NAMES:
            await ask(service, name)
        await service.hosts.household.tick()  # what they hold is kept
    workspace.catalog.deploy("a", mode="pin")
    workspace.catalog.deploy("b", mode="on-demand")
    workspace.catalog.deploy("c", mode="on-demand")
    async with serving(workspace, memory_budget=str(int(2.6 * max(held)))) as service:
        await until(lambda: states(service) == ["ready", "asleep", "asleep"])
        for name in ("b", "c", "a", "b", "c"):
            await ask(service, name)
            assert service.router.find("a").state == "ready"
            assert service.router.find("b" if name == "c" else "c").state == "asleep" or name == "a"
        answers = await asyncio.gather(*(ask(service, name) for name in "abcabcabc"))
        assert len(answers) == 9
        workspace.catalog.deploy("b", mode="pin")
        await service.router.follow()
        await until(lambda: states(service) == ["ready", "ready", "asleep"])
        with pytest.raises(NoRoom, match=r"model 'c:1' can't be loaded now: .*memory_budget.*\(pinned\).*\(pinned\)"):
            await ask(service, "c")


async def test_a_model_of_this_process_moves_to_a_host_when_it_is_to_leave_once_it_is_idle(workspace: Workspace) -> None:
    async with serving(workspace) as service:
        await until(lambda: states(service) == ["ready"] * 3)
        assert service.hosts is not None and await service.hosts.readings() == []
        before = await ask(service, "a")
        workspace.catalog.deploy("a", idle_seconds=0.001)
        await service.router.follow()
        await until(lambda: service.hosts is not None and len(service.hosts.household._lodgers()) == 1)
        while service.router.find("a").replicas[0].memory_bytes is None:  # the one of this process still answers
            np.testing.assert_array_equal(await ask(service, "a"), before)
        np.testing.assert_array_equal(await ask(service, "a"), before)
        await service.hosts.household._read_stays()
        await service.hosts.household.tick()
        await until(lambda: service.router.find("a").state == "asleep")
        np.testing.assert_array_equal(await ask(service, "a"), before)
