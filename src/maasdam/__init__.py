"""Maasdam: deploy, run and serve trained models, measured."""

import os
import sys

__version__ = "0.1.0"

# Libraries that tell their makers over the network how they are used do not: that is nobody else's business, and they do it
# in threads that they start when they are imported. What is forked while such a thread holds a lock waits for it for ever.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # ONNX Runtime, from 1.32 on
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # OpenVINO, NNCF: as if it were not installed
