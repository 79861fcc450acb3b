"""What a pass is, and which there are.

Knows the seam every pass implements and the names a recipe may use. Refuses to know caching, catalogs and limits;
a pass is imported only when a recipe names it.

    source artifact --Pass.run(settings, context)--> files in `out` + Produced --Store.add--> artifact
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from maasdam.artifacts.produced import Produced
from maasdam.core import Artifact, Format, Progress, silent
from maasdam.errors import InvalidInput
from maasdam.pipeline.attempts import Attempts
from maasdam.pipeline.measure import MEASURE_SECONDS

if TYPE_CHECKING:
    from maasdam.artifacts.store import Store


@dataclass(frozen=True, slots=True)
class PassContext:
    """What a pass may use beside its source: data, device, places to write, and whom to tell how far it is."""

    store: Store
    work: Path
    """An empty temporary folder on the store's file system, gone afterwards."""
    checkpoints: Path
    """A folder that outlives a killed run of the same pass on the same inputs (training resumes from it)."""
    data: Path | None = None
    """Evaluation data. A pass may look at the payloads, never at the labels."""
    calibrate: Path | None = None
    """Unlabelled calibration data; None means a sample of `data`."""
    train: Path | None = None
    """Labelled training data, disjoint from `data`."""
    rivals: tuple[Artifact, ...] = ()
    """Other artifacts of the same network that the pass may choose instead of its source (for "optimize")."""
    original: Artifact | None = None
    """The network before it was quantised, on its own engine: what rivals are held to (for "optimize")."""
    is_quantized: bool = False
    """Were the source and its rivals made by quantisation?"""
    device: str = "cpu"
    threads: int = 0
    """Engine threads; 0 is every core this process may use."""
    measure_seconds: float = MEASURE_SECONDS
    """Longest that a measurement takes (for "optimize", which chooses by it)."""
    progress: Progress = silent
    attempts: Attempts = field(default_factory=Attempts)
    """For what of a pass may end the process, and it can do without."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One key a pass takes in a recipe: its kind, its default and the values allowed."""

    kind: type
    """str, int, float or bool; an int is taken where a float is asked for."""
    default: Any
    choices: tuple[Any, ...] = ()
    low: float | None = None
    high: float | None = None
    says: str = ""
    """One line of documentation."""
    is_required: bool = False

    def check(self, key: str, value: Any, where: str) -> Any:
        """The value, parsed. Raises InvalidInput naming the key, the place and what it takes."""
        if self.kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        fits = isinstance(value, self.kind) and (self.kind is bool or not isinstance(value, bool))
        if not fits or (self.choices and value not in self.choices) or not self._in_range(value):
            raise InvalidInput(f"{where}: '{key}' is {value!r}; it takes {self.takes}")
        return value

    def _in_range(self, value: Any) -> bool:
        return (self.low is None or value >= self.low) and (self.high is None or value <= self.high)

    @property
    def takes(self) -> str:
        """What it takes, in words."""
        if self.choices:
            return " or ".join(repr(choice) for choice in self.choices)
        kind = {str: "a string", int: "a whole number", float: "a number", bool: "true or false"}[self.kind]
        bounds = [f"at least {self.low:g}"] if self.low is not None else []
        bounds += [f"at most {self.high:g}"] if self.high is not None else []
        return " ".join([kind, *([" and ".join(bounds)] if bounds else [])])


OPTIMIZED_FORMATS: tuple[Format, ...] = ("openvino", "onnx")
"""The formats whose engines are measured against each other."""
Reads = Literal["calibrate", "train"]
Run = Callable[[Artifact, Path, Mapping[str, Any], PassContext], Produced]
"""(source, out, settings, context): write the new artifact's files into the empty folder `out`, the processor's included."""


@dataclass(frozen=True, slots=True)
class Pass:
    """Turns one artifact into another. Each module below has one, called PASS."""

    use: str
    """Its name in a recipe."""
    version: int
    """Raised when the same settings give another result: old cache entries no longer match."""
    settings: Mapping[str, Setting]
    """What it takes in a recipe."""
    run: Run
    libraries: tuple[str, ...] = ()
    """Installed packages whose versions decide the result; they are part of the cache key."""
    expands: Callable[[Mapping[str, Any], Artifact, Format | None, tuple[Format, ...]], tuple[Format, ...]] = (
        lambda settings, source, to, choice: ()
    )
    """(settings, source, --to, the formats the next pass chooses from) -> the formats it is run for, one after the other, with
    "format" set; () for one run with the settings as they are. Raises Unsupported, before any work, for what can't be."""
    chooses: Callable[[Mapping[str, Any], Format | None, str], tuple[Format, ...]] | None = None
    """(settings, --to, device) -> the formats it chooses the best from, so that it stands last in a recipe; () where there is
    nothing to choose. None: it chooses nothing."""
    rounds: bool = False
    """What it makes of a network for one engine is another network for the next, and no plain one."""
    is_proven: bool = False
    """Its result has to compute what its source computes, or goes no further."""
    hears: bool = True
    """Does it exist for models that hear and write by themselves?"""
    reads: Callable[[Mapping[str, Any]], tuple[Reads, ...]] = lambda settings: ()
    """Which data these settings use, part of the cache key: "calibrate" (payloads only), "train" (labels too)."""
    wants: Callable[[Artifact, Mapping[str, Any]], Format | None] = lambda source, settings: None
    """The format the source has to be in; it is converted first where it is not."""
    files: Callable[[Mapping[str, Any]], tuple[Path, ...]] = lambda settings: ()
    """Files and folders that settings name; their content is part of the cache key."""
    measures: bool = False
    """The result is chosen by timing on this machine, so the machine's processor is part of the cache key."""

    def check(self, given: Mapping[str, Any], where: str) -> dict[str, Any]:
        """All settings, defaults filled in. Raises InvalidInput naming the key, the place and what it takes."""
        for key in given:
            if key not in self.settings:
                takes = ", ".join(self.settings) or "no settings"
                raise InvalidInput(f"{where}: pass '{self.use}' has no setting '{key}'; it takes: {takes}")
        for key, setting in self.settings.items():
            if setting.is_required and key not in given:
                raise InvalidInput(f"{where}: pass '{self.use}' needs '{key}'; it takes {setting.takes}")
        return {key: s.check(key, given[key], where) if key in given else s.default for key, s in self.settings.items()}


PASSES: dict[str, str] = {
    "convert": "maasdam.pipeline.to_format",
    "quantize": "maasdam.pipeline.quantize",
    "prune": "maasdam.pipeline.prune",
    "clip": "maasdam.pipeline.clip",
    "distill": "maasdam.pipeline.distill",
    "optimize": "maasdam.pipeline.optimize",
}
"""Name in a recipe -> the module whose PASS it is."""


def find_pass(use: str, where: str) -> Pass:
    """The pass of that name, its module imported now. Raises InvalidInput naming those there are."""
    if use not in PASSES:
        raise InvalidInput(f"{where}: no pass '{use}'; the passes are: {', '.join(PASSES)}")
    return cast(Pass, importlib.import_module(PASSES[use]).PASS)
