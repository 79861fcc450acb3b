"""Processes of ours: work that may run for ever, take all memory or crash is in one that can be ended.

`forked` is such a process, `limited` gives one work after another, `python` runs interpreters that share nothing with this one.
"""

from maasdam.children.forked import Forked
from maasdam.children.limited import Child, ChildLimits, Tell, run_limited
from maasdam.children.python import last_line, run_python, started
from maasdam.children.usage import resident_bytes

__all__ = ["Child", "ChildLimits", "Forked", "Tell", "last_line", "resident_bytes", "run_limited", "run_python", "started"]
