"""Build a version: source -> recipe -> verify -> catalog.

Knows the order, and what to refuse before any work. Refuses to know how a pass works and how it looks on a terminal.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maasdam.children import ChildLimits
from maasdam.core import FORMATS, TEXT_GENERATION, Artifact, Format, Progress, TensorPayload, Tensors, silent
from maasdam.errors import InvalidInput, StorageFailure, Unsupported
from maasdam.operations.builds import running
from maasdam.pipeline.attempts import Attempts, in_steps
from maasdam.pipeline.recipe import DEFAULT_RECIPE, Recipe, find_recipe
from maasdam.serving.upstreams.place import LLAMA

if TYPE_CHECKING:
    from maasdam.artifacts.catalog import Catalog
    from maasdam.artifacts.catalog import Version as Version
    from maasdam.artifacts.store import Store
    from maasdam.operations.workspace import Workspace
    from maasdam.pipeline.examples import PreparedExamples
    from maasdam.pipeline.run_recipe import Build, Data
    from maasdam.settings import Settings

DEVICES = ("cpu", "cuda")
HEARTBEAT_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class BuildSpec:
    """What is to be built, of what, with which data."""

    name: str
    """The model's, in the catalog."""
    source: str
    """A path, or hf:org/name."""
    task: str | None = None
    recipe: str = DEFAULT_RECIPE
    to: Format | None = None
    """The result's format; None is the fastest."""
    data: Path | None = None
    calibrate: Path | None = None
    train: Path | None = None
    processor: Path | None = None
    device: str = "cpu"
    trust: bool = False
    lora: Path | None = None
    """The folder of an adapter, which is merged into the source's weights first."""

    def checked(self) -> BuildSpec:
        """Itself with absolute paths. Raises InvalidInput, Unsupported (no such device here)."""
        from maasdam.artifacts.names import check_name

        check_name(self.name)
        _check_flags(self.to, self.device)
        paths: dict[str, Any] = {
            flag: _there(getattr(self, flag), f"--{flag}") for flag in ("data", "calibrate", "train", "processor", "lora")
        }
        return replace(self, **paths)


def build(workspace: Workspace, spec: BuildSpec, *, limits: ChildLimits | None = None, progress: Progress = silent) -> Version:
    """Run a recipe on a model, verify the result and register it as the next version of its name.

    With `limits` all of it but the registering runs in a process of its own; a step that crosses one or ends that process is
    left out where the build can do without it. A build that fails its recipe's limits is registered with its report and can't
    be promoted. Raises CallerError before any work for a bad recipe, data of the wrong kind, a device that is not here;
    LimitExceeded, Crashed; nothing is registered then.
    """
    from maasdam.sources import hub

    spec = spec.checked()
    catalog, store, settings = workspace.catalog, workspace.store, workspace.settings
    with running(catalog, store, spec.name) as build_id, _reported(catalog, build_id, progress) as tell:
        if limits is None:
            made = _make(store.root, settings, spec, Attempts(), progress=tell)
        else:
            if spec.source.startswith(hub.PREFIX):
                hub.fetch(spec.source)  # however slow the network is: it is no work of the model's
            made = in_steps(_make, store.root, settings, spec, limits=limits, progress=tell)
        source = spec.source if spec.lora is None else f"{spec.source} + LoRA {spec.lora}"
        return catalog.register(
            spec.name, made.candidate, source=source, recipe=made.recipe, report=made.report, passes=made.passes
        )


def document(version: Version) -> dict[str, Any]:
    """What `build --json` prints."""
    names = ("version", "digest", "format", "engine", "task", "source", "recipe", "passes", "report")
    return {"name": version.model, **{name: getattr(version, name) for name in names}}


@dataclass(frozen=True, slots=True)
class Made:
    """What a build made: what a version is registered from."""

    candidate: Artifact
    recipe: str
    report: dict[str, Any]
    passes: list[dict[str, Any]]


def _make(root: Path, settings: Settings, spec: BuildSpec, attempts: Attempts, progress: Progress) -> Made:
    """All of a build that needs no catalog: it may run in another process."""
    from maasdam.artifacts.store import Store
    from maasdam.convert.asking import store_with_signature
    from maasdam.pipeline.own_engine import on_its_own_engine
    from maasdam.pipeline.run_recipe import Build, Data
    from maasdam.sources import ingest
    from maasdam.tasks.custom_code import task_name

    store, paths = Store(root), Data(spec.data, spec.calibrate, spec.train)
    task = task_name(spec.task)
    wanted = find_recipe(spec.recipe, task)  # a bad recipe is said before a large model is read
    progress("read the source")
    artifact = ingest(spec.source, store, task=spec.task, processor=spec.processor, trust=spec.trust)
    if artifact.task is None and wanted.task is not None:  # the source names none: what the recipe is for
        artifact = ingest(spec.source, store, task=wanted.task, processor=spec.processor, trust=spec.trust)
    merged: str | None = None
    if spec.lora is not None:
        artifact, merged = _with_adapter(store, artifact, spec.lora, progress)
    if artifact.engine == LLAMA:
        return _as_it_is(store, settings, spec, artifact, progress)
    artifact, moved = on_its_own_engine(artifact, store, spec.device, attempts)  # before it is asked anything
    artifact = store_with_signature(artifact, store, _an_example(artifact, paths))
    recipe = wanted if artifact.task == task else find_recipe(spec.recipe, artifact.task)
    building = Build(store, paths, spec.device, settings.threads, settings.measure_seconds, progress, attempts=attempts)
    building.check(recipe, artifact, spec.to)
    examples, sample = _examples(artifact, paths, progress)
    building.notes += [note for note in (merged, moved, sample) if note]
    candidate = building.run(recipe, artifact, spec.to)
    if recipe.batch is not None:
        changed = replace(candidate, settings={**candidate.settings, "batch": recipe.batch})
        candidate = store.add_as(candidate.path, changed, candidate.task, candidate.digest, *candidate.parents)
    report = _verified(settings, building, candidate, artifact, examples, recipe)
    return Made(candidate, recipe.name, report, [step.to_json() for step in building.steps])


def _with_adapter(store: Store, base: Artifact, folder: Path, progress: Progress) -> tuple[Artifact, str]:
    """The base with a LoRA adapter in its weights, and what to say of it. Raises what `sources.lora` does, InvalidInput."""
    from maasdam.sources import ingest, lora

    adapter = lora.read_adapter(folder)
    if base.layout != "huggingface":
        raise InvalidInput(f"--lora goes with a Hugging Face folder of safetensors; this source is '{base.layout}'")
    progress("merge the adapter")
    with store.workspace() as work:
        out = work / "merged"
        out.mkdir()
        lora.merge(base.path, adapter, out)
        artifact = ingest(str(out), store, task=base.task)
    size = sum(file.stat().st_size for file in (folder / lora.CONFIG, folder / lora.WEIGHTS))
    return artifact, f"a LoRA adapter of rank {adapter.rank} ({size:,} bytes) is merged into {len(adapter.pairs)} layers"


def _as_it_is(store: Store, settings: Settings, spec: BuildSpec, artifact: Artifact, progress: Progress) -> Made:
    """Of GGUF: the file is the model, and llama.cpp tries it."""
    from maasdam.pipeline.as_it_is import refuse_flags, verified
    from maasdam.serving.upstreams.replica import UpstreamLoader
    from maasdam.telemetry.energy import open_meter
    from maasdam.telemetry.meter import CpuMeter

    refuse_flags(spec.recipe, to=spec.to, data=spec.data, calibrate=spec.calibrate, train=spec.train, processor=spec.processor)
    progress("open and try it")
    loader = UpstreamLoader(store, settings, CpuMeter(open_meter(settings.watts_per_core)))
    return Made(artifact, "as it is", asyncio.run(verified(artifact, loader.open)), [])


def _an_example(artifact: Artifact, paths: Data) -> list[Tensors]:
    """Tensors that show what TorchScript takes, which its file doesn't say; [] where none are given or needed."""
    from maasdam.pipeline.examples import evaluation_examples

    path = paths.data or paths.calibrate
    if artifact.layout != "torchscript" or artifact.signature is not None or artifact.task is not None or path is None:
        return []
    return [e.payload.tensors for e in evaluation_examples(artifact, path, 1) if isinstance(e.payload, TensorPayload)]


def _verified(
    settings: Settings, building: Build, candidate: Artifact, source: Artifact, examples: PreparedExamples, recipe: Recipe
) -> dict[str, Any]:
    from maasdam.engines.batching_kept import Findings
    from maasdam.pipeline.conditions import Conditions
    from maasdam.pipeline.verify import verify
    from maasdam.telemetry.energy import open_meter

    facts = [step.found for step in building.steps]
    references = building.references(source)
    meter = open_meter(settings.watts_per_core)
    conditions = Conditions(
        threads=settings.threads,
        measure_seconds=settings.measure_seconds,
        device=building.device,
        joules=meter.joules,
        progress=building.progress,
        attempts=building.attempts,
        notes=tuple(dict.fromkeys(building.notes)),
        calibration=next((f.calibration for f in facts if f.calibration), None),
        optimization=next((f.table for f in facts if f.table), ()),
    )
    report = verify(candidate, references, source, examples, recipe.limits, conditions)
    if candidate.signature is not None:
        threads = int(report.conditions["threads"])
        Findings(settings.home).keep(candidate, report.batching, device=building.device, threads=threads)
    return report.to_json()


def _check_flags(to: str | None, device: str) -> None:
    if to is not None and to not in FORMATS:
        raise InvalidInput(f"--to is '{to}'; it takes: {', '.join(FORMATS)}")
    if device not in DEVICES:
        raise InvalidInput(f"--device is '{device}'; it takes: {', '.join(DEVICES)}")
    if device == "cuda" and not _has_cuda():
        raise Unsupported("--device cuda: neither ONNX Runtime nor torch sees a CUDA device here; use --device cpu")


def _has_cuda() -> bool:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        return True
    try:
        import torch
    except ImportError:
        return False
    return bool(torch.cuda.is_available())


def _there(path: Path | None, flag: str) -> Path | None:
    if path is None:
        return None
    path = Path(path).expanduser().absolute()
    if not path.exists():
        raise InvalidInput(f"{flag}: nothing is at {path}")
    return path


def _examples(artifact: Artifact, paths: Data, progress: Progress) -> tuple[PreparedExamples, str | None]:
    """The evaluation examples, prepared, and what to say of them; --train checked against --data. Raises InvalidInput."""
    from maasdam.pipeline.examples import (
        PreparedExamples,
        Preparer,
        check_disjoint,
        evaluation_examples,
        held_out_examples,
        unlabelled_payloads,
    )

    examples = [] if paths.data is None else evaluation_examples(artifact, paths.data)
    train = [] if paths.train is None else evaluation_examples(artifact, paths.train)
    check_disjoint(train, examples)
    note = None
    if paths.calibrate is not None:
        if examples or artifact.signature is None:
            unlabelled_payloads(artifact.task, paths.calibrate, 1, signature=artifact.signature)
        else:
            examples, note = held_out_examples(artifact, paths.calibrate, train)
    prepared = PreparedExamples(examples)
    if examples and artifact.task != TEXT_GENERATION:  # texts may be longer than the context: they are cut into pieces
        prepared.prepare_all(Preparer(artifact), progress)
    return prepared, note


@contextmanager
def _reported(catalog: Catalog, build_id: str, progress: Progress) -> Iterator[Progress]:
    """A Progress that also beats in the build's row, at most once a second; the row ends with the work, well or not."""
    last, last_at = "", time.monotonic() - HEARTBEAT_SECONDS

    def tell(stage: str, done: int = 0, total: int | None = None) -> None:
        nonlocal last, last_at
        progress(stage, done, total)
        now = time.monotonic()
        if stage != last or now - last_at >= HEARTBEAT_SECONDS:
            last, last_at = stage, now
            catalog.heartbeat(build_id, stage, done / total if total else 0.0, stage)

    try:
        yield tell
    except BaseException as error:
        why = "interrupted" if isinstance(error, KeyboardInterrupt) else str(error) or type(error).__name__
        with suppress(StorageFailure):  # of a full disk the first error tells; the row is noted as interrupted later
            catalog.finish_build(build_id, error=why)
        raise
    catalog.finish_build(build_id)
