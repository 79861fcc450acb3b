"""Forms that answers are held to: JSON schemas, regular expressions, choices, callers' own grammars and calls of tools.

Knows what is asked for and how it is written for an engine as one grammar; refuses, with its name and place, what no grammar
can keep to. Refuses to know engines and HTTP. What callers wrote is read in a limited process: see `engines.gate`.

    Constraint -> form_of -> Form -> .ebnf() for the engine
                         \\- check(constraint, answer) once it is whole

Calls and reasoning are also told from answers as they come: `CallReader`, `ReasoningReader`.
"""

from maasdam.grammars.answers import check, is_begun, may_be_begun, readied
from maasdam.grammars.call_formats import FORMATS, GENERIC, CallFormat, format_of, may_be_call
from maasdam.grammars.call_forms import calls_wanted, checked_by, schema_of, wrong_call
from maasdam.grammars.call_reader import CallRead, CallReader, read_json
from maasdam.grammars.forms import form_of, parts_of
from maasdam.grammars.reasoning import ReasoningReader, Thinking, around_of

__all__ = [
    "FORMATS",
    "GENERIC",
    "CallFormat",
    "CallRead",
    "CallReader",
    "ReasoningReader",
    "Thinking",
    "around_of",
    "calls_wanted",
    "check",
    "checked_by",
    "form_of",
    "format_of",
    "is_begun",
    "may_be_begun",
    "may_be_call",
    "parts_of",
    "read_json",
    "readied",
    "schema_of",
    "wrong_call",
]
