"""An answer's calls of tools, told from its text as it comes. Knows the styles of formats; never grammars and engines.

What looks like a call and is none (no JSON, a tool that isn't there) is text, as it was written.

    feed "I'll look. <tool" -> "I'll look."      feed "_call>\\n{…}\\n</tool_call>" -> the call
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from maasdam.grammars.call_formats import SEPARATOR, CallFormat

LONGEST_HEAD = 400
"""Characters between what begins a call and its arguments."""
LONGEST_PYTHON = 64 * 1024
"""Characters of calls in Python that are read."""
MOST_BROKEN = 32
"""Beginnings of calls that are none: behind these all is text, as each may have been looked for its end in all that follows."""
_NAMED = re.compile(rf"(?:function{SEPARATOR})?([\w.-]+)\s*(?:{SEPARATOR}|```json|(?:\[CALL_ID\]\w+)?\[ARGS\]|>)?\s*")
_FUNCTION = re.compile(r"\s*<function=([^>\n]{1,100})>")
_PARAMETER = re.compile(r"<parameter=([^>\n]{1,200})>\n?(.*?)\n?(?:</parameter>|(?=<parameter=)|$)", re.DOTALL)
_PYTHON = re.compile(r"\[\s*[A-Za-z_][\w.]*\(")
_STRUCTURE = re.compile(r'["\\\[\]{}]')
_PYTHON_STRUCTURE = re.compile(r"[\"'\\\[\]{}()]")
_LITERALS = {"true": True, "false": False, "null": None}


class CallRead(NamedTuple):
    """A call as an answer makes it."""

    name: str
    arguments: Mapping[str, Any]


class _NoCall(Exception):
    """What began like a call is none."""


class CallReader:
    """Reads one answer."""

    def __init__(self, form: CallFormat, tools: Mapping[str, Any], most: int | None = None) -> None:
        """`tools`: schemas by names. Of more calls than `most` the first are given."""
        self.form = form
        self._tools = tools
        self._most = most
        self._count = 0
        self._broken = 0
        self._buffer = ""
        self._state = "begin"
        self._gap = ""
        self._is_list = False
        """Whether the calls stand in a list that goes on."""
        self._scan: _Balance | None = None

    def feed(self, text: str) -> tuple[str, list[CallRead]]:
        """The text that surely is none of a call, and the calls that are whole now."""
        self._buffer += text
        return self._read(is_last=False)

    def finish(self) -> tuple[str, list[CallRead]]:
        """What was held back; a call that is not whole is text."""
        return self._read(is_last=True)

    def _read(self, is_last: bool) -> tuple[str, list[CallRead]]:
        texts: list[str] = []
        calls: list[CallRead] = []
        while self._step(texts, calls, is_last):
            pass
        if self._most is not None:
            calls = calls[: max(0, self._most - self._count)]
        self._count += len(calls)
        return "".join(texts), calls

    def _step(self, texts: list[str], calls: list[CallRead], is_last: bool) -> bool:
        """Whether there may be more to do."""
        if self._state == "call":
            return self._call(texts, calls, is_last)
        if self._state == "after":
            return self._after(is_last)
        triggers = self._awaited
        if self._state == "begin":
            begun = self._buffer.lstrip()
            if not begun and not is_last:
                return False
            self._state = "text"
            if begun and begun[0] in self.form.opens:
                self._enter(len(self._buffer) - len(begun))
                return True
        at = min((at for trigger in triggers if (at := self._buffer.find(trigger)) >= 0), default=-1)
        if at >= 0:
            texts.append(self._buffer[:at].rstrip())
            self._buffer = self._buffer[len(texts[-1]) :]
            self._enter(at - len(texts[-1]))
            return True
        keep = 0 if is_last else max((_overlap(self._buffer, trigger) for trigger in triggers), default=0)
        out = self._buffer[: len(self._buffer) - keep]
        out = out if is_last else out.rstrip()
        texts.append(out)
        self._buffer = self._buffer[len(out) :]
        return False

    def _enter(self, gap: int) -> None:
        """A call may begin, behind a gap of so many characters."""
        self._gap, self._buffer = self._buffer[:gap], self._buffer[gap:]
        self._state, self._scan = "call", None

    def _call(self, texts: list[str], calls: list[CallRead], is_last: bool) -> bool:
        try:
            found = self._whole()
            if found is not None:
                made, used = found
                if any(call.name not in self._tools for call in made) or not made:
                    raise _NoCall
                calls += made
                self._buffer, self._state = self._buffer[used:], "after"
                return True
            if not is_last:
                return False
        except (_NoCall, ValueError, TypeError, RecursionError, MemoryError, SyntaxError):
            pass
        self._is_list = False
        self._broken += 1
        trigger = self._trigger() or self._buffer[:1]
        text = self._buffer if is_last and not self._again(len(trigger)) else trigger
        texts += self._gap, text
        self._buffer = self._buffer[len(text) :]
        self._state = "text"
        return bool(self._buffer)

    @property
    def _awaited(self) -> tuple[str, ...]:
        return self.form.triggers if self._broken < MOST_BROKEN else ()

    def _again(self, start: int) -> bool:
        return any(trigger in self._buffer[start:] for trigger in self._awaited)

    def _after(self, is_last: bool) -> bool:
        rest = self._buffer.lstrip()
        if self._is_list and rest[:1] == "]":
            self._is_list, self._buffer = False, rest[1:]
            return True
        if self._is_list and rest[:1] == ",":
            item = rest[1:].lstrip()
            if item[:1] == "{":
                self._enter(len(self._buffer) - len(item))
                return True
            if not item and not is_last:
                return False
        for words in (*self.form.closers, *self.form.triggers):
            if rest.startswith(words):
                if words in self.form.closers:
                    self._buffer = rest[len(words) :]
                else:
                    self._enter(len(self._buffer) - len(rest))
                return True
        if not is_last and (not rest or any(w.startswith(rest) for w in (*self.form.closers, *self.form.triggers))):
            return False
        if not rest:
            self._buffer = ""
            return False
        if self.form.opens and self.form.style == "json" and rest[0] in self.form.opens:  # Llama's, after a semicolon
            self._enter(len(self._buffer) - len(rest))
            return True
        self._buffer, self._state = rest, "text"
        return True

    def _trigger(self) -> str:
        return next((trigger for trigger in self.form.triggers if self._buffer.startswith(trigger)), "")

    def _whole(self) -> tuple[list[CallRead], int] | None:
        """The calls of one stretch and its length; None while it goes on. Raises _NoCall, ValueError, SyntaxError."""
        start = len(self._trigger())
        if self.form.style == "xml":
            head = self._buffer[0 if self._trigger() == "<function=" else start :].lstrip()
            if not head or "<function=".startswith(head[:10]):
                return self._elements()
        if self.form.style == "named":
            return self._after_name(start)
        head = self._buffer[start:].lstrip()
        if not head:
            return None
        if self.form.style == "python" and head[0] == "[" and not re.match(r"\[\s*(\{|$)", head):
            return self._python(len(self._buffer) - len(head))
        return self._json(len(self._buffer) - len(head))

    def _after_name(self, start: int) -> tuple[list[CallRead], int] | None:
        for trigger in self.form.triggers:  # one within another: calls, and the first of them
            rest = self._buffer[start:].lstrip()
            if rest.startswith(trigger):
                start = len(self._buffer) - len(rest) + len(trigger)
        at = self._buffer.find("{", start)
        if at < 0 or at - start > LONGEST_HEAD:
            if len(self._buffer) - start > LONGEST_HEAD:
                raise _NoCall
            return None
        named = _NAMED.fullmatch(self._buffer[start:at].strip())
        if named is None:
            raise _NoCall
        found = self._value(at)
        return found and ([CallRead(named[1], _arguments(found[0]))], found[1])

    def _json(self, at: int) -> tuple[list[CallRead], int] | None:
        if self._buffer[at] == "[":  # its calls one by one
            rest = self._buffer[at + 1 :].lstrip()
            if not rest:
                return None
            at, self._is_list = len(self._buffer) - len(rest), True
        if self._buffer[at] != "{":
            raise _NoCall
        found = self._value(at)
        return found and ([_call_of(found[0])], found[1])

    def _value(self, at: int) -> tuple[Any, int] | None:
        """The JSON that begins here, and where it ends."""
        self._scan = self._scan or _Balance(at, _STRUCTURE, '"')
        end = self._scan.end(self._buffer)
        return None if end is None else (read_json(self._buffer[at:end]), end)

    def _python(self, at: int) -> tuple[list[CallRead], int] | None:
        if len(self._buffer) > LONGEST_PYTHON:
            raise _NoCall
        self._scan = self._scan or _Balance(at, _PYTHON_STRUCTURE, "\"'")
        end = self._scan.end(self._buffer)
        if end is None:
            return None
        if not _PYTHON.match(self._buffer, at):
            raise _NoCall
        tree = ast.parse(self._buffer[at:end], mode="eval").body
        assert isinstance(tree, ast.List)
        return [_python_call(one) for one in tree.elts], end

    def _elements(self) -> tuple[list[CallRead], int] | None:
        end = self._buffer.find("</function>")
        if end < 0:
            return None
        begin = self._buffer.find("<function=")
        head = _FUNCTION.match(self._buffer, begin)
        if head is None:
            raise _NoCall
        name = head[1].strip().strip("\"'")
        schema = self._tools.get(name)
        properties = schema.get("properties") if isinstance(schema, Mapping) else None
        known = properties if isinstance(properties, Mapping) else {}
        pairs = _PARAMETER.findall(self._buffer[head.end() : end])
        arguments = {key.strip(): _typed(value, known.get(key.strip())) for key, value in pairs}
        return [CallRead(name, arguments)], end + len("</function>")


class _Balance:
    """Where what is opened is closed again; each character is looked at once."""

    def __init__(self, at: int, structure: re.Pattern[str], quotes: str) -> None:
        self._at, self._structure, self._quotes = at, structure, quotes
        self._depth = 0
        self._quote = ""

    def end(self, text: str) -> int | None:
        """Behind the last bracket; None while one is open."""
        while (found := self._structure.search(text, self._at)) is not None:
            self._at, c = found.end(), found[0]
            if c == "\\":
                if self._at >= len(text):
                    self._at -= 1
                    return None
                self._at += 1 if self._quote else 0
            elif self._quote:
                self._quote = "" if c == self._quote else self._quote
            elif c in self._quotes:
                self._quote = c
            else:
                self._depth += 1 if c in "[{(" else -1
                if self._depth <= 0:
                    return self._at
        self._at = max(self._at, len(text))
        return None


def _call_of(value: Any) -> CallRead:
    """Of an object with a name and arguments."""
    if isinstance(value, dict) and isinstance(value.get("function"), dict):
        value = value["function"]
    name = value.get("name", value.get("function")) if isinstance(value, dict) else None
    if not isinstance(name, str):
        raise _NoCall
    return CallRead(name, _arguments(value.get("arguments", value.get("parameters"))))


def _arguments(value: Any) -> dict[str, Any]:
    if isinstance(value, str):
        value = read_json(value)  # some models write it twice
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise _NoCall
    return value


def _python_call(node: ast.AST) -> CallRead:
    if not isinstance(node, ast.Call) or node.args or any(word.arg is None for word in node.keywords):
        raise _NoCall
    return CallRead(ast.unparse(node.func), {str(word.arg): _literal(word.value) for word in node.keywords})


def _literal(node: ast.AST) -> Any:
    """A value of JSON, in Python's words or its own."""
    if isinstance(node, ast.Name) and node.id in _LITERALS:
        return _LITERALS[node.id]
    if isinstance(node, ast.List | ast.Tuple):
        return [_literal(one) for one in node.elts]
    if isinstance(node, ast.Dict):
        pairs = zip(node.keys, node.values, strict=True)
        return {str(_literal(key) if key is not None else _refuse()): _literal(value) for key, value in pairs}
    value = ast.literal_eval(node)
    if not isinstance(value, str | int | float | bool | None) or (isinstance(value, float) and not abs(value) < float("inf")):
        raise _NoCall
    return value


def _refuse() -> Any:
    raise _NoCall


def _typed(value: str, schema: Any) -> Any:
    """A parameter between elements: text where the schema says so, else JSON where it is some."""
    kind = schema.get("type") if isinstance(schema, Mapping) else None
    if kind == "string":
        return value
    try:
        return read_json(value)
    except (ValueError, RecursionError):
        return {"True": True, "False": False, "None": None}.get(value.strip(), value)


def read_json(text: str) -> Any:
    """A value that can be written as JSON again. Raises ValueError."""
    return json.loads(text, parse_constant=_no_number, parse_float=_finite)


def _finite(text: str) -> float:
    value = float(text)
    return value if abs(value) < float("inf") else _no_number(text)


def _no_number(name: str) -> Any:
    raise ValueError(f"{name:.40} is no number")


def _overlap(text: str, word: str) -> int:
    """Length of the longest end of `text` that begins `word`."""
    for length in range(min(len(text), len(word) - 1), 0, -1):
        if text.endswith(word[:length]):
            return length
    return 0
