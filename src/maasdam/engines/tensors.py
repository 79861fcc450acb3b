"""What all tensor engines do around a batch: check it, and turn what breaks inside into EngineFailure.

Knows signatures and names. Refuses to know any framework.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from keyword import iskeyword
from typing import Any, TypeVar

from maasdam.core import Artifact, Signature, Tensors
from maasdam.errors import EngineFailure, InvalidInput, InvalidModel, InvalidTensor, MaasdamError, MissingExtra

LARGE_BYTES = 256 * 1024 * 1024
"""After an answer larger than this an engine gives the memory back, where its library can."""


T = TypeVar("T")


@contextmanager
def computing(engine: str, opened: T | None, signature: Signature, batch: Tensors) -> Iterator[T]:
    """What was opened, to run a batch that fits: InvalidTensor for another, EngineFailure where `close` came before.

    What the engine's library raises meanwhile becomes EngineFailure with the first line of its message. Where the batch has
    an axis of size 0, or first axes of different sizes, it is the batch that is no good: InvalidTensor.
    """
    if opened is None:
        raise closed(engine)
    signature.check(batch)
    try:
        yield opened
    except MaasdamError:
        raise
    except Exception as error:
        empty = next((name for name, array in batch.items() if array.size == 0), None)
        if empty is not None:
            raise InvalidTensor(f"this model can't take input '{empty}' empty: {list(batch[empty].shape)}") from error
        sized = {s.name: batch[s.name].shape for s in signature.inputs if s.shape and s.shape[0] is None}
        if len({shape[0] for shape in sized.values()}) > 1:
            sizes = ", ".join(f"{name} {list(shape)}" for name, shape in sized.items())
            raise InvalidTensor(f"this model can't take inputs of these sizes together: {sizes}") from error
        raise EngineFailure(f"engine {engine} broke on a batch: {first_line(error)}") from error


@contextmanager
def loading_with(engine: str, artifact: Artifact, extra: str | None = None) -> Iterator[None]:
    """What an engine's library raises while it loads becomes InvalidModel; a missing library becomes MissingExtra."""
    try:
        yield
    except MaasdamError:
        raise
    except ImportError as error:
        if extra is None:
            raise
        raise MissingExtra(
            f"engine {engine} needs {error.name or error}, which is not installed; run: pip install 'maasdam[{extra}]'"
        ) from error
    except Exception as error:
        raise InvalidModel(
            f"engine {engine} can't load the {artifact.layout} model {artifact.digest[:19]}: {first_line(error)}"
        ) from error


def chosen(settings: Mapping[str, Any], name: str, default: str, among: Iterable[str]) -> str:
    """A setting that takes one of a few words. Raises InvalidInput for another."""
    value = settings.get(name, default)
    if value not in (words := tuple(among)):
        raise InvalidInput(f"setting '{name}' is {value!r}; it takes one of: {', '.join(words)}")
    return str(value)


def first_line(error: BaseException) -> str:
    """The error's kind and the start of its message, on one line of at most 300 characters."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__


def closed(engine: str) -> EngineFailure:
    """The error of a call that came after `close`."""
    return EngineFailure(f"the {engine} engine was closed; open the model again")


def identifier(name: str) -> str:
    """A tensor's name as Python allows names of parameters: past_key_values.0.key is past_key_values_0_key.

    Programs of torch.export and functions of TensorFlow can't have others.
    """
    return re.sub(r"\W|^(?=\d)", "_", name)


def parameter_names(names: Sequence[str]) -> list[str]:
    """As torch.export calls a program's inputs of these names: small letters, digits and underscores, no two alike.

    Where names can't be told apart so, or are Python's own words, all are numbered: tensor_0, tensor_1.
    """
    plain = [_plain(name) for name in names]
    if len(set(plain)) == len(plain) and all(p.isidentifier() and not iskeyword(p) and p != "self" for p in plain):
        return plain
    return [f"tensor_{i}" for i in range(len(names))]


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9_]|^(?=\d)", "_", name.lower())


def must_have(names: Iterable[str], wanted: Signature, side: str) -> None:
    """Raise InvalidModel unless the file has every tensor that the signature names on that side ("inputs", "outputs")."""
    has = set(names)
    specs = wanted.inputs if side == "inputs" else wanted.outputs
    missing = [s.name for s in specs if s.name not in has and identifier(s.name) not in has]
    if missing:
        raise InvalidModel(f"the model has no {side} {', '.join(missing)}; its {side} are: {', '.join(sorted(has)) or 'none'}")


def positions(names: Sequence[str], available: Sequence[Iterable[str]], side: str) -> list[int]:
    """Where each of `names`, or its identifier, is among ports that may have several names each; by position where none fits.

    Raises InvalidModel where some names fit and others don't, or the counts differ.
    """
    sets = [set(port) for port in available]
    places: Mapping[str, int] = {name: i for i, port in enumerate(sets) for name in port}
    for called in (list(names), [identifier(name) for name in names], parameter_names(names)):
        if all(name in places for name in called):
            return [places[name] for name in called]
    if not any(name in places for name in names) and len(names) == len(sets):
        return list(range(len(names)))
    has = ", ".join(sorted(places))
    raise InvalidModel(f"the model's {side} are {has}; the signature says {', '.join(names)}")
