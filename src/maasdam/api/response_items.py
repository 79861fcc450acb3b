"""Items of /v1/responses: read, kept, and told to a model as the messages of a chat. Knows their shapes; never templates.

text, or items of a body -> items (each with its id, as input_items gives them) -> messages
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from maasdam.api.entrance import new_request_id
from maasdam.api.fields import check_known
from maasdam.api.openai_schema import LONGEST_ID
from maasdam.api.tools import calls_from
from maasdam.errors import InvalidField

Item = dict[str, Any]

ROLES = ("user", "assistant", "system", "developer")
MOST_ITEMS = 10_000
ITEM_ID = re.compile(r"[A-Za-z0-9_.:-]{1,128}")
PARTS = {"input_text": "text", "output_text": "text", "refusal": "refusal"}
"""What a message's part is called -> the field that has its text."""
KINDS = ("message", "function_call", "function_call_output", "reasoning")
PREFIXES = {"message": "msg_", "function_call": "fc_", "function_call_output": "fco_", "reasoning": "rs_"}


def new_id(kind: str) -> str:
    """The id of an item of this kind."""
    return PREFIXES[kind] + new_request_id()


def items_of(given: Any) -> list[Item]:
    """The items of a body's `input`: a text is a user's message. Raises InvalidField."""
    if isinstance(given, str):
        given = [{"role": "user", "content": given}]
    if not isinstance(given, list) or not 0 < len(given) <= MOST_ITEMS:
        raise InvalidField(f"'input' must be a text or a list of 1 to {MOST_ITEMS:,} items", "input")
    return [_item(item, f"input[{i}]") for i, item in enumerate(given)]


def messages_of(items: Iterable[Item], instructions: str | None) -> tuple[Mapping[str, Any], ...]:
    """What the model is told: calls beside each other and what is said before them are one message."""
    messages: list[dict[str, Any]] = []
    if instructions is not None:
        messages.append({"role": "system", "content": instructions})
    thought: str | None = None
    for item in items:
        kind = item["type"]
        if kind == "reasoning":
            thought = _joined(item["content"] or item["summary"])
            continue
        if kind == "function_call_output":
            output = item["output"]
            text = output if isinstance(output, str) else _joined(output)
            messages.append({"role": "tool", "tool_call_id": item["call_id"], "content": text})
        elif kind == "function_call":
            function = {"name": item["name"], "arguments": item["arguments"]}
            if not (messages and messages[-1]["role"] == "assistant"):
                messages.append({"role": "assistant", "content": ""})
            calls = messages[-1].setdefault("tool_calls", [])
            calls.append({"id": item["call_id"], "type": "function", "function": function})
        else:
            role = "system" if item["role"] == "developer" else item["role"]
            messages.append({"role": role, "content": _joined(item["content"])})
        if thought and messages[-1]["role"] == "assistant":
            messages[-1]["reasoning_content"] = thought
        thought = None
    return tuple(messages)


def _item(item: Any, where: str) -> Item:
    if not isinstance(item, dict):
        raise InvalidField(f"'{where}' must be an object", where)
    kind = item.get("type") or "message"
    if kind not in KINDS:
        raise InvalidField(
            f"'{where}' is of type {kind!r:.60}, which no model here reads; send: {', '.join(KINDS)}",
            f"{where}.type",
            "unsupported_parameter",
        )
    read = {"message": _message, "function_call": _call, "function_call_output": _output, "reasoning": _reasoning}[kind]
    own_id = item.get("id")
    if own_id is not None and (not isinstance(own_id, str) or not ITEM_ID.fullmatch(own_id)):
        raise InvalidField(f"'{where}.id' must be 1 to 128 letters, digits, dots, colons, - and _", f"{where}.id")
    status = item.get("status")
    if status not in (None, "completed", "incomplete", "in_progress"):
        raise InvalidField(f"'{where}.status' is {status!r:.40}; send completed, incomplete or in_progress", f"{where}.status")
    return {"id": own_id or new_id(kind), "type": kind, "status": status or "completed"} | read(item, where)


def _message(item: Item, where: str) -> Item:
    check_known(item, ("type", "role", "content", "id", "status", "phase"), where=where)
    role = item.get("role")
    if role not in ROLES:
        raise InvalidField(f"'{where}.role' is {role!r:.40}; send {', '.join(ROLES)}", f"{where}.role")
    if item.get("phase") is not None:
        raise InvalidField(f"'{where}.phase' is not supported; leave it out", f"{where}.phase", "unsupported_parameter")
    content = item.get("content")
    if isinstance(content, str):
        content = [{"type": "output_text" if role == "assistant" else "input_text", "text": content}]
    return {"role": role, "content": _parts(content, f"{where}.content", PARTS)}


def _parts(content: Any, where: str, kinds: Mapping[str, str]) -> list[Item]:
    if not isinstance(content, list):
        raise InvalidField(f"'{where}' must be a text or a list of parts", where)
    parts: list[Item] = []
    for i, part in enumerate(content):
        place = f"{where}[{i}]"
        kind = part.get("type") if isinstance(part, dict) else None
        if not isinstance(kind, str) or kind not in kinds:
            raise InvalidField(
                f"'{place}' is of type {kind!r:.60}, which no model here reads; send: {', '.join(kinds)}",
                f"{place}.type",
                "unsupported_parameter",
            )
        name = kinds[kind]
        check_known(part, ("type", name, *(("annotations", "logprobs") if kind == "output_text" else ())), where=place)
        if not isinstance(part.get(name), str):
            raise InvalidField(f"'{place}.{name}' must be a text", f"{place}.{name}")
        parts.append({"type": kind, name: part[name]} | ({"annotations": [], "logprobs": []} if kind == "output_text" else {}))
    return parts


def _call(item: Item, where: str) -> Item:
    check_known(item, ("type", "id", "status", "call_id", "name", "arguments", "namespace"), where=where)
    if item.get("namespace") is not None:
        raise InvalidField(f"'{where}.namespace' is not supported; leave it out", f"{where}.namespace", "unsupported_parameter")
    function = {"name": item.get("name"), "arguments": item.get("arguments")}
    try:
        calls_from([{"id": item.get("call_id"), "function": function}], where)
    except InvalidField as error:  # as a chat has it
        param = str(error.param).replace("[0].function", "").replace("[0].id", ".call_id")
        raise InvalidField(str(error).replace("[0].function", "").replace("[0].id", ".call_id"), param) from error
    return {"call_id": item["call_id"], **function}


def _output(item: Item, where: str) -> Item:
    check_known(item, ("type", "id", "status", "call_id", "output"), where=where)
    if not isinstance(item.get("call_id"), str) or not 0 < len(item["call_id"]) <= LONGEST_ID:
        raise InvalidField(f"'{where}.call_id' must be the id of the call that it answers", f"{where}.call_id")
    output = item.get("output")
    return {
        "call_id": item["call_id"],
        "output": output if isinstance(output, str) else _parts(output, f"{where}.output", {"input_text": "text"}),
    }


def _reasoning(item: Item, where: str) -> Item:
    check_known(item, ("type", "id", "status", "summary", "content", "encrypted_content"), where=where)
    if item.get("encrypted_content"):
        raise InvalidField(
            f"'{where}.encrypted_content' is not this service's; leave the item out",
            f"{where}.encrypted_content",
            "unsupported_parameter",
        )
    kinds = {"summary": {"summary_text": "text"}, "content": {"reasoning_text": "text"}}
    return {name: _parts(item.get(name) or [], f"{where}.{name}", kind) for name, kind in kinds.items()}


def _joined(parts: Iterable[Item]) -> str:
    return "".join(part["refusal"] if part["type"] == "refusal" else part["text"] for part in parts)
