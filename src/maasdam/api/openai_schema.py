"""The OpenAI bodies this service reads, and what it says to the fields it doesn't. Knows names and types only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, FailFast, Field

from maasdam.api.fields import check_known, check_neutral
from maasdam.api.tools import calls_from
from maasdam.errors import InvalidField
from maasdam.tasks.text import joined

IGNORED = frozenset({"metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"})
"""Fields that change nothing about the answer."""

MEANINGLESS: Mapping[str, tuple[Any, ...]] = {
    # a field this service can't honour -> the values that ask for nothing
    "best_of": (1,),
    "top_logprobs": (0,),
    "echo": (False,),
    "suffix": ("",),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "guided_decoding_backend": ("auto",),
    "guided_whitespace_pattern": (),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "verbosity": ("medium",),
    "web_search_options": (),
}
MESSAGE = ("role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content", "reasoning")
PARTLESS: Mapping[str, tuple[Any, ...]] = {
    # what clients hand back with a message, and that asks for nothing when it is empty
    "refusal": ("",),
    "annotations": ([],),
    "audio": (),
    "function_call": (),
}
PART = ("type", "text")
PART_IGNORED: Mapping[str, tuple[Any, ...]] = {"annotations": ([],)}
LONGEST_ID = 512
"""Characters of a call's."""
STREAM_OPTIONS: Mapping[str, tuple[Any, ...]] = {"include_obfuscation": (False,)}
ADVICE = {
    "best_of": "send n",
    "top_logprobs": "send logprobs as a number",
    "echo": "put the prompt in front yourself",
    "functions": "send tools",
    "function_call": "send tool_choice",
}


class TextBody(BaseModel):
    """Fields of both text routes. Unknown fields are kept, to be refused by name."""

    model_config = ConfigDict(extra="allow", strict=True)

    model: str = Field(description="NAME, NAME:VERSION or NAME@ALIAS")
    max_tokens: Any = Field(None, description="most tokens to generate")
    temperature: Any = Field(None, description="0 (greedy) to 2")
    top_p: Any = None
    top_k: Any = None
    seed: Any = None
    stop: Any = Field(None, description="a string or up to four")
    frequency_penalty: Any = None
    presence_penalty: Any = None
    min_p: Any = Field(None, description="0 to 1: tokens less likely than this share of the likeliest are never drawn")
    repetition_penalty: Any = Field(None, description="above 1 makes what was said before less likely")
    min_tokens: Any = Field(None, description="nothing ends the answer before so many tokens")
    stop_token_ids: Any = Field(None, description="token ids that end the answer")
    ignore_eos: bool | None = None
    logit_bias: Any = Field(None, description="token id -> -100 (never) to 100 (always), of GGUF models and upstreams")
    n: Any = Field(None, description="answers to each prompt")
    user: str | None = Field(None, description="changes nothing")
    response_format: Any = Field(None, description="text, json_object or json_schema, as OpenAI has it")
    guided_json: Any = Field(None, description="a JSON schema, as vLLM has it")
    guided_regex: Any = Field(None, description="a regular expression for the whole answer")
    guided_choice: Any = Field(None, description="texts, one of which is the answer")
    guided_grammar: Any = Field(None, description="a grammar in EBNF whose rule root is the answer")
    structured_outputs: Any = Field(None, description="vLLM's one object for them: json, regex, choice, grammar or json_object")
    stream: bool | None = None
    stream_options: dict[str, Any] | None = None
    return_token_ids: bool | None = Field(None, description="ours: adds token_ids to each choice")


class ChatBody(TextBody):
    """POST /v1/chat/completions."""

    messages: Annotated[list[dict[str, Any]], FailFast()]
    max_completion_tokens: Any = None
    tools: Any = Field(None, description="functions that the answer may call, as OpenAI has them")
    tool_choice: Any = Field(None, description="auto, none, required, a function, or allowed_tools")
    parallel_tool_calls: Any = Field(None, description="false: one call at most")
    chat_template_kwargs: Any = Field(None, description="variables of the model's chat template, such as enable_thinking")
    reasoning_effort: Any = Field(None, description="for chat templates that read it; else refused")
    logprobs: Any = Field(None, description="true: how likely each token was, before temperature, penalties and forms")
    top_logprobs: Any = Field(None, description="how many of the likeliest tokens beside, where the model's engine tells them")


class CompletionBody(TextBody):
    """POST /v1/completions."""

    prompt: Any = Field(description="a string, a list of strings, token ids, or a list of lists of token ids")
    logprobs: Any = Field(None, description="0: how likely each token was; above: so many of the likeliest beside")
    echo: Any = Field(None, description="true: the prompt stands before the answer")
    best_of: Any = Field(None, description="so many answers are written to each prompt, and the n likeliest given")


def check_fields(body: TextBody) -> None:
    """Refuse what can't be honoured instead of ignoring it. Raises InvalidField."""
    for name, value in (body.model_extra or {}).items():
        if name in IGNORED or value is None:
            continue
        if name not in MEANINGLESS:
            raise InvalidField(f"unknown field '{name}'; leave it out", name, "unknown_parameter")
        check_neutral({name: value}, MEANINGLESS, advice=ADVICE.get(name, "leave it out"))


def messages_of(body: ChatBody) -> tuple[Mapping[str, Any], ...]:
    """The messages, with content in parts joined. Raises InvalidField."""
    if not body.messages:
        raise InvalidField("'messages' is empty; send at least one", "messages")
    return tuple(_message(i, message) for i, message in enumerate(body.messages))


def _message(i: int, message: Mapping[str, Any]) -> Mapping[str, Any]:
    where = f"messages[{i}]"
    check_known(message, (*MESSAGE, *PARTLESS), where=where)
    check_neutral(message, PARTLESS, where)
    role = message.get("role")
    if role not in ("system", "developer", "user", "assistant", "tool"):
        advice = "; send tool" if role == "function" else "; send system, developer, user, assistant or tool"
        raise InvalidField(f"{where}: role is {role!r:.40}{advice}", f"{where}.role")
    content, calls = message.get("content"), message.get("tool_calls") or None
    thought = message.get("reasoning_content") or message.get("reasoning")
    text = "" if content is None and (calls or (thought and role == "assistant")) else joined(content)
    if text is None:
        raise InvalidField(f"{where}: content is no text; send a string, or parts of type 'text'", f"{where}.content")
    for j, part in enumerate(content if isinstance(content, list) else ()):
        check_known(part, (*PART, *PART_IGNORED, "cache_control"), where=f"{where}.content[{j}]")
        check_neutral(part, PART_IGNORED, f"{where}.content[{j}]")
    plain: dict[str, Any] = {"role": "system" if role == "developer" else role, "content": text}
    for name, value in (("name", message.get("name")), ("reasoning_content", thought)):
        if value is not None and not isinstance(value, str):
            raise InvalidField(f"{where}: {name} is {value!r:.40}; send a string", f"{where}.{name}")
        if value:
            plain[name] = value  # the model's template shows it, where it has a place for it
    for name, value, wanted in (("tool_calls", calls, "assistant"), ("tool_call_id", message.get("tool_call_id"), "tool")):
        if value is not None and role != wanted:
            raise InvalidField(f"{where}: {name} goes with role {wanted}", f"{where}.{name}")
    if calls is not None:
        plain["tool_calls"] = calls_from(calls, f"{where}.tool_calls")
    if role == "tool":
        answered = message.get("tool_call_id")
        if not isinstance(answered, str) or not 0 < len(answered) <= LONGEST_ID:
            raise InvalidField(f"{where}: tool_call_id must be the id of the call that it answers", f"{where}.tool_call_id")
        plain["tool_call_id"] = answered
    return plain


def has_usage(body: TextBody) -> bool:
    """Whether a stream is to end with what it cost. Raises InvalidField."""
    options = body.stream_options
    if options is None:
        return False
    if not body.stream:
        raise InvalidField("'stream_options' goes with stream: true", "stream_options")
    check_known(options, ("include_usage", *STREAM_OPTIONS), where="stream_options")
    check_neutral(options, STREAM_OPTIONS, "stream_options")
    include = options.get("include_usage")
    if include is not None and not isinstance(include, bool):
        raise InvalidField("'stream_options.include_usage' must be true or false", "stream_options.include_usage")
    return bool(include)
