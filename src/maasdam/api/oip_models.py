"""What the Open Inference Protocol tells of models and changes of what is deployed, as data: each wire writes it its own way.

Knows the protocol's names, of Triton's extensions too. Refuses to know HTTP, gRPC and inference.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from maasdam import __version__
from maasdam.api.errors import without_places
from maasdam.api.fields import check_known
from maasdam.api.oip_tensors import FROM_NUMPY
from maasdam.core import TEXT_GENERATION, TensorSpec, split_name
from maasdam.errors import InvalidField, Unsupported
from maasdam.operations import deployments
from maasdam.operations.deployments import ServedVersion, served_version, served_versions, unserved_names
from maasdam.operations.fleet import SetLevel
from maasdam.operations.service import Service
from maasdam.operations.statistics import VersionStatistics
from maasdam.operations.statistics import statistics as told_statistics
from maasdam.tasks import carried_by

LOG_STEPS = {"log_info": logging.INFO, "log_warning": logging.WARNING, "log_error": logging.ERROR}
"""Triton's switches; each is of one level."""
STATES = {
    "ready": "READY",
    "asleep": "READY",
    "waking": "READY",
    "loading": "LOADING",
    "failed": "UNAVAILABLE",
    "stopping": "UNLOADING",
}
"""Our states in the model-repository extension's words: what is asleep answers, if later."""
WAKES = {"asleep": "it is loaded at the next request", "waking": "it is being loaded; requests wait for it"}
EXTENSIONS = (
    "binary_tensor_data",
    "classification",
    "model_repository",
    "model_configuration",
    "statistics",
    "generate",
    "logging",
)


def server() -> dict[str, Any]:
    """The server's name, version and extensions."""
    return {"name": "maasdam", "version": __version__, "extensions": list(EXTENSIONS)}


def metadata(service: Service, name: str) -> dict[str, Any]:
    """A model's versions, inputs and outputs. Raises NotFound, NotReady."""
    one = served_version(service, name)
    version, carried = one.version, carried_by(one.version.task)
    inputs, outputs = _tensors(one)
    parameters = {"task": version.task or "", "engine": version.engine, "digest": version.digest, "state": one.state}
    if one.signature is not None and carried is not None:
        parameters["also_takes"] = f"BYTES {carried.input} -> {', '.join(name for name, _ in carried.outputs)}"
    return {
        "name": version.model,
        "versions": [str(number) for number in sorted(o.version.version for o in served_versions(service, version.model))],
        "platform": f"{version.format}_{version.engine}",
        "inputs": inputs,
        "outputs": outputs,
        "parameters": parameters,
    }


def config(service: Service, name: str) -> dict[str, Any]:
    """The same as Triton's model configuration has it. Raises NotFound, NotReady."""
    one = served_version(service, name)
    version = one.version
    inputs, outputs = _tensors(one)
    told = {"task": version.task or "", "digest": version.digest, "version": str(version.version)}
    return {
        "name": version.model,
        "platform": f"{version.format}_{version.engine}",
        "backend": version.engine,
        "max_batch_size": 0,  # dims have every axis, the batch too
        "input": [_configured(tensor) for tensor in inputs],
        "output": [_configured(tensor) for tensor in outputs],
        "model_transaction_policy": {"decoupled": version.task == TEXT_GENERATION},
        "parameters": {key: {"string_value": value} for key, value in told.items()},
    }


async def statistics(service: Service, name: str = "") -> list[dict[str, Any]]:
    """What was asked of a version and what its engine ran, or of every version for "", as Triton's statistics have it.

    What an engine that puts requests together by itself runs, and how long, is not known: it is left out, and each answer
    counts as one. Raises NotFound, NotReady.
    """
    return [_statistics(one) for one in await told_statistics(service, name)]


def _statistics(one: VersionStatistics) -> dict[str, Any]:
    stats = {"success": _duration(*one.answered), "fail": _duration(*one.failed)}
    told: dict[str, Any] = {"name": one.model, "version": str(one.version), "inference_stats": stats}
    run = one.executions
    if run is None:
        return told | {"inference_count": one.answered[0], "execution_count": one.answered[0]}
    stats |= {"queue": _duration(run.items, run.waited), "compute_infer": _duration(run.items, run.seconds)}
    return told | {
        "last_inference": round(run.last * 1000),
        "inference_count": run.rows,
        "execution_count": run.batches,
        "batch_stats": [
            {"batch_size": rows, "compute_infer": _duration(*counted)} for rows, counted in sorted(run.by_rows.items())
        ],
    }


def _duration(count: int, seconds: float) -> dict[str, int]:
    return {"count": count, "ns": round(seconds * 1e9)}


def log_settings() -> dict[str, Any]:
    """What is logged, as Triton's settings have it; where, is for nobody who calls."""
    level = logging.getLogger().level
    steps = {name: level <= at for name, at in LOG_STEPS.items()}
    return {"log_file": "", **steps, "log_verbose_level": int(level <= logging.DEBUG), "log_format": "default"}


async def set_log(service: Service, asked: Mapping[str, Any]) -> dict[str, Any]:
    """Change what is logged from now on, until the service ends; the settings that are then. Raises InvalidField."""
    now = log_settings()
    check_known(asked, now, "log setting")
    for name, value in asked.items():
        kind = type(now[name])
        if type(value) is not kind or (kind is str and value != now[name]) or (kind is int and value < 0):
            takes = f"it stays {now[name]!r}" if kind is str else "send true or false" if kind is bool else "send 0 or more"
            raise InvalidField(f"log setting '{name}' is {value!r:.60}; {takes}", name)
    wants = now | dict(asked)
    steps = [wants[name] for name in LOG_STEPS]
    if steps != sorted(steps):
        raise InvalidField("what is worse than what is logged is logged too; switch off log_info first", "log_info")
    levels = (at for name, at in LOG_STEPS.items() if wants[name])
    level = logging.DEBUG if wants["log_verbose_level"] else next(levels, logging.CRITICAL)
    logging.getLogger().setLevel(level)
    await service.fleet.tell(SetLevel(level))
    return log_settings()


async def index(service: Service, only_ready: bool) -> list[dict[str, str]]:
    """Every version in the catalog with its state; those that are not deployed are UNAVAILABLE, which the reason says."""
    here = {(one.version.model, one.version.version): one for one in served_versions(service)}
    rows = [
        (model, str(number), STATES[one.state], WAKES.get(one.state) or without_places(one.reason or ""))
        for (model, number), one in here.items()
    ]
    if not only_ready:
        rows += [(model, "", "UNAVAILABLE", without_places(why)) for model, why in unserved_names(service).items()]
        every = await deployments.catalog_versions(service)
        rows += [(model, str(number), "UNAVAILABLE", "not deployed") for model, number in every if (model, number) not in here]
    return [
        {"name": name, "version": version, "state": state, "reason": why}
        for name, version, state, why in sorted(rows)
        if state == "READY" or not only_ready
    ]


async def load(service: Service, name: str, parameters: Mapping[str, Any]) -> None:
    """Deploy NAME or NAME:VERSION and wait until it answers. Raises NotFound, NotReady, InvalidModel, Unsupported."""
    if parameters:  # files or a configuration of its own
        raise Unsupported("load takes no parameters here; register a version with maasdam build, then load it")
    await deployments.load(service, name)


async def unload(service: Service, name: str, parameters: Mapping[str, Any]) -> None:
    """Take a model out of the service; requests in flight finish. No model depends on another here. Raises NotFound."""
    check_known(parameters, ("unload_dependents",), "parameter")
    if not isinstance(parameters.get("unload_dependents", False), bool | None):
        raise InvalidField("parameter 'unload_dependents' is no truth value; send true or false", "unload_dependents")
    await deployments.undeploy(service, split_name(name)[0])


def _tensors(one: ServedVersion) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Inputs and outputs: of the signature, or of what carries the task; none while it loads."""
    carried = carried_by(one.version.task)
    if one.signature is not None:
        return [_tensor(spec) for spec in one.signature.inputs], [_tensor(spec) for spec in one.signature.outputs]
    if carried is None:
        return [], []
    told = [{"name": name, "datatype": kind, "shape": [-1]} for name, kind in ((carried.input, "BYTES"), *carried.outputs)]
    return told[:1], told[1:]


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    shape = [-1 if size is None else size for size in spec.shape]
    return {"name": spec.name, "datatype": FROM_NUMPY.get(spec.dtype, spec.dtype.upper()), "shape": shape}


def _configured(tensor: Mapping[str, Any]) -> dict[str, Any]:
    kind = "STRING" if tensor["datatype"] == "BYTES" else tensor["datatype"]
    return {"name": tensor["name"], "data_type": f"TYPE_{kind}", "dims": tensor["shape"]}
