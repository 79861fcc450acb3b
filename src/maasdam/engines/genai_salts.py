"""Tokens that OpenVINO GenAI's pipeline tells apart and the model does not: a number above each token, the salt.

Knows a model's file and its vocabulary. Refuses to know why tokens are to be told apart.

    id sent = token + salt * span; the model is given id & (span - 1)

The pipeline finds what it has computed before by the ids alone, and the model's answer hangs on the tokens alone. Its cache
has no word of its own for whose a prompt is (2026.4.1). Two things look at a prompt's ids: a penalty for repetition, which
breaks the pipeline where one is beyond the vocabulary, so whoever salts must refuse it; and the scores of a prompt's tokens,
which would be read from beyond the scores there are, but for the first, which has none.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from maasdam.errors import InvalidModel

if TYPE_CHECKING:
    from maasdam.core import type_array

LARGEST_ID = 1 << 31
"""OpenVINO computes ids in 32 bits on the CPU."""
MODEL = "openvino_model.xml"


class Salts:
    """Each is used once, until they begin anew after some millions; of those for one token, after some thousands."""

    def __init__(self, vocabulary: int) -> None:
        self.span = 1 << max(vocabulary - 1, 1).bit_length()
        self._most = LARGEST_ID // self.span
        self._numbers = itertools.count(1)

    def add(self, ids: type_array, at: int) -> None:
        """Make the tokens from `at` on, int64 [T], unlike any before: the first two, of one token alone that one."""
        above = self.add_to_first(ids[at:])
        ids[at + 1 : at + 2] += (1 + above % (self._most - 1)) * self.span

    def add_to_first(self, ids: type_array) -> int:
        """The same with a salt for the first token alone; how often those began anew."""
        above, below = divmod(next(self._numbers), self._most)
        ids[0] += below * self.span
        return above


def salted_model(folder: Path, into: Path, salts: Salts) -> None:
    """A genai folder in the empty folder `into` whose model leaves salts out of account: links to the files, and a model's
    description, which reads the same weights. Raises InvalidModel where it has no input_ids.
    """
    for file in folder.resolve().iterdir():
        if file.name != MODEL:
            (into / file.name).symlink_to(file)
    tree = ElementTree.parse(folder / MODEL)
    layers, edges = tree.getroot().find("layers"), tree.getroot().find("edges")
    assert layers is not None and edges is not None
    ids = next((layer for layer in layers if layer.get("type") == "Parameter" and _names(layer) == "input_ids"), None)
    if ids is None:
        raise InvalidModel("its model has no input 'input_ids', which a prefix cache needs to salt")
    given = str(ids.get("id"))
    first = max(int(str(layer.get("id"))) for layer in layers) + 1
    mask, left = str(first), str(first + 1)
    for edge in edges:
        if edge.get("from-layer") == given:
            edge.attrib |= {"from-layer": left, "from-port": "2"}
    span = str(salts.span - 1)
    # a constant would have to be in the weights' file: what is clamped between a number and itself is that number
    layers.append(_layer(mask, "Clamp", "opset1", {"min": span, "max": span}, 1))
    layers.append(_layer(left, "BitwiseAnd", "opset13", {"auto_broadcast": "numpy"}, 2))
    for source, port, to, at in ((given, "0", mask, "0"), (given, "0", left, "0"), (mask, "1", left, "1")):
        ElementTree.SubElement(edges, "edge", {"from-layer": source, "from-port": port, "to-layer": to, "to-port": at})
    tree.write(into / MODEL)


def _names(layer: ElementTree.Element) -> str | None:
    port = layer.find("output/port")
    return None if port is None else port.get("names")


def _layer(number: str, kind: str, opset: str, data: dict[str, str], inputs: int) -> ElementTree.Element:
    layer = ElementTree.Element("layer", {"id": number, "name": f"salt_{kind}", "type": kind, "version": opset})
    ElementTree.SubElement(layer, "data", data)
    into, out = ElementTree.SubElement(layer, "input"), ElementTree.SubElement(layer, "output")
    for i in range(inputs + 1):
        port = ElementTree.SubElement(into if i < inputs else out, "port", {"id": str(i), "precision": "I64"})
        for _ in range(2):
            ElementTree.SubElement(port, "dim").text = "-1"
    return layer
