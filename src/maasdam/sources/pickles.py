"""What a pickle would do if it were loaded, without loading it.

Knows pickle opcodes and the few names that rebuilding tensors needs. Refuses to unpickle anything, ever.

A pickle is a program: it imports the names it mentions and calls them. Only programs whose every name is on
`TENSOR_NAMES` (and, for TorchScript, `SCRIPT_NAMES`) pass.
"""

from __future__ import annotations

import pickletools
from collections.abc import Set
from dataclasses import dataclass

MAX_PICKLE_BYTES = 64 * 1024 * 1024
MAX_OPCODES = 5_000_000

TENSOR_NAMES: frozenset[str] = frozenset(
    {
        "collections OrderedDict",
        "torch Size",
        "torch Tensor",
        "torch device",
        "torch.nn.parameter Parameter",
        "torch._utils _rebuild_parameter",
        "torch._utils _rebuild_tensor",
        "torch._utils _rebuild_tensor_v2",
        "torch.serialization _get_layout",
        "torch.storage TypedStorage",
        "torch.storage UntypedStorage",
        *(
            f"torch {kind}Storage"
            for kind in ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
        ),
        *(f"torch {sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
        *(f"torch float{bits}" for bits in ("16", "32", "64", "8_e4m3fn", "8_e5m2")),
        *("torch bfloat16", "torch bool", "torch complex64", "torch complex128"),
    }
)
"""Names ("module name") that only rebuild tensors and plain containers."""

MARK_NAMES: frozenset[str] = frozenset(
    {
        "torch._tensor _rebuild_from_type_v2",
        "torch._utils _rebuild_parameter_with_state",
        "torch._dynamo.decorators _DimRange",
        "__builtin__ set",
    }
)
"""What example inputs bear besides, on whose axes torch.export or mark_dynamic left marks: sets of axes, and their ranges.

The first calls what it is given, which must be one of the names that pass.
"""

SCRIPT_NAMES: frozenset[str] = frozenset(
    f"torch.jit._pickle {name}"
    for name in (
        ["build_intlist", "build_tensorlist", "build_doublelist", "build_boollist", "build_tensor_from_id", "restore_type_tag"]
    )
)
"""Names that TorchScript's own pickles add."""

# STACK_GLOBAL takes its name from the stack, where it can be hidden, and EXT* from a registry; torch.save uses neither.
_FORBIDDEN = {"STACK_GLOBAL", "INST", "OBJ", "EXT1", "EXT2", "EXT4", "NEWOBJ_EX", "NEXT_BUFFER", "READONLY_BUFFER"}


@dataclass(frozen=True, slots=True)
class PickleScan:
    """What a pickle mentions. `names` are "module name" as the pickle writes them; `broken` says why it can't be read."""

    names: frozenset[str]
    opcodes: frozenset[str]
    broken: str | None = None

    def beyond(self, allowed: Set[str], prefixes: tuple[str, ...] = ()) -> list[str]:
        """What it would do besides using the names in `allowed` or starting with one of `prefixes`; empty is harmless."""
        out = sorted(
            name.replace(" ", ".")
            for name in self.names
            if name not in allowed and not (prefixes and name.startswith(prefixes) and name.count(" ") == 1)
        )
        out += [f"the opcode {opcode}" for opcode in sorted(self.opcodes & _FORBIDDEN)]
        if self.broken:
            out.append(f"unreadable opcodes ({self.broken})")
        return out


def scan(data: bytes) -> PickleScan:
    """Read the opcodes of the first pickle in `data`. Never raises: what can't be read is `broken`."""
    names: set[str] = set()
    opcodes: set[str] = set()
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
            opcodes.add(opcode.name)
            if opcode.name in ("GLOBAL", "INST"):
                names.add(str(argument))
            if count > MAX_OPCODES:
                return PickleScan(frozenset(names), frozenset(opcodes), f"over {MAX_OPCODES:,} opcodes")
    except Exception as error:  # pickletools raises whatever its argument readers raise
        return PickleScan(frozenset(names), frozenset(opcodes), f"{type(error).__name__}: {error}"[:120])
    return PickleScan(frozenset(names), frozenset(opcodes))


def looks_like_pickle(start: bytes) -> bool:
    """Whether a file that starts so is a pickle: protocol 2-5, or the protocol 0 and 1 openings in use."""
    if len(start) >= 2 and start[0] == 0x80 and start[1] in (2, 3, 4, 5):
        return True
    return start[:1] in (b"c", b"(", b"}", b"]") and (b"\n" in start or start[:2] in (b"(d", b"(l", b"}q", b"]q"))
