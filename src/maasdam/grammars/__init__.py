"""Forms that answers are held to: JSON schemas, regular expressions, choices and callers' own grammars.

Knows what is asked for and how it is written for an engine as one grammar; refuses, with its name and place, what no grammar
can keep to. Refuses to know engines and HTTP. What callers wrote is read in a limited process: see `engines.gate`.

    Constraint -> form_of -> Form -> .ebnf() for the engine
                         \\- check(constraint, answer) once it is whole
"""

from maasdam.grammars.answers import check, is_begun, readied
from maasdam.grammars.forms import form_of

__all__ = ["check", "form_of", "is_begun", "readied"]
