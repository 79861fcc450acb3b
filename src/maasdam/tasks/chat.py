"""Messages and tools as a model's own chat template writes them. Knows what templates read; never Jinja, tokens' ids or HTTP.

A template shows tools where it names them; one that doesn't can have them told in a message, in words of this file, but then
nothing says that the model has learned to call: so it is done only where a call is forced.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maasdam.core import TextPayload
from maasdam.errors import InvalidField, InvalidPayload
from maasdam.grammars import FORMATS, GENERIC, CallFormat, around_of, format_of
from maasdam.tasks.chat_template import ChatTemplate
from maasdam.tasks.control_tokens import ControlTokens, Marked
from maasdam.tasks.files import read_json

OWN = frozenset({"messages", "tools", "documents", "add_generation_prompt", "continue_final_message"})
"""Variables of templates that a caller has other words for."""
_NONE = re.compile(r"content['\"\]]*\s+(is\s+(not\s+)?none|[!=]=\s*[nN]one)")
"""In the source of templates that know an assistant's message of calls by its missing content."""
_IN_MESSAGE = re.compile(r"message(\.tools\b|\[['\"]tools['\"]\])")
"""In the source of templates that look for the tools, as JSON, in the message of the system (Phi-4)."""
_TOLD = (
    "You can call these functions, given as JSON:\n{tools}\n"
    'Answer with a JSON list of calls and nothing else: [{{"name": "…", "arguments": {{…}}}}]'
)


@dataclass(frozen=True, slots=True)
class Dialect:
    """What a template's source says of calls and reasoning."""

    knows_tools: bool
    calls: CallFormat | None
    around: tuple[str, str] | None

    @classmethod
    def of(cls, source: str, variables: frozenset[str]) -> Dialect:
        """`variables` are those that the template reads."""
        knows = "tools" in variables or _IN_MESSAGE.search(source) is not None
        return cls(knows, format_of(source) if knows else None, around_of(source))


def spoken_in(folder: Path) -> dict[str, Any]:
    """What `Facts` tells of the template in a model's folder, without its tokenizer; {} where none can be read."""
    try:
        sources = _sources(folder)
        source = sources.get("tool_use", sources.get("default"))
        dialect = None if source is None else Dialect.of(source, ChatTemplate(source).variables)
    except Exception:  # whoever loads it is told
        return {}
    return {} if dialect is None else {"calls": dialect.calls and dialect.calls.name, "reasons": dialect.around is not None}


def _sources(folder: Path) -> dict[str, str]:
    """Templates by name."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        return {"default": path.read_text(encoding="utf-8")}
    given = read_json(folder / "chat_template.json").get("chat_template")
    given = given or read_json(folder / "tokenizer_config.json").get("chat_template")
    if isinstance(given, str):
        return {"default": given}
    return {one["name"]: one["template"] for one in given or ()}


class Chat:
    """The chat templates of one model, and the control tokens that they write."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._variables: Mapping[str, Any] = tokenizer.special_tokens_map
        self._templates: dict[str, ChatTemplate | Exception] = {}
        given = tokenizer.chat_template
        sources: dict[str, str] = given if isinstance(given, dict) else {"default": given}
        for name in ("default", "tool_use"):
            if name in sources:
                try:
                    self._templates[name] = ChatTemplate(sources[name])
                except Exception as error:  # the model continues text all the same; who chats is told
                    self._templates[name] = error
        self._name = "tool_use" if "tool_use" in sources else "default"
        self._source = str(sources.get(self._name) or "")
        readable = self._templates.get(self._name)
        variables = readable.variables if isinstance(readable, ChatTemplate) else frozenset()
        self.dialect = Dialect.of(self._source, variables)
        self.control = ControlTokens(tokenizer, "".join(str(source) for source in sources.values()))

    def format_for(self, payload: TextPayload) -> CallFormat | None:
        """How the answer calls; None where there are no tools. Raises InvalidField where it can't."""
        if not payload.tools:
            return None
        if self.dialect.calls is not None:
            return self.dialect.calls
        if payload.calling.least:
            return GENERIC
        why = "shows tools in a format that is not known here" if self.dialect.knows_tools else "shows no tools to it"
        raise InvalidField(
            f"'tools' can't be left to this model to call: its chat template {why}. Send tool_choice 'required' or a function, "
            "which forces a call, or 'none'; or use a model whose capabilities name tools",
            "tools",
            "unsupported_parameter",
        )

    def marked(self, messages: Sequence[Mapping[str, Any]], payload: TextPayload) -> tuple[str, Marked]:
        """The text of messages, open for the answer, and what marks callers' words in it.

        Raises InvalidField, InvalidPayload.
        """
        name = self._name if payload.tools or "default" not in self._templates else "default"
        template = self._templates.get(name) or InvalidPayload("this model's chat templates have no default one")
        if isinstance(template, ChatTemplate):
            self._check_variables(template, payload.template)
        tools = list(payload.tools) if self.dialect.knows_tools else []
        shown = self._shown(messages, payload)
        marked = self.control.mark(shown, tools, dict(payload.template))
        ways = [True, False] if any("tool_calls" in message for message in shown) else [True]
        while True:
            try:
                if isinstance(template, Exception):
                    raise template
                said = [_with_objects(message) for message in marked.messages] if ways.pop(0) else marked.messages
                return template.render(said, marked.tools or None, **{**self._variables, **marked.variables}), marked
            except Exception as error:  # templates refuse what they don't take, in Jinja's words or their own
                if ways:  # arguments are objects to most templates, texts to some
                    continue
                why = " ".join(str(error).replace(marked.begin, "").replace(marked.end, "").split())[:200]
                raise InvalidPayload(f"this model's chat template refuses these messages: {why}") from error

    def _check_variables(self, template: ChatTemplate, given: Mapping[str, Any]) -> None:
        for name in given:
            where = name if name == "reasoning_effort" else f"chat_template_kwargs.{name}"
            if name in OWN or name in self._variables:
                raise InvalidField(f"'{where}' is not the caller's to set", where)
            if name not in template.variables:
                raise InvalidField(f"'{where}': this model's chat template reads no such variable", where)

    def _shown(self, messages: Sequence[Mapping[str, Any]], payload: TextPayload) -> list[dict[str, Any]]:
        """Messages of calls, and what tools gave, in words that the template has; and the tools, where it has none for them."""
        has_calls = "tool_calls" in self._source
        gives_none = _NONE.search(self._source) is not None
        out: list[dict[str, Any]] = []
        for message in messages:
            one = dict(message)
            calls = one.get("tool_calls")
            if calls and not has_calls:
                made = [{"name": c["function"]["name"], "arguments": _object(c["function"]["arguments"])} for c in calls]
                text = json.dumps(made, ensure_ascii=False)
                one = {"role": one["role"], "content": "\n".join(filter(None, (one.get("content"), text)))}
            elif calls and self.dialect.calls in (FORMATS["mistral"], FORMATS["mistral_args"]):
                one["tool_calls"] = [{**call, "id": short_id(call["id"])} for call in calls]
            elif calls and not one.get("content"):
                one["content"] = None if gives_none else ""
            if one["role"] == "tool" and not re.search(r"['\"](tool|ipython)['\"]", self._source) and not has_calls:
                one = {"role": "user", "content": f"Result of the call: {one['content']}"}
            elif one["role"] == "tool" and self.dialect.calls in (FORMATS["mistral"], FORMATS["mistral_args"]):
                one["tool_call_id"] = short_id(one["tool_call_id"])
            out.append(one)
        if payload.tools and _IN_MESSAGE.search(self._source):
            if out[0]["role"] != "system":
                out.insert(0, {"role": "system", "content": ""})
            out[0]["tools"] = json.dumps([tool["function"] for tool in payload.tools], ensure_ascii=False)
        elif payload.tools and not self.dialect.knows_tools:
            told = _TOLD.format(tools=json.dumps([tool["function"] for tool in payload.tools], ensure_ascii=False))
            if out[0]["role"] == "system":
                out[0]["content"] = f"{out[0]['content']}\n\n{told}"
            else:
                out.insert(0, {"role": "system", "content": told})
        return out


def short_id(name: str) -> str:
    """An id of a call as Mistral's templates take it: nine letters and digits."""
    import hashlib

    return name if len(name) == 9 and name.isascii() and name.isalnum() else hashlib.sha256(name.encode()).hexdigest()[:9]


def _with_objects(message: Mapping[str, Any]) -> dict[str, Any]:
    calls = message.get("tool_calls")
    if not calls:
        return dict(message)
    made = [{**call, "function": {**call["function"], "arguments": _object(call["function"]["arguments"])}} for call in calls]
    return {**message, "tool_calls": made}


def _object(arguments: Any) -> Any:
    return json.loads(arguments) if isinstance(arguments, str) and arguments.strip() else {}
