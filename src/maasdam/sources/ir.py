"""OpenVINO IR (model.xml + model.bin), alone or as the folder of a language model for OpenVINO GenAI.

Knows the XML's elements. Refuses to load OpenVINO; entities and DTDs in the XML are refused unread.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from xml.parsers import expat

from maasdam.core import Signature, TensorSpec
from maasdam.errors import InvalidModel, UnsafeModel, Unsupported
from maasdam.sources.bounds import MAX_AXIS, MAX_RANK, Place, commonest
from maasdam.sources.finding import Reading, Risk
from maasdam.sources.hfconfig import Description

MAX_XML_BYTES = 256 * 1024 * 1024
MAX_ELEMENTS = 2_000_000
"""Read in seconds, kept in half a gigabyte."""
MAX_XML_DEPTH = 100
BLOCK_BYTES = 1024 * 1024
"""Expat reads what is unfinished anew with each block: small ones make a long attribute take minutes."""
GENAI_MODEL = "openvino_model.xml"
_GENAI_FILES = tuple(f"openvino_{part}.{kind}" for part in ("model", "tokenizer", "detokenizer") for kind in ("xml", "bin"))

_DTYPES = {
    "f32": "float32", "f16": "float16", "f64": "float64", "bf16": "bfloat16", "i64": "int64", "i32": "int32", "i16": "int16",
    "i8": "int8", "u64": "uint64", "u32": "uint32", "u16": "uint16", "u8": "uint8", "boolean": "bool", "string": "object",
    "i4": "int4", "u4": "uint4", "u1": "uint1", "u2": "uint2", "u3": "uint3", "u6": "uint6", "nf4": "nf4",
    "f4e2m1": "float4_e2m1fn",
    "f8e4m3": "float8_e4m3fn", "f8e5m2": "float8_e5m2", "f8e8m0": "float8_e8m0fnu",
}  # fmt: skip
_KNOWN_SETS = {"opset" + str(number) for number in range(1, 33)} | {"", "experimental"}


@dataclass(slots=True)
class _Layer:
    identity: str
    name: str
    kind: str
    operator_set: str
    data: dict[str, str] = field(default_factory=dict)
    ports: list[_Port] = field(default_factory=list)


@dataclass(slots=True)
class _Port:
    identity: str
    precision: str
    names: str
    sizes: list[int] = field(default_factory=list)


class _Reader:
    """Takes expat's events; keeps layers outside nested bodies, and edges, in order."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.layers: list[_Layer] = []
        self.edges: dict[tuple[str, str], tuple[str, str]] = {}
        """(layer, port) that takes -> (layer, port) that gives."""
        self.top = ""
        self._path: list[str] = []
        self._text = ""
        self._count = 0

    def start(self, name: str, attributes: dict[str, str]) -> None:
        """An element opens."""
        self._count += 1
        if self._count > MAX_ELEMENTS or len(self._path) > MAX_XML_DEPTH:
            raise InvalidModel(f"{self.what} has too many or too deeply nested elements; convert the model again")
        if not self._path:
            self.top = name
        inside_body = not {"body", "then_body", "else_body"}.isdisjoint(self._path)
        self._path.append(name)
        self._text = ""
        get = attributes.get
        if name == "layer" and not inside_body:
            self.layers.append(_Layer(get("id", ""), get("name", ""), get("type", ""), get("version", "")))
        elif inside_body or not self.layers:
            return
        elif name == "data":
            self.layers[-1].data = attributes
        elif name == "port":
            self.layers[-1].ports.append(_Port(get("id", ""), get("precision", ""), get("names", "")))
        elif name == "edge":
            self.edges[get("to-layer", ""), get("to-port", "")] = get("from-layer", ""), get("from-port", "")

    def text(self, data: str) -> None:
        """Text within an element."""
        if self._path and self._path[-1] == "dim" and len(self._text) < 32:
            self._text += data

    def end(self, name: str) -> None:
        """An element closes."""
        self._path.pop()
        if name == "dim" and self.layers and self.layers[-1].ports and "body" not in self._path:
            try:
                self.layers[-1].ports[-1].sizes.append(int(self._text))
            except ValueError:
                raise InvalidModel(f"{self.what}: '{self._text}' is no size of an axis; convert the model again") from None

    def doctype(self, *_: object) -> None:
        """A DTD could define entities that unfold without end or name files."""
        raise UnsafeModel(f"{self.what} holds a document type definition, which models don't need; refused")


def read(place: Place, name: str) -> Reading:
    """Read one model: `name` (.xml) and the .bin beside it."""
    path = place.need(name, "the graph is missing")
    weights_name = name.removesuffix(".xml") + ".bin"
    weights = place.beside(weights_name)
    if weights is None:
        raise InvalidModel(f"{path} has no {Path(weights_name).name} beside it, where its weights are; copy both files")
    layers, edges = _parsed(path)
    elements = _constants(layers, weights, path)
    signature = _signature(layers, edges, path)
    custom = sorted({layer.kind for layer in layers if layer.operator_set not in _KNOWN_SETS})
    risks = [
        Risk("blocked", f"operators of an extension ({', '.join(custom[:10])}), a library of machine code", liftable=True)
    ] * bool(custom)
    return Reading(
        format="openvino",
        layout="ir",
        files={"model.xml": path, "model.bin": weights},
        signature=signature,
        parameters=sum(elements.values()),
        precision=commonest(elements),
        risks=tuple(risks),
    )


def read_genai(place: Place, description: Description) -> Reading:
    """Read a folder as Optimum exports language models for OpenVINO GenAI: model, tokenizer and detokenizer."""
    path = place.need(GENAI_MODEL, "the graph is missing")
    files = {name: file for name in _GENAI_FILES if (file := place.file(name)) is not None}
    for name in ("openvino_model.bin", "openvino_tokenizer.xml", "openvino_detokenizer.xml"):
        if name not in files:
            raise InvalidModel(f"{place.path} has {GENAI_MODEL} but no {name}; export the model again, with its tokenizer")
    if place.file("openvino_language_model.xml") or place.file("openvino_encoder_model.xml"):
        raise Unsupported(f"{place.path} is made of several models; only text generation is read in this layout")
    layers, _ = _parsed(path)
    elements = _constants(layers, files["openvino_model.bin"], path)
    return Reading(
        format="openvino",
        layout="genai",
        files=files,
        task=description.task,
        architecture=description.architecture,
        parameters=sum(elements.values()),
        precision=commonest(elements),
    )


def _parsed(path: Path) -> tuple[list[_Layer], dict[tuple[str, str], tuple[str, str]]]:
    if path.stat().st_size > MAX_XML_BYTES:
        raise InvalidModel(f"{path} has {path.stat().st_size:,} bytes; at most {MAX_XML_BYTES:,} are taken")
    reader = _Reader(str(path))
    parser = expat.ParserCreate()
    parser.StartElementHandler = reader.start
    parser.EndElementHandler = reader.end
    parser.CharacterDataHandler = reader.text
    parser.StartDoctypeDeclHandler = reader.doctype
    parser.EntityDeclHandler = reader.doctype
    try:
        with path.open("rb") as stream:
            while block := stream.read(BLOCK_BYTES):
                parser.Parse(block)
            parser.Parse(b"", True)
    except expat.ExpatError as error:
        raise InvalidModel(f"{path} is no whole XML file ({error}); convert the model again") from error
    if reader.top != "net" or not reader.layers:
        raise InvalidModel(f"{path} is XML but no OpenVINO model; convert the model to OpenVINO again")
    return reader.layers, reader.edges


def _constants(layers: list[_Layer], weights: Path, path: Path) -> Counter[str]:
    """Numbers by dtype; every constant must lie within the weights file."""
    size = weights.stat().st_size
    elements: Counter[str] = Counter()
    for layer in layers:
        if layer.kind != "Const":
            continue
        try:
            begin, length = int(layer.data["offset"]), int(layer.data["size"])
            shape = [int(part) for part in layer.data.get("shape", "").split(",") if part.strip()]
        except (KeyError, ValueError):
            raise InvalidModel(f"{path}: the constant '{layer.name}' says no place; convert the model again") from None
        if begin < 0 or length < 0 or begin + length > size:
            raise InvalidModel(
                f"{weights} is cut off: '{layer.name}' ends at byte {begin + length:,} of {size:,}; copy it again"
            )
        if len(shape) <= MAX_RANK and all(0 <= axis <= MAX_AXIS for axis in shape):
            elements[_DTYPES.get(layer.data.get("element_type", ""), "unknown")] += math.prod(shape)
    return elements


def _signature(layers: list[_Layer], edges: dict[tuple[str, str], tuple[str, str]], path: Path) -> Signature:
    by_identity = {layer.identity: layer for layer in layers}
    inputs = [_spec(layer.ports[-1], layer.name, path) for layer in layers if layer.kind == "Parameter" and layer.ports]
    outputs = []
    for layer in layers:
        if layer.kind != "Result" or not layer.ports:
            continue
        giver, port = edges.get((layer.identity, layer.ports[0].identity), ("", ""))
        source = next((p for p in by_identity[giver].ports if p.identity == port), None) if giver in by_identity else None
        outputs.append(_spec(source or layer.ports[0], by_identity[giver].name if giver in by_identity else layer.name, path))
    if not outputs:
        raise InvalidModel(f"{path} has no outputs; convert the model again")
    return Signature(tuple(inputs), tuple(outputs))


def _spec(port: _Port, fallback: str, path: Path) -> TensorSpec:
    """A tensor goes by the first of its names, else by its layer's."""
    name = port.names.split(",")[0] or fallback
    if len(port.sizes) > MAX_RANK or max((0, *port.sizes)) > MAX_AXIS:
        raise InvalidModel(f"{path}: '{name}' has a shape no tensor has; convert the model again")
    dtype = _DTYPES.get({"FP32": "f32", "FP16": "f16", "BOOL": "boolean"}.get(port.precision, port.precision.lower()))
    if dtype is None:
        raise Unsupported(f"{path}: '{name}' has the type '{port.precision}', which can't be sent")
    return TensorSpec(name, dtype, tuple(size if size >= 0 else None for size in port.sizes))
