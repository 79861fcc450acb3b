"""A gallery of model files that mean harm or are broken, for every room's tests.

Each builder takes a folder to write in and the path of a canary file, and returns the path of what it wrote. A payload,
if it ever ran, would create the canary: `assert not canary.exists()` is the test. Nothing here needs torch or
TensorFlow: the archives and protocol buffers are written by hand, as an attacker would.

    @pytest.mark.parametrize("name", GALLERY)
    def test_it_is_refused(name, tmp_path):
        path = GALLERY[name].build(tmp_path, tmp_path / "canary")
"""

from __future__ import annotations

import base64
import io
import json
import marshal
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maasdam.errors import CallerError, InvalidModel, UnsafeModel

Builder = Callable[[Path, Path], Path]


class Payload:
    """Unpickled, it creates a file."""

    def __init__(self, canary: Path) -> None:
        self.canary = str(canary)

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (self.canary, "w"))


def bad_pickle(canary: Path) -> bytes:
    """A pickle (protocol 2, as torch.save writes) that creates the canary."""
    return pickle.dumps({"weight": Payload(canary)}, protocol=2)


# -- pickles -----------------------------------------------------------------------------------------------------------


def raw_pickle(folder: Path, canary: Path) -> Path:
    """A bare pickle under the name PyTorch weights have."""
    path = folder / "model.pth"
    path.write_bytes(bad_pickle(canary))
    return path


def old_pickle(folder: Path, canary: Path) -> Path:
    """Protocol 0: no magic number, all text."""
    path = folder / "weights.pt"
    path.write_bytes(pickle.dumps(Payload(canary), protocol=0))
    return path


def pickle_named_onnx(folder: Path, canary: Path) -> Path:
    """A pickle that calls itself ONNX."""
    path = folder / "model.onnx"
    path.write_bytes(bad_pickle(canary))
    return path


def saved_state(folder: Path, canary: Path) -> Path:
    """What torch.save writes, with a payload in it."""
    path = folder / "model.pt"
    path.write_bytes(torch_saved(bad_pickle(canary)))
    return path


def pytorch_bin_folder(folder: Path, canary: Path) -> Path:
    """A Hugging Face folder whose only weights are pytorch_model.bin."""
    (folder / "config.json").write_text(json.dumps({"architectures": ["BertForSequenceClassification"], "model_type": "bert"}))
    (folder / "pytorch_model.bin").write_bytes(torch_saved(bad_pickle(canary)))
    return folder


def torch_saved(pickled: bytes, root: str = "archive") -> bytes:
    """A zip as torch.save lays it out, around one pickle."""
    return stored({f"{root}/data.pkl": pickled, f"{root}/byteorder": b"little", f"{root}/version": b"3\n"})


# -- torch.export ------------------------------------------------------------------------------------------------------


def program(**changes: Any) -> dict[str, Any]:
    """The smallest serialized torch.export program: x [batch, 4] -> relu(x). `changes` replace parts of its graph."""
    size = [
        {"as_expr": {"expr_str": changes.pop("expression", "Symbol('s0', positive=True, integer=True)"), "hint": {"as_int": 2}}}
    ]
    meta = {
        "dtype": 7,
        "sizes": [*size, {"as_int": 4}],
        "requires_grad": False,
        "device": {"type": "cpu", "index": None},
        "strides": [{"as_int": 4}, {"as_int": 1}],
        "storage_offset": {"as_int": 0},
        "layout": 7,
    }
    out = changes.pop("output", "relu")
    argument = {"name": "self", "arg": {"as_tensor": {"name": "x"}}, "kind": 1}
    node = {
        "target": changes.pop("operator", "torch.ops.aten.relu.default"),
        "inputs": changes.pop("arguments", [argument]),
        "outputs": [{"as_tensor": {"name": out}}],
        "metadata": {},
        "is_hop_single_tensor_return": None,
        "name": out,
    }
    leaf = {"type": None, "context": None, "children_spec": []}
    takes = {
        "type": "builtins.tuple",
        "context": "null",
        "children_spec": [
            {"type": "builtins.tuple", "context": "null", "children_spec": [leaf]},
            {"type": "builtins.dict", "context": "[]", "children_spec": []},
        ],
    }
    signature = {
        "inputs": [],
        "outputs": [],
        "in_spec": json.dumps([1, takes]),
        "out_spec": json.dumps([1, changes.pop("gives", leaf)]),
        "forward_arg_names": ["x"],
    }
    whole = {
        "graph_module": {
            "graph": {
                "inputs": [{"as_tensor": {"name": "x"}}],
                "outputs": [{"as_tensor": {"name": out}}],
                "nodes": [node],
                "tensor_values": {"x": meta, out: meta},
                "sym_int_values": {},
                "sym_bool_values": {},
                "is_single_tensor_return": False,
                "custom_obj_values": {},
                "sym_float_values": {},
            },
            "signature": {
                "input_specs": [{"user_input": {"arg": {"as_tensor": {"name": "x"}}}}],
                "output_specs": [{"user_output": {"arg": {"as_tensor": {"name": out}}}}],
            },
            "module_call_graph": [{"fqn": "", "signature": signature}],
            "metadata": {},
            "treespec_namedtuple_fields": {},
        },
        "opset_version": {"aten": 10},
        "range_constraints": {"s0": {"min_val": 1, "max_val": None}},
        "schema_version": {"major": 8, "minor": 20},
        "verifiers": ["TRAINING"],
        "torch_version": "2.13.0",
        "guards_code": [],
    }
    return whole | changes


def sample_inputs() -> bytes:
    """What torch.save writes for ((zeros([2, 4]),), {})."""
    storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x08tQ"
    hooks = b"ccollections\nOrderedDict\n)R"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\x00K\x02K\x04\x86K\x04K\x01\x86\x89" + hooks + b"tR"
    return stored({
        "archive/data.pkl": b"\x80\x02" + tensor + b"\x85}\x86.",
        "archive/byteorder": b"little",
        "archive/data/0": bytes(32),
        "archive/version": b"3\n",
    })  # fmt: skip


def pt2(
    folder: Path,
    described: Mapping[str, Any] | None = None,
    samples: bytes | None = None,
    more: Mapping[str, bytes] | None = None,
) -> Path:
    """A .pt2 of `described` (default: the harmless `program()`), as torch.export.save lays it out."""
    path = folder / "model.pt2"
    empty = json.dumps({"config": {}}).encode()
    entries = {
        "data/weights/model_weights_config.json": empty,
        "data/constants/model_constants_config.json": empty,
        "models/model.json": json.dumps(described or program()).encode(),
        "data/sample_inputs/model.pt": sample_inputs() if samples is None else samples,
        "archive_format": b"pt2",
        "archive_version": b"0",
        ".data/version": b"6\n",
        "byteorder": b"little",
        **(more or {}),
    }
    path.write_bytes(stored({f"model/{name}": data for name, data in entries.items()}))
    return path


def pt2_with_payload(folder: Path, canary: Path) -> Path:
    """A payload in the sample inputs, which torch.export.load unpickles."""
    return pt2(folder, samples=torch_saved(bad_pickle(canary)))


def pt2_with_raw_payload(folder: Path, canary: Path) -> Path:
    """The same without the zip around it."""
    return pt2(folder, samples=bad_pickle(canary))


def pt2_with_hidden_name(folder: Path, canary: Path) -> Path:
    """A payload whose name is put together on the pickle's stack, where no list of names shows it."""
    name = str(canary).encode()
    pickled = (
        b"\x80\x04\x8c\x08builtins\x94\x8c\x04open\x94\x93"
        + b"X" + struct.pack("<I", len(name)) + name
        + b"\x8c\x01w\x86R."
    )  # fmt: skip
    return pt2(folder, samples=torch_saved(pickled))


def pt2_with_expression(folder: Path, canary: Path) -> Path:
    """Code as the size of an axis: loading gives it to sympy, which evaluates it."""
    return pt2(folder, program(expression=f"__import__('pathlib').Path({str(canary)!r}).touch()"))


def pt2_with_operator(folder: Path, canary: Path) -> Path:
    """os.system as the operator of a node: loading resolves any name below torch (2.13 then finds it is no operator)."""
    command = {"name": "command", "arg": {"as_string": f"touch {canary}"}, "kind": 1}
    return pt2(folder, program(operator="torch.os.system", arguments=[command]))


def pt2_with_guard(folder: Path, canary: Path) -> Path:
    """Code as a guard: it is executed when the program becomes a module."""
    return pt2(folder, program(guards_code=[f"__import__('os').system('touch {canary}') == 0"]))


def pt2_with_name(folder: Path, canary: Path) -> Path:
    """Code as the name of a value: names go into source that is generated and executed (torch 2.13 happens to clean them)."""
    return pt2(folder, program(output=f"relu = __import__('os').system('touch {canary}'); y"))


def pt2_with_container(folder: Path, canary: Path) -> Path:
    """A defaultdict as output: rebuilding it imports any module it names."""
    context = {"default_factory_module": "this", "default_factory_name": "s", "dict_context": []}
    return pt2(folder, program(gives={"type": "collections.defaultdict", "context": context, "children_spec": []}))


def pt2_power_bomb(folder: Path, canary: Path) -> Path:
    """A size of ten billion digits: sympy would work it out for as long as there is memory."""
    return pt2(folder, program(expression="Pow(Integer(10), Pow(Integer(10), Integer(10)))"))


def pt2_number_bomb(folder: Path, canary: Path) -> Path:
    """The same as one number in text."""
    return pt2(folder, program(expression="Rational('1e999999999')"))


def pt2_guard_bomb(folder: Path, canary: Path) -> Path:
    """The same in a guard, which Python would work out."""
    return pt2(folder, program(guards_code=["L['x'].size()[0] <= 10**10**10"]))


def pt2_with_object(folder: Path, canary: Path) -> Path:
    """An opaque constant, which loading unpickles without any check."""
    config = {"config": {"thing": {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None}}}
    more = {
        "data/constants/model_constants_config.json": json.dumps(config).encode(),
        "data/constants/opaque_obj_0": bad_pickle(canary),
    }
    return pt2(folder, more=more)


def pt2_with_library(folder: Path, canary: Path) -> Path:
    """Machine code, as AOTInductor packs it."""
    return pt2(folder, more={"data/aotinductor/model/model.so": b"\x7fELF" + bytes(64)})


def pt2_with_twin(folder: Path, canary: Path) -> Path:
    """Two entries whose names differ in case only: PyTorch's reader ignores case, Python's does not."""
    return pt2(folder, more={"data/sample_inputs/MODEL.pt": torch_saved(bad_pickle(canary))})


def torchscript(folder: Path, canary: Path) -> Path:
    """A TorchScript archive; harmless, but a program."""
    path = folder / "model.pt"
    entries = {
        "model/data.pkl": b"\x80\x02c__torch__\nModel\n)\x81.",
        "model/constants.pkl": b"\x80\x02).",
        "model/code/__torch__.py": b"class Model(Module):\n  def forward(self, x: Tensor) -> Tensor:\n    return x\n",
        "model/version": b"3\n",
    }
    path.write_bytes(stored(entries))
    return path


def torchscript_with_payload(folder: Path, canary: Path) -> Path:
    """TorchScript whose attributes are a payload."""
    path = folder / "model.pt"
    entries = {
        "model/data.pkl": bad_pickle(canary),
        "model/constants.pkl": b"\x80\x02).",
        "model/code/__torch__.py": b"class Model(Module):\n  pass\n",
        "model/version": b"3\n",
    }
    path.write_bytes(stored(entries))
    return path


# -- archives ----------------------------------------------------------------------------------------------------------


def stored(entries: Mapping[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    """A zip archive of `entries`."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return out.getvalue()


def zip_bomb(folder: Path, canary: Path) -> Path:
    """64 MB of zeros in 64 kB, as a Keras file."""
    path = folder / "model.keras"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        archive.writestr("metadata.json", "{}")
        archive.writestr("config.json", b"[" + b" " * (64 * 1024 * 1024) + b"]")
    return path


def zip_with_many_entries(folder: Path, canary: Path) -> Path:
    """Sixty thousand empty entries."""
    path = folder / "model.keras"
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(60_000):
            archive.writestr(zipfile.ZipInfo(f"{number}"), b"")
    return path


def zip_that_lies(folder: Path, canary: Path) -> Path:
    """An entry that declares fewer bytes than it unpacks to."""
    path = folder / "model.keras"
    data = stored(
        {"metadata.json": b"{}", "config.json": b" " * 100_000 + b"{}", "model.weights.h5": b""}, zipfile.ZIP_DEFLATED
    )
    path.write_bytes(data.replace(struct.pack("<I", 100_002), struct.pack("<I", 50)))
    return path


def zip_that_climbs(folder: Path, canary: Path) -> Path:
    """An entry that would be unpacked outside the folder."""
    path = folder / "model.keras"
    path.write_bytes(stored({"metadata.json": b"{}", "config.json": b"{}", f"../{canary.name}": b"climbed"}))
    return path


def truncated_archive(folder: Path, canary: Path) -> Path:
    """The first half of a .pt2."""
    path = pt2(folder)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


# -- ONNX --------------------------------------------------------------------------------------------------------------


def field(number: int, value: int | bytes | str) -> bytes:
    """One protocol buffer field."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    data = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def onnx_model(initializer: bytes = b"", nodes: bytes | None = None) -> bytes:
    """x [batch, 4] -> y = Relu(x)."""
    dims = field(1, field(2, "batch")) + field(1, field(1, 4))
    kind = field(2, field(1, field(1, 1) + field(2, dims)))
    relu = field(1, field(1, "x") + field(2, "y") + field(4, "Relu"))
    graph = (relu if nodes is None else nodes) + field(2, "graph") + initializer
    graph += field(11, field(1, "x") + kind) + field(12, field(1, "y") + kind)
    return field(1, 8) + field(7, graph) + field(8, field(1, "") + field(2, 18))


def text_named_onnx(folder: Path, canary: Path) -> Path:
    """A text file named .onnx."""
    path = folder / "model.onnx"
    path.write_text("This is not a model. It was renamed by hand.\n" * 20)
    return path


def empty_onnx(folder: Path, canary: Path) -> Path:
    """Zero bytes."""
    path = folder / "model.onnx"
    path.write_bytes(b"")
    return path


def truncated_onnx(folder: Path, canary: Path) -> Path:
    """An ONNX file that lost its end."""
    path = folder / "model.onnx"
    path.write_bytes(onnx_model()[:-20])
    return path


def noise_named_onnx(folder: Path, canary: Path) -> Path:
    """Bytes that are no protocol buffer."""
    path = folder / "model.onnx"
    path.write_bytes(bytes(range(128, 256)) * 100)
    return path


def external(location: str, shape: int = 4) -> bytes:
    """An initializer that is kept in another file."""
    entry = field(13, field(1, "location") + field(2, location))
    return field(5, field(1, shape) + field(2, 1) + field(8, "w") + entry + field(14, 1))


def onnx_external_above(folder: Path, canary: Path) -> Path:
    """Weights kept in ../secret."""
    inner = folder / "model"
    inner.mkdir()
    (folder / "secret").write_bytes(bytes(16))
    (inner / "model.onnx").write_bytes(onnx_model(external("../secret")))
    return inner / "model.onnx"


def onnx_external_absolute(folder: Path, canary: Path) -> Path:
    """Weights kept in /etc/passwd."""
    (folder / "model.onnx").write_bytes(onnx_model(external("/etc/passwd")))
    return folder / "model.onnx"


def onnx_external_link(folder: Path, canary: Path) -> Path:
    """Weights kept in a symlink to /etc/passwd."""
    (folder / "weights").symlink_to("/etc/passwd")
    (folder / "model.onnx").write_bytes(onnx_model(external("weights")))
    return folder / "model.onnx"


def onnx_external_missing(folder: Path, canary: Path) -> Path:
    """Weights kept in a file that isn't there."""
    (folder / "model.onnx").write_bytes(onnx_model(external("weights")))
    return folder / "model.onnx"


def onnx_external_short(folder: Path, canary: Path) -> Path:
    """Weights kept in a file that is too short."""
    (folder / "weights").write_bytes(bytes(7))
    (folder / "model.onnx").write_bytes(onnx_model(external("weights")))
    return folder / "model.onnx"


def onnx_bomb(folder: Path, canary: Path) -> Path:
    """Ten million empty nodes in 20 MB: a library that builds an object for each takes gigabytes."""
    (folder / "model.onnx").write_bytes(onnx_model(nodes=field(1, b"") * 10_000_000))
    return folder / "model.onnx"


def onnx_depth_bomb(folder: Path, canary: Path) -> Path:
    """Two thousand graphs within one another."""
    graph = b""
    for _ in range(2000):
        graph = field(1, field(4, "If") + field(5, field(1, "then_branch") + field(6, graph) + field(20, 5)))
    (folder / "model.onnx").write_bytes(onnx_model(nodes=graph))
    return folder / "model.onnx"


def onnx_python_operator(folder: Path, canary: Path) -> Path:
    """An operator that calls Python."""
    node = field(1, field(1, "x") + field(2, "y") + field(4, "PyOp") + field(7, "com.evil"))
    model = onnx_model(nodes=node) + field(8, field(1, "com.evil") + field(2, 1))
    (folder / "model.onnx").write_bytes(model)
    return folder / "model.onnx"


def onnx_binary_operator(folder: Path, canary: Path) -> Path:
    """A program for one device, in a file that the operator names."""
    context = field(5, field(1, "ep_cache_context") + field(4, "/etc/passwd") + field(20, 3))
    node = field(1, field(1, "x") + field(2, "y") + field(4, "EPContext") + field(7, "com.microsoft") + context)
    (folder / "model.onnx").write_bytes(onnx_model(nodes=node) + field(8, field(1, "com.microsoft") + field(2, 1)))
    return folder / "model.onnx"


def onnx_external_dotted(folder: Path, canary: Path) -> Path:
    """Weights kept in "./model.onnx": the name of the model's own file in an artifact, written another way."""
    (folder / "model.onnx").write_bytes(bytes(16))
    (folder / "other.onnx").write_bytes(onnx_model(external("./model.onnx")))
    return folder / "other.onnx"


def onnx_function_bomb(folder: Path, canary: Path) -> Path:
    """Twelve functions that each call the one before ten times: a billion nodes once an engine writes them out."""
    functions = b""
    for number in range(1, 13):
        calls = b""
        for step in range(10):
            takes, gives = f"t{step}" if step else "a", f"t{step + 1}" if step < 9 else "b"
            called = field(4, f"f{number - 1}") + field(7, "own") if number > 1 else field(4, "Relu")
            calls += field(7, field(1, takes) + field(2, gives) + called)
        opsets = field(9, field(1, "") + field(2, 18)) + field(9, field(1, "own") + field(2, 1))
        functions += field(25, field(1, f"f{number}") + field(4, "a") + field(5, "b") + calls + opsets + field(10, "own"))
    node = field(1, field(1, "x") + field(2, "y") + field(4, "f12") + field(7, "own"))
    (folder / "model.onnx").write_bytes(onnx_model(nodes=node) + field(8, field(1, "own") + field(2, 1)) + functions)
    return folder / "model.onnx"


# -- TensorFlow --------------------------------------------------------------------------------------------------------


def savedmodel(folder: Path, operators: tuple[str, ...], in_function: bool = True, saver_only: bool = False) -> Path:
    """A SavedModel whose signature (with `saver_only`: whose saver) runs `operators`, in a function or in its main graph."""
    tensor_type = field(2, 1) + field(3, field(2, field(1, 4)))

    def node(name: str, operator: str, inputs: tuple[str, ...] = (), function: str = "") -> bytes:
        out = field(1, name) + field(2, operator) + b"".join(field(3, i) for i in inputs)
        return out + (field(5, field(1, "f") + field(2, field(10, field(1, function)))) if function else b"")

    inner = b"".join(field(3, node(f"op{i}", operator)) for i, operator in enumerate(operators))
    serve = field(3, node("same", "Identity", ("x",)))
    library = field(1, field(1, field(1, "evil")) + inner) + field(1, field(1, field(1, "serve")) + serve)
    nodes = field(1, node("x", "Placeholder"))
    if in_function:
        nodes += field(1, node("y", "StatefulPartitionedCall", ("x",), "serve" if saver_only else "evil"))
    else:
        nodes += b"".join(field(1, node(f"op{i}", operator)) for i, operator in enumerate(operators))
        nodes += field(1, node("y", "Identity", ("x", *(f"^op{i}" for i in range(len(operators))))))
    nodes += field(1, node("save", "StatefulPartitionedCall", (), "evil" if saver_only else "serve"))
    signature = field(1, field(1, "x") + field(2, field(1, "x:0") + tensor_type))
    signature += field(2, field(1, "y") + field(2, field(1, "y:0") + tensor_type))
    meta = field(1, field(4, "serve") + field(5, "2.21.0")) + field(2, nodes + field(2, library))
    meta += field(3, field(2, "save:0")) + field(5, field(1, "serving_default") + field(2, signature))
    (folder / "saved_model.pb").write_bytes(field(1, 1) + field(2, meta))
    return folder


def savedmodel_with_files(folder: Path, canary: Path) -> Path:
    """A signature that calls a function that reads and writes files."""
    return savedmodel(folder, ("ReadFile", "WriteFile"))


def savedmodel_with_files_in_main(folder: Path, canary: Path) -> Path:
    """A signature that depends on a write through a control edge only."""
    return savedmodel(folder, ("MatchingFiles", "WriteFile"), in_function=False)


def savedmodel_with_python(folder: Path, canary: Path) -> Path:
    """A signature that calls Python."""
    return savedmodel(folder, ("PyFunc", "EagerPyFunc"))


def savedmodel_that_saves(folder: Path, canary: Path) -> Path:
    """A signature that saves a checkpoint wherever it likes."""
    return savedmodel(folder, ("SaveV2", "MergeV2Checkpoints"))


def savedmodel_writer_in_saver(folder: Path, canary: Path) -> Path:
    """A saver that writes plain files, which no saver does."""
    return savedmodel(folder, ("WriteFile",), saver_only=True)


def tf_graph(nodes: Mapping[str, str], functions: bytes = b"", tags: tuple[str, ...] = ("serve",)) -> bytes:
    """A MetaGraphDef whose signature takes x and gives y; `nodes` are further ones, operator by name."""
    kind = field(2, 1) + field(3, field(2, field(1, 4)))
    signature = field(1, field(1, "x") + field(2, field(1, "x:0") + kind))
    signature += field(2, field(1, "y") + field(2, field(1, "y:0") + kind))
    graph = field(1, field(1, "x") + field(2, "Placeholder"))
    graph += field(1, field(1, "y") + field(2, "PartitionedCall") + field(3, "x") + b"".join(field(3, f"^{n}") for n in nodes)
                   + field(5, field(1, "f") + field(2, field(10, field(1, "inner")))))  # fmt: skip
    graph += b"".join(field(1, field(1, name) + field(2, operator)) for name, operator in nodes.items())
    info = field(1, b"".join(field(4, tag) for tag in tags) + field(5, "2.21.0"))
    return field(2, info + field(2, graph + field(2, functions)) + field(5, field(1, "serving_default") + field(2, signature)))


def tf_function(operator: str) -> bytes:
    """A function called "inner" that runs `operator`."""
    return field(1, field(1, field(1, "inner")) + field(3, field(1, "op") + field(2, operator)))


def savedmodel_with_function_twice(folder: Path, canary: Path) -> Path:
    """Two functions of one name: the one that is looked at is not the one that a loader takes."""
    functions = tf_function("WriteFile") + tf_function("Identity")
    (folder / "saved_model.pb").write_bytes(field(1, 1) + tf_graph({}, functions))
    return folder


def savedmodel_with_node_twice(folder: Path, canary: Path) -> Path:
    """Two nodes of one name, the first of which calls Python."""
    graph = tf_graph({}).replace(field(1, "x") + field(2, "Placeholder"), field(1, "y") + field(2, "EagerPyFunc"))
    (folder / "saved_model.pb").write_bytes(field(1, 1) + graph)
    return folder


def savedmodel_with_another_graph(folder: Path, canary: Path) -> Path:
    """A harmless graph for a GPU before the one that loaders ask for, tagged "serve" alone, which writes files."""
    graphs = tf_graph({}, tf_function("Identity"), ("serve", "gpu")) + tf_graph({"w": "WriteFile"})
    (folder / "saved_model.pb").write_bytes(field(1, 1) + graphs)
    return folder


def savedmodel_with_graph_for_training(folder: Path, canary: Path) -> Path:
    """A harmless graph to serve, and one with another tag that calls Python."""
    graphs = tf_graph({}, tf_function("Identity")) + tf_graph({"w": "PyFunc"}, tags=("train",))
    (folder / "saved_model.pb").write_bytes(field(1, 1) + graphs)
    return folder


def savedmodel_with_attribute_twice(folder: Path, canary: Path) -> Path:
    """An attribute given twice, first harmless: protocol buffers keep the last."""
    told = b"".join(
        field(5, field(1, "descriptor_source") + field(2, field(2, where))) for where in ("local://", "/etc/passwd")
    )
    function = field(1, field(1, field(1, "inner")) + field(3, field(1, "op") + field(2, "DecodeProtoV2") + told))
    (folder / "saved_model.pb").write_bytes(field(1, 1) + tf_graph({}, function))
    return folder


def savedmodel_truncated(folder: Path, canary: Path) -> Path:
    """A SavedModel that lost its end."""
    path = savedmodel(folder, ("Identity",)) / "saved_model.pb"
    path.write_bytes(path.read_bytes()[:-30])
    return folder


# -- Keras -------------------------------------------------------------------------------------------------------------


def keras_file(folder: Path, layer: Mapping[str, Any]) -> Path:
    """A .keras file of a Sequential model with one layer after its input."""
    first = {"module": "keras.layers", "class_name": "InputLayer", "config": {"batch_shape": [None, 4], "name": "x"}}
    config = {"module": "keras", "class_name": "Sequential", "config": {"name": "model", "layers": [first, layer]}}
    path = folder / "model.keras"
    entries = {
        "metadata.json": b'{"keras_version": "3.15.1"}',
        "config.json": json.dumps(config).encode(),
        "model.weights.h5": b"",
    }
    path.write_bytes(stored(entries))
    return path


def keras_lambda(folder: Path, canary: Path) -> Path:
    """A Lambda layer with bytecode."""
    code = marshal.dumps(compile(f"open({str(canary)!r}, 'w')", "payload", "eval"))
    function = {
        "class_name": "__lambda__",
        "config": {"code": base64.b64encode(code).decode(), "defaults": None, "closure": None},
    }
    return keras_file(
        folder,
        {
            "module": "keras.layers",
            "class_name": "Lambda",
            "config": {"name": "run", "function": function},
            "registered_name": None,
        },
    )


def keras_foreign_function(folder: Path, canary: Path) -> Path:
    """An activation that is os.system."""
    activation = {"module": "os", "class_name": "function", "config": "system", "registered_name": "system"}
    config = {"name": "dense", "units": 3, "activation": activation}
    return keras_file(folder, {"module": "keras.layers", "class_name": "Dense", "config": config, "registered_name": None})


def keras_builtin_function(folder: Path, canary: Path) -> Path:
    """An activation that is Python's eval."""
    activation = {"module": "builtins", "class_name": "function", "config": "eval", "registered_name": "function"}
    config = {"name": "dense", "units": 3, "activation": activation}
    return keras_file(folder, {"module": "keras.layers", "class_name": "Dense", "config": config, "registered_name": None})


def keras_download(folder: Path, canary: Path) -> Path:
    """A function of Keras' own that fetches a file from the network."""
    activation = {"module": "keras.utils", "class_name": "function", "config": "get_file", "registered_name": None}
    config = {"name": "dense", "units": 3, "activation": activation}
    return keras_file(folder, {"module": "keras.layers", "class_name": "Dense", "config": config, "registered_name": None})


def keras_vocabulary_file(folder: Path, canary: Path) -> Path:
    """A lookup layer that takes /etc/passwd for its vocabulary."""
    config = {"name": "lookup", "vocabulary": "/etc/passwd"}
    return keras_file(
        folder, {"module": "keras.layers", "class_name": "StringLookup", "config": config, "registered_name": None}
    )


def keras_dotted_class(folder: Path, canary: Path) -> Path:
    """A class named with a dot: Keras finds keras + "layers.StringLookup", and reads /etc/passwd for its vocabulary."""
    config = {"name": "lookup", "vocabulary": "/etc/passwd"}
    layer = {"module": "keras", "class_name": "layers.StringLookup", "config": config, "registered_name": None}
    return keras_file(folder, layer)


# -- Hugging Face folders ----------------------------------------------------------------------------------------------


def safetensors_bytes(tensors: Mapping[str, tuple[int, ...]], **changes: Any) -> bytes:
    """float32 zeros of the given shapes; `changes` are laid over the header."""
    header: dict[str, Any] = {}
    place = 0
    for name, shape in tensors.items():
        count = 4
        for size in shape:
            count *= size
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [place, place + count]}
        place += count
    text = json.dumps(header | changes).encode()
    return struct.pack("<Q", len(text)) + text + bytes(place)


def huggingface(folder: Path, weights: bytes | None = None, **config: Any) -> Path:
    """A folder with config.json and model.safetensors."""
    known = {"architectures": ["ResNetForImageClassification"], "model_type": "resnet", "id2label": {"0": "a", "1": "b"}}
    (folder / "config.json").write_text(json.dumps(known | config))
    (folder / "model.safetensors").write_bytes(
        safetensors_bytes({"classifier.1.weight": (2, 3)}) if weights is None else weights
    )
    return folder


def safetensors_lying_length(folder: Path, canary: Path) -> Path:
    """A header that says it has exabytes."""
    return huggingface(folder, struct.pack("<Q", 1 << 60) + b"{}")


def safetensors_lying_offsets(folder: Path, canary: Path) -> Path:
    """A tensor that claims a terabyte."""
    lie = {"dtype": "F32", "shape": [1 << 38], "data_offsets": [0, 1 << 40]}
    return huggingface(folder, safetensors_bytes({"a": (2,)}, a=lie))


def safetensors_overlapping(folder: Path, canary: Path) -> Path:
    """Two tensors on the same bytes."""
    lie = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    return huggingface(folder, safetensors_bytes({"a": (2,)}, b=lie))


def config_of_layers(folder: Path, canary: Path) -> Path:
    """A config.json of a billion layers, which transformers would build one by one."""
    return huggingface(folder, depths=[10**9], num_hidden_layers=10**9)


def safetensors_truncated(folder: Path, canary: Path) -> Path:
    """Weights that lost their end."""
    return huggingface(folder, safetensors_bytes({"a": (100, 100)})[:-1000])


def config_nested(folder: Path, canary: Path) -> Path:
    """A config.json a hundred thousand levels deep."""
    huggingface(folder)
    (folder / "config.json").write_text('{"a":' * 100_000 + "1" + "}" * 100_000)
    return folder


def config_nested_a_little(folder: Path, canary: Path) -> Path:
    """A config.json of 500 levels: a parser takes it, what comes after may not."""
    huggingface(folder)
    (folder / "config.json").write_text('{"a":' * 500 + "1" + "}" * 500)
    return folder


def config_huge(folder: Path, canary: Path) -> Path:
    """A config.json of 9 MB."""
    return huggingface(folder, filler="x" * (9 * 1024 * 1024))


def weights_link_out(folder: Path, canary: Path) -> Path:
    """model.safetensors is a symlink out of the folder."""
    inner = folder / "model"
    inner.mkdir()
    huggingface(inner)
    (folder / "elsewhere").write_bytes((inner / "model.safetensors").read_bytes())
    (inner / "model.safetensors").unlink()
    (inner / "model.safetensors").symlink_to(folder / "elsewhere")
    return inner


def processor_link_out(folder: Path, canary: Path) -> Path:
    """tokenizer.json is a symlink to /etc/passwd, which would be served to whoever asks."""
    huggingface(folder)
    (folder / "tokenizer.json").symlink_to("/etc/passwd")
    return folder


def shards_climbing(folder: Path, canary: Path) -> Path:
    """An index that names a shard outside the folder."""
    huggingface(folder)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../secret.safetensors"}}))
    return folder


def own_code(folder: Path, canary: Path) -> Path:
    """A repository that needs its own Python code."""
    huggingface(folder, model_type="evil", auto_map={"AutoModelForImageClassification": "modeling_evil.Evil"})
    (folder / "modeling_evil.py").write_text(f"open({str(canary)!r}, 'w')\n")
    return folder


# -- OpenVINO ----------------------------------------------------------------------------------------------------------


def ir_entities(folder: Path, canary: Path) -> Path:
    """XML entities that unfold to gigabytes."""
    entities = "".join(f'<!ENTITY e{i} "{f"&e{i - 1};" * 10}">' for i in range(1, 10))
    (folder / "model.xml").write_text(f'<?xml version="1.0"?><!DOCTYPE net [<!ENTITY e0 "x">{entities}]><net name="&e9;"/>')
    (folder / "model.bin").write_bytes(b"")
    return folder / "model.xml"


@dataclass(frozen=True)
class Exhibit:
    """A builder and the kind of error that its file must be refused with."""

    build: Builder
    refused_with: type[CallerError]


GALLERY: dict[str, Exhibit] = {
    **{
        builder.__name__: Exhibit(builder, UnsafeModel)
        for builder in (
            raw_pickle, old_pickle, pickle_named_onnx, saved_state, pytorch_bin_folder,
            pt2_with_payload, pt2_with_raw_payload, pt2_with_hidden_name, pt2_with_expression, pt2_with_operator,
            pt2_power_bomb, pt2_number_bomb, pt2_guard_bomb,
            pt2_with_guard, pt2_with_name, pt2_with_container, pt2_with_object, pt2_with_library, pt2_with_twin,
            torchscript, torchscript_with_payload,
            zip_bomb, zip_with_many_entries, zip_that_climbs,
            onnx_binary_operator, onnx_external_dotted,
            onnx_external_above, onnx_external_absolute, onnx_external_link, onnx_python_operator,
            savedmodel_with_files, savedmodel_with_files_in_main, savedmodel_with_python, savedmodel_that_saves,
            savedmodel_writer_in_saver, savedmodel_with_function_twice, savedmodel_with_node_twice,
            savedmodel_with_another_graph, savedmodel_with_graph_for_training, savedmodel_with_attribute_twice,
            keras_dotted_class,
            keras_lambda, keras_foreign_function, keras_builtin_function, keras_download, keras_vocabulary_file,
            weights_link_out, processor_link_out, own_code, ir_entities,
        )
    },
    **{
        builder.__name__: Exhibit(builder, InvalidModel)
        for builder in (
            zip_that_lies, truncated_archive,
            text_named_onnx, empty_onnx, truncated_onnx, noise_named_onnx, onnx_external_missing, onnx_external_short,
            onnx_bomb, onnx_depth_bomb, onnx_function_bomb, config_of_layers, savedmodel_truncated,
            safetensors_lying_length, safetensors_lying_offsets, safetensors_overlapping, safetensors_truncated,
            config_nested, config_nested_a_little, config_huge, shards_climbing,
        )
    },
}  # fmt: skip
"""Everything above by name. None of it may run, and none of it may leave anything in a store."""


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
