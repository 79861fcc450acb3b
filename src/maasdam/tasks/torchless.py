"""Keep torch out of a process that only serves. Knows how transformers looks for torch; nothing else.

transformers imports torch wherever it is installed, though no processor needs it: 3 s and 300 MB. It looks once, when it
is first imported. That takes 0.4 s and 20 MB itself, so it is left to whoever needs transformers: here only what it will
find is settled.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

LOOKS = "transformers.utils.import_utils"
"""The module that looks, and remembers."""


def without_torch() -> bool:
    """Have transformers take torch for not installed, whenever it is imported. False where it was already: too late.

    Call it first thing in a process that opens processors. Where torch is needed after all, the engines that need it
    import torch first, or transformers anew (`maasdam.engines.transformers_library`).
    """
    if "transformers" in sys.modules or "torch" in sys.modules:
        return False
    # "PyTorch was not found. Models won't be available …": we know; transformers says it wherever it looks at itself again
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    sys.meta_path.insert(0, _Finder())
    return True


class _Finder(MetaPathFinder):
    """Finds the module that looks, once."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != LOOKS:
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(name, path)
        if spec is not None and spec.loader is not None and "torch" not in sys.modules:
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader(Loader):
    """Loads the module, and lets it look at once, while there is no torch."""

    def __init__(self, real: Loader) -> None:
        self._real = real

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """As usual."""
        return self._real.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """As usual, and then it looks."""
        self._real.exec_module(module)
        sys.modules["torch"] = None  # type: ignore[assignment]  # this is how Python spells "there is no such module"
        try:
            module.is_torch_available()  # remembered for the life of the process
        finally:
            del sys.modules["torch"]
