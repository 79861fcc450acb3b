"""The compressed-tensors library: the layouts of quantised weights that vLLM loads and transformers reads.

Knows the library's calls and how to keep it quiet. Refuses to choose scales. transformers has to be imported with torch
before (see transformers_library): the library imports it.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from maasdam.errors import from_extra

COMPRESSED_TENSORS = "compressed-tensors"
"""Its name in config.json and on the package index."""
_PARTS = ("weight", "weight_packed", "weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx")


class CompressedTensors:
    """What is used of the library."""

    def __init__(self) -> None:
        """Raises ImportError."""
        from compressed_tensors.compressors import BaseCompressor, ModelCompressor, decompress_module
        from compressed_tensors.compressors.model_compressors import model_compressor
        from compressed_tensors.logger import LoggerConfig, configure_logger
        from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config
        from compressed_tensors.quantization.lifecycle import apply

        configure_logger(LoggerConfig(disabled=True))
        for module in (model_compressor, apply):  # each draws bars on stderr, whoever owns that, and asks nobody
            module.tqdm = _without_bar
        self._compressor: Any = ModelCompressor
        self._layouts: Any = BaseCompressor
        self._decompress: Any = decompress_module
        self._config: Any = QuantizationConfig
        self._apply: Any = apply_quantization_config

    def dense(self, folder: Path) -> dict[str, Any] | None:
        """The weights as float32 by name, where weights alone are quantised, all in one way; None where they aren't.

        transformers would compute them in the type of the scales, which rounds them once more, and can't read packed zero
        points. Where activations are quantised too, the layers have to stay the library's own: they round what they read.
        """
        from safetensors.torch import load_file

        given = json.loads((folder / "config.json").read_text())["quantization_config"]
        config = self._config.model_validate({k: v for k, v in given.items() if k in self._config.model_fields})
        schemes = list(config.config_groups.values())
        if len(schemes) != 1 or schemes[0].weights is None or schemes[0].input_activations or schemes[0].output_activations:
            return None
        compressor = self._layouts.get_value_from_registry(schemes[0].format or config.format)
        stored = {n: t for file in sorted(folder.glob("*.safetensors")) for n, t in load_file(file).items()}
        floats = {}
        for layer in [n.removesuffix(".weight_scale") for n in stored if n.endswith(".weight_scale")]:
            parts = {kind: stored.pop(f"{layer}.{kind}") for kind in _PARTS if f"{layer}.{kind}" in stored}
            parts["weight_scale"] = parts["weight_scale"].float()
            floats[f"{layer}.weight"] = compressor.decompress(parts, schemes[0])["weight"]
        return stored | floats

    def decompress(self, module: Any) -> None:
        """Turn the quantised weights of a module that transformers loaded into floats now, not in the first call."""
        for layer in module.modules():
            self._decompress(layer)
        compressor = getattr(getattr(module, "hf_quantizer", None), "compressor", None)
        if compressor is not None:
            compressor.remove_decompression_hook(module)

    def compress(
        self, module: Any, scheme: Mapping[str, Any], layout: str, ignore: Sequence[str], grids: Mapping[str, Any]
    ) -> Any:
        """Replace the float weights of all linear layers but `ignore` by quantised ones; what `write_config` takes.

        `scheme` is the library's, as JSON: {"weights": …, "input_activations": …}; `layout` "float-quantized" or
        "pack-quantized". `grids` has for each layer "weight_scale" and, where asymmetric, "weight_zero_point" tensors.
        """
        groups = {"group_0": {"targets": ["Linear"], **scheme}}
        config = self._config.model_validate({"config_groups": groups, "format": layout, "ignore": list(ignore)})
        self._apply(module, config, show_progress=False)
        for name, tensors in grids.items():
            layer = module.get_submodule(name)
            for kind, tensor in tensors.items():
                held = getattr(layer, kind)
                held.data = tensor.to(held.dtype).reshape(held.shape)
        compressor = self._compressor.from_pretrained_model(module, quantization_format=layout)
        compressor.compress_model(module)
        return compressor

    def write_config(self, compressor: Any, folder: Path) -> None:
        """Add "quantization_config" to the folder's config.json."""
        compressor.update_config(str(folder))


def _without_bar(items: Any, *_: Any, **__: Any) -> Any:
    return items


@functools.cache
def open_compressed_tensors() -> CompressedTensors:
    """The library, told to be quiet. Raises MissingExtra."""
    with from_extra("pytorch", COMPRESSED_TENSORS):
        return CompressedTensors()
