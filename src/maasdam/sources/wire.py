"""Protocol buffers read field by field from mapped bytes: no schema, no copies, bounded work.

Knows the wire format. Refuses to know any message. The protobuf library would build an object for each of a
hundred million empty sub-messages; here the reader decides what to step into, and `Budget` bounds the steps.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from maasdam.errors import InvalidModel

MAX_FIELDS = 2_000_000
"""Fields stepped over in one file, which takes seconds and half a gigabyte at most. MobileNetV2 as a SavedModel has 166,000."""
MAX_INTEGERS = 1_000_000
"""In one repeated field."""
MAX_DEPTH = 64
"""Messages within messages, function calls aside."""

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


class Budget:
    """How many more fields may be looked at in one file."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.left = MAX_FIELDS
        """Fields that may still be looked at."""

    def spend(self, fields: int) -> None:
        """Raise InvalidModel when the file asks for more work than any real model does."""
        self.left -= fields
        if self.left < 0:
            raise InvalidModel(
                f"{self.what} holds over {MAX_FIELDS:,} fields: refused as a protobuf bomb; export the model again"
            )

    def broken(self, why: str) -> InvalidModel:
        """The error for bytes that are no protocol buffer."""
        return InvalidModel(f"{self.what} is damaged or cut off ({why}); fetch or export it again")


class Message:
    """One message: fields by number, in file order. Sub-messages are views of the same bytes."""

    __slots__ = ("_budget", "_by_number", "_depth", "view")

    def __init__(self, view: memoryview, budget: Budget, depth: int = 0) -> None:
        if depth > MAX_DEPTH:
            raise InvalidModel(f"{budget.what} is nested deeper than {MAX_DEPTH} messages, as no model is; export it again")
        self.view = view
        self._budget = budget
        self._depth = depth
        self._by_number: dict[int, list[int | memoryview]] = {}
        budget.spend(1)
        by_number = self._by_number
        for number, value in _fields(view, budget):
            if number in by_number:
                by_number[number].append(value)
            else:
                by_number[number] = [value]

    def messages(self, number: int) -> Iterator[Message]:
        """Every sub-message of a repeated field."""
        for value in self._by_number.get(number, ()):
            if not isinstance(value, memoryview):
                raise self._budget.broken(f"field {number} is no message")
            yield Message(value, self._budget, self._depth + 1)

    def message(self, number: int) -> Message | None:
        """The sub-message of a field that occurs once; repeated ones count joined, as protobuf merges them."""
        parts = [value for value in self._by_number.get(number, ()) if isinstance(value, memoryview)]
        if not parts:
            return None
        view = parts[0] if len(parts) == 1 else memoryview(b"".join(parts))
        return Message(view, self._budget, self._depth + 1)

    def texts(self, number: int) -> list[str]:
        """Every string of a repeated field."""
        out = []
        for value in self._by_number.get(number, ()):
            if not isinstance(value, memoryview):
                raise self._budget.broken(f"field {number} is no text")
            try:
                out.append(bytes(value).decode())
            except UnicodeDecodeError as error:
                raise self._budget.broken(f"field {number} is no text") from error
        return out

    def text(self, number: int) -> str:
        """The last string of a field, "" where absent."""
        values = self.texts(number)
        return values[-1] if values else ""

    def numbers(self, number: int) -> list[int]:
        """Every integer (signed 64 bits) of a repeated field, packed or not."""
        out: list[int] = []
        for value in self._by_number.get(number, ()):
            if isinstance(value, int):
                out.append(_signed(value))
                continue
            place = 0
            while place < len(value):
                one, place = _varint(value, place, self._budget)
                out.append(_signed(one))
                if len(out) > MAX_INTEGERS:
                    raise self._budget.broken(f"field {number} holds over {MAX_INTEGERS:,} integers")
            self._budget.spend(len(out))
        return out

    def number(self, number: int, default: int = 0) -> int:
        """The last integer of a field."""
        values = self.numbers(number)
        return values[-1] if values else default

    def size(self, number: int) -> int | None:
        """The bytes of the last value of a bytes field; None where absent."""
        values = [value for value in self._by_number.get(number, ()) if isinstance(value, memoryview)]
        return len(values[-1]) if values else None

    def has(self, number: int) -> bool:
        """Whether the field occurs."""
        return number in self._by_number

    def map(self, number: int) -> Iterator[tuple[str, Message]]:
        """A map<string, message>: key and message."""
        for entry in self.messages(number):
            yield entry.text(1), entry.message(2) or Message(memoryview(b""), self._budget, self._depth + 1)


@contextmanager
def mapped(path: Path, what: str) -> Iterator[Message]:
    """The outermost message of a file, which is mapped rather than read."""
    size = path.stat().st_size
    if size == 0:
        raise InvalidModel(f"{what} is empty (0 bytes); fetch or export it again")
    with path.open("rb") as stream:
        memory = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        try:
            yield Message(memoryview(memory), Budget(what))
        finally:
            # views may still be referenced, by an error's traceback at the least: the map goes when they do
            with suppress(BufferError):
                memory.close()


def _fields(view: memoryview, budget: Budget) -> Iterator[tuple[int, int | memoryview]]:
    place, end = 0, len(view)
    while place < end:
        budget.left -= 1
        if budget.left < 0:
            budget.spend(0)
        tag = view[place]  # mostly one byte: the general case costs twice the time
        if tag < 0x80:
            place += 1
        else:
            tag, place = _varint(view, place, budget)
        number, kind = tag >> 3, tag & 7
        if number == 0:
            raise budget.broken("field number 0")
        if kind == VARINT:
            value, place = _varint(view, place, budget)
            yield number, value
        elif kind == BYTES:
            length = view[place] if place < end else 0x80
            if length < 0x80:
                place += 1
            else:
                length, place = _varint(view, place, budget)
            if length > end - place:
                raise budget.broken(f"a field of {length:,} bytes where {end - place:,} are left")
            yield number, view[place : place + length]
            place += length
        elif kind in (FIXED64, FIXED32):
            width = 8 if kind == FIXED64 else 4
            if width > end - place:
                raise budget.broken("a number is cut off")
            yield number, int.from_bytes(view[place : place + width], "little")
            place += width
        else:
            raise budget.broken(f"wire type {kind}")


def _varint(view: memoryview, place: int, budget: Budget) -> tuple[int, int]:
    value = shift = 0
    while True:
        if place >= len(view) or shift > 63:
            raise budget.broken("a number is cut off")
        byte = view[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
        shift += 7


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value
