"""torch.export archives (.pt2): what they say of themselves, and what loading them would run.

Knows the archive layout of torch 2.9-2.13 and every place where torch.export.load turns text or bytes into calls:
pickles, operator names, symbolic expressions, guards, tree contexts. Refuses to import torch.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from maasdam.core import Axis, Signature, TensorSpec, distinct
from maasdam.errors import InvalidModel, UnsafeModel, Unsupported
from maasdam.sources import calls
from maasdam.sources.archives import ZIP_MAGIC, Archive, open_archive
from maasdam.sources.bounds import MAX_AXIS, MAX_GRAPH_JSON_BYTES, MAX_JSON_DEPTH, MAX_RANK, Place, commonest, parse_json
from maasdam.sources.finding import Reading, Risk, told_apart, with_axes
from maasdam.sources.pickles import MARK_NAMES, MAX_PICKLE_BYTES, TENSOR_NAMES, looks_like_pickle, scan

MAX_CONFIG_JSON_BYTES = 16 * 1024 * 1024

SCALAR_TYPES = {
    1: ("uint8", 1), 2: ("int8", 1), 3: ("int16", 2), 4: ("int32", 4), 5: ("int64", 8), 6: ("float16", 2),
    7: ("float32", 4), 8: ("float64", 8), 9: ("complex32", 4), 10: ("complex64", 8), 11: ("complex128", 16),
    12: ("bool", 1), 13: ("bfloat16", 2), 28: ("uint16", 2), 29: ("float8_e4m3fn", 1), 30: ("float8_e5m2", 1),
    31: ("float8_e4m3fnuz", 1), 32: ("float8_e5m2fnuz", 1), 33: ("float8_e8m0fnu", 1), 34: ("uint32", 4), 35: ("uint64", 8),
}  # fmt: skip
"""torch.export's number of a dtype -> numpy's name and bytes an element (torch/_export/serde/schema.py)."""

_KINDS: dict[str, calls.Kind] = {
    **dict.fromkeys(("target", "as_operator"), "operator"),
    **dict.fromkeys(("name", "as_name", "forward_arg_names", "field_names"), "name"),
    **dict.fromkeys(("fqn", "parameter_name", "buffer_name", "tensor_constant_name", "custom_obj_name"), "attribute"),
    **{"user_input_name": "attribute", "expr_str": "expression", "class_fqn": "class"},
}
"""The keys of a serialized program whose text loading does more with than keep it."""

_NAN_READERS = {"isnan", "nan_to_num", "nanmean", "nansum", "nanmedian", "nanquantile"}
"""Operators of torch to which NaN is a missing value."""
_MOVES = {
    *("to", "_to_copy", "clone", "view", "reshape", "_unsafe_view", "flatten", "squeeze", "unsqueeze", "permute", "transpose"),
    *("slice", "select", "index_select", "split", "cat", "expand", "contiguous", "add", "sub", "mul", "div"),
}
_PLAIN = {"archive_format", "archive_version", "byteorder", ".data/version", ".data/serialization_id", "version"}


def read(place: Place, name: str) -> Reading:
    """Read `name` in `place`. Raises InvalidModel when broken, UnsafeModel when loading it would run what it brings."""
    path = place.need(name, "the model file is missing")
    with open_archive(path, path) as archive:
        members = _members(archive)
        if "archive_format" not in members:
            raise InvalidModel(f"{path} is no torch.export archive; save the model with torch.export.save (torch 2.9 or newer)")
        if archive.read(members["archive_format"], 64) != b"pt2":
            raise InvalidModel(f"{path} is no pt2 archive; save the model with torch.export.save")
        _refuse_members(members, archive)
        model = _only_model(members, path)
        program = parse_json(
            archive.read(members[f"models/{model}.json"], MAX_GRAPH_JSON_BYTES), f"{path}: models/{model}.json"
        )
        try:
            _refuse_calls(program, path)
            weights = _payloads(archive, members, model, "weights")
            _payloads(archive, members, model, "constants")
            signature, notes = _signature(program, path)
        except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
            raise InvalidModel(
                f"{path}: models/{model}.json is not as torch.export writes it ({type(error).__name__}: {error}); "
                "save the model again with torch 2.9 or newer"
            ) from error
    by_dtype: Counter[str] = Counter()
    for dtype, elements in weights:
        by_dtype[dtype] += elements
    return Reading(
        format="pytorch",
        layout="pt2",
        files={"model.pt2": path},
        signature=signature,
        parameters=sum(by_dtype.values()),
        precision=commonest(by_dtype),
        notes=(f"exported by torch {program.get('torch_version', 'of an unknown version')}", *notes),
        risks=(Risk("info", "no pickles beyond plain tensors; every operator comes with torch"),),
    )


def computed(path: Path) -> tuple[frozenset[str], frozenset[str]]:
    """(operators, numpy's names of the types they compute in) of the program in an archive that was read before."""
    with open_archive(path, path) as archive:
        members = _members(archive)
        name = f"models/{_only_model(members, path)}.json"
        graph = parse_json(archive.read(members[name], MAX_GRAPH_JSON_BYTES), f"{path}: {name}")["graph_module"]["graph"]
    made = [end["as_tensor"]["name"] for node in graph["nodes"] for end in node["outputs"] if "as_tensor" in end]
    types = {SCALAR_TYPES[graph["tensor_values"][name]["dtype"]][0] for name in made if name in graph["tensor_values"]}
    return frozenset(node["target"] for node in graph["nodes"]), frozenset(types)


def _members(archive: Archive) -> dict[str, str]:
    """Every entry by its name in the one folder that all lie in, as PyTorch's reader takes it: that of the first entry."""
    first = next(iter(archive.sizes), "")
    root, slash, _ = first.partition("/")
    if not slash or any(not entry.startswith(root + "/") for entry in archive.sizes):
        raise InvalidModel(f"{archive.path} is no PyTorch archive (its entries lie in no common folder); save the model again")
    return {entry.removeprefix(f"{root}/"): entry for entry in archive.sizes}


def _only_model(members: Mapping[str, str], path: Path) -> str:
    models = [m.removeprefix("models/").removesuffix(".json") for m in members if m.startswith("models/")]
    if not models or any(f"models/{m}.json" not in members for m in models):
        raise InvalidModel(f"{path} holds no exported program; save the model with torch.export.save")
    if len(models) > 1:
        raise Unsupported(f"{path} holds {len(models)} programs ({', '.join(sorted(models)[:5])}); save one program a file")
    return models[0]


def _refuse_members(members: Mapping[str, str], archive: Archive) -> None:
    """Raise UnsafeModel for entries that hold machine code, objects of their own, or a pickle that isn't plain tensors."""
    for member, entry in members.items():
        last = member.rsplit("/", 1)[-1]
        if member in _PLAIN or member.startswith(("models/", "extra/")) or last.endswith(".json"):
            continue
        if member.startswith("data/aotinductor/") or last.endswith((".so", ".dll", ".dylib", ".cubin", ".cpp", ".py")):
            raise UnsafeModel(
                f"{archive.path}: {member} is machine code or source code; refused: save with torch.export.save only"
            )
        if last.startswith(("custom_obj_", "opaque_obj_")):
            raise UnsafeModel(f"{archive.path}: {member} is an object of a custom class, which loading would unpickle; refused")
        if member.startswith(("data/weights/weight_", "data/constants/tensor_")):
            continue  # raw tensors; a pickled one is checked where its config says so
        if member.startswith(("data/sample_inputs/", "data/weights/", "data/constants/")) and last.endswith(".pt"):
            _check_saved(
                archive, entry, TENSOR_NAMES | MARK_NAMES if member.startswith("data/sample_inputs/") else TENSOR_NAMES
            )
            continue
        raise UnsafeModel(f"{archive.path}: {member} is nothing that torch.export.save writes; refused")


def _check_saved(archive: Archive, entry: str, allowed: frozenset[str] = TENSOR_NAMES) -> None:
    """Raise UnsafeModel unless an entry is what torch.save writes for plain tensors and containers: `allowed` names."""
    what = f"{archive.path}: {entry}"
    if archive.sizes[entry] == 0:
        return  # a program that was saved without sample inputs
    with archive.stream(entry) as stream:
        if stream.read(4) != ZIP_MAGIC:
            stream.seek(0)
            would = _would(stream.read(MAX_PICKLE_BYTES))
            raise UnsafeModel(
                f"{what} is not a torch.save archive{would}; refused: save the model again with torch.export.save"
            )
        with open_archive(stream, Path(what)) as inner:
            names = _members(inner)
            if "constants.pkl" in names or any(name.startswith("code/") for name in names):
                raise UnsafeModel(f"{what} is TorchScript, which runs when loaded; refused")
            if "data.pkl" not in names:
                raise InvalidModel(f"{what} holds no data.pkl; save the model again with torch.export.save")
            beyond = scan(inner.read(names["data.pkl"], MAX_PICKLE_BYTES)).beyond(allowed)
            if beyond:
                raise UnsafeModel(
                    f"{what} would run code when loaded: it uses {_listed(beyond)}; refused, do not load this file"
                )


def _would(data: bytes) -> str:
    beyond = scan(data).beyond(TENSOR_NAMES) if looks_like_pickle(data[:16]) else []
    return f" but a pickle that uses {_listed(beyond)}" if beyond else ""


def _payloads(archive: Archive, members: Mapping[str, str], model: str, kind: str) -> list[tuple[str, int]]:
    """(dtype, elements) of each stored tensor once. Raises when a tensor reaches beyond its bytes or is an object."""
    name = f"data/{kind}/model_{kind}_config.json".replace("model_", f"{model}_", 1)
    if name not in members:
        if f"data/{kind}/{model}.pt" in members:
            return []  # torch 2.8 and older: one torch.save archive, checked above
        raise InvalidModel(f"{archive.path} has no {name}; it is cut off or edited: save the model again")
    config = parse_json(archive.read(members[name], MAX_CONFIG_JSON_BYTES), f"{archive.path}: {name}")["config"]
    out: dict[str, tuple[str, int]] = {}
    for label, payload in config.items():
        if not calls.is_harmless("attribute", label):
            raise UnsafeModel(f"{archive.path}: a tensor is named {label[:80]!r}, which is no name of a parameter; refused")
        file = payload["path_name"]
        member = f"data/{kind}/{file}"
        wanted = "weight_" if kind == "weights" else "tensor_"
        if not file.startswith(wanted) or "/" in file or member not in members:
            raise UnsafeModel(
                f"{archive.path}: '{label}' is kept in '{file}', which is no plain tensor of the archive; refused"
            )
        if payload.get("use_pickle"):
            _check_saved(archive, members[member])
            continue
        meta = payload["tensor_meta"]
        dtype, width = SCALAR_TYPES[meta["dtype"]]
        sizes, strides = [_static(s) for s in meta["sizes"]], [_static(s) for s in meta["strides"]]
        reach = 0 if 0 in sizes else _static(meta["storage_offset"]) + 1
        reach += sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True)) if reach else 0
        if len(sizes) > MAX_RANK:
            raise ValueError(f"'{label}' has {len(sizes)} axes")
        stored = archive.sizes[members[member]]
        if min([0, *sizes, *strides]) < 0 or reach * width > stored:
            raise InvalidModel(
                f"{archive.path}: '{label}' needs {reach * width:,} bytes where {stored:,} are stored; save the model again"
            )
        if payload.get("is_param") or kind == "constants" or label not in out:
            out.setdefault(file, (dtype, math.prod(sizes)))
    return list(out.values())


def _static(size: Mapping[str, Any]) -> int:
    value = size["as_int"]
    if not isinstance(value, int) or isinstance(value, bool) or abs(value) > MAX_AXIS:
        raise ValueError("the size of a stored tensor is no possible integer")
    return value


def _refuse_calls(program: Mapping[str, Any], path: Path) -> None:
    """Raise UnsafeModel for names and expressions that torch.export.load would resolve, evaluate or call."""
    bad = {f"{kind} {text[:80]!r}" for kind, text in _callables(program) if not calls.is_harmless(kind, text)}
    if bad:
        raise UnsafeModel(
            f"{path} would run code when loaded: {_listed(sorted(bad))}; refused: torch.export.save writes nothing of the kind"
        )


def _callables(program: Mapping[str, Any]) -> Iterator[tuple[calls.Kind, str]]:
    """Everything in the program that loading resolves, evaluates, or writes into source that it executes."""
    for guard in program.get("guards_code") or ():
        yield "guard", guard
    for symbol in program.get("range_constraints") or {}:
        yield "symbol", symbol
    stack: list[tuple[str, Any]] = [("", program["graph_module"])]
    while stack:
        key, value = stack.pop()
        if isinstance(value, list):
            stack.extend((key, inner) for inner in value)
        elif isinstance(value, dict):
            if key == "metadata":
                yield from (("remark", inner) for inner in value.values() if isinstance(inner, str))
                continue
            if key in ("tensor_values", "sym_int_values", "sym_bool_values", "sym_float_values"):
                yield from (("name", inner) for inner in value)
            stack.extend(value.items())
        elif isinstance(value, str) and key in ("in_spec", "out_spec"):
            yield from _tree(value, is_input=key == "in_spec")
        elif isinstance(value, str) and key in _KINDS:
            yield _KINDS[key], value


def _tree(text: str, is_input: bool) -> Iterator[tuple[calls.Kind, str]]:
    """The container types and contexts of a serialized pytree; keys of inputs become names of arguments."""
    spec = parse_json(text.encode(), "a tree of inputs or outputs", MAX_JSON_DEPTH)
    stack = [spec[1]]
    while stack:
        node = stack.pop()
        if node["type"] is not None:
            context = node["context"] if isinstance(node["context"], str) else json.dumps(node["context"])
            yield "container", node["type"]
            yield "context", context
            keys = json.loads(context) if is_input and calls.is_harmless("context", context) else None
            yield from (("name", key) for key in keys or () if isinstance(key, str))
        stack.extend(node["children_spec"])


def _signature(program: Mapping[str, Any], path: Path) -> tuple[Signature, list[str]]:
    """User inputs and outputs by name. A dict that the model returns gives its keys as names."""
    module = program["graph_module"]
    tensors = module["graph"]["tensor_values"]
    inputs, notes = [], []
    for spec in module["signature"]["input_specs"]:
        if "user_input" not in spec:
            continue
        argument = spec["user_input"]["arg"]
        if "as_tensor" in argument:
            inputs.append(_spec(argument["as_tensor"]["name"], argument["as_tensor"]["name"], tensors))
        else:
            notes.append(f"an input that is no tensor is fixed to what it was exported with ({next(iter(argument))})")
    nodes = [
        spec["user_output"]["arg"]["as_tensor"]["name"]
        for spec in module["signature"]["output_specs"]
        if "as_tensor" in spec.get("user_output", {}).get("arg", {})
    ]
    names = _output_names(module) or nodes
    if len(names) != len(nodes):
        names = nodes
    names = distinct(names, (spec.name for spec in inputs))
    outputs = [_spec(name, node, tensors) for name, node in zip(names, nodes, strict=True)]
    if not inputs or not outputs:
        raise InvalidModel(f"{path} takes or gives no tensors; export a model that does")
    missing = _nan_takers(module["graph"], {spec.name for spec in inputs if spec.dtype.startswith(("float", "bfloat"))})
    inputs = [replace(spec, takes_nan=True) if spec.name in missing else spec for spec in inputs]
    first_axes = [str((tensors[spec.name]["sizes"] or [{}])[0].get("as_expr", {}).get("expr_str", "")) for spec in inputs]
    ranges = program.get("range_constraints") or {}
    axes = [[_axis(size, ranges) for size in tensors[spec.name]["sizes"]] for spec in inputs]
    return Signature(with_axes(told_apart(inputs, first_axes), axes), tuple(outputs)), notes


def _nan_takers(graph: Mapping[str, Any], floats: set[str]) -> set[str]:
    """The inputs of floats whose values reach an operator that reads NaN as a missing value, moved or scaled at most."""
    stands_for = {name: {name} for name in floats}
    takers: set[str] = set()
    for node in graph["nodes"]:
        operator = str(node["target"]).removeprefix("torch.ops.aten.").partition(".")[0]
        takes = [one["arg"]["as_tensor"]["name"] for one in node["inputs"] if "as_tensor" in one["arg"]]
        known = [name for name in takes if name in stands_for]
        if known and operator in _NAN_READERS:
            takers |= stands_for[known[0]]
        elif known and operator in _MOVES:
            made = [end["as_tensor"]["name"] for end in node["outputs"] if "as_tensor" in end]
            stands_for |= dict.fromkeys(made, stands_for[known[0]])
    return takers


_SYMBOL_OF_A_SIZE = re.compile(r"(?:Symbol\(')?(\w+)(?:'.*\))?", re.ASCII)


def _axis(size: Mapping[str, Any], ranges: Mapping[str, Any]) -> Axis | None:
    """An open axis by its symbol, with the range that the program declares; None where it is fixed or computed of others."""
    match = _SYMBOL_OF_A_SIZE.fullmatch(str(size.get("as_expr", {}).get("expr_str", "")))
    if match is None:
        return None
    declared = ranges.get(match[1]) or {}
    least, most = declared.get("min_val"), declared.get("max_val")
    return Axis(match[1], max(1, int(least or 1)), most if isinstance(most, int) and most < MAX_AXIS else None)


def _output_names(module: Mapping[str, Any]) -> list[str]:
    """The keys of the dict (or transformers output class) that the model returns; empty when it returns none."""
    top = next((call for call in module["module_call_graph"] if call["fqn"] == ""), None)
    if not top or not top.get("signature"):
        return []
    root = json.loads(top["signature"]["out_spec"])[1]
    context = root["context"]
    keys = json.loads(context) if isinstance(context, str) else context
    if not isinstance(keys, list) or len(keys) != len(root["children_spec"]) or not all(isinstance(key, str) for key in keys):
        return []
    if any(child["children_spec"] for child in root["children_spec"]):
        return []  # nested: the keys don't name single tensors
    return keys


def _spec(name: str, node: str, tensors: Mapping[str, Any]) -> TensorSpec:
    meta = tensors[node]
    return TensorSpec(name, SCALAR_TYPES[meta["dtype"]][0], tuple(size.get("as_int") for size in meta["sizes"]))


def _listed(what: list[str]) -> str:
    return ", ".join(what[:8]) + (f" and {len(what) - 8} more" if len(what) > 8 else "")
