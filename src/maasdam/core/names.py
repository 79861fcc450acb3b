"""The names that callers call models by."""

from __future__ import annotations

from functools import lru_cache

NOT_IN_NAMES = ("config", "generate", "generate_stream", "infer", "load", "ready", "stats", "trace", "unload", "versions")
"""What may not stand behind the slash of a name such as acme/photos: the protocols' paths go on with these."""


LONGEST_KEPT = 256
"""Of names that are kept, characters: callers write what they like for one."""


def split_name(text: str) -> tuple[str, int | None, str | None]:
    """NAME, NAME:3 or NAME@prod -> (name, version, alias)."""
    return _split(text) if len(text) <= LONGEST_KEPT else _split.__wrapped__(text)


@lru_cache(maxsize=1024)
def _split(text: str) -> tuple[str, int | None, str | None]:
    name, _, alias = text.partition("@")
    if alias:
        return name, None, alias
    name, _, version = text.rpartition(":")
    if name and version.isascii() and version.isdigit() and len(version) < 10:  # what a database's integer holds
        return name, int(version), None
    return text, None, None
