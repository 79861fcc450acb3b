"""A real 1000-class classifier through the whole chain, from every format it can come in."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.service import maasdam, service

FEW = 48
"""Photographs for the variants: enough to see a wrong layout or label order, few enough for a test run."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory, shared_data: Path) -> Path:
    """A folder of a few of the photographs, spread over the classes."""
    source, folder = shared_data / "imagenet-sample", tmp_path_factory.mktemp("few")
    rows = list(csv.DictReader((source / "metadata.csv").open(newline="")))
    chosen = rows[:: len(rows) // FEW][:FEW]
    for row in chosen:
        shutil.copy(source / row["file_name"], folder)
    with (folder / "metadata.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(chosen)
    return folder


def _recompute(address: str, key: str, model: str, data: Path, repository: Path) -> Any:
    script = repository / "benchmarks" / "recompute_top1.py"
    words = [sys.executable, script, "--url", address, "--model", model, "--data", data, "--key", key]
    return json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)


@pytest.mark.timeout(1200)
def test_int8_build_is_true_over_http_on_all_photographs(home: Path, shared_data: Path, repository: Path) -> None:
    data = shared_data / "imagenet-sample"
    built = maasdam(home, "build", shared_data / "mobilenet-v2-1001", "--name", "mobilenet", "--recipe", "int8", "--data", data)
    report = built["report"]
    assert report["accuracy"]["metric"] == "top1" and report["accuracy"]["examples"] == 500
    assert report["accuracy"]["reference"] == pytest.approx(0.882, abs=0.004)
    assert report["passed"], report["failures"]
    assert report["size_bytes"]["ratio"] >= 3.4
    maasdam(home, "models", "promote", "mobilenet:1")
    maasdam(home, "deploy", "mobilenet")
    with service(home, "mobilenet") as running:
        outside = _recompute(running.address, running.key, "mobilenet", data, repository)
    assert outside["examples"] == 500
    assert outside["top1"] == pytest.approx(report["accuracy"]["candidate"], abs=1e-9)


@pytest.fixture(scope="module")
def exports(home: Path, shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same network as ONNX and as .pt2, exported by Maasdam itself, and the SavedModel as it came."""
    folder = tmp_path_factory.mktemp("exports")
    source = shared_data / "mobilenet-v2-1001"
    for to, name in (("onnx", "onnx"), ("pytorch", "pt2")):
        maasdam(home, "convert", source, "--to", to, "-o", folder / name)
    return {
        "onnx": folder / "onnx" / "model.onnx",
        "pytorch": folder / "pt2" / "model.pt2",
        "tensorflow": shared_data / "mobilenet-v2-1001-savedmodel",
    }


VARIANTS = [
    ("onnx", "as-is"),
    ("onnx", "int8"),
    ("pytorch", "as-is"),
    ("pytorch", "int8"),
    ("tensorflow", "as-is"),
    ("tensorflow", "int8"),
]


@pytest.fixture(scope="module")
def variants(home: Path, few: Path, exports: dict[str, Path], shared_data: Path) -> Iterator[dict[tuple[str, str], Any]]:
    """Every format as it is on its own engine, and optimised; all built, promoted and deployed."""
    built = {}
    for form, kind in VARIANTS:
        name = f"mobilenet-{form}-{kind}"
        how = ["--recipe", "fp32", "--to", form] if kind == "as-is" else ["--recipe", "int8"]
        words = [exports[form], "--name", name, "--data", few, "--processor", shared_data / "mobilenet-v2-1001", *how]
        built[form, kind] = maasdam(home, "build", *words)
        maasdam(home, "models", "promote", f"{name}:1")
        maasdam(home, "deploy", name)
    yield built


@pytest.mark.timeout(1200)
def test_every_format_serves_as_it_is_and_optimised(
    home: Path, few: Path, variants: dict[tuple[str, str], Any], repository: Path
) -> None:
    names = [f"mobilenet-{form}-{kind}" for form, kind in VARIANTS]
    for (form, kind), built in variants.items():
        assert built["report"]["passed"], (form, kind, built["report"]["failures"])
        if kind == "as-is":
            assert built["format"] == form
        assert built["report"]["accuracy"]["candidate"] >= 0.75
    with service(home, *names) as running:
        for (form, kind), built in variants.items():
            outside = _recompute(running.address, running.key, f"mobilenet-{form}-{kind}", few, repository)
            assert outside["top1"] == pytest.approx(built["report"]["accuracy"]["candidate"], abs=1e-9), (form, kind)
