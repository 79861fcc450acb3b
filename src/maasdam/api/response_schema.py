"""The body of POST /v1/responses, and what is said to the fields it can't honour. Knows OpenAI's names and limits only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from maasdam.api.fields import UNKNOWN, check_known, check_neutral
from maasdam.api.forms import constraint_of
from maasdam.api.sampling import SAME, sampling_from
from maasdam.api.tools import Tool, tools_for
from maasdam.core import Calling, Sampling, check_within
from maasdam.errors import InvalidField
from maasdam.operations.service import Service

MEANINGLESS: Mapping[str, tuple[Any, ...]] = {
    # a field that can't be honoured -> the values that ask for nothing
    "conversation": (),
    "prompt": (),
    "context_management": ([],),
    "moderation": (),
    "background_options": ({},),
    "prompt_cache_options": ({},),
    "prompt_cache_retention": ("in_memory", "in-memory"),
    "image": ({},),
    "truncation": ("disabled",),
    "service_tier": ("auto", "default"),
    "logit_bias": ({},),
}
ADVICE = {
    "conversation": "send previous_response_id",
    "prompt": "send instructions and input",
    "truncation": "send 'disabled', and fewer items where the prompt doesn't fit",
    "service_tier": "send 'default'",
}
REASONING: Mapping[str, tuple[Any, ...]] = {"effort": ("none",), "summary": (), "generate_summary": ()}
STREAM_OPTIONS: Mapping[str, tuple[Any, ...]] = {"include_obfuscation": (False,)}
LOGPROBS = "message.output_text.logprobs"
MOST_METADATA, LONGEST_KEY, LONGEST_VALUE = 16, 64, 512
LONGEST_NAME = 512
"""Of whom or what a request says it is for."""


class ResponseBody(BaseModel):
    """POST /v1/responses. Unknown fields are kept, to be refused by name."""

    model_config = ConfigDict(extra="allow", strict=True)

    model: str = Field(description="NAME, NAME:VERSION or NAME@ALIAS")
    input: Any = Field(None, description="a text, or items: messages, function calls and their outputs, reasoning")
    instructions: str | None = Field(None, description="a system message before everything else; of this response alone")
    previous_response_id: str | None = Field(None, description="the response of this key that is continued")
    store: bool | None = Field(None, description="whether it is kept; default true where the service keeps any")
    background: bool | None = Field(None, description="true: answers at once, to be asked for again")
    stream: bool | None = None
    stream_options: dict[str, Any] | None = None
    max_output_tokens: Any = Field(None, description="most tokens to generate")
    max_tool_calls: Any = Field(None, description="changes nothing: no tool runs here")
    temperature: Any = Field(None, description="0 (greedy) to 2")
    top_p: Any = None
    top_k: Any = None
    min_p: Any = None
    seed: Any = None
    frequency_penalty: Any = None
    presence_penalty: Any = None
    repetition_penalty: Any = None
    min_tokens: Any = None
    stop: Any = None
    stop_token_ids: Any = None
    ignore_eos: bool | None = None
    top_logprobs: Any = Field(None, description="how many of the likeliest tokens beside each")
    include: Any = Field(None, description=f"{LOGPROBS}: how likely each token was")
    text: Any = Field(None, description="its format: text, json_object or json_schema")
    tools: Any = Field(None, description="functions that the model may call")
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    reasoning: Any = None
    chat_template_kwargs: Any = Field(None, description="variables of the model's chat template, such as enable_thinking")
    metadata: Any = Field(None, description="up to 16 texts by name, given back")
    user: str | None = Field(None, description="changes nothing")
    safety_identifier: str | None = Field(None, description="changes nothing")
    prompt_cache_key: str | None = Field(None, description="changes nothing")


def check_fields(body: ResponseBody) -> None:
    """Refuse what can't be honoured instead of ignoring it. Raises InvalidField."""
    for name, value in (body.model_extra or {}).items():
        if value is None:
            continue
        if name not in MEANINGLESS:
            raise InvalidField(f"unknown field '{name[:100]}'; leave it out", name[:100], UNKNOWN)
        check_neutral({name: value}, MEANINGLESS, advice=ADVICE.get(name, "leave it out"))
    _check_object("reasoning", body.reasoning, REASONING)
    _check_object("stream_options", body.stream_options, STREAM_OPTIONS)
    if body.stream_options is not None and not body.stream:
        raise InvalidField("'stream_options' goes with stream: true", "stream_options")
    _check_metadata(body.metadata)
    for name in ("user", "safety_identifier", "prompt_cache_key"):
        if len(getattr(body, name) or "") > LONGEST_NAME:
            raise InvalidField(f"'{name}' must have at most {LONGEST_NAME} characters", name)
    if body.max_tool_calls is not None:
        check_within("max_tool_calls", body.max_tool_calls, int, 1, 1 << 31)
    if body.background and body.store is False:
        raise InvalidField("'background' goes with store: true: what isn't kept can't be asked for later", "background")
    if body.background and body.stream:
        raise InvalidField("'stream' is not for background: true here; ask for the response until it is completed", "stream")


def sampling_of(body: ResponseBody) -> Sampling:
    """How its tokens are chosen, and the form it is held to. Raises InvalidField."""
    fields: dict[str, Any] = {name: getattr(body, name) for name in (*SAME, "stop", "stop_token_ids")}
    sampling = sampling_from(fields)
    if body.max_output_tokens is not None:
        kind, _, most = Sampling.RANGES["max_tokens"]
        check_within("max_output_tokens", body.max_output_tokens, kind, 1, most)
        sampling = replace(sampling, max_tokens=body.max_output_tokens)
    _check_object("text", body.text, {"format": (), "verbosity": ("medium",)}, free=("format",))
    wants = _wants_logprobs(body.include)
    if body.top_logprobs is not None:
        check_within("top_logprobs", body.top_logprobs, *Sampling.RANGES["logprobs"])
    if wants or body.top_logprobs:
        name = "top_logprobs" if body.top_logprobs else "include"
        sampling = replace(sampling, logprobs=body.top_logprobs or 0, logprobs_field=name)
    return replace(sampling, constraint=constraint_of((body.text or {}).get("format"), sampling))


def tools_of(service: Service, body: ResponseBody, sampling: Sampling) -> tuple[tuple[Tool, ...], Calling]:
    """The tools that may be called, and how, as a chat has them. Raises InvalidField, in the words of a response."""
    if body.tools is not None and not isinstance(body.tools, list):
        raise InvalidField("'tools' must be a list of functions", "tools")
    for i, tool in enumerate(body.tools or ()):
        kind = tool.get("type") if isinstance(tool, dict) else None
        if kind != "function":
            raise InvalidField(f"'tools[{i}]' is of type {kind!r:.60}, which this service doesn't run", f"tools[{i}].type")
    fields = {"tools": [_function(tool) for tool in body.tools or ()], "tool_choice": _choice(body.tool_choice)}
    try:
        return tools_for(service, body.model, fields | {"parallel_tool_calls": body.parallel_tool_calls}, sampling)
    except InvalidField as error:
        param = None if error.param is None else error.param.replace(".function", "")
        raise InvalidField(str(error).replace(".function", ""), param, error.code) from error


def _function(tool: Any) -> Any:
    """A function of the Responses API as a chat has it."""
    return {"type": "function", "function": {key: value for key, value in tool.items() if key != "type"}}


def _choice(choice: Any) -> Any:
    kind = choice.get("type") if isinstance(choice, dict) else None
    if kind == "function":
        return _function(choice)
    if kind == "allowed_tools":
        listed = choice.get("tools")
        tools = [_function(one) if isinstance(one, dict) else one for one in listed] if isinstance(listed, list) else listed
        rest = {key: value for key, value in choice.items() if key not in ("type", "tools")}
        return {"type": kind, "allowed_tools": rest | {"tools": tools}}
    return choice


def _wants_logprobs(include: Any) -> bool:
    if include is None:
        return False
    if not isinstance(include, list):
        raise InvalidField("'include' must be a list", "include")
    for one in include:
        if one != LOGPROBS:
            raise InvalidField(
                f"'include' can't have {one!r:.60} here; it takes {LOGPROBS}", "include", "unsupported_parameter"
            )
    return bool(include)


def _check_object(name: str, value: Any, known: Mapping[str, tuple[Any, ...]], free: tuple[str, ...] = ()) -> None:
    if value is None:
        return
    if not isinstance(value, dict):
        raise InvalidField(f"'{name}' must be an object", name)
    check_known(value, known, where=name)
    check_neutral({key: one for key, one in value.items() if key not in free}, known, name)


def _check_metadata(metadata: Any) -> None:
    if metadata is None:
        return
    if not isinstance(metadata, dict) or len(metadata) > MOST_METADATA:
        raise InvalidField(f"'metadata' must be an object with at most {MOST_METADATA} texts", "metadata")
    for key, value in metadata.items():
        if len(key) > LONGEST_KEY:
            raise InvalidField(f"'metadata' has a name of {len(key)} characters; at most {LONGEST_KEY}", "metadata")
        if not isinstance(value, str) or len(value) > LONGEST_VALUE:
            raise InvalidField(f"'metadata.{key}' must be a text of at most {LONGEST_VALUE} characters", f"metadata.{key}")
