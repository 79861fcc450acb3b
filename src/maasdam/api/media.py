"""Files in JSON: base64, a data URL, or an address where those are fetched. Knows text and bytes; never pixels or sound."""

from __future__ import annotations

import asyncio
from typing import Any

from maasdam.api.addresses import Rules, fetched, hosts_of
from maasdam.api.json_body import from_base64
from maasdam.errors import InvalidField
from maasdam.settings import Settings


def is_address(value: Any) -> bool:
    """Whether a field holds where a file is, and not the file."""
    return isinstance(value, str) and value[:8].lower().startswith(("http://", "https://", "file:"))


async def file_in(value: Any, field: str, settings: Settings, *, fetches: bool = True) -> bytes:
    """The bytes that a field holds. `fetches`: it may be an address. Raises InvalidField, naming it."""
    if is_address(value):
        rules = Rules(hosts_of(settings.image_url_hosts) if fetches else (), settings.max_body_bytes)
        return await fetched(value, field, rules)
    return await asyncio.to_thread(_inline, value, field)


def _inline(value: Any, field: str) -> bytes:
    if not isinstance(value, str):
        raise InvalidField(f"'{field}' is missing; send base64 or a data URL", field)
    if value[:5].lower() == "data:":
        head, _, value = value.partition(",")
        if not head.lower().endswith(";base64"):
            raise InvalidField(f"'{field}' is a data URL that is not base64; send data:TYPE;base64,...", field)
    try:
        return from_base64(value)
    except ValueError:
        raise InvalidField(f"'{field}' is not valid base64", field) from None
