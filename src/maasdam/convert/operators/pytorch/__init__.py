"""What PyTorch has of its own for ONNX operators: functions that torch.export traces."""

from maasdam.convert.operators.pytorch.arrays import ARRAYS

__all__ = ["ARRAYS"]
