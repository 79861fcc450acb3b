"""TorchScript archives (.pt, .pth): programs for PyTorch's own interpreter.

Knows what torch.jit.save writes. Refuses to load it: a TorchScript file is code by design (not Python: it can neither
import nor call out), so it is taken only with --trust; a pickle within that mentions Python names never.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from maasdam.errors import InvalidModel, UnsafeModel
from maasdam.sources.archives import Archive, open_archive
from maasdam.sources.bounds import Place
from maasdam.sources.finding import Reading, Risk
from maasdam.sources.pickles import MAX_PICKLE_BYTES, SCRIPT_NAMES, TENSOR_NAMES, scan

MAX_CODE_BYTES = 64 * 1024 * 1024
_REACHING_OUT = re.compile(rb"\b(?:torch|ops)\.(?:\w+\.)*(save|load|from_file|load_library)\s*\(")
_FOREIGN_OPERATORS = re.compile(rb"\bops\.(\w+)\.(\w+)")
_OWN_SETS = {b"prim", b"prims", b"aten", b"quantized", b"torchvision", b"inductor"}


def is_torchscript(names: list[str]) -> bool:
    """Whether a zip's entries are those of torch.jit.save."""
    tails = {name.partition("/")[2] for name in names}
    return "constants.pkl" in tails and any(tail.startswith("code/") for tail in tails)


def read(place: Place, name: str) -> Reading:
    """Read `name` in `place`. Raises UnsafeModel for pickles that hold more than TorchScript puts there."""
    path = place.need(name, "the model file is missing")
    with open_archive(path, path) as archive:
        tails = {entry.partition("/")[2]: entry for entry in archive.sizes}
        if "data.pkl" not in tails or not is_torchscript(list(archive.sizes)):
            raise InvalidModel(f"{path} is no TorchScript archive; save the model with torch.export.save")
        for tail, entry in tails.items():
            if tail.endswith((".pkl", "_pkl")) and not tail.startswith("extra/"):
                _check_pickle(archive, entry)
        reaching = _reaching_out(
            archive, [entry for tail, entry in tails.items() if tail.startswith("code/") and tail.endswith(".py")]
        )
        classes = archive.read(tails["data.pkl"], MAX_PICKLE_BYTES)
        names = sorted(n for n in scan(classes).names if n.startswith("__torch__"))
    risks = [
        Risk(
            "blocked",
            "TorchScript is a program that PyTorch's interpreter runs, not a graph that can be looked through; "
            "export the model with torch.export.save or to ONNX, or pass --trust where you know who made the file",
            liftable=True,
        )
    ]
    risks += [Risk("blocked", f"its code calls {what}, which reaches files or libraries") for what in reaching]
    return Reading(
        format="pytorch",
        layout="torchscript",
        files={"model.pt": path},
        architecture=names[0].replace(" ", ".").removeprefix("__torch__.") if names else None,
        risks=tuple(risks),
        notes=("TorchScript tells neither names nor shapes of its inputs; torch.export (.pt2) does",),
    )


def refuse_pickle(path: Path, archive: Archive | None = None, start: bytes = b"") -> None:
    """Raise the UnsafeModel for a pickle that someone gave as a model, saying what it would do and what to give instead."""
    scanned = None
    if archive is not None:
        entry = next((name for name in archive.sizes if name.endswith("/data.pkl")), None)
        if entry is not None:
            scanned = scan(archive.read(entry, MAX_PICKLE_BYTES))
    elif start:
        scanned = scan(start)
    beyond = scanned.beyond(TENSOR_NAMES) if scanned else []
    calls = [what for what in beyond if "opcode" not in what]
    would = f"; loading this one would use {', '.join(calls[:5])}" if calls else ""
    raise UnsafeModel(
        f"{path} is a Python pickle, which can run any code when it is loaded{would}. Maasdam never loads pickles: where you "
        "trust it, convert it with safetensors.torch.save_file(state_dict, 'model.safetensors') beside its config.json, or "
        "with torch.export.save"
    )


def _check_pickle(archive: Archive, entry: str) -> None:
    scanned = scan(archive.read(entry, MAX_PICKLE_BYTES))
    beyond = scanned.beyond(TENSOR_NAMES | SCRIPT_NAMES, prefixes=("__torch__.", "__torch__ "))
    if beyond:
        raise UnsafeModel(
            f"{archive.path}: {entry} would run code when loaded: it uses {', '.join(beyond[:8])}; refused, do not load it"
        )


def _reaching_out(archive: Archive, entries: list[str]) -> list[str]:
    calls: Counter[str] = Counter()
    left = MAX_CODE_BYTES
    for entry in entries:
        code = archive.read(entry, left)
        left -= len(code)
        calls.update("torch." + match.group(1).decode() for match in _REACHING_OUT.finditer(code))
        for match in _FOREIGN_OPERATORS.finditer(code):
            if match.group(1) not in _OWN_SETS:
                calls[f"{match.group(1).decode()}.{match.group(2).decode()}"] += 1
    return sorted(calls)
