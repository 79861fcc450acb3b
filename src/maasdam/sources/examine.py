"""From a source to an Inspection: fetch, recognise, describe, read.

Knows the readers, one a layout. Refuses to load a model, and to copy anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from maasdam.core import FEATURES
from maasdam.errors import InvalidInput, InvalidModel, UnsafeModel
from maasdam.sources import gguf, hub, huggingface, ir, keras, onnx, pt2, savedmodel, torchscript
from maasdam.sources.bounds import Place, opened
from maasdam.sources.finding import Inspection, Reading, Risk
from maasdam.sources.hfconfig import Description, describe, merge
from maasdam.sources.recognise import Recognised, recognise


@dataclass(frozen=True, slots=True)
class Examined:
    """An inspection with what ingest needs besides: where each file lies now, and the reading itself."""

    inspection: Inspection
    reading: Reading
    files: Mapping[str, Path]
    """Name in the artifact -> where it lies now: model and processor files."""


def examine(source: str, *, trust: bool = False, processor: Path | None = None) -> Examined:
    """Read a source's metadata; risks are listed, not raised, save where nothing else can be said (a bare pickle).

    Raises NotFound, InvalidInput, InvalidModel, UnsafeModel, Unsupported.
    """
    path = hub.fetch(source) if source.startswith(hub.PREFIX) else opened(Path(source).expanduser())
    try:
        model = recognise(path)
        own = describe(model.place)
    except OSError as error:
        raise _unreadable(error, path) from error
    if processor is not None:
        folder = opened(Path(processor).expanduser())
        if not folder.is_dir():
            raise InvalidInput(f"--processor {processor} is no folder; give a Hugging Face folder with processor files")
        given = describe(Place(folder))
        if not given.files:
            raise InvalidInput(
                f"--processor {processor} holds no processor files (preprocessor_config.json, tokenizer.json, config.json)"
            )
        own = merge(own, given, keeps_config=model.layout in ("huggingface", "genai"))
    reading = _read(model, own)
    files = {**own.files, **reading.files}
    inspection = Inspection(
        source=source,
        path=path,
        format=reading.format,
        layout=reading.layout,
        task=reading.task or own.task,
        architecture=reading.architecture or own.architecture,
        signature=reading.signature,
        parameters=reading.parameters,
        size_bytes=sum(file.stat().st_size for file in files.values()),
        precision=reading.precision,
        labels=reading.labels or own.labels,
        risks=tuple(_weighed(risk, trust) for risk in (*reading.risks, *_code_risks(model, own))),
        notes=(*reading.notes, *_notes(model, path, own)),
        files=tuple(sorted(files)),
    )
    return Examined(inspection, reading, files)


def refuse_blocked(inspection: Inspection) -> None:
    """Raise UnsafeModel when a risk forbids loading, naming every such risk and whether --trust lifts them."""
    blocked = inspection.blocked
    if not blocked:
        return
    what = "; ".join(risk.what for risk in blocked)
    way = "pass --trust if you know who made it" if all(risk.liftable for risk in blocked) else "--trust does not lift this"
    raise UnsafeModel(f"{inspection.path} is refused: {what} ({way})")


def _read(model: Recognised, description: Description) -> Reading:
    """The reading; bytes that break a reader in a way it did not foresee are a broken model, never a crash of ours."""
    try:
        return _by_layout(model, description)
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}"[:200]
        raise InvalidModel(f"{model.place.path / model.name} is not as its format says ({reason}); export it again") from error
    except OSError as error:
        raise _unreadable(error, model.place.path) from error


def _unreadable(error: OSError, path: Path) -> InvalidModel:
    return InvalidModel(f"can't read {error.filename or path}: {error.strerror}; check its name and its permissions")


def _by_layout(model: Recognised, description: Description) -> Reading:
    place, name = model.place, model.name
    if model.layout == "huggingface":
        return huggingface.read(place, description)
    if model.layout == "savedmodel":
        return savedmodel.read(place)
    if model.layout == "genai":
        return ir.read_genai(place, description)
    readers = {"onnx": onnx.read, "pt2": pt2.read, "torchscript": torchscript.read, "keras": keras.read, "ir": ir.read}
    readers["gguf"] = gguf.read
    return readers[model.layout](place, name)


def _weighed(risk: Risk, trust: bool) -> Risk:
    return replace(risk, severity="warning") if trust and risk.liftable and risk.severity == "blocked" else risk


def _code_risks(model: Recognised, description: Description) -> tuple[Risk, ...]:
    """A repository's own code matters where transformers would build the model; other layouts only mention it."""
    if model.layout == "huggingface":
        return description.risks
    return tuple(
        Risk("info", "the folder names Python code of its own (auto_map), which is neither needed nor run")
        for _ in description.risks
    )


def _notes(model: Recognised, path: Path, description: Description) -> list[str]:
    notes = []
    if model.also:
        notes.append(f"also holds {', '.join(model.also[:5])}, which {'was' if len(model.also) == 1 else 'were'} passed over")
    if description.modules:
        known = description.task == FEATURES
        then = (
            "done behind the encoder as modules.json says" if known else "not all known here: pooling and the rest are left out"
        )
        notes.append(f"a sentence-transformers folder: {', '.join(description.modules)} are {then}")
    if model.place.path != path and path.is_dir() and (path / "modules.json").is_file():
        notes.append(
            "a sentence-transformers folder of the old kind, its encoder in a folder of its own: that is taken, which gives a "
            "vector a token; what modules.json adds (pooling, normalising) is not: save it anew with sentence-transformers"
        )
    if path.is_file() and model.layout != "savedmodel" and (path.parent / "config.json").is_file():
        notes.append("a config.json lies beside it: give the folder, or --processor, to use it")
    return notes
