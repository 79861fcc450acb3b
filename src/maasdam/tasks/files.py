"""The Hugging Face files beside a model. Knows their names and how transformers reads them; never payloads or tensors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from maasdam.errors import InvalidModel, MaasdamError

LIKENESS = "likeness.json"
"""What makes scores of how alike a picture and a text are: {"scale", "shift"}; written when the model is brought in."""
DECLARED = "detection.json"
"""What a detector's boxes are, where no transformers family says it."""


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; {} where there is no such file. Raises InvalidModel where it is something else."""
    if not path.is_file():
        return {}
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidModel(f"{path.name} of the model is not JSON: {error}") from error
    if not isinstance(data, dict):
        raise InvalidModel(f"{path.name} of the model holds no JSON object")
    return data


def preprocessor(folder: Path, part: str) -> dict[str, Any]:
    """preprocessor_config.json, else this part ("image_processor", "feature_extractor") of processor_config.json; else {}."""
    named = read_json(folder / "preprocessor_config.json") or read_json(folder / "processor_config.json").get(part)
    return named if isinstance(named, dict) else {}


def labels_of(folder: Path) -> dict[int, str]:
    """config.json's id2label with whole numbers as keys, else what DECLARED lists; {} where neither is. Raises InvalidModel."""
    named = read_json(folder / "config.json").get("id2label") or {}
    declared = read_json(folder / DECLARED).get("labels")
    if not named and isinstance(declared, list):
        return {number: str(name) for number, name in enumerate(declared)}
    try:
        return {int(i): str(name) for i, name in named.items()}
    except (ValueError, AttributeError) as error:
        raise InvalidModel(f"id2label in the model's config.json is no table of label ids: {error}") from error


def opened(what: str, folder: Path, open_: Callable[[], Any]) -> Any:
    """`open_()`, with what transformers raises turned into InvalidModel that says what to do."""
    try:
        return open_()
    except MaasdamError:
        raise
    except Exception as error:
        why = " ".join(str(error).split())[:300]
        raise InvalidModel(
            f"the model's files describe no {what} that can be opened ({why}); "
            "name the Hugging Face folder that has them with --processor"
        ) from error
