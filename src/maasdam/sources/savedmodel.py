"""TensorFlow SavedModel folders: signature, weights, and the operators that serving or loading would run.

Knows TensorFlow's messages by field number. Refuses to import TensorFlow. How operators reach one another stands in
`tfgraph`; which of them touch files, processes or the network stands in `tfoperators`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from maasdam.core import Signature, TensorSpec
from maasdam.errors import InvalidModel, UnsafeModel, Unsupported
from maasdam.sources import tfoperators
from maasdam.sources.bounds import MAX_AXIS, MAX_RANK, Place, commonest
from maasdam.sources.finding import Reading, Risk
from maasdam.sources.tfgraph import TfGraph, TfNode
from maasdam.sources.wire import Message, mapped

MAX_SAVED_MODEL_BYTES = 2**31 - 1
MAX_ASSETS = 10_000
SERVE = "serve"
DEFAULT = "serving_default"
_INIT = "__saved_model_init_op"
_PASSING = frozenset({"Identity", "IdentityN", "ReadVariableOp", "Reshape", "StopGradient"})
"""Operators that hand on what they are given."""

DTYPES = {
    1: "float32", 2: "float64", 3: "int32", 4: "uint8", 5: "int16", 6: "int8", 7: "object", 8: "complex64", 9: "int64",
    10: "bool", 14: "bfloat16", 17: "uint16", 18: "complex128", 19: "float16", 22: "uint32", 23: "uint64",
}  # fmt: skip
"""TensorFlow's DataType -> numpy's name."""


def read(place: Place) -> Reading:
    """Read the folder. Raises InvalidModel when it is broken, Unsupported when nothing in it can be served."""
    path = place.need("saved_model.pb", "the graph is missing")
    if path.stat().st_size > MAX_SAVED_MODEL_BYTES:
        raise InvalidModel(f"{path} is over 2 GiB, more than its format allows; export it again")
    with mapped(path, str(path)) as saved:
        meta = _serving(saved, path)
        graph = TfGraph(meta, str(path))
        _refuse_reaching(saved, meta, path)
        signatures = dict(meta.map(5))
        default = signatures.get(DEFAULT)
        if default is None:
            known = ", ".join(sorted(name for name in signatures if name != _INIT)) or "none"
            raise Unsupported(f"{place.path} has no signature '{DEFAULT}' (it has: {known}); save it with one")
        signature = Signature(_specs(default, 1, path), _specs(default, 2, path))
        serving = graph.reached(_tensors(default))
        risks = tuple(_risks(graph, meta, signatures))
        by_dtype = _weights(serving)
        info = meta.message(1)
        version = info.text(5) if info else ""
        others = sorted(name for name in signatures if name not in (DEFAULT, _INIT))
    notes = [f"saved by TensorFlow {version}"] if version else []
    if others:
        notes.append(f"other signatures, not served: {', '.join(others[:10])}")
    if not signature.outputs:
        raise Unsupported(f"{place.path}: its signature '{DEFAULT}' returns nothing; save one that does")
    return Reading(
        format="tensorflow",
        layout="savedmodel",
        files=_files(place),
        signature=signature,
        parameters=sum(by_dtype.values()) or None,
        precision=commonest(by_dtype),
        risks=risks,
        notes=tuple(notes),
    )


def computed(path: Path) -> tuple[frozenset[str], frozenset[str]]:
    """(operators, numpy's names of the types they compute in) of what `serving_default` of a saved_model.pb reaches.

    Types that are only stored, read and turned into others are left out.
    """
    with mapped(path, str(path)) as saved:
        meta = _serving(saved, path)
        default = dict(meta.map(5)).get(DEFAULT)
        nodes = TfGraph(meta, str(path)).reached(_tensors(default)) if default is not None else []
        types = {kind.number(6) for n in nodes if n.operator not in _PASSING and (kind := n.attribute("T")) is not None}
        types |= {kind.number(6) for n in nodes if n.operator == "Cast" and (kind := n.attribute("DstT")) is not None}
        return frozenset(n.operator for n in nodes), frozenset(DTYPES[t] for t in types if t in DTYPES)


def _serving(saved: Message, path: Path) -> Message:
    metas = list(saved.messages(2))
    if not saved.has(1) or not metas:
        raise InvalidModel(f"{path} is no SavedModel (no graph in it); export the model again")
    tags = [set(info.texts(4)) if (info := meta.message(1)) is not None else set() for meta in metas]
    serving = [meta for meta, its in zip(metas, tags, strict=True) if SERVE in its]
    if not serving:
        raise Unsupported(f"{path} has no graph tagged '{SERVE}'; save the model for serving")
    exact = [meta for meta, its in zip(metas, tags, strict=True) if its == {SERVE}]  # what TensorFlow's loaders ask for
    if len(serving) > 1 and len(exact) != 1:
        raise Unsupported(f"{path} has {len(serving)} graphs tagged '{SERVE}', and nothing says which is meant; save one")
    return exact[0] if exact else serving[0]


def _refuse_reaching(saved: Message, chosen: Message, path: Path) -> None:
    """Raise UnsafeModel where a graph that is not the one to serve reaches out: another loader might take that one."""
    for meta in saved.messages(2):
        if meta.view == chosen.view:
            continue
        by_reach = tfoperators.by_reach(TfGraph(meta, str(path)).all_nodes())
        reaching = sorted({name for names in by_reach.values() for name in names} - tfoperators.SAVING - tfoperators.RESTORING)
        if reaching:
            raise UnsafeModel(
                f"{path} holds another graph, not tagged '{SERVE}' alone, with {', '.join(reaching[:8])}; refused: "
                "save the model with the graph to serve only"
            )


def _specs(signature: Message, number: int, path: Path) -> tuple[TensorSpec, ...]:
    """Inputs (1) or outputs (2) of a SignatureDef, by name, as TensorFlow orders them."""
    out = []
    for name, info in sorted(signature.map(number), key=lambda pair: pair[0]):
        if info.has(4) or info.has(5):
            raise Unsupported(f"{path}: '{name}' is a sparse or composite tensor; export the model with dense tensors")
        dtype = DTYPES.get(info.number(2))
        shape = info.message(3)
        if dtype is None:
            raise Unsupported(f"{path}: '{name}' has a type that can't be sent (TensorFlow's number {info.number(2)})")
        if shape is not None and shape.number(3):
            raise Unsupported(f"{path}: '{name}' has no fixed number of axes; export the model with an input signature")
        out.append(TensorSpec(name, dtype, tuple(size if size >= 0 else None for size in _sizes(shape))))
    return tuple(out)


def _tensors(signature: Message) -> list[str]:
    """The graph tensors that a signature's outputs name."""
    return [info.text(1) for _, info in signature.map(2) if info.has(1)]


def _risks(graph: TfGraph, meta: Message, signatures: dict[str, Message]) -> Iterator[Risk]:
    """Operators that touch files, processes or the network, by who reaches them."""
    running: list[str] = []
    for signature in signatures.values():
        running += _tensors(signature)
    for key, collection in meta.map(4):
        if key in ("saved_model_main_op", "legacy_init_op", "init_op", "table_initializer"):
            names = collection.message(1)
            running += names.texts(1) if names else []
    saver = meta.message(3)
    saving = graph.reached([saver.text(2)] if saver else [])
    restoring = graph.reached([saver.text(3)] if saver else [])
    serving = graph.reached(running)
    loading = graph.reached_from_functions(_loaded_functions(meta))
    reached = [*serving, *loading]
    yield from _named(tfoperators.by_reach(reached), "which a signature or its start-up runs")
    only_saver = {id(node) for node in saving if node.operator in tfoperators.SAVING}
    only_saver |= {id(node) for node in restoring if node.operator in tfoperators.RESTORING}
    known = {id(node) for node in reached} | only_saver
    rest = [node for node in graph.all_nodes() if id(node) not in known]
    # Nothing that runs names these, but another loader might: ordinary savers hold only what SAVING and RESTORING list.
    yield from _named(tfoperators.by_reach(rest), "outside its saver")
    yield Risk("info", "a SavedModel is a program for TensorFlow's runtime; its operators were listed, none was run")


def _named(by_reach: dict[tfoperators.Reach, list[str]], where: str) -> Iterator[Risk]:
    for reach, operators in sorted(by_reach.items()):
        yield Risk(
            "blocked",
            f"the graph {tfoperators.WHAT[reach]}: {', '.join(operators)}, {where}; export the model without them",
            liftable=reach in tfoperators.LIFTABLE,
        )


def _loaded_functions(meta: Message) -> list[str]:
    """The functions that loading may call: every concrete function an object of the model owns."""
    objects = meta.message(7)
    return [name for name, _ in objects.map(2)] if objects else []


def _weights(nodes: list[TfNode]) -> Counter[str]:
    """Numbers by dtype in the variables and the large constants that serving reaches."""
    out: Counter[str] = Counter()
    for node in nodes:
        if node.operator in ("VarHandleOp", "VariableV2", "Variable"):
            shape = node.attribute("shape")
            sizes = _sizes(shape.message(7) if shape else None)
        elif node.operator == "Const":
            value = node.attribute("value")
            tensor = value.message(8) if value else None
            sizes = _sizes(tensor.message(2) if tensor else None)
            if len(sizes) < 2 and math.prod(sizes[:1]) < 64:
                continue  # axes, sizes and such
        else:
            continue
        dtype = node.attribute("dtype")
        name = DTYPES.get(dtype.number(6)) if dtype else None
        if name and len(sizes) <= MAX_RANK and all(0 <= size <= MAX_AXIS for size in sizes):
            out[name] += math.prod(sizes)
    return out


def _sizes(shape: Message | None) -> list[int]:
    """Of a TensorShapeProto."""
    return [dim.number(1) for dim in shape.messages(2)] if shape else []


def _files(place: Place) -> dict[str, Path]:
    """saved_model.pb, variables/ and assets/ by name."""
    files = {"saved_model.pb": place.need("saved_model.pb", "the graph is missing")}
    if (fingerprint := place.file("fingerprint.pb")) is not None:
        files["fingerprint.pb"] = fingerprint
    for folder in ("variables", "assets"):
        if not (place.path / folder).is_dir():
            continue
        names = place.names(folder)
        if len(names) > MAX_ASSETS:
            raise InvalidModel(f"{place.path / folder} holds over {MAX_ASSETS:,} files")
        for name in names:
            if name.endswith("/"):
                raise InvalidModel(f"{place.path / folder / name} is a folder, where a SavedModel has only files")
            path = place.file(f"{folder}/{name}")
            if path is not None:
                files[f"{folder}/{name}"] = path
    if "variables/variables.index" in files:
        shards = [name for name in files if name.startswith("variables/variables.data-")]
        total = {name.rpartition("-of-")[2] for name in shards}
        if not shards or total != {f"{len(shards):05d}"}:
            raise InvalidModel(
                f"{place.path}/variables is incomplete: {len(shards)} of its data files are there; copy it again"
            )
    return files
