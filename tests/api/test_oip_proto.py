"""Our messages are Triton's, number by number, and what is read of them is what was sent."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import descriptor_pb2

from maasdam.api import oip_proto
from maasdam.api import oip_tensors as wire
from maasdam.api.oip_call import OipReply
from maasdam.errors import InvalidTensor

Request = oip_proto.message("ModelInferRequest")
REPOSITORY = Path(__file__).resolve().parents[2]


def theirs() -> dict[str, Any]:
    """Messages and enums of tritonclient by name, read from its files without running them: they are for an older protobuf."""
    found = importlib.util.find_spec("tritonclient")
    assert found is not None and found.submodule_search_locations is not None
    named: dict[str, Any] = {}
    for name in ("service_pb2.py", "model_config_pb2.py"):
        tree = ast.parse((Path(found.submodule_search_locations[0]) / "grpc" / name).read_text())
        constants = (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, bytes))
        file = descriptor_pb2.FileDescriptorProto.FromString(max(constants, key=len))
        _gather(file, f".{file.package}", named)
        named |= {service.name: service for service in file.service}
    return named


def ours() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto.FromString((REPOSITORY / "src/maasdam/api/oip.binpb").read_bytes())
    named: dict[str, Any] = {}
    _gather(file, f".{file.package}", named)
    return named | {service.name: service for service in file.service}


def _gather(of: Any, prefix: str, into: dict[str, Any]) -> None:
    for one in (*of.enum_type, *(of.message_type if hasattr(of, "message_type") else of.nested_type)):
        into[f"{prefix}.{one.name}"] = one
        if hasattr(one, "nested_type"):
            _gather(one, f"{prefix}.{one.name}", into)


def test_every_message_is_theirs_field_by_field() -> None:
    others, count = theirs(), 0
    for name, mine in ours().items():
        if isinstance(mine, descriptor_pb2.EnumDescriptorProto):
            assert [(v.name, v.number) for v in mine.value] == [(v.name, v.number) for v in others[name].value]
        elif isinstance(mine, descriptor_pb2.DescriptorProto):
            known = {f.number: (f.name, f.type, f.label, f.type_name) for f in others[name].field}
            for f in mine.field:
                assert known[f.number] == (f.name, f.type, f.label, f.type_name), f"{name}.{f.name}"
                count += 1
        else:
            calls = {m.name: (m.input_type, m.output_type, m.client_streaming, m.server_streaming) for m in others[name].method}
            for m in mine.method:
                assert calls[m.name] == (m.input_type, m.output_type, m.client_streaming, m.server_streaming)
    assert count > 100


def test_the_descriptor_is_that_of_the_file() -> None:
    pytest.importorskip("grpc_tools", reason="needs grpcio-tools")
    done = subprocess.run([sys.executable, "tools/proto.py", "--check"], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_messages_do_not_clash_with_a_clients() -> None:
    theirs = pytest.importorskip("tritonclient.grpc.service_pb2", reason="needs tritonclient")
    assert theirs.ModelInferRequest.DESCRIPTOR.full_name == Request.DESCRIPTOR.full_name
    assert theirs.ModelInferRequest.DESCRIPTOR is not Request.DESCRIPTOR


def read(datatype: str, shape: list[int], raw: bytes | None = None, **contents: Any) -> Any:
    asked = Request(model_name="m", raw_input_contents=[] if raw is None else [raw])
    asked.inputs.add(name="x", datatype=datatype, shape=shape)
    for name, values in contents.items():
        getattr(asked.inputs[0].contents, name).extend(values)
    (payload,) = oip_proto.decode(Request.FromString(asked.SerializeToString())).payloads
    return payload.tensors["x"]


@pytest.mark.parametrize("shape", [[2, 2], [], [0, 3], [1]])
@pytest.mark.parametrize("datatype", [*wire.TO_NUMPY, "BF16", "BYTES"])
def test_every_datatype_comes_through_raw_and_typed(datatype: str, shape: list[int]) -> None:
    import ml_dtypes

    size = int(np.prod(shape))
    flat = [b"", b"\xff\x00", "ü".encode(), b"a"] if datatype == "BYTES" else [1, 0, 1, 1]
    kind = {"BF16": ml_dtypes.bfloat16, "BYTES": object}.get(datatype) or wire.TO_NUMPY[datatype]
    array = np.array(flat[:size], kind).reshape(shape)
    back = read(datatype, shape, wire.to_bytes(array))
    assert back.dtype == array.dtype and back.shape == array.shape and back.tolist() == array.tolist()
    field = oip_proto.CONTENTS.get(datatype)
    if field is None:
        with pytest.raises(InvalidTensor, match="raw_input_contents"):
            read(datatype, shape)
    else:
        typed = read(datatype, shape, **{field: flat[:size]})
        assert typed.dtype == array.dtype and typed.shape == array.shape and typed.tolist() == array.tolist()
    response = oip_proto.encode(OipReply("m", "1", None, {"y": array}))
    assert response.outputs[0].datatype == datatype and list(response.outputs[0].shape) == shape
    assert response.raw_output_contents[0] == wire.to_bytes(array)


@pytest.mark.parametrize(
    ("datatype", "shape", "raw", "contents", "says"),
    [
        ("FP32", [2], b"1234567", {}, "is 8 bytes, and 7"),
        ("FP32", [-1], b"", {}, "0 or more"),
        ("FP32", [1 << 40, 1 << 40], b"", {}, "more elements"),
        ("FP32", [2], b"12345678", {"fp32_contents": [1, 2]}, "1 raw_input_contents are left over"),
        ("FP32", [2], None, {"fp32_contents": [1]}, "has 1 elements"),
        ("FP32", [1 << 40], None, {"fp32_contents": [1]}, "has 1 elements"),
        ("FP32", [1], None, {"fp64_contents": [1]}, "has fp64_contents; send fp32_contents"),
        ("FP32", [2], None, {}, "has 0 elements"),
        ("INT8", [1], None, {"int_contents": [128]}, "outside INT8"),
        ("INT16", [1], None, {"int_contents": [-40_000]}, "outside INT16"),
        ("UINT8", [1], None, {"uint_contents": [256]}, "outside UINT8"),
        ("BYTES", [1], b"\xff\xff\xff\xff", {}, "claims"),
        ("FP8", [1], b"1", {}, "the datatypes are"),
    ],
)
def test_a_lie_is_refused_with_what_to_do(datatype: str, shape: list[int], raw: bytes | None, contents: Any, says: str) -> None:
    with pytest.raises(InvalidTensor, match=says):
        read(datatype, shape, raw, **contents)


def test_raw_contents_are_of_the_inputs_without_typed_ones() -> None:
    raw = [np.array([i], np.float32).tobytes() for i in range(3)]
    asked = Request(model_name="m", raw_input_contents=raw[:2])
    for name in "abc":
        asked.inputs.add(name=name, datatype="FP32", shape=[1])
    with pytest.raises(InvalidTensor, match="input 'c' has 0 elements"):
        oip_proto.decode(asked)
    asked.inputs[1].contents.fp32_contents.append(7)
    (payload,) = oip_proto.decode(asked).payloads
    assert {name: array.tolist() for name, array in payload.tensors.items()} == {"a": [0], "b": [7], "c": [1]}
    asked.inputs[0].parameters["binary_data_size"].Clear()
    oip_proto.decode(asked)  # it is there and says nothing
    asked.inputs[0].parameters["binary_data_size"].int64_param = 4
    assert oip_proto.decode(asked).payloads
    asked.inputs[0].parameters["binary_data_size"].int64_param = 8
    with pytest.raises(InvalidTensor, match="binary_data_size is 8 and its raw contents have 4"):
        oip_proto.decode(asked)
    shared = Request(model_name="m")
    shared.inputs.add(name="x", datatype="FP32", shape=[1]).parameters["shared_memory_region"].string_param = "r"
    with pytest.raises(InvalidTensor, match="shared memory"):
        oip_proto.decode(shared)
