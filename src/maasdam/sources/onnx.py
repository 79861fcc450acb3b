"""ONNX: what `.onnx` files say of themselves.

Knows ONNX's messages by field number and where external weights may lie. Refuses to load weights or run operators.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from maasdam.core import Axis, Signature, TensorSpec
from maasdam.errors import InvalidModel, UnsafeModel, Unsupported
from maasdam.sources.bounds import MAX_AXIS, MAX_RANK, Place, commonest, head
from maasdam.sources.finding import Reading, Risk, told_apart, with_axes
from maasdam.sources.hfconfig import PROCESSOR_FILES
from maasdam.sources.wire import Message, mapped

MAX_ONNX_BYTES = 2**31 - 1
"""What a protocol buffer may hold; larger models keep their weights in external files."""
MAX_NAMED_INPUTS = 4096

_DTYPES = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 8: "object", 9: "bool",
    10: "float16", 11: "float64", 12: "uint32", 13: "uint64", 14: "complex64", 15: "complex128", 16: "bfloat16",
    17: "float8_e4m3fn", 18: "float8_e4m3fnuz", 19: "float8_e5m2", 20: "float8_e5m2fnuz", 21: "uint4", 22: "int4",
    23: "float4_e2m1fn", 24: "float8_e8m0fnu", 25: "uint2", 26: "int2",
}  # fmt: skip
_BITS = {
    1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64, 14: 64, 15: 128, 16: 16,
    17: 8, 18: 8, 19: 8, 20: 8, 21: 4, 22: 4, 23: 4, 24: 8, 25: 2, 26: 2,
}  # fmt: skip
_KNOWN_DOMAINS = {"", "ai.onnx", "ai.onnx.ml", "ai.onnx.training", "ai.onnx.preview.training", "com.microsoft"}
_PYTHON_OPERATORS = {"PyOp", "PythonOp", "PythonOpGrad", "ATen"}
_BINARY_OPERATORS = {"EPContext"}
"""Operators that hold, or name a file with, a program made for one device."""
MAX_UNFOLDED_NODES = 2_000_000
"""Nodes once every function of the model's own is written out where it is called, as engines do."""
_EXTERNAL = 1
NAN_READERS = {
    *((domain, "IsNaN") for domain in ("", "ai.onnx")),
    *(("ai.onnx.ml", name) for name in ("Imputer", "TreeEnsemble", "TreeEnsembleClassifier", "TreeEnsembleRegressor")),
}
"""(domain, operator) of those to which NaN is a missing value."""
_MOVES = {
    *("Identity", "Cast", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Gather", "Split", "Concat"),
    *("ArrayFeatureExtractor", "FeatureVectorizer", "Expand", "Pad"),
}
_SCALES = {"Sub", "Add", "Mul", "Div"}


_Function = tuple[str, str, str]
"""(domain, name, overload)"""


@dataclass
class _Totals:
    """What the walk over a model's graphs adds up."""

    parameters: int = 0
    elements_by_dtype: Counter[str] = field(default_factory=Counter)
    externals: dict[str, int] = field(default_factory=dict)
    """location -> the bytes it must at least have."""
    operators: Counter[tuple[str, str]] = field(default_factory=Counter)
    calls: Counter[_Function] = field(default_factory=Counter)
    """Nodes by what they would call, were there a function of that name."""


def read(place: Place, name: str) -> Reading:
    """Read `name` in `place`. Raises InvalidModel when it is no whole ONNX model, UnsafeModel when it reaches out."""
    path = place.need(name, "the model file is missing")
    size = path.stat().st_size
    if size == 0:
        raise InvalidModel(f"{path} is empty (0 bytes); fetch or export it again")
    if size > MAX_ONNX_BYTES:
        raise InvalidModel(f"{path} is over 2 GiB, more than an ONNX file may be; save its weights as external data")
    _check_is_binary(path)
    totals = _Totals()
    with mapped(path, str(path)) as model:
        graph = model.message(7)
        if graph is None or not model.numbers(1):
            raise InvalidModel(f"{path} is not an ONNX model (no graph in it); export it again")
        functions = {(fn.text(10), fn.text(1)) for fn in model.messages(25)}
        opsets = {opset.text(1): opset.number(2) for opset in model.messages(8)}
        if not opsets:
            raise InvalidModel(f"{path} is not an ONNX model (it imports no operator set); export it again")
        weights = _walk(graph, totals, str(path))
        _check_functions(model, totals, str(path))
        inputs, first_axes = list(_specs(graph, 11, skip=weights, what=str(path))), list(_first_axes(graph, weights))
        missing = takes_nan(graph, inputs, weights) if totals.operators.keys() & NAN_READERS else set()
        inputs = [replace(spec, takes_nan=True) if spec.name in missing else spec for spec in inputs]
        specs = with_axes(told_apart(inputs, first_axes), list(_axes(graph, weights)))
        signature = Signature(specs, tuple(_specs(graph, 12, skip=set(), what=str(path))))
        producer = " ".join(filter(None, (model.text(2), model.text(3))))
    if not signature.outputs:
        raise InvalidModel(f"{path} has no outputs; export it again")
    files = {"model.onnx": path} | _externals(place, name, totals.externals)
    if not any((place.path / name).parent.joinpath(location).is_symlink() for location in totals.externals):
        _check_model(place.path / name)  # links of the Hugging Face cache: the checker wants files; ingest checks the copy
    return Reading(
        format="onnx",
        layout="onnx",
        files=files,
        signature=signature,
        parameters=totals.parameters,
        precision=commonest(totals.elements_by_dtype),
        risks=tuple(_risks(totals, functions)),
        notes=tuple(_notes(totals, functions, opsets, producer)),
    )


def is_onnx(start: bytes) -> bool:
    """Whether a file that starts so may be ONNX: field 1 (ir_version) as a small integer comes first."""
    return (
        len(start) >= 3
        and start[0] == 0x08
        and 1 <= start[1] <= 0x20
        and start[2] in (0x12, 0x1A, 0x22, 0x2A, 0x32, 0x3A, 0x42)
    )


def _check_is_binary(path: Path) -> None:
    start = head(path, 512)
    if start.startswith(b"version https://git-lfs"):
        raise InvalidModel(f"{path} is a Git LFS pointer, not the model; run: git lfs pull")
    if start.isascii() and all(byte >= 0x20 or byte in b"\t\r\n" for byte in start):
        raise InvalidModel(f"{path} is a text file, not an ONNX model; export the model to ONNX and give that file")


def _walk(graph: Message, totals: _Totals, what: str) -> set[str]:
    """Add up a graph and those within it; the names of its initializers."""
    weights: set[str] = set()
    for tensor in graph.messages(5):
        weights.add(tensor.text(8))
        _add_tensor(tensor, totals, what, counts=True)
    for sparse in graph.messages(15):
        for number in (1, 2):
            tensor_or_none = sparse.message(number)
            if tensor_or_none is not None:
                weights.add(tensor_or_none.text(8))
                _add_tensor(tensor_or_none, totals, what, counts=number == 1)
    for node in graph.messages(1):
        _walk_node(node, totals, what)
    return weights


def _check_functions(model: Message, totals: _Totals, what: str) -> None:
    """Add up the model's own functions. Raises InvalidModel where writing them out would unfold without measure or end."""
    main = ("", "", "")
    calls = {main: Counter(totals.calls)}
    for fn in model.messages(25):
        own = _Totals()
        for node in fn.messages(7):
            _walk_node(node, own, what)
        calls[(fn.text(10), fn.text(1), fn.text(13))] = own.calls
        totals.operators += own.operators
        totals.parameters += own.parameters
        totals.elements_by_dtype += own.elements_by_dtype
        totals.externals |= {name: max(size, totals.externals.get(name, 0)) for name, size in own.externals.items()}
    sizes: dict[_Function, int] = {}
    waiting = [main]
    opened: set[_Function] = set()
    while waiting:  # depth first, without Python's own stack
        name = waiting[-1]
        inner = [called for called in calls[name] if called in calls and called not in sizes]
        if inner and name not in opened:
            opened.add(name)
            waiting += inner
            continue
        if inner:
            raise InvalidModel(f"{what} has functions that call themselves ('{name[1][:80]}'); export the model again")
        waiting.pop()
        sizes[name] = sum(count * sizes.get(called, 1) for called, count in calls[name].items())
        if sizes[name] > MAX_UNFOLDED_NODES:
            raise InvalidModel(
                f"{what} unfolds to over {MAX_UNFOLDED_NODES:,} nodes once its functions are written out: refused as a bomb; "
                "export the model again"
            )


def _walk_node(node: Message, totals: _Totals, what: str) -> None:
    operator = node.text(4)
    totals.operators[(node.text(7), operator)] += 1
    totals.calls[(node.text(7), operator, node.text(8))] += 1
    for attribute in node.messages(5):
        for number in (5, 10):
            for tensor in attribute.messages(number):
                _add_tensor(tensor, totals, what, counts=operator == "Constant")
        for number in (6, 11):
            for graph in attribute.messages(number):
                _walk(graph, totals, what)


def _add_tensor(tensor: Message, totals: _Totals, what: str, counts: bool) -> None:
    dims = tensor.numbers(1)
    kind = tensor.number(2)
    name = tensor.text(8)
    if kind not in _DTYPES or len(dims) > MAX_RANK or min((0, *dims)) < 0 or max((0, *dims)) > MAX_AXIS:
        raise InvalidModel(f"{what}: the weight '{name}' has an unknown type or an impossible shape; export the model again")
    elements = math.prod(dims)
    needed = None if kind not in _BITS else (elements * _BITS[kind] + 7) // 8
    if tensor.number(14) == _EXTERNAL or tensor.has(13):
        entries = {entry.text(1): entry.text(2) for entry in tensor.messages(13)}
        try:
            offset, length = int(entries.get("offset", "0")), int(entries.get("length", str(needed or 0)))
        except ValueError:
            raise InvalidModel(f"{what}: the weight '{name}' has no readable place in its external file") from None
        if offset < 0 or length < 0 or (needed is not None and length != needed):
            raise InvalidModel(f"{what}: the weight '{name}' claims {length:,} external bytes where its shape needs {needed:,}")
        location = entries.get("location", "")
        totals.externals[location] = max(totals.externals.get(location, 0), offset + length)
    else:
        stored = tensor.size(9)
        if stored is not None and needed is not None and stored != needed:
            raise InvalidModel(
                f"{what}: the weight '{name}' stores {stored:,} bytes where its shape needs {needed:,}; export it again"
            )
    if counts:
        totals.parameters += elements
        totals.elements_by_dtype[_DTYPES[kind]] += elements


def _specs(graph: Message, number: int, skip: set[str], what: str) -> Iterator[TensorSpec]:
    count = 0
    for value in graph.messages(number):
        name = value.text(1)
        if name in skip:
            continue
        count += 1
        if count > MAX_NAMED_INPUTS:
            raise InvalidModel(f"{what} has over {MAX_NAMED_INPUTS:,} inputs or outputs; it is no model that can be served")
        tensor = _tensor_type(value)
        if tensor is None:
            raise Unsupported(
                f"{what}: '{name}' is not a tensor (a sequence, map or optional); export the model with tensors only"
            )
        shape = tensor.message(2)
        if shape is None:
            raise Unsupported(f"{what}: '{name}' has no shape, not even its number of axes; export the model with shapes")
        yield TensorSpec(name, _DTYPES.get(tensor.number(1), "object"), tuple(_dimension(dim) for dim in shape.messages(1)))


def _first_axes(graph: Message, skip: set[str]) -> Iterator[str]:
    """The name of each input's first axis; "" where it has none."""
    for dims in _dimensions(graph, skip):
        yield next((dim.text(2) for dim in dims), "")


def _axes(graph: Message, skip: set[str]) -> Iterator[list[Axis | None]]:
    """The open axes of each input that have a name."""
    for dims in _dimensions(graph, skip):
        yield [Axis(d.text(2)) if _dimension(d) is None and d.text(2).isidentifier() else None for d in dims]


def _dimensions(graph: Message, skip: set[str]) -> Iterator[list[Message]]:
    for value in graph.messages(11):
        if value.text(1) in skip:
            continue
        tensor = _tensor_type(value)
        shape = tensor.message(2) if tensor else None
        yield list(shape.messages(1)) if shape else []


def _tensor_type(value: Message) -> Message | None:
    kind = value.message(2)
    return kind.message(1) if kind else None


def takes_nan(graph: Message, inputs: list[TensorSpec], weights: set[str]) -> set[str]:
    """The inputs of floats whose values reach an operator that reads NaN as a missing value, moved or scaled at most."""
    floats = {spec.name for spec in inputs if spec.dtype.startswith(("float", "bfloat"))}
    stands_for = {name: {name} for name in floats}
    constants = set(weights)
    takers: set[str] = set()
    for node in graph.messages(1):  # in the order they are computed
        takes, operator = node.texts(1), node.text(4)
        known = [name for name in takes if name in stands_for]
        if operator == "Constant":
            constants.update(node.texts(2))
        elif (node.text(7), operator) in NAN_READERS and known:
            takers |= stands_for[known[0]]
        elif known and (operator in _MOVES or (operator in _SCALES and all(n in stands_for or n in constants for n in takes))):
            reached = set().union(*(stands_for[name] for name in known))
            stands_for |= dict.fromkeys(node.texts(2), reached)
    return takers


def _dimension(dim: Message) -> int | None:
    size = dim.number(1, default=-1)
    return size if size > 0 else None


def _externals(place: Place, name: str, externals: dict[str, int]) -> dict[str, Path]:
    """External weight files by their name in the artifact, each inside the model's folder and long enough."""
    out: dict[str, Path] = {}
    inside = PurePosixPath(name).parent
    for location, needed in sorted(externals.items()):
        parts = PurePosixPath(location)
        is_plain = bool(location) and str(parts) == location and not parts.is_absolute() and ".." not in parts.parts
        if not is_plain or any(sign in location for sign in "\\\0:"):
            raise UnsafeModel(
                f"{place.path / name} keeps weights in '{location[:200]}', which is no plain name within its folder; refused: "
                "put them beside the model"
            )
        if location in PROCESSOR_FILES or location in ("model.onnx", "artifact.json", PurePosixPath(name).name):
            raise UnsafeModel(f"{place.path / name} keeps weights in '{location}', which is another file's name; rename them")
        listed = place.path / inside / location
        if listed.is_symlink() and not _is_hub_link(listed):
            raise UnsafeModel(f"{listed} is a symlink; refused: put the weights themselves beside the model")
        path = place.beside(str(inside / location))
        if path is None:
            raise InvalidModel(f"{place.path / name} keeps weights in '{location}', which is missing; put it beside the model")
        if path.stat().st_size < needed:
            raise InvalidModel(
                f"{path} has {path.stat().st_size:,} bytes where the model needs {needed:,}; it is cut off: fetch it again"
            )
        out[location] = path
    return out


def _is_hub_link(path: Path) -> bool:
    return "snapshots" in path.parts  # a link in the Hugging Face cache; Place checks where it leads


def _check_model(path: Path) -> None:
    import onnx.checker

    try:
        onnx.checker.check_model(str(path))
    except Exception as error:  # the checker's own, protobuf's and the C++ library's
        reason = " ".join(str(error).split())[:300]
        raise InvalidModel(f"{path} is not a valid ONNX model: {reason}; export it again") from error


def _custom(totals: _Totals, functions: set[tuple[str, str]]) -> dict[str, list[str]]:
    out: dict[str, list[str]] = {}
    for domain, operator in sorted(totals.operators):
        if domain not in _KNOWN_DOMAINS and (domain, operator) not in functions:
            out.setdefault(domain, []).append(operator)
    return out


def _risks(totals: _Totals, functions: set[tuple[str, str]]) -> Iterator[Risk]:
    python = sorted({operator for _, operator in totals.operators if operator in _PYTHON_OPERATORS})
    if python:
        yield Risk("blocked", f"operators that call Python: {', '.join(python)}; export the model without them")
    if any(operator in _BINARY_OPERATORS for _, operator in totals.operators):
        yield Risk("blocked", "EPContext operators: programs for one device, which can't be looked into; export without")
    for domain, operators in _custom(totals, functions).items():
        yield Risk("warning", f"operators of the custom domain '{domain}' need its own library: {', '.join(operators[:20])}")


def _notes(totals: _Totals, functions: set[tuple[str, str]], opsets: dict[str, int], producer: str) -> Iterator[str]:
    if producer:
        yield f"written by {producer}"
    yield "operator sets: " + ", ".join(f"{domain or 'ai.onnx'} {version}" for domain, version in sorted(opsets.items()))
    if totals.externals:
        yield f"weights in {len(totals.externals)} external file{'s' * (len(totals.externals) > 1)}"
    custom = _custom(totals, functions)
    if custom:
        yield "custom domains: " + ", ".join(custom)
