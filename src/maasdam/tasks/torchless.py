"""Keep torch out of a process that only serves. Knows how transformers looks for torch; nothing else.

transformers imports torch wherever it is installed, though no processor needs it: 3 s and 300 MB. It looks once, when it
is first imported.
"""

from __future__ import annotations

import os
import sys


def without_torch() -> bool:
    """Import transformers such that it takes torch for not installed. False where it was imported already: too late.

    Call it first thing in a process that opens processors. Where torch is needed after all, the engines that need it
    import transformers anew (`maasdam.engines.transformers_library`).
    """
    if "transformers" in sys.modules or "torch" in sys.modules:
        return False
    # "PyTorch was not found. Models won't be available …": we know; transformers says it wherever it looks at itself again
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    sys.modules["torch"] = None  # type: ignore[assignment]  # this is how Python spells "there is no such module"
    try:
        from transformers.utils import import_utils

        import_utils.is_torch_available()  # remembered for the life of the process
        return True
    finally:
        del sys.modules["torch"]
