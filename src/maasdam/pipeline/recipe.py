"""Recipes: passes and limits as data.

Knows TOML, the built-in recipes and what a recipe may say. Refuses to know how a pass works or what running one takes.

    name or file --find_recipe--> Recipe(passes, limits)
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from importlib import resources
from pathlib import Path
from typing import Any

from maasdam.errors import InvalidInput
from maasdam.pipeline.passes import Setting, find_pass
from maasdam.tasks import TASKS

DEFAULT_RECIPE = "fp32"
DEFAULT_MAX_DROP = 0.02
"""What a recipe that names no max_drop is held to: nothing passes because nothing was asked."""


def _limit(says: str, *, low: float | None = None, high: float | None = None, kind: type = float) -> Any:
    return field(default=None, metadata={"setting": Setting(kind, None, low=low, high=high, says=says)})


@dataclass(frozen=True, slots=True)
class Limits:
    """What a build must hold to pass. None is no limit.

    `max_drop` is on the task's metric, positive is worse; `min_speedup` and `min_ratio` (size) are against the reference;
    `min_cosine`, `min_agreement` and `max_abs_diff` are on the outputs against those of the source on its own engine, and so is
    `min_fidelity`, which each output and each unlike slice is held to (see `fidelity`; 0.8 where nothing is said and no labels
    decide). `max_drop_upper` is on the upper end of the drop's 95 % interval; where no answer changed that interval has no
    width, so ask for `min_examples` too.
    The others are absolute and of the candidate, so they hold for one machine: MB are 10^6 bytes, joules those of one item.
    """

    max_drop: float | None = _limit("on the task's metric, positive is worse")
    min_speedup: float | None = _limit("median latency of the reference over the candidate's", low=0)
    min_ratio: float | None = _limit("size of the reference over the candidate's", low=0)
    min_cosine: float | None = _limit("mean cosine of the outputs with the source's", low=-1, high=1)
    min_agreement: float | None = _limit("share of answers equal to the source's", low=0, high=1)
    max_abs_diff: float | None = _limit("largest difference of any output from the source's", low=0)
    max_drop_upper: float | None = _limit("on the upper end of the drop's 95 % interval")
    min_examples: int | None = _limit("how many examples the metric is over", low=1, kind=int)
    max_latency_ms: float | None = _limit("median latency of one item", low=0)
    max_p99_ms: float | None = _limit("99th percentile of the latency of one item", low=0)
    min_throughput: float | None = _limit("items (text: tokens) a second", low=0)
    max_size_mb: float | None = _limit("every file needed to serve, 10^6 bytes", low=0)
    max_memory_mb: float | None = _limit("what the engine adds to a process, 10^6 bytes", low=0)
    max_joules: float | None = _limit("energy of one item (text: of one token)", low=0)
    min_fidelity: float | None = _limit("1 - residual / variance of each output and each unlike slice", high=1)

    def to_json(self) -> dict[str, float]:
        """Those that are set."""
        return {key: value for key, value in asdict(self).items() if value is not None}


@dataclass(frozen=True, slots=True)
class Use:
    """One pass of a recipe, with all its settings."""

    use: str
    settings: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Recipe:
    """Passes in order, and the limits their result is held to."""

    name: str
    task: str | None = None
    passes: tuple[Use, ...] = ()
    limits: Limits = field(default_factory=Limits)
    batch: str | None = None
    """"never": requests run one by one, whatever is found of batching."""

    @property
    def trains(self) -> tuple[str, ...]:
        """The passes that train or use labels, and so need --train."""
        return tuple(u.use for u in self.passes if "train" in find_pass(u.use, self.name).reads(u.settings))

    @property
    def calibrates(self) -> bool:
        """Whether a pass feeds examples through the network to find its ranges, and has no --train to take them from."""
        reads = [find_pass(u.use, self.name).reads(u.settings) for u in self.passes]
        return any("calibrate" in r and "train" not in r for r in reads)


LIMITS: dict[str, Setting] = {f.name: f.metadata["setting"] for f in fields(Limits)}
"""What a recipe may ask for under [limits]."""


def built_in_recipes() -> tuple[str, ...]:
    """Their names."""
    names = (path.name.removesuffix(".toml") for path in resources.files(__package__).joinpath("recipes").iterdir())
    return tuple(sorted({name.partition(".")[0] for name in names}))


def find_recipe(name: str, task: str | None) -> Recipe:
    """A built-in recipe by name, the one made for `task` where there is one, or a TOML file.

    Raises InvalidInput naming the key, the file and what it takes.
    """
    if name in built_in_recipes():
        folder = resources.files(__package__).joinpath("recipes")
        for file in (folder.joinpath(f"{name}.{task}.toml"), folder.joinpath(f"{name}.toml")):
            if file.is_file():
                return parse_recipe(file.read_text(), name, f"built-in recipe '{name}'")
    path = Path(name)
    if not path.is_file():
        known = ", ".join(built_in_recipes())
        raise InvalidInput(f"no recipe '{name}': it is neither a file nor built in; the built-in recipes are: {known}")
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"can't read recipe {path}: {error}") from error
    recipe = parse_recipe(text, path.name, str(path))
    if task and recipe.task and recipe.task != task:
        raise InvalidInput(f"recipe {path} is for task '{recipe.task}', the model's is '{task}'; use another recipe or --task")
    return recipe


def parse_recipe(text: str, name: str, where: str) -> Recipe:
    """Parse and check a recipe. `where` names it in errors. Raises InvalidInput."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InvalidInput(f"{where} is not TOML: {error}") from error
    for key in data:
        if key not in ("task", "batch", "limits", "pass"):
            raise InvalidInput(f"{where}: no key '{key}'; a recipe has: task, batch, [limits], [[pass]]")
    task = data.get("task")
    if task is not None and task not in TASKS:
        raise InvalidInput(f"{where}: 'task' is {task!r}; it takes one of: {', '.join(TASKS)}")
    batch = data.get("batch")
    if batch not in (None, "never"):
        raise InvalidInput(f"{where}: 'batch' is {batch!r}; it takes \"never\", or leave it out: what is proven is batched")
    return Recipe(name, task, _passes(data.get("pass", []), where), _limits(data.get("limits", {}), where), batch)


def _passes(given: Any, where: str) -> tuple[Use, ...]:
    if not isinstance(given, list) or not all(isinstance(p, dict) for p in given):
        raise InvalidInput(f"{where}: 'pass' is not a list of tables; write each as [[pass]]")
    uses = []
    for number, table in enumerate(given, 1):
        place = f"{where}, pass {number}"
        name = table.get("use")
        if not isinstance(name, str):
            raise InvalidInput(f"{place}: 'use' is {name!r}; it takes the name of a pass")
        found = find_pass(name, place)
        uses.append(Use(name, found.check({k: v for k, v in table.items() if k != "use"}, place)))
    for use in uses[:-1]:
        if find_pass(use.use, where).chooses is not None:
            raise InvalidInput(f"{where}: '{use.use}' measures what comes out at the end; make it the last pass, once")
    return tuple(uses)


def _limits(given: Any, where: str) -> Limits:
    if not isinstance(given, dict):
        raise InvalidInput(f"{where}: 'limits' is not a table; write [limits]")
    for key in given:
        if key not in LIMITS:
            raise InvalidInput(f"{where}: [limits] has no '{key}'; it takes: {', '.join(LIMITS)}")
    found = {key: LIMITS[key].check(key, value, f"{where}, [limits]") for key, value in given.items()}
    return Limits(**{"max_drop": DEFAULT_MAX_DROP} | found)
