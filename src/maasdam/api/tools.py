"""The tools that an answer may call, from a client's fields. Knows OpenAI's names; never how a model is told of them.

Shared by /v1/chat/completions and whatever else names tools so.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from maasdam.api.fields import check_known
from maasdam.core import Calling, Sampling, ToolCall
from maasdam.errors import InvalidField
from maasdam.operations import deployments
from maasdam.operations.service import Service

MOST_TOOLS = 128
MOST_CALLS = 128
"""Of one message."""
LONGEST = 128 * 1024
"""Characters of all tools together, as JSON."""
LONGEST_VARIABLES = 16 * 1024
"""Characters of a template's variables, as JSON."""
DEEPEST = 64
"""Objects and lists within each other."""
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
Tool = Mapping[str, Any]


def tools_from(fields: Mapping[str, Any], sampling: Sampling) -> tuple[tuple[Tool, ...], Calling]:
    """The tools that may be called, and how: none where none may. Raises InvalidField."""
    tools = _tools(fields.get("tools"))
    parallel = fields.get("parallel_tool_calls")
    if parallel is not None and not isinstance(parallel, bool):
        raise InvalidField("'parallel_tool_calls' must be true or false", "parallel_tool_calls")
    most = 1 if parallel is False else None
    tools, least, only = _chosen(fields.get("tool_choice"), tools)
    if least:
        _check_end(sampling)
    return tools, Calling(least, 1 if only is not None else most, only)


def tools_for(service: Service, model: str, fields: Mapping[str, Any], sampling: Sampling) -> tuple[tuple[Tool, ...], Calling]:
    """The same, where the model's engine can be held to them. Raises InvalidField."""
    tools, calling = tools_from(fields, sampling)
    if calling.least:
        deployments.check_holds(service, model, "tool_choice")
    return tools, calling


EFFORTS = ("minimal", "low", "medium", "high", "xhigh", "max")
"""Of reasoning, as clients name them; "none" asks for nothing."""


def with_effort(variables: Mapping[str, Any], effort: Any, where: str) -> Mapping[str, Any]:
    """The same with how much is to be reasoned: templates that know efforts read them by OpenAI's name. Raises InvalidField."""
    if effort is None or effort == "none":
        return variables
    if effort not in EFFORTS:
        raise InvalidField(f"'{where}' is {effort!r:.40}; send one of: none, {', '.join(EFFORTS)}", where)
    if variables.get("reasoning_effort", effort) != effort:
        raise InvalidField(f"'{where}' and 'chat_template_kwargs' say different efforts; send one", where)
    return {**variables, "reasoning_effort": effort}


def variables_from(value: Any) -> Mapping[str, Any]:
    """Variables for the model's chat template, bounded. Raises InvalidField."""
    where = "chat_template_kwargs"
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InvalidField(f"'{where}' must be an object of the template's variables", where)
    for name in value:
        if not name.isidentifier() or name.startswith("_"):
            raise InvalidField(f"'{where}' holds {name!r:.50}, which is no variable's name", where)
    _bounded(value, where, LONGEST_VARIABLES)
    return value


def calls_from(value: Any, where: str) -> list[dict[str, Any]]:
    """The calls that an assistant's message made. Raises InvalidField."""
    if not isinstance(value, list) or not 0 < len(value) <= MOST_CALLS:
        raise InvalidField(f"'{where}' must be a list of 1 to {MOST_CALLS} calls", where)
    return [_call(one, f"{where}[{i}]") for i, one in enumerate(value)]


def shown(calls: Sequence[ToolCall], *, has_index: bool) -> list[dict[str, Any]]:
    """Calls as OpenAI has them; with their places where they are part of a stream."""
    return [
        ({"index": call.number} if has_index else {})
        | {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        for call in calls
    ]


def _tools(value: Any) -> tuple[Tool, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or len(value) > MOST_TOOLS:
        raise InvalidField(f"'tools' must be a list of up to {MOST_TOOLS} tools", "tools")
    _bounded(value, "tools", LONGEST)
    tools = tuple(_tool(one, f"tools[{i}]") for i, one in enumerate(value))
    names = [tool["function"]["name"] for tool in tools]
    twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
    if twice is not None:
        raise InvalidField(f"'tools' names '{twice}' twice", "tools")
    return tools


def _tool(value: Any, where: str) -> Tool:
    if not isinstance(value, dict) or value.get("type") != "function" or not isinstance(value.get("function"), dict):
        raise InvalidField(
            f"'{where}' must be {{'type': 'function', 'function': {{…}}}}; no other tools are called here", where
        )
    check_known(value, ("type", "function"), where=where)
    function, at = value["function"], f"{where}.function"
    check_known(function, ("name", "description", "parameters", "strict"), where=at)
    _check_name(function.get("name"), f"{at}.name")
    for key, kind, said in (("description", str, "a string"), ("strict", bool, "true or false")):
        if function.get(key) is not None and not isinstance(function[key], kind):
            raise InvalidField(f"'{at}.{key}' must be {said}", f"{at}.{key}")
    parameters = function.get("parameters")
    if parameters is not None and (not isinstance(parameters, dict) or parameters.get("type", "object") != "object"):
        raise InvalidField(f"'{at}.parameters' must be a JSON schema of type object", f"{at}.parameters")
    return {"type": "function", "function": {key: item for key, item in function.items() if item is not None}}


def _check_name(name: Any, where: str) -> None:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InvalidField(f"'{where}' must be 1 to 64 letters, digits, - and _", where)


def _chosen(choice: Any, tools: tuple[Tool, ...]) -> tuple[tuple[Tool, ...], int, str | None]:
    """The tools that there are then, how many calls there must be, and of which tool."""
    if choice is None or choice == "auto":
        return tools, 0, None
    if choice == "none":
        return (), 0, None
    if choice == "required":
        _check_some(tools)
        return tools, 1, None
    kind = choice.get("type") if isinstance(choice, dict) else None
    if kind == "function":
        check_known(choice, ("type", "function"), where="tool_choice")
        name = _named(choice, tools, "tool_choice")
        return tools, 1, name
    if kind == "allowed_tools":
        return _allowed(choice, tools)
    raise InvalidField(
        "'tool_choice' must be 'auto', 'none', 'required', a function ({'type': 'function', 'function': {'name': …}}) or "
        "allowed_tools",
        "tool_choice",
    )


def _allowed(choice: Mapping[str, Any], tools: tuple[Tool, ...]) -> tuple[tuple[Tool, ...], int, str | None]:
    where = "tool_choice.allowed_tools"
    given = choice.get("allowed_tools")
    listed = given.get("tools") if isinstance(given, dict) else None
    if (
        not isinstance(given, dict)
        or given.get("mode") not in ("auto", "required")
        or not isinstance(listed, list)
        or not listed
    ):
        raise InvalidField(f"'{where}' must be an object with mode (auto or required) and a list of tools", where)
    check_known(choice, ("type", "allowed_tools"), where="tool_choice")
    check_known(given, ("mode", "tools"), where=where)
    names = [_named(one, tools, f"{where}.tools[{i}]") for i, one in enumerate(listed)]
    kept = tuple(tool for tool in tools if tool["function"]["name"] in names)
    return kept, int(given["mode"] == "required"), None


def _named(value: Any, tools: tuple[Tool, ...], where: str) -> str:
    _check_some(tools)
    function = value.get("function") if isinstance(value, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    names = [tool["function"]["name"] for tool in tools]
    if name not in names:
        raise InvalidField(f"'{where}' names {name!r:.80}, which is none of the tools: {', '.join(names)[:400]}", where)
    return str(name)


def _check_some(tools: Sequence[Tool]) -> None:
    if not tools:
        raise InvalidField("'tool_choice' asks for a call, and there are no 'tools'", "tool_choice")


def _check_end(sampling: Sampling) -> None:
    for name in ("ignore_eos", "min_tokens", "stop_token_ids", "stop"):
        if getattr(sampling, name):
            raise InvalidField(f"'{name}' can't be kept to beside a call that must be made, which ends by itself", name)


def _call(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict) or value.get("type", "function") != "function":
        raise InvalidField(f"'{where}' must be a call of a function", where)
    check_known(value, ("id", "type", "function", "index"), where=where)
    if not isinstance(value.get("id"), str) or not 0 < len(value["id"]) <= 512:
        raise InvalidField(f"'{where}.id' must be a string of 1 to 512 characters", f"{where}.id")
    function, at = value.get("function"), f"{where}.function"
    if not isinstance(function, dict):
        raise InvalidField(f"'{at}' must be an object with name and arguments", at)
    check_known(function, ("name", "arguments"), where=at)
    _check_name(function.get("name"), f"{at}.name")
    arguments = function.get("arguments")
    try:
        if not isinstance(arguments, str) or len(arguments) > LONGEST:
            raise ValueError
        if arguments.strip() and not isinstance(read := json.loads(arguments), dict):
            raise ValueError
        if arguments.strip():
            _bounded(read, f"{at}.arguments", LONGEST)
            json.dumps(read, allow_nan=False)  # NaN and 1e999 are no JSON, though Python reads them
    except (ValueError, RecursionError) as error:
        raise InvalidField(f"'{at}.arguments' must be a JSON object, as a string", f"{at}.arguments") from error
    return {"id": value["id"], "type": "function", "function": {"name": function["name"], "arguments": arguments}}


def _bounded(value: Any, where: str, most: int) -> None:
    """Raise InvalidField for what is too deep or too long."""
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > DEEPEST:
            raise InvalidField(f"'{where}' is nested deeper than {DEEPEST}", where)
        inner = [one for one in level if isinstance(one, dict | list)]
        level = [item for one in inner for item in (one.values() if isinstance(one, dict) else one)]
    text = json.dumps(value, ensure_ascii=False)
    if len(text) > most:
        raise InvalidField(f"'{where}' has {len(text):,} characters as JSON; at most {most:,}", where)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidField(f"'{where}' is not valid Unicode text; send UTF-8", where) from error
