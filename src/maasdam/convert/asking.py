"""What a model takes and gives, found by opening it where its files don't say: transformers of other tasks, TorchScript, Keras.

Knows what transformers call their inputs, and what first layers look like. What it finds was run; it refuses to assume.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from maasdam.convert.modules import called, first_line, load_transformers, raising, writes_as_it_is
from maasdam.convert.networks import parts_of
from maasdam.convert.probes import Sizes, accepted
from maasdam.core import Artifact, Signature, TensorEngine, Tensors, TensorSpec
from maasdam.errors import EngineFailure, InvalidModel, InvalidTensor, Unsupported

if TYPE_CHECKING:
    import torch

    from maasdam.artifacts.store import Store

Run = Callable[[Mapping[str, Any]], Mapping[str, Any]]
"""Tensors by name to tensors by name."""
ASKED = (Sizes(2), Sizes(3, 1.6))
"""Two that differ in everything: what stays the same in the answer is fixed."""
SIDES = (224, 64, 32, 28, 96, 128, 299)
LENGTHS = (12, 400, 4000)
MOST_GUESSES = 400


def with_signatures(source: Artifact, given: Sequence[Tensors] = ()) -> tuple[Artifact, ...]:
    """The artifact with a signature, where it had none and running it tells one; every other as it is.

    `given` are real inputs, which say more than a guess. Where more than one signature may serve, the most open one comes
    first. Raises Unsupported saying what to give where none was found.
    """
    if source.signature is not None or parts_of(source):
        return (source,)
    if source.layout == "huggingface":
        return (replace(source, signature=_of_transformers(source), engine="pytorch"),)
    if source.layout == "torchscript":
        return tuple(replace(source, signature=signature) for signature in _of_script(source, given))
    if source.layout == "keras":
        from maasdam.engines.keras_library import open_keras

        return (replace(source, signature=open_keras(source.path / "model.keras").signature),)
    return (source,)


def of_one(source: Artifact) -> Artifact | None:
    """The artifact with its open first axes fixed at one, where it runs on a batch of one and on no batch of two; else None.

    Exporters open the batch of networks whose state is that of one row.
    """
    from maasdam.engines import open_engine

    signature = source.signature
    if signature is None or not any(s.shape and s.shape[0] is None for s in signature.inputs):
        return None
    with closing(cast(TensorEngine, open_engine(source))) as engine:
        with suppress(EngineFailure, InvalidTensor):
            accepted(engine.run, signature, ASKED[0], seed=0, folder=source.path)
            return None
        single = Signature(tuple(_of_one(s) for s in signature.inputs), signature.outputs)
        with suppress(EngineFailure, InvalidTensor):
            _, answer = accepted(engine.run, single, Sizes(1), seed=0, folder=source.path)
            outputs = tuple(_of_one(s) if answer[s.name].shape[:1] == (1,) else s for s in signature.outputs)
            return replace(source, signature=Signature(single.inputs, outputs))
    return None


def _of_one(spec: TensorSpec) -> TensorSpec:
    is_open = bool(spec.shape) and spec.shape[0] is None
    return replace(spec, shape=(1, *spec.shape[1:]), axes=()) if is_open else spec


def _has_a_state(signature: Signature) -> bool:
    """Is there something of a fixed size beside a batch?"""
    opens = [None in s.shape for s in signature.inputs]
    return any(opens) and not all(opens)


def store_with_signature(source: Artifact, store: Store, given: Sequence[Tensors] = ()) -> Artifact:
    """`source` with the most open signature that asking finds, as an artifact of the store; itself where it has one.

    What has something of a fixed size beside a batch is tried, since that batch may be one in truth. Raises what asking does.
    """
    if writes_as_it_is(source):
        return source
    found = with_signatures(source, given)[0]
    if found.signature is not None and _has_a_state(found.signature):
        found = of_one(found) or found
    if found.signature == source.signature:
        return source
    return store.add_as(source.path, found, found.task, source.digest)


def _of_transformers(source: Artifact) -> Signature:
    import torch

    model = load_transformers(source, "eager")
    if getattr(model.config, "is_encoder_decoder", False):
        raise Unsupported(f"{called(source)} is an encoder-decoder; of models that generate only decoders and Whisper convert")

    def run(tensors: Mapping[str, Any]) -> Mapping[str, Any]:
        with torch.no_grad():
            answer = model(**tensors, return_dict=True)
        return {name: value for name, value in answer.items() if isinstance(value, torch.Tensor)}

    failure: Exception | None = None
    for inputs in _transformers_inputs(model, source.path):
        try:
            return _with_outputs(run, inputs, source.path)
        except Exception as error:  # transformers raises anything for inputs that are not what it wants
            failure = failure or error
    reason = first_line(failure) if failure else "it takes none of input_ids, pixel_values, input_values, input_features"
    raise Unsupported(
        f"nothing tells what {called(source)} takes, and it did not run on what such models take ({reason}); "
        "export it with torch.export (.pt2) and convert that"
    )


def _transformers_inputs(model: Any, folder: Path) -> Iterator[tuple[TensorSpec, ...]]:
    """What the model may take, likeliest first."""
    from maasdam.sources.bounds import Place
    from maasdam.sources.hfconfig import describe
    from maasdam.sources.huggingface import image_size, text_inputs

    takes = inspect.signature(model.forward).parameters
    config = model.config
    shapes = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
    words, *beside = text_inputs(shapes)
    mask = [spec for spec in beside if spec.name in takes]
    inner = getattr(config, "vision_config", config)
    side = getattr(inner, "image_size", None)
    height, width = image_size(describe(Place(folder)))
    if height is None and side is not None:
        height, width = side if isinstance(side, list | tuple) else (side, side)
    channels = getattr(inner, "num_channels", 3)
    images = [TensorSpec("pixel_values", "float32", (None, channels, height, width), "NCHW")]
    if {"input_ids", "pixel_values"} <= takes.keys():
        yield (words, *images, *mask)
    if "pixel_values" in takes:
        yield tuple(images)
    if "input_ids" in takes and model.main_input_name == "input_ids":
        yield (words, *mask)
    if "input_values" in takes:
        yield (TensorSpec("input_values", "float32", (None, None), "NT"),)
        yield (TensorSpec("input_values", "float32", (None, getattr(config, "max_length", None), _bands(config))),)
    if "input_features" in takes:
        features = TensorSpec("input_features", "float32", (None, None, _bands(config)), "NTF")
        yield (features, *(spec for spec in mask if spec.name == "attention_mask"))
        yield (features,)


def _bands(config: Any) -> int | None:
    names = ("num_mel_bins", "feature_projection_input_dim", "input_feat_per_channel")
    return next((getattr(config, n) for n in names if isinstance(getattr(config, n, None), int)), 80)


def _with_outputs(run: Run, inputs: tuple[TensorSpec, ...], folder: Path) -> Signature:
    """The signature whose outputs `run` gives, each axis open that differs between two runs."""
    import torch

    def answer(batch: Mapping[str, Any]) -> Mapping[str, Any]:
        return run({name: torch.from_numpy(array) for name, array in batch.items()})

    asked_for = Signature(inputs, ())
    first, second = (accepted(answer, asked_for, sizes, seed=0, folder=folder)[1] for sizes in ASKED)
    if not first or list(first) != list(second):
        raise ValueError("it answers with no tensors by name")
    return Signature(inputs, tuple(_output(name, first[name], second[name]) for name in first))


def _output(name: str, first: torch.Tensor, second: torch.Tensor) -> TensorSpec:
    shape = tuple(a if a == b else None for a, b in zip(first.shape, second.shape, strict=True))
    return TensorSpec(name, str(first.dtype).removeprefix("torch."), shape)


def _of_script(source: Artifact, given: Sequence[Tensors]) -> list[Signature]:
    """TorchScript tells names only: shapes are those of `given`, else what its first layers take and it runs on.

    With every axis open that may be, then with the sides of images fixed, which not every format can leave open.
    """
    import torch

    load: Any = torch.jit.load
    with raising(InvalidModel, "torch can't load the TorchScript"):
        script = load(str(source.path / "model.pt"), map_location="cpu").eval()
    names = [a.name for a in script.forward.schema.arguments[1:] if not a.has_default_value()]

    def run(tensors: Mapping[str, Any]) -> Mapping[str, Any]:
        with torch.no_grad():
            return _named(script(*(tensors[name] for name in names)))

    if given and set(given[0]) != set(names):
        raise Unsupported(f"the TorchScript takes {', '.join(names)}; the data name {', '.join(given[0])}")
    guesses = [{n: (a.dtype.name, a.shape) for n, a in given[0].items()}] if given else _guesses(script, names)
    for guess in guesses:
        batch = {name: _example(*guess[name]) for name in names}
        try:
            run(batch)
        except Exception:  # whatever torch raises: the next guess then
            continue
        whole = max(len(shape) for _, shape in guess.values())
        found = [_opened(run, guess, names, most) for most in (whole, 2)]
        return found[:1] if found[0] == found[1] else found
    takes = ", ".join(names) or "nothing"
    raise Unsupported(
        f"the TorchScript takes {takes} and tells no shapes, and none that was tried fits; give one example with --data: an "
        ".npz file with an array of each name. Or export the model with torch.export (.pt2), which tells them"
    )


def _named(answer: Any) -> dict[str, Any]:
    import torch

    if isinstance(answer, torch.Tensor):
        return {"output": answer}
    pairs = answer.items() if isinstance(answer, Mapping) else ((f"output_{i}", each) for i, each in enumerate(answer))
    found = {str(name): each for name, each in pairs}
    if not found or not all(isinstance(each, torch.Tensor) for each in found.values()):
        raise Unsupported("the TorchScript answers with other things than tensors; export one that answers with tensors")
    return found


def _guesses(script: Any, names: list[str]) -> Iterator[dict[str, tuple[str, tuple[int, ...]]]]:
    kinds = list(dict.fromkeys(_kinds(script)))
    likely: list[Any] = [(kind,) * len(names) for kind in kinds]
    rest = (each for each in product(kinds, repeat=len(names)) if len(set(each)) > 1) if len(names) < 4 else iter(())
    for count, shapes in enumerate([*likely, *rest]):
        if count < MOST_GUESSES:
            yield dict(zip(names, shapes, strict=True))


def _kinds(script: Any) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(dtype, shape) that the layers take, in the order of their weights."""
    for name, weight in script.state_dict().items():
        shape = tuple(weight.shape)
        if not name.endswith("weight") and "weight_ih" not in name:
            continue
        if len(shape) == 4:
            yield from (("float32", (2, shape[1], side, side)) for side in SIDES)
        elif len(shape) == 3:
            yield from (("float32", (2, shape[1], length)) for length in LENGTHS)
        elif len(shape) == 2 and ("emb" in name.lower() or "word" in name.lower()):
            yield from (("int64", (2, length)) for length in LENGTHS[:1])
        elif len(shape) == 2:
            yield from (("float32", (2, shape[1])), ("float32", (2, LENGTHS[0], shape[1])), ("int64", (2, LENGTHS[0])))


def _example(dtype: str, shape: tuple[int, ...]) -> torch.Tensor:
    import torch

    kind = getattr(torch, dtype)
    return torch.randn(shape).to(kind) if kind.is_floating_point else torch.ones(shape).to(kind)


def _opened(run: Run, guess: Mapping[str, tuple[str, tuple[int, ...]]], names: list[str], most: int) -> Signature:
    """Each of the first `most` axes open that may have another size; the first two are the same in all inputs."""
    sizes = {name: list(guess[name][1]) for name in names}
    runs = [(dict(sizes), run({n: _example(guess[n][0], tuple(s)) for n, s in sizes.items()}))]
    open_axes: set[tuple[str, int]] = set()
    for axis in range(most):
        whole = [n for n in names if axis < len(sizes[n])]
        for some in [whole] if axis < 2 else [[n] for n in whole]:
            other = {n: [s + 4 * (i == axis and n in some) for i, s in enumerate(sizes[n])] for n in names}
            try:
                runs.append((other, run({n: _example(guess[n][0], tuple(s)) for n, s in other.items()})))
            except Exception:  # then this axis is fixed
                continue
            open_axes |= {(n, axis) for n in some}
    first = runs[0][1]
    inputs = tuple(
        TensorSpec(n, guess[n][0], tuple(None if (n, i) in open_axes else s for i, s in enumerate(sizes[n]))) for n in names
    )
    outputs = []
    for name, tensor in first.items():
        fixed = [all(answer[name].shape[i] == s for _, answer in runs) for i, s in enumerate(tensor.shape)]
        shape = tuple(s if same else None for s, same in zip(tensor.shape, fixed, strict=True))
        outputs.append(TensorSpec(name, str(tensor.dtype).removeprefix("torch."), shape))
    return Signature(inputs, tuple(outputs))
