"""Kernels of If and Loop. What they decide on follows from the model or from shapes, and torch.export unrolls them; only an If
may decide on data: then the program holds both of its branches.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from maasdam.convert.operators.interpreter import Body
from maasdam.errors import Unsupported


def either(condition: Any, then_branch: Body, else_branch: Body) -> tuple[Tensor, ...]:
    """One of two branches, which only the run can tell."""
    if isinstance(condition, Tensor):
        return _both(condition.reshape(()), then_branch, else_branch)
    try:  # a length decides
        return _both(condition, then_branch, else_branch)
    except Unsupported:  # branches of other shapes: the program holds one, for the lengths that take it
        return tuple(then_branch() if condition else else_branch())


def _both(condition: Tensor | torch.SymBool, *branches: Body) -> tuple[Tensor, ...]:
    """One of two branches, chosen when the program runs."""
    from torch._higher_order_ops.cond import cond_op  # torch.cond calls dynamo, which does not follow the walk of a graph

    cond: Any = cond_op

    if any(isinstance(v, list) for b in branches for v in b.outer.values()):
        raise Unsupported("an If of the model decides on data, and its branches read a sequence")
    names = sorted({n for b in branches for n, v in b.outer.items() if isinstance(v, Tensor)})
    given: dict[str, Tensor] = {}
    places: list[dict[str, str]] = []
    for branch in branches:  # the two may have constants of one name
        place = {}
        for name in names:
            if isinstance(value := branch.outer.get(name), Tensor):
                key = next((k for k, v in given.items() if v is value), f"{len(given)}")
                given[key], place[name] = value, key
        places.append(place)

    def traced(branch: Body, place: dict[str, str]) -> Any:
        def function(*tensors: Tensor) -> tuple[Tensor, ...]:
            known = dict(zip(given, tensors, strict=True))
            outer = {**branch.outer, **{name: known[key] for name, key in place.items()}}
            # a branch may not give back what it was given, nor a view of it
            body: Body = replace(branch, outer=outer)
            return tuple(v.clone(memory_format=torch.contiguous_format) for v in body())

        return function

    functions = [traced(b, p) for b, p in zip(branches, places, strict=True)]
    try:
        found: tuple[Tensor, ...] = tuple(cond(condition, *functions, tuple(given.values())))
    except Unsupported:
        raise
    except Exception as error:  # torch raises its own kinds where the branches give other shapes
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise Unsupported(
            f"an If of the model decides on data, and PyTorch can't hold both of its branches: {reason[:300]}"
        ) from error
    return found


def loop(limit: Any, condition: Any, carried: tuple[Tensor, ...], body: Callable[..., list[Any]]) -> tuple[Tensor, ...]:
    """Turn by turn: what is carried, then what each turn gives, stacked."""
    goes_on = known(condition) if isinstance(condition, Tensor) else condition
    if condition is not None and goes_on is None:
        raise Unsupported(
            "a loop of the model goes on for as long as its data say, and torch.export has to know how long: convert to "
            "another format than pytorch"
        )
    if isinstance(limit, torch.SymInt):
        raise Unsupported(
            "a loop of the model takes as many turns as an input is long, and torch.export has to know how many: fix that "
            "length in the model, or convert to another format than pytorch"
        )
    values, turn = list(carried), 0
    scanned: list[list[Tensor]] | None = None
    while (limit is None or turn < limit) and (goes_on is None or goes_on):
        going, *found = body(np.array(turn, np.int64), np.array(True), *values)
        values = found[: len(carried)]
        rest = found[len(carried) :]
        scanned = [[] for _ in rest] if scanned is None else scanned
        for each, value in zip(scanned, rest, strict=True):
            each.append(value)
        goes_on, turn = bool(going), turn + 1
    return (*values, *(torch.stack(each) for each in scanned or []))


def known(value: Any) -> Any:
    """The number that a value of one element is, in every run; None where only the run can tell."""
    if isinstance(value, Tensor):
        value = getattr(value, "constant", None) if torch.compiler.is_compiling() else value
        return value if value is None else value.item()
    return None if isinstance(value, torch.SymBool | torch.SymInt | torch.SymFloat) else value


def slice_at(x: Tensor, turn: np.ndarray[Any, Any]) -> Tensor:
    """What a Scan's turn sees of its first axis."""
    return x.select(0, int(turn))
