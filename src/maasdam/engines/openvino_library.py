"""OpenVINO, made safe for threads. Knows what its Python binding makes on first use; never models or engines.

The binding's tables of types are C++ statics that take Python's lock while they are made. Two threads that both need one for
the first time can each hold what the other waits for, and then the process stands still for ever: seen in 10 of 25 processes
whose first answers were asked for by eight threads at once (openvino 2026.4.1). So they are made here, by one thread.
"""

from __future__ import annotations

import threading
from typing import Any

_making = threading.Lock()


def openvino() -> Any:
    """The openvino package with its tables made. Raises ImportError where it is not installed."""
    import numpy as np
    import openvino as ov

    with _making:
        ov.Type.f32.to_dtype()
        _ = ov.Tensor(np.zeros(1, np.float32)).data
    return ov


def kept_in(precision: str) -> str:
    """The precision of a key-value cache on this processor: float32 instead of bf16 where it has no arithmetic in bf16.

    OpenVINO computes a network kept in bf16 in float32 there, and its attention refuses a cache in bf16.
    """
    if precision != "bf16" or "BF16" in openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        return precision
    return "f32"
