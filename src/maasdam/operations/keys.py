"""API keys as commands and routes tell of them: facts, and a secret once. Blocks on the database."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from maasdam.operations.fleet import ForgetKeys

if TYPE_CHECKING:
    from maasdam.operations.service import Service
    from maasdam.operations.workspace import Workspace


def create_key(where: Workspace | Service, name: str, scopes: Sequence[str]) -> dict[str, Any]:
    """A new key's facts, and its "secret", which is told only here. Raises InvalidInput."""
    key, secret = where.keys.create(name, scopes)
    return asdict(key) | {"secret": secret}


def list_keys(where: Workspace | Service) -> list[dict[str, Any]]:
    """Every key's facts, of revoked ones too, oldest first; never a secret."""
    return [asdict(key) for key in where.keys.list()]


def revoke_key(where: Workspace | Service, key: str) -> dict[str, Any]:
    """Revoke the key of this id or name: it is refused within a second. Raises NotFound, InvalidInput."""
    return asdict(where.keys.revoke(key))


async def revoke_everywhere(service: Service, key: str) -> None:
    """The same through a service: no worker of it takes the key any more when this returns."""
    await asyncio.to_thread(revoke_key, service, key)
    await service.fleet.tell(ForgetKeys())
