"""How models call tools, by what their chat templates teach them. Knows the words of each format; never how they are read.

One format is told from another by what stands in the template's source. What is forced is written as JSON where a format
is no JSON itself: its own reader takes that too, as vLLM's do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

_NAME, _ARGUMENTS = '{"name": "', '", "arguments": '


@dataclass(frozen=True, slots=True)
class CallWords:
    """What stands around calls that are forced: begin (head NAME middle ARGUMENTS tail) between (…) end."""

    begin: str = ""
    head: str = _NAME
    middle: str = _ARGUMENTS
    tail: str = "}"
    between: str = ", "
    end: str = ""


@dataclass(frozen=True, slots=True)
class CallFormat:
    """One way to call."""

    name: str
    written: CallWords
    triggers: tuple[str, ...] = ()
    """A call follows these, wherever they stand."""
    opens: str = ""
    """An answer that begins with one of these characters is one of calls."""
    closers: tuple[str, ...] = ()
    """What stands behind a call, or between two, and says nothing."""
    words: tuple[str, ...] = ()
    """What else of a call may be a control token."""
    style: Literal["json", "named", "python", "xml"] = "json"
    """JSON objects or lists of them; a name before JSON; Python; or elements as Qwen3-Coder writes them."""
    is_single: bool = False
    """An answer holds one call: the template can't show two."""


_ARRAY = CallWords(begin="[", end="]")
_TAGGED = CallWords(head=f"<tool_call>\n{_NAME}", tail="}\n</tool_call>", between="\n")
_BAR = "\uff5c"
_BEGIN, _END, _CALL, SEPARATOR, _CALL_END = (
    f"<{_BAR}tool▁{word}{_BAR}>" for word in ("calls▁begin", "calls▁end", "call▁begin", "sep", "call▁end")
)
"""DeepSeek's, whose bars are wide."""

GENERIC = CallFormat("json", _ARRAY, opens="[{")
"""For templates that know no tools: what calls look like is told in a message."""
FORMATS: dict[str, CallFormat] = {
    one.name: one
    for one in (
        CallFormat("hermes", _TAGGED, ("<tool_call>",), closers=("</tool_call>",)),
        CallFormat("qwen3_coder", _TAGGED, ("<tool_call>", "<function="), closers=("</tool_call>",), style="xml"),
        CallFormat(
            "llama3_json",
            CallWords(middle='", "parameters": ', between="; "),
            ("<|python_tag|>",),
            opens="{",
            closers=(";",),
            is_single=True,
        ),
        CallFormat("pythonic", _ARRAY, ("<|python_start|>",), opens="[", closers=("<|python_end|>",), style="python"),
        CallFormat("mistral", CallWords(begin="[TOOL_CALLS][", end="]"), ("[TOOL_CALLS]",)),
        CallFormat(
            "mistral_args",
            CallWords("", "[TOOL_CALLS]", "[ARGS]", "", "", ""),
            ("[TOOL_CALLS]",),
            words=("[ARGS]", "[CALL_ID]"),
            style="named",
        ),
        CallFormat(
            "phi4",
            CallWords(begin="<|tool_call|>[", end="]<|/tool_call|>"),
            ("<|tool_call|>", "functools"),
            closers=("<|/tool_call|>",),
        ),
        CallFormat(
            "granite",
            CallWords(begin="<|tool_call|>[", end="]"),
            ("<|tool_call|>", "<tool_call>", "<function_call>"),
            closers=("</tool_call>", "<|tool_call|>"),
        ),
        CallFormat(
            "deepseek",
            CallWords(_BEGIN, f"{_CALL}function{SEPARATOR}", "\n```json\n", f"\n```{_CALL_END}", "\n", _END),
            (_BEGIN, _CALL),
            closers=("```", _CALL_END, _END),
            words=(SEPARATOR,),
            style="named",
        ),
        CallFormat(
            "deepseek_v31",
            CallWords(_BEGIN, _CALL, SEPARATOR, _CALL_END, "", _END),
            (_BEGIN, _CALL),
            closers=(_CALL_END, _END),
            words=(SEPARATOR,),
            style="named",
        ),
        CallFormat(
            "function_tag",
            CallWords("", "<function=", ">", "</function>", "\n"),
            ("<function=",),
            closers=("</function>",),
            style="named",
        ),
        GENERIC,
    )
}
_OTHERS = ("<arg_key>", "<|tool_calls_section_begin|>", "<minimax:tool_call>", "<|action_start|>")
"""Words of formats that nobody reads here."""


def format_of(source: str) -> CallFormat | None:
    """The format that a chat template with tools teaches; None for one that is not known."""
    name = _named(source)
    return None if name is None else FORMATS[name]


def may_be_call(text: str) -> bool:
    """Whether a text that was cut begins as a call in some format does."""
    begun = text.lstrip()
    triggers = (*_OTHERS, *(trigger for one in FORMATS.values() for trigger in one.triggers))
    return any(begun.startswith(trigger) or trigger.startswith(begun) for trigger in triggers)


def _named(source: str) -> str | None:
    if any(word in source for word in _OTHERS):
        return None
    if _CALL in source or _BEGIN in source:
        return "deepseek" if "```json" in source else "deepseek_v31"
    if "[TOOL_CALLS]" in source:
        return "mistral_args" if "[ARGS]" in source else "mistral"
    if "<function=" in source:
        return "qwen3_coder" if "<parameter=" in source else "function_tag"
    if "<function_call>" in source or ("<|start_of_role|>" in source and "<tool_call>\n{" not in source.replace("\\n", "\n")):
        return "granite"
    if "<|tool|>" in source or "functools[" in source:
        return "phi4"
    if "<tool_call>" in source:
        return "hermes"
    if "func_name1(" in source or "func_name(" in source or "<|python_start|>" in source:
        return "pythonic"
    if '"parameters"' in source and ("<|python_tag|>" in source or "<|start_header_id|>" in source):
        return "llama3_json"
    return None
