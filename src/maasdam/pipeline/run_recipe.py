"""Run the passes of a recipe, each one cached.

Knows cache keys, locks, temporary folders and which conversions a pass needs first. Refuses to know how a pass works,
and what its result is worth: that is verify's.

    key = hash(parent and rivals, pass, version, settings, data it reads, device, libraries, processor if it measures)
    hit -> the stored artifact; miss -> run in a temporary folder under the key's lock, stored by rename
So a build that was killed continues after the last pass that finished.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maasdam.core import TEXT_GENERATION, Artifact, Format, Progress, silent
from maasdam.engines import installed_version
from maasdam.engines.processor import available_threads, processor_name
from maasdam.errors import (
    EngineFailure,
    InvalidInput,
    InvalidModel,
    InvalidTensor,
    LimitExceeded,
    MaasdamError,
    MissingExtra,
    Unsupported,
    VerificationFailed,
)
from maasdam.pipeline.attempts import Attempts
from maasdam.pipeline.passes import Pass, PassContext, find_pass
from maasdam.pipeline.proven import prove
from maasdam.pipeline.recipe import Recipe, Use
from maasdam.pipeline.sameness import content_digest

if TYPE_CHECKING:
    from maasdam.artifacts.store import Store

OPTIMIZED_FORMATS: tuple[Format, ...] = ("openvino", "onnx")
"""The formats whose engines are measured against each other."""
Find = Callable[[str, str], Pass]
Prove = Callable[..., Mapping[str, Any]]
"""`proven.prove`."""
NOT_HAD = (Unsupported, VerificationFailed, InvalidModel, InvalidTensor, EngineFailure, LimitExceeded, MissingExtra)
"""Why a model can't be had in a format: no way leads there, it isn't proven, its file or an engine fails. Others may do."""


@dataclass(frozen=True, slots=True)
class Step:
    """One pass that ran, or was found in the cache."""

    use: str
    settings: Mapping[str, Any]
    seconds: float
    is_cached: bool
    digest: str
    facts: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As `build --json` shows it."""
        return {
            "use": self.use,
            "seconds": round(self.seconds, 3),
            "cached": self.is_cached,
            "digest": self.digest,
            "settings": dict(self.settings),
            "facts": dict(self.facts),
        }


@dataclass(frozen=True, slots=True)
class Data:
    """Where the examples are. `calibrate` falls back to a sample of `data`."""

    data: Path | None = None
    calibrate: Path | None = None
    train: Path | None = None


@dataclass(slots=True)
class Build:
    """One run of a recipe: what running passes takes, and what has run so far."""

    store: Store
    data: Data = field(default_factory=Data)
    device: str = "cpu"
    threads: int = 0
    progress: Progress = silent
    find: Find = find_pass
    prove: Prove = prove
    attempts: Attempts = field(default_factory=Attempts)
    steps: list[Step] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What was left out on the way, and why."""
    quantized: set[str] = field(default_factory=set)
    """Digests of what quantisation made."""
    plain: Artifact | None = None
    """The network as it was before it was quantised."""

    def run(self, recipe: Recipe, source: Artifact, to: Format | None) -> Artifact:
        """The artifact the recipe makes of `source`, in format `to` where one is named. Raises what a pass raises."""
        currents = [source]
        self.plain = source
        for number, use in enumerate(recipe.passes):
            then = recipe.passes[number + 1] if number + 1 < len(recipe.passes) else None
            if use.use == "optimize":
                currents = [self._optimize(currents, use, to)]
            elif use.use == "quantize" and use.settings.get("format") == "auto":
                formats = formats_to_quantize_for(use, then, to, source.task, writes_speech=source.writes_speech)
                uses = [(f, replace(use, settings={**use.settings, "format": f})) for f in formats]
                currents = self._each(currents[0], uses, is_one_enough=then is None or then.use != "optimize")
            else:
                currents = [self.apply(use, currents[0])]
            if use.use not in ("quantize", "optimize"):
                self.plain = currents[0]
        last = currents[0]
        return self.convert(last, to) if to and last.format != to else last

    def convert(self, source: Artifact, to: Format) -> Artifact:
        """`source` in the format `to`; itself where it is that already."""
        if source.task == TEXT_GENERATION and to not in ("openvino", source.format):
            raise Unsupported(
                f"no engine here generates text from {to}: build it with --to openvino, or as it is with --to {source.format}; "
                f"`maasdam convert` writes its decoder, with the cache as tensors, in every format"
            )
        if source.writes_speech:
            return self._written(source, to)
        return source if source.format == to else self.apply(Use("convert", {"to": to}), source)

    def _written(self, source: Artifact, to: Format) -> Artifact:
        """A model that hears and writes by itself as CTranslate2 runs it, the one way there is beside transformers."""
        from maasdam.convert.modules import called, is_whisper

        if source.layout == "ctranslate2" and to == "pytorch":
            return source
        check_speech_format(to)
        if not is_whisper(source):
            raise Unsupported(
                f"{called(source)} hears and writes by itself, and no engine here runs it; of such models Whisper is known"
            )
        return self.apply(Use("convert", {"to": to}), source)

    def apply(self, use: Use, source: Artifact, rivals: tuple[Artifact, ...] = ()) -> Artifact:
        """Run one pass, or take its result from the cache. The source is converted first where the pass wants it."""
        found = self.find(use.use, "the recipe")
        wanted = found.wants(source, use.settings)
        if wanted is not None and source.format != wanted:
            source = self.convert(source, wanted)
        began = time.perf_counter()
        key = self._key(found, use.settings, source, rivals)
        with self.store.lock(key):
            hit = self.store.cached(key)
            if hit is None:
                with self.attempts.step(key):
                    artifact, facts = self._miss(found, use.settings, source, rivals, key)
            else:
                artifact, facts = hit
        if use.use == "convert":  # what `maasdam convert` would refuse goes no further
            with self.attempts.step("proof", source.digest, artifact.digest):
                proof = self.prove(source, artifact, self.store, self.data.data or self.data.calibrate, self.progress)
            facts = {**facts, "certificate": proof}
        step = Step(use.use, use.settings, time.perf_counter() - began, hit is not None, artifact.digest, facts)
        self.steps.append(step)
        if use.use == "quantize":
            self.quantized.add(artifact.digest)
        self.progress(f"{use.use}{' (cached)' if step.is_cached else ''}", 1, 1)
        return artifact

    def references(self, source: Artifact) -> tuple[Artifact, ...]:
        """The uncompressed source on OpenVINO and on ONNX Runtime, where it can be converted and that is proven; steps don't
        count these."""
        steps, self.steps = self.steps, []
        try:
            return tuple(self._converted(source, "the reference")[0])
        finally:
            self.steps = steps

    def _miss(
        self, found: Pass, settings: Mapping[str, Any], source: Artifact, rivals: tuple[Artifact, ...], key: str
    ) -> tuple[Artifact, dict[str, Any]]:
        self.progress(found.use)
        checkpoints = self.store.root / "checkpoints" / key
        with self.store.workspace() as folder:
            out, work = folder / "out", folder / "work"
            out.mkdir()
            work.mkdir()
            d = self.data
            context = PassContext(
                self.store,
                work,
                checkpoints,
                d.data,
                d.calibrate,
                d.train,
                rivals,
                self.plain,
                source.digest in self.quantized,
                self.device,
                self.threads,
                self.progress,
                self.attempts,
            )
            made = found.run(source, out, settings, context)
            artifact = self.store.add_as(out, made, source.task, source.digest, *(r.digest for r in rivals))
            self.store.remember(key, artifact, made.facts)
        shutil.rmtree(checkpoints, ignore_errors=True)
        return artifact, made.facts

    def _optimize(self, currents: list[Artifact], use: Use, to: Format | None) -> Artifact:
        if to == "tensorflow" or (to == "pytorch" and self.device == "cpu"):
            return self.convert(currents[0], to)  # as it is on its own engine: there is nothing to choose
        wanted: tuple[Format, ...] = (to,) if to else _formats_of(use.settings.get("engine", "auto"), self.device)
        rivals: list[Artifact] = []
        failed: MaasdamError | None = None
        for current in currents:
            if current.format in wanted and len(wanted) == 1:
                rivals.append(current)
                continue
            found, error = self._converted(current, "optimize", wanted)
            rivals, failed = rivals + found, error or failed
        if not rivals:
            if failed and (to or use.settings.get("engine", "auto") != "auto"):
                raise failed
            return currents[0]
        unique = list({r.digest: r for r in rivals}.values())
        return self.apply(use, unique[0], tuple(unique[1:]))

    def _converted(
        self, source: Artifact, what: str, formats: tuple[Format, ...] = OPTIMIZED_FORMATS
    ) -> tuple[list[Artifact], MaasdamError | None]:
        """`source` in each of `formats` that it can be had in, proven, and why not in the last that it can't; that is noted."""
        if source.digest in self.quantized or source.layout in ("genai", "ctranslate2"):
            return [source], None  # int8 made for one engine is not another engine's int8
        if source.task == TEXT_GENERATION and "openvino" in formats:
            formats = ("openvino",)  # no engine here generates from a plain ONNX graph
        if source.writes_speech and formats == OPTIMIZED_FORMATS:
            formats = ("pytorch",)  # CTranslate2's folder counts as such
        found: list[Artifact] = []
        failed: MaasdamError | None = None
        for to in formats:
            try:
                found.append(self.convert(source, to))
            except NOT_HAD as error:
                failed = error
                self.notes.append(f"{what}: not on {to}: {error}")
        return found, failed

    def _each(self, source: Artifact, uses: list[tuple[Format, Use]], *, is_one_enough: bool) -> list[Artifact]:
        """The same pass once for each format, or until one is made; what can't be had is noted."""
        found: list[Artifact] = []
        failed: list[MaasdamError] = []
        for to, use in uses:
            if found and is_one_enough:
                break
            try:
                found.append(self.apply(use, source))
            except MaasdamError as error:
                if isinstance(error, InvalidInput) and not isinstance(error, InvalidModel):
                    raise  # the data are the caller's, and no format's fault
                failed.append(error)
                self.notes.append(f"{use.use}: not for {to}: {error}")
        if not found:
            raise failed[0] if len(failed) == 1 else Unsupported("; ".join(dict.fromkeys(str(error) for error in failed)))
        return found

    def _key(self, found: Pass, settings: Mapping[str, Any], source: Artifact, rivals: tuple[Artifact, ...]) -> str:
        facts: dict[str, Any] = {
            "parent": source.digest,
            "rivals": [r.digest for r in rivals],
            "pass": [found.use, found.version],
            "settings": dict(settings),
            "device": self.device,
            "libraries": {name: installed_version(name) for name in found.libraries},
        }
        for reads in found.reads(settings):
            path = (self.data.calibrate or self.data.data) if reads == "calibrate" else self.data.train
            facts[reads] = None if path is None else content_digest(path)
        if files := found.files(settings):
            facts["files"] = [content_digest(path) for path in files if path.exists()]
        if found.measures:
            facts |= {
                "original": self.plain.digest if self.plain else None,
                "data": None if (path := self.data.data or self.data.calibrate) is None else content_digest(path),
            }
            facts |= {"processor": processor_name(), "threads": self.threads or available_threads()}
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def formats_to_quantize_for(
    use: Use, then: Use | None, to: Format | None, task: str | None, *, writes_speech: bool = False
) -> tuple[Format, ...]:
    """Which formats a quantisation without a format of its own is made for: all that the next pass chooses from, else the first
    of these that it can be made for."""
    from maasdam.pipeline.quantize import formats_of

    scheme = use.settings["scheme"]
    can = formats_of(scheme, task, writes_speech=writes_speech)
    if to is not None:
        if to not in can:
            raise Unsupported(f"scheme '{scheme}' does not exist for --to {to}; it does for: {', '.join(can)}")
        return (to,)
    if then is not None and then.use == "optimize":
        return tuple(f for f in can if f in _formats_of(then.settings.get("engine", "auto"), "cpu")) or can[:1]
    return (can[0], *(f for f in can[1:] if f in OPTIMIZED_FORMATS))


def check_speech_format(to: Format | None) -> None:
    """Refuse formats that no engine writes down speech from. Raises Unsupported."""
    if to not in (None, "pytorch"):
        raise Unsupported(
            f"no engine here writes down speech from {to}: build it without --to, for CTranslate2; "
            "`maasdam convert --part encoder` and `--part decoder` write its networks in every format"
        )


def check_data(recipe: Recipe, data: Data) -> None:
    """Refuse before any work what the recipe can't be run without. Raises InvalidInput."""
    if recipe.trains and data.train is None:
        raise InvalidInput(f"recipe '{recipe.name}' trains in {', '.join(recipe.trains)}: name labelled data with --train")
    if recipe.calibrates and (data.calibrate or data.data) is None:
        raise InvalidInput(
            f"recipe '{recipe.name}' calibrates: name a folder with --calibrate, "
            "or --data to calibrate on an unlabelled sample of it"
        )


def _formats_of(engine: str, device: str) -> tuple[Format, ...]:
    """The formats whose engines the optimiser compares. OpenVINO has no CUDA; torch never won on a processor."""
    known: dict[str, tuple[Format, ...]] = {"openvino": ("openvino",), "onnxruntime": ("onnx",), "pytorch": ("pytorch",)}
    return known.get(engine, ("onnx", "pytorch") if device == "cuda" else OPTIMIZED_FORMATS)
