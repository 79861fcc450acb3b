"""A model's own chat template, rendered within bounds. Knows Jinja; never tokens, models or HTTP.

A template comes with the model, whoever made that, and Jinja is a language: a few words of it loop for a year, or make a
text of ten gigabytes. Here it is the Jinja that transformers renders with, the same text to the letter, with a count in
every loop, macro and block, and with everything that makes text or lists charged before it is made:

    source -> syntax tree -> + counts -> compiled once        render: so many steps and characters, more for longer chats

What can't be charged for beforehand is not there: a few filters and methods that no chat template needs.
"""

from __future__ import annotations

import functools
import inspect
import json
import re
import string
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from types import BuiltinMethodType, MethodType
from typing import Any, cast

import jinja2
import jinja2.ext
import jinja2.meta
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

MOST_STEPS = 100_000
STEPS_FOR_EACH = 200
"""Turns of loops and calls in one rendering, and more for each message. Templates take ten or twenty for a message."""
MOST_MADE = 64 * 1024 * 1024
MADE_FOR_EACH = 16
"""Characters that one rendering may make in all, whatever becomes of them, and more for each character of the messages."""
MOST_SOURCE = 1024 * 1024
"""Characters of a template; the longest in use have thirty thousand."""
ELEMENT = 128
"""What an element of a list counts for, in characters: looking at one takes as long."""
MOST_DIGITS = 4096
"""Bits of a whole number."""
WIDEST = 1000
"""Of a column, an indent or a number that a format pads."""


class TooMuch(Exception):
    """The template asked for more than one rendering may use."""


class ChatTemplate:
    """One template, compiled. Thread-safe. Raises Jinja's errors where the source is no template."""

    def __init__(self, source: str) -> None:
        if len(source) > MOST_SOURCE:
            raise TooMuch(f"it has {len(source)} characters, and at most {MOST_SOURCE} are read")
        self._environment = _Bounded()
        with self._environment.within(_Budget(MOST_STEPS, MOST_MADE)):  # Jinja works out constants while it compiles
            parsed = self._environment.parse(source)
            self.variables = frozenset(jinja2.meta.find_undeclared_variables(parsed))
            """Those that it reads and does not set."""
            tree = _Counting().visit(parsed)
            self._template = self._environment.from_string(tree)

    def render(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Any] | None = None, **variables: Any) -> str:
        """The text of a chat, open for the answer. Raises TooMuch, and what the template or Jinja raises."""
        # transformers leaves out what is null: many templates would write "None". Content is null where the caller means it
        given = [{n: value for n, value in message.items() if value is not None or n == "content"} for message in messages]
        size = _Budget(0, 1 << 62).weigh([given, list(tools or ())])
        count = len(given) + len(tools or ())
        budget = _Budget(MOST_STEPS + STEPS_FOR_EACH * count, MOST_MADE + MADE_FOR_EACH * size)
        with self._environment.within(budget):
            return self._template.render(messages=given, tools=tools, documents=None, add_generation_prompt=True, **variables)


class _Budget:
    """What one rendering may still use."""

    def __init__(self, steps: int, characters: int) -> None:
        self._steps = steps
        self._characters = characters

    def step(self) -> None:
        self._steps -= 1
        if self._steps < 0:
            raise TooMuch("it takes more steps than one chat may take")

    def charge(self, characters: int) -> None:
        self._characters -= characters
        if self._characters < 0:
            raise TooMuch("it makes more text than one chat may take")

    def weigh(self, value: Any) -> int:
        """Characters of a value written out, about; what it shares counts each time. Stops where the budget does."""
        if isinstance(value, str):
            return len(value)
        total, left = 0, [value]
        while left:
            one = left.pop()
            total += len(one) + ELEMENT if isinstance(one, str | bytes) else ELEMENT
            if isinstance(one, _Attributes):
                one = _held(one)
            if isinstance(one, dict):
                left += one.keys()
                left += one.values()
            elif isinstance(one, list | tuple | set | frozenset):
                left += one
            elif isinstance(one, range):
                total += ELEMENT * len(one)
            elif isinstance(one, int):
                total += one.bit_length() // 3
            if total > self._characters:
                raise TooMuch("it makes more text than one chat may take")
        return total

    def read(self, value: Any) -> None:
        """Charge for looking at all of a value: a sixteenth of making it."""
        self.charge(self.weigh(value) // 16)

    def counted(self, value: Any) -> Any:
        """An iterator whose every element is a step; other values as they are."""
        if hasattr(value, "__next__"):
            return self._steps_of(value)
        return value

    def _steps_of(self, values: Iterator[Any]) -> Iterator[Any]:
        for value in values:
            self.step()
            self.charge(ELEMENT)
            yield value


class _Attributes(Namespace):
    """Jinja's namespace without names that begin with an underscore, as transformers has it."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # noqa: N805, RUF100 - so that namespace(self=1) works
        self, rest = args[0], args[1:]
        named = dict(*rest, **kwargs)
        for name in named:
            _check_name(name)
        Namespace.__init__(self, named)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        Namespace.__setitem__(self, name, value)


def _held(namespace: _Attributes) -> dict[str, Any]:
    """What it holds: as attributes it shows nothing else."""
    held: dict[str, Any] = object.__getattribute__(namespace, "_Namespace__attrs")
    return held


class _Dictionaries:
    """`dict` for templates, which is no class there."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _Bounded(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, where each thing that grows is charged to the rendering that runs in this thread."""

    intercepted_binops = frozenset(["+", "*", "%", "**"])

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_Generation, jinja2.ext.loopcontrols],
            optimized=False,
            cache_size=0,
        )
        self._running = threading.local()
        self.filters = {name: self._bounded(name, call) for name, call in self.filters.items() if name not in DROPPED}
        self.filters["tojson"] = self._bounded("tojson", _to_json)
        self.tests = {name: self._looking(cast(Any, call)) if name in LOOKING else call for name, call in self.tests.items()}
        del self.globals["lipsum"]
        self.globals |= {"raise_exception": _raise, "strftime_now": _now, "dict": _Dictionaries(), "namespace": _Attributes}

    @contextmanager
    def within(self, budget: _Budget) -> Iterator[None]:
        """Charge what this thread renders to `budget`."""
        self._running.budget = budget
        try:
            yield
        finally:
            del self._running.budget

    @property
    def budget(self) -> _Budget:
        """Of the rendering in this thread."""
        budget: _Budget = self._running.budget
        return budget

    # What `_Counting` puts into templates.

    def step(self) -> bool:
        """One turn of a loop."""
        self.budget.step()
        return True

    def output(self, value: Any) -> Any:
        """A value that is written out."""
        self.budget.charge(self.budget.weigh(value))
        return value

    made = output

    def read(self, value: Any) -> Any:
        """A value that is compared."""
        if isinstance(value, str | list | tuple | dict | range):
            self.budget.read(value)
        return value

    def joined(self, *values: Any) -> str:
        """`~`."""
        for value in values:
            self.budget.charge(self.budget.weigh(value))
        return "".join(map(str, values))

    # What Jinja asks its environment for.

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """The operators that grow."""
        budget = self.budget
        numbers = isinstance(left, int) and isinstance(right, int)
        if numbers and operator in ("*", "**"):
            digits = left.bit_length() * max(right, 0) if operator == "**" else left.bit_length() + right.bit_length()
            if digits > MOST_DIGITS:
                raise TooMuch("it works with numbers of more than a thousand digits")
        if operator == "*":
            for value, times in ((left, right), (right, left)):
                if isinstance(times, int) and not isinstance(value, int | float):
                    budget.charge(budget.weigh(value) * max(times, 0))
        elif operator == "%" and isinstance(left, str):
            _charge_format(budget, left, len(PERCENT.findall(left)), right)
        elif operator == "+" and not isinstance(left, int | float):
            budget.charge(budget.weigh(left) + budget.weigh(right))
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805, RUF100 - as Jinja's own
        owner = getattr(__obj, "__self__", None)
        if owner is __self:
            return __obj(*args)  # without the scope that Jinja hands on by name
        budget = __self.budget
        budget.step()
        given = [budget.counted(value) for value in args]
        if isinstance(__obj, BuiltinMethodType) or (isinstance(__obj, MethodType) and isinstance(owner, str)):
            given = _charge_method(budget, owner, __obj.__name__, given, kwargs)
        elif isinstance(wrapped := getattr(__obj, "__wrapped__", None), BuiltinMethodType):  # str.format, as the sandbox has it
            given = _charge_method(budget, wrapped.__self__, wrapped.__name__, given, kwargs)
        result = super().call(__context, __obj, *given, **kwargs)
        if isinstance(result, str | list | dict | tuple):
            budget.charge(budget.weigh(result))
        return result

    def getitem(self, obj: Any, argument: Any) -> Any:
        """As Jinja's; a key that takes long to hash is charged."""
        if isinstance(argument, tuple):
            self.budget.read(argument)
        return super().getitem(obj, argument)

    def _bounded(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        grows = GROWING.get(name)
        is_shallow = name in SHALLOW
        passed = 1 if hasattr(call, "jinja_pass_arg") else 0
        signature = _own_arguments(call)

        @functools.wraps(call)
        def bounded(*args: Any, **kwargs: Any) -> Any:
            budget = self.budget
            budget.step()
            given = [*args[:passed], *map(budget.counted, args[passed:])]
            if name in WHOLE and len(given) > passed and hasattr(given[passed], "__next__"):
                given[passed] = list(given[passed])
            if not is_shallow:
                for value in given[passed:]:
                    budget.read(value)
            if grows is not None:
                grows(budget, signature.bind(*given[passed:], **kwargs).arguments)
            result = call(*given, **kwargs)
            if isinstance(result, str | list | tuple | dict) and not is_shallow:
                budget.charge(budget.weigh(result))
            return result

        return bounded

    def _looking(self, call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def looking(*args: Any) -> Any:
            for value in args:
                self.read(value)
            return call(*args)

        return looking


class _Generation(jinja2.ext.Extension):
    """`{% generation %}`, with which templates for training mark what the assistant says: here it changes nothing."""

    tags = frozenset({"generation"})  # type: ignore[assignment]  # a set that nobody may change

    def parse(self, parser: Any) -> nodes.Node:
        """The block is a call that gives back its body, as in transformers."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("same"), [], [], body).set_lineno(line)

    def same(self, caller: Callable[[], str]) -> str:
        """The body."""
        return caller()


class _Counting(NodeTransformer):
    """Puts the counts into a template's syntax tree."""

    def visit_For(self, node: nodes.For) -> Any:
        node = self._body(node)
        if node.test is not None:  # which is asked for elements that the body never sees
            node.test = nodes.And(_ask("step", node), node.test, lineno=node.lineno)
        return node

    def visit_Output(self, node: nodes.Output) -> Any:
        self.generic_visit(node)
        texts = (nodes.Const(n.data, lineno=n.lineno) if isinstance(n, nodes.TemplateData) else n for n in node.nodes)
        node.nodes = [_ask("output", n, n) for n in texts]
        return node

    def visit_Concat(self, node: nodes.Concat) -> Any:
        self.generic_visit(node)
        return _ask("joined", node, *node.nodes)

    def visit_Compare(self, node: nodes.Compare) -> Any:
        self.generic_visit(node)
        node.expr = _ask("read", node, node.expr)
        for operand in node.ops:
            operand.expr = _ask("read", node, operand.expr)
        return node

    def visit_List(self, node: nodes.List) -> Any:
        self.generic_visit(node)
        return node if all(isinstance(item, nodes.Const) for item in node.items) else _ask("made", node, node)

    def visit_Tuple(self, node: nodes.Tuple) -> Any:
        self.generic_visit(node)
        return _ask("made", node, node) if node.ctx == "load" and node.items else node

    def visit_Dict(self, node: nodes.Dict) -> Any:
        self.generic_visit(node)
        for pair in node.items:
            pair.key = _ask("read", pair, pair.key)
        return _ask("made", node, node)

    def visit_Getitem(self, node: nodes.Getitem) -> Any:
        self.generic_visit(node)
        return _ask("made", node, node) if isinstance(node.arg, nodes.Slice) and node.ctx == "load" else node

    def _body(self, node: Any) -> Any:
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(_ask("step", node), lineno=node.lineno))
        return node

    visit_Macro = visit_CallBlock = visit_Block = _body


def _ask(name: str, at: nodes.Node, *arguments: nodes.Expr) -> Any:
    """A call of one of the environment's counts."""
    where = nodes.EnvironmentAttribute(name, lineno=at.lineno)
    return nodes.Call(where, list(arguments), [], None, None, lineno=at.lineno)


DROPPED = frozenset(["urlize", "pprint", "wordwrap", "xmlattr", "filesizeformat"])
"""Filters whose size can't be told beforehand, and that no chat template uses."""
LOOKING = frozenset(["in", "eq", "==", "equalto", "ne", "!=", "sameas"])
SHALLOW = frozenset(["length", "count", "default", "d", "first", "last", "items", "attr", "safe", "map"]) | frozenset(
    ["select", "reject", "selectattr", "rejectattr"]
)
"""Filters that look at no more than an element at a time."""
WHOLE = frozenset(["join", "sort", "list", "unique", "groupby", "sum", "min", "max", "reverse"])
"""Filters that take everything an iterator gives."""
PERCENT = re.compile(r"%(?!%)")
WIDE = re.compile(r"\d{4,}|\*")
STRIPPING = frozenset(["strip", "lstrip", "rstrip", "removeprefix", "removesuffix", "split", "rsplit", "splitlines"])
SEEKING = frozenset(["startswith", "endswith", "find", "rfind", "index", "rindex", "count", "partition", "rpartition"])
MAKING = frozenset(["replace", "join", "format", "format_map", "ljust", "rjust", "center", "zfill", "encode"])
CASING = frozenset(["upper", "lower", "title", "capitalize", "swapcase", "casefold", "isupper", "islower", "istitle"])
ASKING = frozenset(["isalpha", "isdigit", "isalnum", "isspace", "isnumeric", "isdecimal", "isascii"])
METHODS: dict[type, frozenset[str]] = {
    str: STRIPPING | SEEKING | MAKING | CASING | ASKING,
    dict: frozenset(["items", "keys", "values", "get", "copy"]),
    list: frozenset(["index", "count", "copy"]),
    tuple: frozenset(["index", "count"]),
    int: frozenset(["bit_length"]),
    float: frozenset(["is_integer"]),
    bytes: frozenset(["decode"]),
}
"""Of Python's own types, the methods that templates may call."""


def _charge_method(budget: _Budget, owner: Any, name: str, given: list[Any], named: Mapping[str, Any]) -> list[Any]:
    """Charge for a method of Python's own types, before it runs; the arguments to call it with."""
    allowed = next((names for kind, names in METHODS.items() if isinstance(owner, kind)), frozenset())
    if name not in allowed:
        raise SecurityError(f"{type(owner).__name__}.{name} is not there for chat templates")
    if not isinstance(owner, str):
        if name in ("index", "count", "get"):
            budget.read(owner if name != "get" else given)
        return given
    budget.read(owner)
    for value in (*given, *named.values()):
        budget.read(value)
    if name in ("ljust", "rjust", "center", "zfill"):
        _check_width(given[0] if given else named.get("width"))
    elif name == "replace" and len(given) > 1:
        _charge_replace(budget, owner, given[0], given[1])
    elif name == "join" and given:
        given = [list(given[0]), *given[1:]]
        budget.charge(len(owner) * len(given[0]) + budget.weigh(given[0]))
    elif name in ("split", "rsplit", "splitlines"):
        budget.charge(8 * len(owner))  # a text of single letters becomes a list of texts
    elif name in ("format", "format_map"):
        fields = [(spec, field) for _, field, spec, _ in string.Formatter().parse(owner) if field is not None]
        if any(spec and ("{" in spec or WIDE.search(spec)) for spec, _ in fields):
            raise TooMuch(f"it pads a text to more than {WIDEST} characters")
        budget.charge(len(owner) + len(fields) * (budget.weigh(given) + budget.weigh(dict(named)) + WIDEST))
    return given


def _charge_format(budget: _Budget, form: str, fields: int, values: Any) -> None:
    """`form % values`."""
    for part in form.split("%")[1:]:
        head = re.match(r"(?:\([^)]*\))?[#0\- +]*([\d.*]*)", part)
        if head and WIDE.search(head[1]):
            raise TooMuch(f"it pads a text to more than {WIDEST} characters")
    budget.charge(len(form) + fields * (budget.weigh(values) + WIDEST))


def _charge_replace(budget: _Budget, text: Any, old: Any, new: Any) -> None:
    text, old, new = str(text), str(old), str(new)
    times = text.count(old)
    budget.charge(len(text) + times * len(new))


def _check_width(width: Any) -> None:
    if (abs(width) if isinstance(width, int) else len(str(width))) > WIDEST:
        raise TooMuch(f"it pads a text to more than {WIDEST} characters")


def _indent(budget: _Budget, given: Mapping[str, Any]) -> None:
    width = given.get("width", 4)
    _check_width(width)
    lines = str(given["s"]).count("\n") + 1
    budget.charge(lines * (len(width) if isinstance(width, str) else max(int(width), 0)))


def _join(budget: _Budget, given: Mapping[str, Any]) -> None:
    if hasattr(given["value"], "__len__"):
        budget.charge(len(str(given.get("d", ""))) * len(given["value"]))


def _format(budget: _Budget, given: Mapping[str, Any]) -> None:
    form = str(given["value"])
    _charge_format(budget, form, len(PERCENT.findall(form)), [*given.get("args", ()), given.get("kwargs", {})])


def _pieces(budget: _Budget, given: Mapping[str, Any]) -> None:
    for name in ("linecount", "slices"):
        if name in given:
            budget.charge(ELEMENT * max(int(given[name]), 0))


def _round(budget: _Budget, given: Mapping[str, Any]) -> None:
    if abs(int(given.get("precision", 0))) > 100:
        raise TooMuch("it rounds to more than 100 digits")


def _written(budget: _Budget, given: Mapping[str, Any]) -> None:
    """tojson: each element may stand on a line of its own, indented, between separators."""
    indent = given.get("indent") or 0
    _check_width(indent)
    beside = len(indent) if isinstance(indent, str) else max(int(indent), 0)
    separators = sum(len(str(text)) for text in (given.get("separators") or ()))
    weight = budget.weigh(given["x"])
    budget.charge(weight + weight // ELEMENT * (separators + 8 * beside))


GROWING: dict[str, Callable[[_Budget, Mapping[str, Any]], None]] = {
    "center": lambda budget, given: _check_width(given.get("width", 0)),
    "indent": _indent,
    "replace": lambda budget, given: _charge_replace(budget, given["s"], given["old"], given["new"]),
    "join": _join,
    "format": _format,
    "batch": _pieces,
    "slice": _pieces,
    "round": _round,
    "tojson": _written,
}
"""Filters that give more than they take: what each is charged, by its arguments' names."""


def _to_json(x: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False) -> str:
    """transformers' own: Jinja's would escape HTML."""
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: Any) -> None:
    raise jinja2.exceptions.TemplateError(str(message)[:1000])


def _now(form: str) -> str:
    if len(form) > WIDEST or re.search(r"\d{3}", form):
        raise TooMuch("it writes the date in more than a thousand characters")
    return datetime.now().strftime(form)


def _own_arguments(filter: Callable[..., Any]) -> inspect.Signature:
    """Without the context or environment that Jinja puts before them."""
    signature = inspect.signature(filter)
    own = [p for p in signature.parameters.values() if p.name not in ("context", "environment", "eval_ctx")]
    return signature.replace(parameters=own)


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace of a chat template holds no names that begin with an underscore, like {name[:50]!r}")
