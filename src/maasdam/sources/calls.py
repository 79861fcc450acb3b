"""Which names and expressions of a serialized PyTorch program may be resolved, evaluated or called.

Knows Python expressions as syntax trees and PyTorch's operator names. Refuses to evaluate or import anything.

torch.export.load resolves "torch.<any dotted path>", evaluates symbolic sizes through sympy (Python's eval), imports what
containers name, and executes guards; tried with torch 2.13, a payload ran from sizes, guards and containers. Names of
values go into generated source. So only what torch.export.save writes is let through.
"""

from __future__ import annotations

import ast
import json
import math
import re
from typing import Literal

Kind = Literal["operator", "expression", "guard", "container", "context", "name", "attribute", "symbol", "remark", "class"]

MAX_EXPRESSION_CHARACTERS = 10_000
MAX_DIGITS = 40
"""Of a number within an expression."""
MAX_POWER = 1000
"""The exponents within one expression, multiplied: evaluating 10**10**10 takes all time and memory there is."""

_OPERATOR = re.compile(
    r"""torch\.ops\.(aten|prims|quantized_decomposed|torchvision|torchao)\.[A-Za-z_]\w*(\.\w+)?
      | torch\.ops\.higher_order\.(cond|map_impl|scan|associative_scan|while_loop|wrap_with_set_grad_enabled|wrap_with_autocast)
      | torch\.(sym_[a-z_]+|_sym_[a-z_]+)
      | math\.(ceil|floor|trunc|sqrt|exp|log|log2|pow|cos|sin|tan|acos|asin|atan|cosh|sinh|tanh)
      | _operator\.(add|sub|mul|floordiv|truediv|mod|pow|neg|pos|abs|eq|ne|lt|le|gt|ge|and_|or_|xor|not_|getitem|lshift|rshift)
    """,
    re.VERBOSE,
)
_IN_PYTHONS_WORDS = re.compile(r"(?<=\.)__i?(and|or|xor|lshift|rshift)__(?=\.|$)")
"""Operators of integers that PyTorch calls as Python does."""
_FILE_OPERATORS = {"save", "load", "from_file", "_save", "_load", "format", "warn"}
"""Operators under torch.ops.aten that reach files, by their bare names."""

_EXPRESSION_CALLS = {
    "Symbol", "Integer", "Float", "Rational", "Add", "Mul", "Pow", "Mod", "Min", "Max", "Abs", "Not", "And", "Or", "Eq", "Ne",
    "Lt", "Le", "Gt", "Ge", "Equality", "Unequality", "StrictLessThan", "LessThan", "StrictGreaterThan", "GreaterThan", "floor",
    "ceiling", "Piecewise", "ExprCondPair", "Tuple", "ITE", "true", "false", "BooleanTrue", "BooleanFalse", "Half", "One",
    "Zero", "NegativeOne", "Infinity", "NegativeInfinity", "FloorDiv", "CleanDiv", "CeilDiv", "ModularIndexing", "PythonMod",
    "IntTrueDiv", "FloatTrueDiv", "TruncToInt", "TruncToFloat", "CeilToInt", "FloorToInt", "RoundToInt", "RoundDecimal",
    "ToFloat", "PowByNatural", "FloatPow", "LShift", "RShift", "Where", "IsNonOverlappingAndDenseIndicator", "Identity",
    "OpaqueUnaryFn_sqrt", "OpaqueUnaryFn_exp", "OpaqueUnaryFn_log", "OpaqueUnaryFn_log2", "BitwiseFn_bitwise_and",
    "BitwiseFn_bitwise_or", "int_oo", "sqrt", "exp", "log",
}  # fmt: skip
"""What sympy's `srepr` and torch's own functions of sizes are called."""
_POWERS = frozenset({"Pow", "PowByNatural", "FloatPow", "LShift"})
_GUARD_CALLS = frozenset(
    {"size", "stride", "storage_offset", "dim", "numel", "item", "len", "max", "min", "isnan", "abs", "int", "float"}
)
_GUARD_NAMES = frozenset(
    {"L", "G", "math", "True", "False", "None", "Mod", "PythonMod", "FloorDiv", "Max", "Min", "inf", "isnan"}
)
_ATTRIBUTE = re.compile(r"[\w.@]*", re.ASCII)
_SYMBOL = re.compile(r"[a-z]{1,4}\d{1,6}|.*[ ()+*/-].*", re.ASCII)
_GUARD_TEXT = re.compile(r"[\w.]+", re.ASCII)
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*\Z")

_CONTAINERS = {"builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict", "collections.deque", "torch.Size"}
_CONTAINER_MODULES = ("transformers.", "torch.return_types.")
_NODES = (
    ast.Expression, ast.Constant, ast.Name, ast.Load, ast.BinOp, ast.UnaryOp, ast.Compare, ast.BoolOp, ast.Call, ast.keyword,
    ast.operator, ast.unaryop, ast.cmpop, ast.boolop, ast.Tuple,
)  # fmt: skip


def is_harmless(kind: Kind, text: str) -> bool:
    """Whether loading a program that holds `text` as `kind` runs nothing but PyTorch's own arithmetic."""
    if kind == "operator":
        return is_operator(text)
    if kind == "expression":
        return _is_expression(text)
    if kind == "guard":
        return _is_guard(text)
    if kind == "container":
        return text in _CONTAINERS or text.startswith(_CONTAINER_MODULES)
    if kind == "context":
        return _is_context(text)
    if kind == "name":  # written into generated source
        return text == "" or (text.isascii() and text.isidentifier())
    if kind == "attribute":  # quoted in generated source
        return _ATTRIBUTE.fullmatch(text) is not None
    if kind == "symbol":  # "u9999999999" would make loading count so far
        return _SYMBOL.fullmatch(text) is not None
    if kind == "remark":  # may become a comment in generated source: nothing may end its line but the newline that is handled
        return not any(ord(character) < 32 and character not in "\n\t" for character in text)
    return False  # a class of the file's own choosing


def is_operator(name: str) -> bool:
    """Whether a call target is one of PyTorch's own operators that touch nothing but tensors and numbers."""
    if not _OPERATOR.fullmatch(name) or "__" in _IN_PYTHONS_WORDS.sub("", name):
        return False
    parts = name.split(".")
    return not (parts[:3] == ["torch", "ops", "aten"] and parts[3] in _FILE_OPERATORS)


def _is_expression(text: str) -> bool:
    """A sympy expression as `srepr` writes it, or plain arithmetic: calls of known constructors only."""
    tree = _parsed(text)
    if tree is None or not _is_bounded(tree):
        return False
    for node in ast.walk(tree):
        if not isinstance(node, _NODES):
            return False
        if isinstance(node, ast.Call) and not (isinstance(node.func, ast.Name) and node.func.id in _EXPRESSION_CALLS):
            return False
        value = node.value if isinstance(node, ast.Constant) else None
        if isinstance(value, str) and not _NAME.match(value) and not _is_number(value):
            return False  # sympy evaluates text it is given
        if isinstance(node, ast.Name) and not _NAME.match(node.id):
            return False
    return True


def _is_guard(text: str) -> bool:
    """A comparison of sizes of inputs: `L['x'].size()[0] <= 64`. Its text is also quoted in generated source."""
    tree = _parsed(text)
    if tree is None or not _is_bounded(tree) or any(character in text for character in '"\\\n\r\f{}'):
        return False
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            if node.attr.startswith("_"):
                return False
        elif isinstance(node, ast.Call):
            called = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if called not in _GUARD_CALLS and called not in _GUARD_NAMES:
                return False
        elif isinstance(node, ast.Name):
            if node.id not in _GUARD_NAMES and node.id not in _GUARD_CALLS:
                return False
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            if not _GUARD_TEXT.fullmatch(node.value):
                return False
        elif not isinstance(node, (*_NODES, ast.Subscript)):
            return False
    return True


def _is_context(text: str) -> bool:
    """The context of a container, as JSON: null, a number, or keys. An object in it would name something to import."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return False
    if isinstance(value, list):
        return all(isinstance(key, str | int) for key in value)
    return value is None or isinstance(value, int)


def _is_bounded(tree: ast.Expression) -> bool:
    """Whether evaluating it comes to numbers of ordinary size, whatever the order it is evaluated in."""
    power = 1
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, int) and abs(node.value) >= 10**MAX_DIGITS:
            return False
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow | ast.LShift):
            exponent = _constant(node.right)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _POWERS:
            exponent = _constant(node.args[1]) if len(node.args) == 2 and not node.keywords else None
        else:
            continue
        if exponent is None or abs(exponent) > MAX_POWER:
            return False
        power *= max(1, math.ceil(abs(exponent)))
    return power <= MAX_POWER


def _constant(node: ast.expr) -> float | None:
    """The value of a number as Python or sympy's `srepr` writes it, a fraction included; None is anything else."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        inner = _constant(node.operand)
        return None if inner is None else -inner
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return float(node.value)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords and node.args:
        parts = [_constant(part) for part in node.args]
        if node.func.id in ("Integer", "Float", "Rational") and all(part is not None for part in parts):
            return max(abs(part) for part in parts if part is not None)
    return None


def _is_number(text: str) -> bool:
    digits = rf"\d{{1,{MAX_DIGITS}}}"
    return re.fullmatch(rf"-?{digits}(\.{digits}?)?([eE][-+]?\d{{1,3}})?(/{digits})?", text) is not None


def _parsed(text: str) -> ast.Expression | None:
    if len(text) > MAX_EXPRESSION_CHARACTERS:
        return None
    try:
        return ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
