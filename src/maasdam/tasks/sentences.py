"""From a vector a token to a vector a text, as modules.json of a sentence-transformers folder says. Knows arrays; no tokenizer.

    states [T, H] --pooling--> [k * H] --dense, normalise, ... as the folder has them--> [D]

In an artifact, whose files lie flat, `1_Pooling/config.json` is `modules.1_Pooling.json`, and the weights of `2_Dense` are
`modules.2_Dense.safetensors`. A folder without modules.json is pooled by the mean, and nothing else, as sentence-transformers
takes such a folder itself.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maasdam.errors import EngineFailure, InvalidModel, Unsupported
from maasdam.tasks.files import read_json

if TYPE_CHECKING:
    from maasdam.core import type_array

Step = Callable[["type_array"], "type_array"]
MODULES = "modules.json"
KINDS = frozenset({"Transformer", "Pooling", "Dense", "Normalize", "LayerNorm", "Dropout"})
"""Modules that are known here."""
MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
"""Ways to pool, in the order in which several are joined."""
_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
"""What older folders call them, one flag each."""
LEAST_LENGTH = 1e-12
"""A shorter vector is divided by this, as torch does, and not by its length."""
_UNDER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


def modules_of(listed: Any) -> tuple[tuple[str, str], ...]:
    """What modules.json lists: (name of the kind, such as "Pooling"; where its files are), in order. Raises InvalidModel."""
    try:
        return tuple((str(module["type"]).rpartition(".")[2], _under(module["path"])) for module in listed)
    except (KeyError, TypeError) as error:
        raise InvalidModel(f"modules.json of the model is no list of modules with type and path: {error}") from error


def _modules_in(folder: Path) -> tuple[tuple[str, str], ...]:
    path = folder / MODULES
    if not path.is_file():
        return ()
    try:
        return modules_of(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidModel(f"modules.json of the model is not JSON: {error}") from error


def _under(path: Any) -> str:
    if path and not _UNDER.fullmatch(str(path)):
        raise InvalidModel(f"modules.json names the folder {path!r:.80}; give one beside it, by its plain name")
    return str(path)


def flat(under: str, suffix: str) -> str:
    """What the file of a module is called in an artifact."""
    return f"modules.{under}{suffix}"


class Sentence:
    """What comes behind one model's encoder. Thread-safe."""

    def __init__(self, folder: Path) -> None:
        """Raises InvalidModel, Unsupported (a module that is not known here)."""
        self.includes_prompt = True
        self._modes: tuple[str, ...] = ("mean",)
        self._steps: list[Step] = []
        self._last: int | None = None
        modules = _modules_in(folder)
        pooled = not modules
        for kind, under in modules:
            config = read_json(folder / flat(under, ".json"))
            if kind == "Transformer":
                continue
            for key in ("module_input_name", "module_output_name"):
                if config.get(key) not in (None, "sentence_embedding"):
                    raise Unsupported(
                        f"module '{under}' of the model works on {config[key]!r:.60}; read here are sentence_embedding"
                    )
            if kind == "Pooling":
                self._modes, pooled = _modes(config), True
                self.includes_prompt = config.get("include_prompt") is not False
            elif kind == "Dense":
                self._steps.append(_dense(config, folder / flat(under, ".safetensors"), under))
                self._last = config["out_features"]
            elif kind == "Normalize":
                self._steps.append(normalised)
            elif kind == "LayerNorm":
                self._steps.append(_layer_norm(folder / flat(under, ".safetensors"), under))
            elif kind not in KINDS:
                raise Unsupported(f"modules.json of the model names a {kind}, which is not known here")
        if not pooled:
            raise Unsupported("modules.json of the model has no Pooling: it gives no vector of a text")

    @property
    def normalises(self) -> bool:
        """Whether vectors are of length 1."""
        return bool(self._steps) and self._steps[-1] is normalised

    def size(self, hidden: int | None, is_whole: bool) -> int | None:
        """Numbers of a vector, of states of so many; None where nobody says those."""
        return self._last or (None if hidden is None else hidden if is_whole else hidden * len(self._modes))

    def pooled(self, states: type_array, prompt: int) -> type_array:
        """Vectors of tokens [T, H], of which the first `prompt` are a prompt's -> the vector of the text."""
        import numpy as np

        states = np.asarray(states, dtype=np.float32)
        begin = 0 if self.includes_prompt else min(prompt, len(states) - 1)
        return self.finished(np.concatenate([_pooled(mode, states, begin) for mode in self._modes]))

    def finished(self, vector: type_array) -> type_array:
        """What follows the pooling. Raises EngineFailure for NaN."""
        import numpy as np

        for step in self._steps:
            vector = step(vector)
        if not np.isfinite(vector).all():
            raise EngineFailure("the model's vector of this text is not finite")
        return np.ascontiguousarray(vector, dtype=np.float32)


def normalised(vector: type_array) -> type_array:
    """Of length 1."""
    import numpy as np

    shown: type_array = vector / max(float(np.linalg.norm(vector)), LEAST_LENGTH)
    return shown


def _modes(config: Mapping[str, Any]) -> tuple[str, ...]:
    named = config.get("pooling_mode")
    if named is None:
        chosen = [mode for key, mode in _FLAGS.items() if config.get(key) is True]
        return tuple(sorted(dict.fromkeys(chosen), key=MODES.index)) or ("mean",)
    modes = (named,) if isinstance(named, str) else tuple(named)
    unknown = next((mode for mode in modes if mode not in MODES), None)
    if unknown is not None or not modes:
        raise Unsupported(f"the model pools by {unknown!r:.60}; known are {', '.join(MODES)}")
    return modes


def _pooled(mode: str, states: type_array, begin: int) -> type_array:
    import numpy as np

    own = states[begin:]
    found: type_array
    if mode == "cls":
        found = states[0]  # though it stands before a prompt that is left out
    elif mode == "lasttoken":
        found = own[-1]
    elif mode == "max":
        found = own.max(axis=0)
    elif mode == "weightedmean":
        weights = np.arange(begin + 1, len(states) + 1, dtype=np.float32)[:, None]
        found = (own * weights).sum(axis=0) / weights.sum()
    else:
        found = own.sum(axis=0) / (len(own) if mode == "mean" else np.sqrt(len(own)))
    return found


def _weights(path: Path, under: str, *names: str) -> list[type_array | None]:
    if not path.is_file():
        raise InvalidModel(
            f"module '{under}' of the model has no model.safetensors; pickles are not read: save it with sentence-transformers"
        )
    from safetensors.numpy import load_file

    try:
        held = load_file(path)
    except Exception as error:
        raise InvalidModel(f"the weights of module '{under}' of the model can't be read: {error}") from error
    return [held.get(name) for name in names]


def _dense(config: Mapping[str, Any], path: Path, under: str) -> Step:
    weight, bias, residual = _weights(path, under, "linear.weight", "linear.bias", "residual.weight")
    named = str(config.get("activation_function", "torch.nn.modules.activation.Tanh")).rpartition(".")[2]
    activate = _activation(named, under)
    if weight is None or weight.ndim != 2 or weight.shape != (config.get("out_features"), config.get("in_features")):
        raise InvalidModel(f"module '{under}' of the model has no weights of the sizes that its config.json says")
    adds = config.get("use_residual") is True

    def step(vector: type_array) -> type_array:
        out = weight @ vector if bias is None else weight @ vector + bias
        out = activate(out)
        return out + (vector if residual is None else residual @ vector) if adds else out

    return step


def _activation(name: str, under: str) -> Step:
    import numpy as np

    known: dict[str, Step] = {
        "Tanh": np.tanh,
        "Identity": lambda x: x,
        "Sigmoid": lambda x: 1 / (1 + np.exp(-x)),
        "ReLU": lambda x: np.maximum(x, 0),
        "SiLU": lambda x: x / (1 + np.exp(-x)),
    }
    if name not in known:
        raise Unsupported(f"module '{under}' of the model activates by {name!r:.60}; known are {', '.join(known)}")
    return known[name]


def _layer_norm(path: Path, under: str) -> Step:
    import numpy as np

    scale, shift = _weights(path, under, "norm.weight", "norm.bias")
    if scale is None or shift is None:
        raise InvalidModel(f"module '{under}' of the model has no weights norm.weight and norm.bias")

    def step(vector: type_array) -> type_array:
        out: type_array = (vector - vector.mean()) / np.sqrt(vector.var() + 1e-5) * scale + shift
        return out

    return step
