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
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maasdam.artifacts.produced import PassFacts
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
from maasdam.pipeline.measure import MEASURE_SECONDS
from maasdam.pipeline.passes import OPTIMIZED_FORMATS, Pass, PassContext, find_pass
from maasdam.pipeline.proven import prove
from maasdam.pipeline.recipe import Recipe, Use
from maasdam.pipeline.sameness import content_digest

if TYPE_CHECKING:
    from maasdam.artifacts.store import Store

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
    found: PassFacts = field(default_factory=PassFacts)

    @property
    def facts(self) -> dict[str, Any]:
        """What was measured or chosen on the way, as JSON."""
        return self.found.to_json()

    def to_json(self) -> dict[str, Any]:
        """As `build --json` shows it."""
        return {
            "use": self.use,
            "seconds": round(self.seconds, 3),
            "cached": self.is_cached,
            "digest": self.digest,
            "settings": dict(self.settings),
            "facts": self.facts,
        }


@dataclass(frozen=True, slots=True)
class Data:
    """Where the examples are. `calibrate` falls back to a sample of `data`; without `data` a part of it is judged by."""

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
    measure_seconds: float = MEASURE_SECONDS
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
        for use, found, choice in self._in_turn(recipe):
            if found.chooses is not None:
                currents = [self._choose(currents, use, found.chooses(use.settings, to, self.device), to)]
            elif formats := found.expands(use.settings, source, to, choice or ()):
                uses = [(f, replace(use, settings={**use.settings, "format": f})) for f in formats]
                currents = self._each(currents[0], uses, is_one_enough=choice is None)
            else:
                currents = [self.apply(use, currents[0])]
            if found.chooses is None and not found.rounds:
                self.plain = currents[0]
        last = currents[0]
        return self.convert(last, to) if to and last.format != to else last

    def check(self, recipe: Recipe, source: Artifact, to: Format | None) -> None:
        """Refuse before any pass what can't be run. Raises InvalidInput, Unsupported."""
        if recipe.task and source.task and recipe.task != source.task:
            raise InvalidInput(f"recipe '{recipe.name}' is for task '{recipe.task}'; this model's is '{source.task}'")
        check_data(recipe, self.data)
        if source.writes_speech:
            check_written_as_it_is(source, recipe, to)
            check_speech_format(to)
        for use, found, choice in self._in_turn(recipe):
            found.expands(use.settings, source, to, choice or ())
            if source.writes_speech and not found.hears:
                raise Unsupported(
                    f"recipe '{recipe.name}' has the pass '{use.use}', which does not exist for models that hear and write by "
                    "themselves (Whisper); use fp32, bf16, int8-weights or int8-dynamic"
                )

    def _in_turn(self, recipe: Recipe) -> Iterator[tuple[Use, Pass, tuple[Format, ...] | None]]:
        """Each use, its pass, and the formats that the next one chooses from; None where that one chooses nothing."""
        found = [self.find(use.use, recipe.name) for use in recipe.passes]
        for number, use in enumerate(recipe.passes):
            chooses = found[number + 1].chooses if number + 1 < len(found) else None
            choice = chooses(recipe.passes[number + 1].settings, None, "cpu") if chooses is not None else None
            yield use, found[number], choice

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
        """A model that hears and writes by itself: Whisper as CTranslate2 runs it, others as they are."""
        from maasdam.convert.modules import is_whisper

        if source.layout == "ctranslate2" and to == "pytorch":
            return source
        check_speech_format(to)
        return self.apply(Use("convert", {"to": to}), source) if is_whisper(source) else source

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
                artifact, facts = hit[0], PassFacts.from_json(hit[1])
        if found.is_proven:  # what `maasdam convert` would refuse goes no further
            with self.attempts.step("proof", source.digest, artifact.digest):
                proof = self.prove(source, artifact, self.store, self.data.data or self.data.calibrate, self.progress)
            facts = replace(facts, certificate=proof)
        step = Step(use.use, use.settings, time.perf_counter() - began, hit is not None, artifact.digest, facts)
        self.steps.append(step)
        if found.rounds:
            self.quantized.add(artifact.digest)
        self.progress(f"{use.use}{' (cached)' if step.is_cached else ''}", 1, 1)
        return artifact

    def references(self, source: Artifact) -> tuple[Artifact, ...]:
        """The uncompressed source on OpenVINO and on ONNX Runtime, where it can be converted and that is proven; steps don't
        count these."""
        return tuple(replace(self, steps=[])._converted(source, "the reference")[0])

    def _miss(
        self, found: Pass, settings: Mapping[str, Any], source: Artifact, rivals: tuple[Artifact, ...], key: str
    ) -> tuple[Artifact, PassFacts]:
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
                self.measure_seconds,
                self.progress,
                self.attempts,
            )
            made = found.run(source, out, settings, context)
            artifact = self.store.add_as(out, made, source.task, source.digest, *(r.digest for r in rivals))
            self.store.remember(key, artifact, made.facts.to_json())
        shutil.rmtree(checkpoints, ignore_errors=True)
        return artifact, made.facts

    def _choose(self, currents: list[Artifact], use: Use, wanted: tuple[Format, ...], to: Format | None) -> Artifact:
        if to is not None and not wanted:
            return self.convert(currents[0], to)  # as it is on its own engine: there is nothing to choose
        rivals: list[Artifact] = []
        failed: MaasdamError | None = None
        for current in currents:
            if current.format in wanted and len(wanted) == 1:
                rivals.append(current)
                continue
            found, error = self._converted(current, use.use, wanted)
            rivals, failed = rivals + found, error or failed
        if not rivals:
            if failed and len(wanted) == 1:  # it was asked for
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
            data = self.data
            path = (data.calibrate or data.data) if reads == "calibrate" else data.train
            facts[reads] = None if path is None else [content_digest(path)]
            if path is not None and reads == "calibrate":  # what is kept to judge by, and what is said of it
                facts[reads] += [data.data is None, data.calibrate is None]
        if files := found.files(settings):
            facts["files"] = [content_digest(path) for path in files if path.exists()]
        if found.measures:
            facts |= {
                "original": self.plain.digest if self.plain else None,
                "data": None if (path := self.data.data or self.data.calibrate) is None else content_digest(path),
            }
            facts |= {"processor": processor_name(), "threads": self.threads or available_threads()}
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def check_written_as_it_is(source: Artifact, recipe: Recipe, to: Format | None) -> None:
    """Refuse what would change a model that only transformers runs. Raises Unsupported naming it."""
    from maasdam.convert.modules import called, writes_as_it_is

    if writes_as_it_is(source) and (to not in (None, source.format) or any(use.use != "optimize" for use in recipe.passes)):
        raise Unsupported(
            f"{called(source)} is served as it is, by transformers, the one engine here that runs it: its weights are kept in "
            "no fewer bits and in no other format; use --recipe fp32 and leave --to out"
        )


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
