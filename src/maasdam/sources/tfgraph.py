"""The nodes and functions of a TensorFlow graph, and which of them running one tensor reaches.

Knows GraphDef and FunctionDef by field number. Refuses to know what any operator does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from maasdam.errors import UnsafeModel
from maasdam.sources.wire import Message


class TfNode:
    """One operation: `operator` is its type, `inputs` name the nodes it takes from, `functions` those it may call."""

    __slots__ = ("_message", "functions", "inputs", "name", "operator")

    def __init__(self, message: Message) -> None:
        self._message = message
        self.name = message.text(1)
        self.operator = message.text(2)
        self.inputs = [_node_of(text) for text in message.texts(3)]
        self.functions = [self.operator, *_functions_in(message)]

    def attribute(self, name: str) -> Message | None:
        """An attribute's value (AttrValue)."""
        values = [value for key, value in self._message.map(5) if key == name]
        return values[-1] if values else None  # of a key that occurs twice a protocol buffer keeps the last

    def text_attribute(self, name: str) -> str:
        """An attribute that is text; "" where absent or none."""
        value = self.attribute(name)
        if value is None or value.size(2) is None:
            return ""
        return value.text(2)


class TfGraph:
    """The main graph of a MetaGraphDef and its function library."""

    def __init__(self, meta: Message, what: str) -> None:
        self.what = what
        definition = meta.message(2)
        self._nodes: dict[str, TfNode] = {}
        self._library: dict[str, list[TfNode]] = {}
        self._gradients: dict[str, str] = {}
        if definition is None:
            return
        for message in definition.messages(1):
            node = TfNode(message)
            if node.name in self._nodes:
                raise twice(what, "node", node.name)
            self._nodes[node.name] = node
        library = definition.message(2)
        for function in library.messages(1) if library else ():
            signature = function.message(1)
            name = signature.text(1) if signature else ""
            if name in self._library:
                raise twice(what, "function", name)
            self._library[name] = [TfNode(m) for m in function.messages(3)]
        for gradient in library.messages(2) if library else ():
            self._gradients[gradient.text(1)] = gradient.text(2)

    def all_nodes(self) -> Iterator[TfNode]:
        """Every node of the graph and of every function."""
        yield from self._nodes.values()
        for nodes in self._library.values():
            yield from nodes

    def reached(self, tensors: Iterable[str]) -> list[TfNode]:
        """The nodes that computing `tensors` ("name:0" or "name") runs, those within called functions included."""
        seen: set[str] = set()
        waiting = [_node_of(tensor) for tensor in tensors if tensor]
        out: list[TfNode] = []
        while waiting:
            name = waiting.pop()
            if name in seen or name not in self._nodes:
                continue
            seen.add(name)
            node = self._nodes[name]
            out.append(node)
            waiting += node.inputs
        return out + self.reached_from_functions(name for node in out for name in node.functions)

    def reached_from_functions(self, names: Iterable[str]) -> list[TfNode]:
        """The nodes of the named functions and of all they may call. Names of no function are passed over."""
        seen: set[str] = set()
        waiting = list(names)
        out: list[TfNode] = []
        while waiting:
            name = waiting.pop()
            if name in seen or name not in self._library:
                continue
            seen.add(name)
            nodes = self._library[name]
            out += nodes
            waiting += [inner for node in nodes for inner in node.functions]
            if name in self._gradients:
                waiting.append(self._gradients[name])
        return out


def twice(what: str, kind: str, name: str) -> UnsafeModel:
    """The error for two of one name: readers differ in which one they see, and only one can be looked through."""
    return UnsafeModel(f"{what} holds two {kind}s named '{name[:80]}'; refused: export the model again")


def _node_of(tensor: str) -> str:
    """ "^name", "name:0" and "name:out:0" are outputs of node "name"."""
    return tensor.removeprefix("^").partition(":")[0]


def _functions_in(message: Message) -> list[str]:
    """Names of functions in a node's attributes (field 10 of AttrValue, field 9 of its lists), nested ones too."""
    out: list[str] = []
    waiting = [value for _, value in message.map(5)]
    while waiting:
        value = waiting.pop()
        listed = value.message(1) if value.has(1) else None
        called = list(value.messages(10)) + (list(listed.messages(9)) if listed else [])
        for function in called:
            out.append(function.text(1))
            waiting += [inner for _, inner in function.map(2)]
    return out
