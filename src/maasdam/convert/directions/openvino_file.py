"""Write an OpenVINO model under its source's names, so that it answers as it was proven to whoever opens it.

Knows model.xml and model.bin; refuses to know where the model came from. OpenVINO decides some things by itself when a file is
opened: which of two equal numbers comes first, and on processors with arithmetic in bf16 what is rounded to it. A file can
say both.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from maasdam.convert.signatures import describe, name_openvino, of_openvino
from maasdam.core import Signature

if TYPE_CHECKING:
    import openvino as ov

PRECISE = {"name": "precise", "version": "0"}
"""A layer's mark that its numbers keep their precision. OpenVINO's own transformations read and write it."""
OPTIONS = {"DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
"""What a file may say for the compiler: products with int8 and int4 weights do not round what they multiply."""
STABLE_SINCE = "opset11"
"""The TopK that can say which of equal numbers comes first; the ones before it take the same inputs."""


def save(model: ov.Model, wanted: Signature | None, out: Path) -> Signature:
    """Name the tensors as in `wanted`, write `out`/model.xml and model.bin, and return the signature read back."""
    import openvino as ov

    if wanted is not None:
        name_openvino(model, wanted)
    ov.save_model(model, out / "model.xml", compress_to_fp16=False)
    _order_ties(out / "model.xml")
    return describe(of_openvino(ov.Core().read_model(out / "model.xml")), wanted)


def _order_ties(file: Path) -> None:
    """Of equal numbers the first comes first, as in ONNX, TensorFlow and NumPy. OpenVINO's converters leave it open."""
    tree = ElementTree.parse(file)
    changed = False
    for layer in tree.iter("layer"):  # those of loops and branches too
        data = layer.find("data")
        if layer.get("type") == "TopK" and data is not None and data.get("stable") != "true":
            layer.set("version", STABLE_SINCE)
            data.set("stable", "true")
            if data.get("sort") == "none":  # then it may not be stable; sorted is one of the orders that were left open
                data.set("sort", "value")
            changed = True
    if changed:
        tree.write(file, encoding="utf-8", xml_declaration=True)


def hold_precision(folder: Path) -> None:
    """Make `folder`/model.xml compute as precisely as it is written when it is opened with nothing said, as far as a file can.

    Every layer is marked. A product and the bias after it become one layer when the file is opened, which forgets the mark; so
    a step that changes nothing (a PReLU of slope 1, folded into the product) stands between them.
    """
    import openvino as ov

    file = folder / "model.xml"
    model = ov.Core().read_model(file)
    _part_products(model)
    for name, value in OPTIONS.items():
        model.set_rt_info(value, ["runtime_options", name])
    written = folder / "precise.xml"
    ov.save_model(model, written, compress_to_fp16=False)
    del model  # it maps the weights of the file that is replaced
    tree = ElementTree.parse(written)
    for layer in tree.iter("layer"):
        if layer.get("type") not in ("Const", "Parameter", "Result"):
            _mark(layer)
    tree.write(written, encoding="utf-8", xml_declaration=True)
    written.with_suffix(".bin").replace(file.with_suffix(".bin"))
    written.replace(file)


def _part_products(model: ov.Model) -> None:
    import openvino as ov
    from openvino import opset13

    for node in model.get_ordered_ops():
        if node.get_type_name() != "MatMul" or node.output(0).get_element_type() != ov.Type.f32:
            continue
        after = list(node.output(0).get_target_inputs())
        if len(after) == 1 and after[0].get_node().get_type_name() != "Result" and _is_constant(node.input_value(1).get_node()):
            same = opset13.prelu(node.output(0), opset13.constant([1.0], ov.Type.f32))
            after[0].replace_source_output(same.output(0))


def _is_constant(node: ov.Node) -> bool:
    inputs = [value.get_node() for value in node.input_values()]
    return all(map(_is_constant, inputs)) if inputs else node.get_type_name() == "Constant"


def _mark(layer: ElementTree.Element) -> None:
    info = layer.find("rt_info")
    if info is None:
        info = ElementTree.Element("rt_info")
        layer.insert(1 if layer.find("data") is not None else 0, info)
    if not any(a.get("name") == PRECISE["name"] for a in info):
        ElementTree.SubElement(info, "attribute", PRECISE)
