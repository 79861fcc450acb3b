"""Modules from Hugging Face folders. Knows transformers and where it can't be trusted; never tensors, tasks or HTTP.

transformers decides once per process, when it is first imported, whether torch exists. A process that serves without
torch makes it decide "no" (`maasdam.tasks.torchless`); here, where torch is needed after all, transformers is imported
afresh. Objects made before keep working with the modules they came from.
"""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path
from typing import Any, cast

from maasdam.engines.compressed_weights import COMPRESSED_TENSORS, open_compressed_tensors
from maasdam.engines.two_towers import ARCHITECTURES as TWO_TOWERS
from maasdam.engines.two_towers import in_rows
from maasdam.errors import InvalidModel, Unsupported

MOONSHINE = "MoonshineForConditionalGeneration"
FROM_FOLDER = {"local_files_only": True, "trust_remote_code": False, "use_safetensors": True, "output_loading_info": True}
_importing = threading.Lock()
_loading = threading.Lock()
"""transformers loads with torch's and its own functions replaced, for the whole process: of two loads at once the one that
ends first puts back what the other had replaced, and tied weights stay untied for good."""


def transformers_with_torch() -> Any:
    """The transformers package with torch. Raises ImportError where either is not installed."""
    with _importing:
        import torch  # noqa: F401 - before transformers, which looks whether it is there
        import transformers
        from transformers.utils.import_utils import is_torch_available

        if not is_torch_available():
            for name in [n for n in sys.modules if n == "transformers" or n.startswith("transformers.")]:
                del sys.modules[name]
            import transformers
        return transformers


def architecture_of(folder: Path) -> str:
    """The class that `config.json` names, such as "LlamaForCausalLM". Raises InvalidModel."""
    try:
        config = json.loads((folder / "config.json").read_text())
        names = config["architectures"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidModel(f"{folder.name}/config.json names no architecture; a Hugging Face model needs one") from error
    if not isinstance(names, list) or len(names) != 1 or not isinstance(names[0], str) or not names[0].isidentifier():
        raise InvalidModel(f"{folder.name}/config.json names architectures {names!r}; it takes a list of one class name")
    return names[0]


def quantization_of(folder: Path) -> str | None:
    """The method that `config.json` says the weights are quantised with, such as "compressed-tensors"; None for floats."""
    try:
        method = json.loads((folder / "config.json").read_text())["quantization_config"]["quant_method"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return str(method)


def pools_itself(folder: Path) -> bool:
    """Whether it is a sentence-transformers folder that pools: its encoder is meant, whatever head `config.json` names."""
    try:
        listed = json.loads((folder / "modules.json").read_text())
        return any(str(module["type"]).endswith(".Pooling") for module in listed)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def open_module(folder: Path) -> Any:
    """The module in eval mode and float32, built by transformers' own class for the architecture, weights from safetensors.

    Weights quantised as compressed-tensors are held as floats; activations that are to be quantised are rounded in each call.
    Raises Unsupported (transformers knows no such class), InvalidModel (weights missing, or not of this architecture),
    MissingExtra (the weights are quantised, and what reads them is not installed).
    """
    architecture = architecture_of(folder)
    transformers = transformers_with_torch()
    import torch

    kind = getattr(transformers, architecture, None)
    if not isinstance(kind, type) or not issubclass(kind, transformers.PreTrainedModel):
        raise Unsupported(
            f"transformers {transformers.__version__} has no model '{architecture}'; code from the folder is not run"
        )
    transformers.utils.logging.disable_progress_bar()  # it draws on stderr, whoever owns that
    compressed = open_compressed_tensors() if quantization_of(folder) == COMPRESSED_TENSORS else None
    pools = pools_itself(folder)
    loader = cast(Any, kind)
    if architecture in TWO_TOWERS:
        loader = in_rows(kind)
    if pools:
        loader = transformers.AutoModel._model_mapping[loader.config_class]
    weights = compressed.dense(folder) if compressed is not None else None
    where: dict[str, Any] = {"pretrained_model_name_or_path": str(folder)}
    if weights is not None:
        config = loader.config_class.from_pretrained(str(folder), local_files_only=True)
        del config.quantization_config
        where = {"pretrained_model_name_or_path": None, "config": config, "state_dict": weights}
    try:
        with _loading:
            module, info = loader.from_pretrained(**where, **FROM_FOLDER, dtype=torch.float32)
    except RuntimeError as error:
        if "ignore_mismatched_sizes" not in str(error):
            raise
        raise InvalidModel(
            f"the weights of {architecture} are not of the sizes that its config.json says; give the config.json made with them"
        ) from error
    missing = {key for key in info["missing_keys"] if not (pools and key.startswith("pooler."))}  # which nobody asks
    if missing:
        some = ", ".join(sorted(missing)[:3])
        raise InvalidModel(f"{len(missing)} weights of {architecture} are not in the files (such as {some})")
    if compressed is not None and weights is None:
        compressed.decompress(module)
    return module.eval()
