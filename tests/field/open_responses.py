"""The objects and the events of the Responses API, made anew from the Open Responses specification as checks.

What is required is what both it and OpenAI's own schema of 2026-08-21 require.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import jsonschema_rs

TEXT = {"type": "string"}
NUMBER = {"type": "number"}
COUNT = {"type": "integer", "minimum": 0}
FLAG = {"type": "boolean"}


def nullable(schema: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [schema, {"type": "null"}]}


def thing(kind: str | None = None, **fields: dict[str, Any]) -> dict[str, Any]:
    """An object that has all of these."""
    fields = fields if kind is None else {"type": {"const": kind}} | fields
    return {"type": "object", "required": list(fields), "properties": fields}


def many(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": schema}


STATUS = {"enum": ["in_progress", "completed", "incomplete"]}
LIKELY = {"token": TEXT, "logprob": NUMBER, "bytes": many(COUNT)}
LOGPROB = thing(**LIKELY, top_logprobs=many(thing(**LIKELY)))
OUTPUT_TEXT = thing("output_text", text=TEXT, annotations=many({}), logprobs=many(LOGPROB))
MESSAGE = thing("message", id=TEXT, status=STATUS, role={"const": "assistant"}, content=many(OUTPUT_TEXT))
CALL = thing("function_call", id=TEXT, call_id=TEXT, name=TEXT, arguments=TEXT, status=STATUS)
REASONING = thing("reasoning", id=TEXT, summary=many({}))
ITEM = {"anyOf": [MESSAGE, CALL, REASONING]}
USAGE = thing(
    input_tokens=COUNT,
    input_tokens_details=thing(cached_tokens=COUNT),
    output_tokens=COUNT,
    output_tokens_details=thing(reasoning_tokens=COUNT),
    total_tokens=COUNT,
)
RESPONSE = thing(
    id=TEXT,
    object={"const": "response"},
    created_at={"type": "integer"},
    completed_at=nullable({"type": "integer"}),
    status={"enum": ["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]},
    incomplete_details=nullable(thing(reason={"enum": ["max_output_tokens", "content_filter"]})),
    model=TEXT,
    previous_response_id=nullable(TEXT),
    instructions=nullable(TEXT),
    output=many(ITEM),
    error=nullable(thing(code=TEXT, message=TEXT)),
    tools=many(thing(type=TEXT)),
    tool_choice={"anyOf": [{"enum": ["none", "auto", "required"]}, thing(type=TEXT)]},
    truncation={"enum": ["auto", "disabled"]},
    parallel_tool_calls=FLAG,
    text=thing(format=thing(type={"enum": ["text", "json_object", "json_schema"]})),
    top_p=NUMBER,
    presence_penalty=NUMBER,
    frequency_penalty=NUMBER,
    top_logprobs=COUNT,
    temperature=NUMBER,
    reasoning=nullable(thing(effort=nullable(TEXT), summary=nullable(TEXT))),
    user=nullable(TEXT),
    usage=nullable(USAGE),
    max_output_tokens=nullable(COUNT),
    max_tool_calls=nullable(COUNT),
    store=FLAG,
    background=FLAG,
    service_tier=TEXT,
    metadata={"type": "object", "additionalProperties": TEXT},
    safety_identifier=nullable(TEXT),
    prompt_cache_key=nullable(TEXT),
)
_PLACE = {"item_id": TEXT, "output_index": COUNT, "content_index": COUNT}
EVENTS: dict[str, dict[str, Any]] = {
    **{f"response.{name}": {"response": RESPONSE} for name in ("created", "queued", "in_progress")},
    **{f"response.{name}": {"response": RESPONSE} for name in ("completed", "incomplete", "failed")},
    "response.output_item.added": {"output_index": COUNT, "item": ITEM},
    "response.output_item.done": {"output_index": COUNT, "item": ITEM},
    "response.content_part.added": _PLACE | {"part": {"anyOf": [OUTPUT_TEXT, thing("reasoning_text", text=TEXT)]}},
    "response.content_part.done": _PLACE | {"part": {"anyOf": [OUTPUT_TEXT, thing("reasoning_text", text=TEXT)]}},
    "response.output_text.delta": _PLACE | {"delta": TEXT, "logprobs": many(LOGPROB)},
    "response.output_text.done": _PLACE | {"text": TEXT, "logprobs": many(LOGPROB)},
    "response.reasoning_text.delta": _PLACE | {"delta": TEXT},
    "response.reasoning_text.done": _PLACE | {"text": TEXT},
    "response.function_call_arguments.delta": {"item_id": TEXT, "output_index": COUNT, "delta": TEXT},
    "response.function_call_arguments.done": {"item_id": TEXT, "output_index": COUNT, "arguments": TEXT},
}
_RESPONSE = jsonschema_rs.validator_for(RESPONSE)
_EVENTS = {name: jsonschema_rs.validator_for(thing(name, sequence_number=COUNT, **fields)) for name, fields in EVENTS.items()}


def check_response(response: Any) -> None:
    """Fail unless it is a response."""
    _RESPONSE.validate(response)


def events_of(lines: Iterable[str]) -> list[dict[str, Any]]:
    """The events of a stream, each checked by itself, and all of them in their order."""
    events, name, is_done = [], None, False
    for line in lines:
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line == "data: [DONE]":
            is_done = True
        elif line.startswith("data: "):
            assert not is_done, "an event after [DONE]"
            event = json.loads(line.removeprefix("data: "))
            assert event["type"] == name
            _EVENTS[event["type"]].validate(event)
            events.append(event)
    assert is_done, "no [DONE]"
    check_order(events)
    return events


def check_order(events: list[dict[str, Any]]) -> None:
    """Fail unless they begin and end as they must, what is opened is closed, and deltas are the text."""
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    kinds = [event["type"] for event in events]
    assert kinds[:2] == ["response.created", "response.in_progress"]
    final = events[-1]["response"]
    assert kinds[-1] == f"response.{final['status']}"
    assert {event["response"]["id"] for event in events if "response" in event} == {final["id"]}
    items: list[dict[str, Any]] = []
    open_items: dict[int, str] = {}
    texts: dict[tuple[int, int], str] = {}
    arguments: dict[int, str] = {}
    for event in events[2:-1]:
        kind, at = event["type"], event.get("output_index")
        if kind == "response.output_item.added":
            assert at == len(items) + len(open_items)
            assert event["item"]["status"] == "in_progress"
            open_items[at] = event["item"]["id"]
        elif kind == "response.output_item.done":
            assert open_items.pop(at) == event["item"]["id"]
            items.append(event["item"])
        else:
            assert open_items[at] == event["item_id"]
        if kind == "response.content_part.added":
            texts[at, event["content_index"]] = ""
        elif kind.endswith("_text.delta"):
            texts[at, event["content_index"]] += event["delta"]
        elif kind.endswith("_text.done"):
            assert texts[at, event["content_index"]] == event["text"]
        elif kind == "response.content_part.done":
            assert texts.pop((at, event["content_index"])) == event["part"]["text"]
        elif kind == "response.function_call_arguments.delta":
            arguments[at] = arguments.get(at, "") + event["delta"]
        elif kind == "response.function_call_arguments.done":
            assert arguments[at] == event["arguments"]
    if final["status"] != "failed":
        assert not open_items and not texts and items == final["output"]
