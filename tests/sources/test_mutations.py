"""Damaged files of every layout end in one of our errors or are read; nothing else escapes."""

from __future__ import annotations

import contextlib
import json
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from maasdam.errors import CallerError
from maasdam.sources import examine
from tests import hostile

MUTATIONS = 150
ODD: list[Any] = [None, True, -1, 1e308, "", [], {}, "x" * 50, [[]], {"a": 1}, 2**70]


def _onnx(folder: Path) -> str:
    weight = hostile.field(1, 4) + hostile.field(2, 1) + hostile.field(8, "w") + hostile.field(9, bytes(16))
    (folder / "model.onnx").write_bytes(hostile.onnx_model(hostile.field(5, weight)))
    return "model.onnx"


def _config(folder: Path) -> str:
    hostile.huggingface(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"size": {"height": 8, "width": 8}}))
    return "config.json"


def _preprocessor(folder: Path) -> str:
    _config(folder)
    return "preprocessor_config.json"


def _weights(folder: Path) -> str:
    hostile.huggingface(folder)
    return "model.safetensors"


def _pt2(folder: Path) -> str:
    return hostile.pt2(folder).name


def _savedmodel(folder: Path) -> str:
    hostile.savedmodel(folder, ("Relu", "Identity"))
    return "saved_model.pb"


def _torchscript(folder: Path) -> str:
    return hostile.torchscript(folder, folder / "canary").name


def _keras(folder: Path) -> str:
    dense = {"module": "keras.layers", "class_name": "Dense", "config": {"name": "dense", "units": 3}}
    return hostile.keras_file(folder, dense).name


@pytest.mark.parametrize("make", [_onnx, _config, _preprocessor, _weights, _pt2, _savedmodel, _torchscript, _keras])
def test_damage_ends_in_one_of_our_errors(make: Callable[[Path], str], tmp_path: Path) -> None:
    name = make(tmp_path)
    path = tmp_path / name
    whole = path.read_bytes()
    chance = random.Random(7)
    for _ in range(MUTATIONS):
        path.write_bytes(_damaged(whole, name, chance))
        with contextlib.suppress(CallerError):
            examine(str(tmp_path))


def _damaged(whole: bytes, name: str, chance: random.Random) -> bytes:
    """Cut off, with a few other bytes, or with one value of its JSON replaced by an odd one."""
    way = chance.random()
    if way < 0.5 and name.endswith(".json"):
        return json.dumps(_odd(json.loads(whole), chance)).encode()
    if way < 0.5 and name.endswith(".safetensors"):
        end = 8 + int.from_bytes(whole[:8], "little")
        header = json.dumps(_odd(json.loads(whole[8:end]), chance)).encode()
        return len(header).to_bytes(8, "little") + header + whole[end:]
    if way < 0.5 and name.endswith((".pt2", ".keras")):
        import io

        with zipfile.ZipFile(io.BytesIO(whole)) as archive:
            entries = {entry: archive.read(entry) for entry in archive.namelist()}
        entry = chance.choice([entry for entry in entries if entry.endswith(".json")])
        entries[entry] = json.dumps(_odd(json.loads(entries[entry]), chance)).encode()
        return hostile.stored(entries)
    if way < 0.6:
        return whole[: chance.randrange(len(whole))]
    damaged = bytearray(whole)
    for _ in range(chance.choice([1, 1, 2, 5, 20])):
        damaged[chance.randrange(len(whole))] = chance.randrange(256)
    return bytes(damaged)


def _odd(document: Any, chance: random.Random) -> Any:
    places: list[tuple[Any, Any]] = []
    waiting = [document]
    while waiting:
        value = waiting.pop()
        keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else []
        for key in keys:
            places.append((value, key))
            waiting.append(value[key])
    if not places or chance.random() < 0.02:
        return chance.choice(ODD)
    holder, key = chance.choice(places)
    if isinstance(holder, dict) and chance.random() < 0.3:
        del holder[key]
    else:
        holder[key] = chance.choice(ODD)
    return document
