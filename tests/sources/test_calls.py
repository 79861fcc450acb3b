"""Which names and expressions of a serialized program pass."""

from __future__ import annotations

import pickle

import pytest

from maasdam.sources.calls import Kind, is_harmless
from maasdam.sources.pickles import TENSOR_NAMES, scan


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("operator", "torch.ops.aten.conv2d.default"),
        ("operator", "torch.ops.aten.__and__.Tensor"),
        ("operator", "torch.ops.higher_order.wrap_with_set_grad_enabled"),
        ("operator", "_operator.mul"),
        ("operator", "torch.sym_max"),
        ("operator", "math.ceil"),
        ("expression", "Symbol('s77', positive=True, integer=True)"),
        ("expression", "Mul(Integer(4), Symbol('s53', positive=True, integer=True))"),
        ("expression", "FloorDiv(Add(Symbol('s0'), Integer(-1)), Integer(2))"),
        ("expression", "s0 + 2*s1"),
        ("guard", "L['input_ids'].size()[1] == L['attention_mask'].size()[1]"),
        ("guard", "Mod(L['x'].size()[0], 8) == 0"),
        ("guard", "2 <= L['x'].size()[0] and L['x'].size()[0] <= 64"),
        ("container", "builtins.tuple"),
        ("container", "transformers.modeling_outputs.ImageClassifierOutput"),
        ("context", '["logits", "hidden_states"]'),
        ("context", "null"),
        ("name", "p_conv_weight"),
        ("attribute", "layers.0.conv@1.weight"),
        ("symbol", "s77"),
        ("remark", 'File "model.py", line 3, in forward\n    return x'),
    ],
)
def test_what_export_writes_passes(kind: Kind, text: str) -> None:
    assert is_harmless(kind, text)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("operator", "torch.os.system"),
        ("operator", "torch.ops.load_library"),
        ("operator", "torch.ops.aten.save"),
        ("operator", "torch.ops.aten.from_file.default"),
        ("operator", "torch.ops.aten.relu.default.__globals__"),
        ("operator", "torch.hub.load"),
        ("operator", "_operator.methodcaller"),
        ("operator", "_operator.attrgetter"),
        ("operator", "#handler:name"),
        ("operator", "torch.ops.debugprims.load_tensor.default"),
        ("expression", "__import__('os').system('id')"),
        ("expression", "Symbol('s0').__class__"),
        ("expression", "Max('__import__(\"os\")', 1)"),
        ("expression", "[x for x in ()]"),
        ("expression", "(lambda: 1)()"),
        ("expression", "eval('1')"),
        ("expression", "Symbol(f'{open}')"),
        ("guard", "__import__('os').system('id') == 0"),
        ("guard", "L['x'].__class__ == 1"),
        ("guard", "L['x']._data == 1"),
        ("guard", "L['x'].size()[0] == 1\n"),
        ("guard", "open('x') == 1"),
        ("guard", "L['\" + evil + \"'].size()[0] == 1"),
        ("container", "collections.defaultdict"),
        ("container", "os.system"),
        ("context", '{"default_factory_module": "os"}'),
        ("context", '[{"__enum__": true, "fqn": "os:x", "name": "y"}]'),
        ("context", '[{"\\u005f_enum__": true}]'),
        ("name", "x): import os; (y"),
        ("name", "x\ny"),
        ("attribute", 'a")or evil or("'),
        ("symbol", "u99999999999"),
        ("remark", "harmless\rimport os"),
        ("class", "__torch__.torch.classes.evil.Evil"),
    ],
)
def test_everything_else_is_refused(kind: Kind, text: str) -> None:
    assert not is_harmless(kind, text)


class _Calls:
    def __reduce__(self) -> tuple[object, ...]:
        return (print, ("ran",))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_that_calls_is_found_in_every_protocol(protocol: int) -> None:
    assert scan(pickle.dumps([_Calls()], protocol=protocol)).beyond(TENSOR_NAMES)


@pytest.mark.parametrize("value", [((), {}), {"a": [1, 2.5, "x", None, True, b"y"]}])
def test_a_pickle_of_plain_containers_passes(value: object) -> None:
    assert scan(pickle.dumps(value, protocol=2)).beyond(TENSOR_NAMES | {"_codecs encode"}) == []


@pytest.mark.parametrize("data", [b"", b"\x80\x02", b"cos\nsystem\n", b"\xff" * 9, b"\x80\x02X\xff\xff\xff\x7f"])
def test_a_broken_pickle_is_not_taken_for_harmless(data: bytes) -> None:
    assert scan(data).beyond(TENSOR_NAMES)
