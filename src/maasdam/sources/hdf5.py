"""HDF5 files of weights: names, dtypes and shapes, and whether they point outside themselves.

Knows links and datasets through h5py, where it is installed. Refuses to read a weight or follow a link.
"""

from __future__ import annotations

import math
from typing import IO, Any

from maasdam.errors import InvalidModel, UnsafeModel

MAX_OBJECTS = 200_000
MAX_DEPTH = 64
HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"


def read_weights(stream: IO[bytes], what: str) -> dict[str, tuple[str, tuple[int, ...]]] | None:
    """dtype and shape by path; None without h5py. Raises UnsafeModel for links and data outside the file."""
    try:
        import h5py  # type: ignore[import-untyped]  # no stubs are published
    except ImportError:
        return None
    try:
        with h5py.File(stream, "r") as file:
            return _walk(file, h5py, what)
    except (OSError, KeyError, RuntimeError, ValueError, TypeError) as error:
        raise InvalidModel(f"{what} is no whole HDF5 file ({error}); save the model again") from error


def _walk(file: Any, h5py: Any, what: str) -> dict[str, tuple[str, tuple[int, ...]]]:
    out: dict[str, tuple[str, tuple[int, ...]]] = {}
    seen: set[Any] = set()
    count = 0
    waiting: list[tuple[str, Any, int]] = [("", file, 0)]
    while waiting:
        prefix, group, depth = waiting.pop()
        for name in group:
            count += 1
            if count > MAX_OBJECTS or depth > MAX_DEPTH:
                raise UnsafeModel(f"{what} holds too many or too deeply nested groups; refused")
            link = group.get(name, getlink=True)
            if not isinstance(link, h5py.HardLink):
                raise UnsafeModel(
                    f"{what}: '{prefix}{name}' is a link ({type(link).__name__}), which could open other files; refused"
                )
            value = group[name]
            identity = h5py.h5o.get_info(value.id).addr
            if isinstance(value, h5py.Group):
                if identity not in seen:
                    seen.add(identity)
                    waiting.append((f"{prefix}{name}/", value, depth + 1))
            elif isinstance(value, h5py.Dataset):
                if value.external or value.is_virtual:
                    raise UnsafeModel(f"{what}: '{prefix}{name}' keeps its numbers in another file; refused")
                shape = tuple(int(size) for size in value.shape or ())
                needed = 0 if value.shape is None else math.prod(shape) * value.dtype.itemsize
                stored = value.id.get_storage_size()
                if needed > stored:  # Keras packs nothing: what is not stored would unfold in memory
                    raise InvalidModel(
                        f"{what}: '{prefix}{name}' needs {needed:,} bytes where {stored:,} are stored; save the model again"
                    )
                out[f"{prefix}{name}"] = (value.dtype.name, shape)
    return out
