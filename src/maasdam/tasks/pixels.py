"""Pictures to what a model sees: the model's own image processor, and the axes of its input. Knows pictures; no labels."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from maasdam.core import ImagePayload, Payload, Signature, TensorSpec
from maasdam.errors import InvalidModel, InvalidPayload
from maasdam.tasks.files import opened, preprocessor
from maasdam.tasks.pictures import decode_image

if TYPE_CHECKING:
    from maasdam.core import type_array

IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")
CHANNELS = (1, 3)
MAX_EDGE = 4096
"""Pixels along one side of what a model is given."""


class Pixels:
    """What one model's image processor makes of pictures. Thread-safe."""

    def __init__(self, folder: Path, spec: TensorSpec, max_pixels: int) -> None:
        """`spec` is the input of 4 axes. Raises InvalidModel."""
        if not spec.dtype.startswith("float"):
            raise InvalidModel(f"input '{spec.name}' is {spec.dtype}; image processors make floats")
        self._processor = _open(folder)
        self._max_pixels = max_pixels
        self._input = spec
        self._is_channels_last, channels = channel_axis(spec)
        self._mode = "L" if channels == 1 else "RGB"

    def __call__(self, payload: Payload) -> type_array:
        """One picture -> [1, C, H, W] or [1, H, W, C], as the signature has it. Raises InvalidPayload."""
        import numpy as np

        assert isinstance(payload, ImagePayload)
        image = decode_image(payload.data, self._max_pixels, self._mode)
        pixels: type_array = np.asarray(self._processor(images=image, return_tensors="np")["pixel_values"])
        if self._is_channels_last:
            pixels = pixels.transpose(0, 2, 3, 1)
        pixels = np.ascontiguousarray(pixels, dtype=self._input.dtype)
        fits = all(want is None or want == got for want, got in zip(self._input.shape[1:], pixels.shape[1:], strict=True))
        if not fits:
            raise InvalidPayload(
                f"the model takes pictures of shape {self._input.sizes} and its own processor made {list(pixels.shape)} of "
                f"a {image.width} x {image.height} one; the size in its preprocessor_config.json does not fit the model"
            )
        return pixels


def only_picture(signature: Signature, what: str) -> TensorSpec:
    """The one input of a model that takes pictures and nothing else. Raises InvalidModel."""
    inputs = [s for s in signature.inputs if len(s.shape) == 4]
    if len(inputs) != 1 or len(signature.inputs) != 1:
        has = ", ".join(f"{s.name} {s.sizes}" for s in signature.inputs)
        raise InvalidModel(f"{what} takes one tensor of 4 axes; this model takes {has}")
    return inputs[0]


def channel_axis(spec: TensorSpec) -> tuple[bool, int | None]:
    """(whether the channels of pictures [N, …] are the last axis, how many there are where known). Raises InvalidModel."""
    if spec.layout in ("NHWC", "NCHW"):
        is_last = spec.layout == "NHWC"
        return is_last, spec.shape[3 if is_last else 1]
    if spec.shape[1] in CHANNELS:
        return False, spec.shape[1]
    if spec.shape[3] in CHANNELS:
        return True, spec.shape[3]
    if spec.shape[1] is None:
        return False, None  # all dynamic: as Hugging Face has it
    raise InvalidModel(f"input '{spec.name}' has shape {spec.sizes}: none of its axes holds 1 or 3 channels")


def _open(folder: Path) -> Any:
    if not any((folder / name).is_file() for name in ("preprocessor_config.json", "processor_config.json")):
        raise InvalidModel(
            "the model brings no preprocessor_config.json, so how pictures become tensors is unknown; "
            "name a Hugging Face folder that has one with --processor"
        )

    _check_edges(folder)

    def open_() -> Any:
        kind = _pillow_class(folder)
        if kind is not None:
            return kind.from_pretrained(str(folder), local_files_only=True)
        import transformers

        auto: Any = transformers.AutoImageProcessor
        return auto.from_pretrained(str(folder), backend="pil", local_files_only=True, trust_remote_code=False)

    return opened("image processor", folder, open_)


def _check_edges(folder: Path) -> None:
    """Raise InvalidModel for a processor that would blow each picture up to gigabytes."""
    named = preprocessor(folder, "image_processor")
    for key in ("size", "crop_size", "pad_size"):
        value = named.get(key)
        edges = value if isinstance(value, dict) else {"height": value}
        for edge in (edges.get(name) for name in ("height", "width", "shortest_edge")):
            if isinstance(edge, int | float) and edge > MAX_EDGE:
                raise InvalidModel(
                    f"the model's preprocessor_config.json has {key} {edge:,}; at most {MAX_EDGE:,} pixels are taken: "
                    "name the Hugging Face folder that belongs to the model with --processor"
                )


def _pillow_class(folder: Path) -> Any:
    """The Pillow class the files name, without looking at the model; None where only transformers' tables know it."""
    import transformers

    named = preprocessor(folder, "image_processor")
    name = named.get("image_processor_type") or named.get("feature_extractor_type")
    if not isinstance(name, str):
        return None
    base = name.removesuffix("Fast").removesuffix("Pil").replace("FeatureExtractor", "ImageProcessor")
    return getattr(transformers, f"{base}Pil", None) if base.isidentifier() else None


def gray(signature: Signature | None) -> Payload:
    """A plain picture."""
    import io

    from PIL import Image

    out = io.BytesIO()
    Image.new("RGB", (64, 64), (127, 127, 127)).save(out, "PNG")
    return ImagePayload(out.getvalue())
