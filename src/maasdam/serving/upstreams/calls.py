"""Calls of tools as another server makes them: put together from their pieces, and checked by what checks our own engines'.

Knows OpenAI's JSON of them. They are given when the answer is whole: so none is taken back, and none is half.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from maasdam import grammars
from maasdam.core import TextPayload, ToolCall
from maasdam.errors import InvalidField, UpstreamFailure

MOST_CALLS = 128
"""Of one answer."""
LONGEST_ID = 512


def asked_calls(payload: TextPayload) -> dict[str, Any]:
    """The fields of a request that tell of tools and how they may be called."""
    if not payload.tools:
        return {}
    calling, fields = payload.calling, {"tools": [dict(tool) for tool in payload.tools]}
    more: dict[str, Any] = {"tool_choice": "required"} if calling.least else {}
    if calling.only is not None:
        more = {"tool_choice": {"type": "function", "function": {"name": calling.only}}}
    return fields | more | ({"parallel_tool_calls": False} if calling.most == 1 else {})


def shown(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message as it is sent: one that only calls says nothing, where some servers refuse an empty text."""
    return dict(message) | ({"content": None} if message.get("tool_calls") and not message.get("content") else {})


def ready(payload: TextPayload) -> None:
    """Make what will check the calls. Raises InvalidField for parameters that nothing could be checked by."""
    wanted = grammars.calls_wanted(grammars.GENERIC, payload.tools, payload.calling, "tools") if payload.tools else None
    try:
        if wanted is not None:
            grammars.readied(wanted)
    except (ValueError, RecursionError) as error:
        why = " ".join(str(error).split())[:200]
        raise InvalidField(f"'tools' has parameters that are no JSON schema which can be checked: {why}", "tools") from error


@dataclass(slots=True)
class _Begun:
    """A call as far as it came."""

    id: str = ""
    name: str = ""
    arguments: list[str] = field(default_factory=list)


class SaidCalls:
    """Those of one answer."""

    def __init__(self, payload: TextPayload) -> None:
        self._calling = payload.calling
        self._schemas = grammars.checked_by(payload.tools, payload.calling)
        self._begun: dict[int, _Begun] = {}

    @property
    def text(self) -> str:
        """What is counted of them, where nobody says how many tokens they took."""
        return "".join("".join((one.name, *one.arguments)) for one in self._begun.values())

    def take(self, given: Sequence[Any], is_whole: bool = False) -> None:
        """Those of a message, or the pieces of a stream's event. Raises UpstreamFailure."""
        for one in given:
            function = one.get("function") if isinstance(one, dict) else None
            if not isinstance(function, dict) or one.get("type") not in (None, "function"):
                raise UpstreamFailure("the upstream called what is no function")
            number, name, arguments = one.get("id") or "", function.get("name") or "", function.get("arguments") or ""
            if not all(isinstance(value, str) for value in (number, name, arguments)) or len(number) > LONGEST_ID:
                raise UpstreamFailure("the upstream made a call whose id, name or arguments are no text")
            begun = self._begun.setdefault(len(self._begun) if is_whole else self._place(one, number, name), _Begun())
            if len(self._begun) > MOST_CALLS:
                raise UpstreamFailure(f"the upstream made more than {MOST_CALLS} calls")
            begun.id = begun.id or number
            begun.name += "" if name == begun.name else name  # some servers say it in each piece
            begun.arguments.append(arguments)

    def whole(self, reason: str) -> tuple[tuple[ToolCall, ...], str]:
        """The calls of an answer that ended for a reason, and that reason as we have it; what was cut of one is left out.

        Blocks: schemas are read. Raises UpstreamFailure for calls that are not what was asked for.
        """
        is_cut = reason not in ("stop", "tool_calls")
        made: list[ToolCall] = []
        ids: set[str] = set()
        begun = [one for _, one in sorted(self._begun.items())]
        for i, one in enumerate(begun):
            call = self._read(one, may_be_cut=is_cut and i == len(begun) - 1)
            if call is None:
                continue
            named = one.id if one.id and one.id not in ids else f"call_{secrets.token_hex(12)}"
            ids.add(named)
            made.append(ToolCall(len(made), named, call.name, "".join(one.arguments).strip() or "{}"))
        most = self._calling.most
        if most is not None and len(made) > most:
            raise _broken(f"it makes {len(made)} calls where {most} may be made")
        if not is_cut and len(made) < max(self._calling.least, reason == "tool_calls"):
            raise _broken("it makes no call where one must be made")
        return tuple(made), "tool_calls" if made and not is_cut else reason

    def _place(self, one: Mapping[str, Any], number: str, name: str) -> int:
        """Where a piece goes: to its index, else to the last call unless it begins another."""
        index = one.get("index")
        if index is None:
            last = max(self._begun, default=-1)
            known = self._begun.get(last)
            is_next = known is None or (number and number != known.id) or (name and name != known.name)
            return last + 1 if is_next else last
        if isinstance(index, bool) or not isinstance(index, int) or index < 0:
            raise UpstreamFailure("the upstream made a call of no number that can be")
        return index

    def _read(self, one: _Begun, may_be_cut: bool) -> grammars.CallRead | None:
        """A call that is right; None for one that was cut."""
        text = "".join(one.arguments)
        try:
            read = grammars.read_json(text) if text.strip() else None
        except (ValueError, RecursionError) as error:
            if may_be_cut:
                return None
            raise _broken("it makes a call whose arguments are no JSON") from error
        if may_be_cut and read is None:
            return None
        if one.name not in self._schemas:
            raise _broken(f"it calls {one.name[:64]!r}, which is none of the tools that it may call")
        call = grammars.CallRead(one.name, {} if read is None else read)
        if not isinstance(call.arguments, dict):
            raise _broken("it makes a call whose arguments are no JSON object")
        try:
            why = grammars.wrong_call(call, self._schemas[call.name])
        except (ValueError, RecursionError) as error:
            raise _broken("it makes a call whose arguments can't be checked") from error
        if why is not None:
            raise _broken(why)
        return call


def _broken(why: str) -> UpstreamFailure:
    return UpstreamFailure(f"the upstream wrote what 'tools' does not allow: {why}")
