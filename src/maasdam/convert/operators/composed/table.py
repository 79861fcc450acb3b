"""Where the composed operators are listed, and how they come into a framework's table."""

from __future__ import annotations

from maasdam.convert.operators.composed.arrays import Arrays
from maasdam.convert.operators.table import Table

operator = Table("every framework")
"""Its functions take a framework's functions first, then what an operator takes."""


def list_in(table: Table, xp: Arrays) -> None:
    """List every composed operator in a framework's table, computed by that framework's functions."""
    table.adopt(operator, xp)
