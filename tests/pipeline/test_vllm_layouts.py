"""fp8, gptq and awq: what is written is what was computed, as files say it and as transformers reads it back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maasdam.artifacts.store import Store
from maasdam.core import TEXT_GENERATION, Artifact
from maasdam.engines import open_engine
from maasdam.engines.generating import greedy
from maasdam.engines.transformers_library import open_module
from maasdam.errors import InvalidInput, MissingExtra, Unsupported
from maasdam.pipeline.passes import find_pass
from maasdam.pipeline.recipe import Use
from maasdam.pipeline.run_recipe import Build, Data
from maasdam.sources import ingest
from tests.convert import tiny

TEXT = "The quick brown fox jumps over the lazy dog; pack my box with five dozen liquor jugs. "


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    lines = [json.dumps({"text": (TEXT * 3)[start : start + 120]}) for start in range(0, 60, 3)]
    file.write_text("\n".join(lines))
    return file


def _source(store: Store, folder: Path, kind: str = "llama", **changes: Any) -> Artifact:
    tiny.language_model(folder, kind, **{"max_position_embeddings": 256, **changes} if kind != "gpt2" else changes)
    return ingest(str(folder), store, task=TEXT_GENERATION)


def _quantised(
    store: Store, source: Artifact, texts: Path | None, scheme: str, **settings: Any
) -> tuple[Artifact, Mapping[str, Any]]:
    building = Build(store, Data(calibrate=texts))
    given = {"scheme": scheme, "format": "pytorch", **({} if scheme == "fp8" else {"group_size": 32}), **settings}
    made = building.apply(Use("quantize", find_pass("quantize", "t").check(given, "t")), source)
    return made, building.steps[-1].facts


def _logits(module: Any) -> Any:
    import torch

    ids = torch.arange(3, 43).reshape(2, 20)
    with torch.no_grad():
        return module(input_ids=ids).logits.numpy()


def _nibbles(words: Any, axis: int) -> Any:
    """int32 words -> eight unsigned 4-bit values each, the lowest bits first, along `axis`; less 8, they are signed."""
    import torch

    parts = torch.stack([(words >> (4 * i)) & 15 for i in range(8)], dim=axis + 1)
    return parts.flatten(axis, axis + 1) - 8


def _decoded(folder: Path) -> dict[str, Any]:
    """The weights of a packed or fp8 folder as float32, by the format's definition alone: no library of its own."""
    from safetensors.torch import load_file

    stored = load_file(folder / "model.safetensors")
    found = {n: t.float() for n, t in stored.items() if n.endswith((".weight", ".bias"))}
    for name, scale in ((n.removesuffix("_scale"), t.float()) for n, t in stored.items() if n.endswith("weight_scale")):
        if f"{name}_packed" not in stored:
            found[name] = stored[name].float() * scale
            continue
        rows, columns = stored[f"{name}_shape"].tolist()
        whole = _nibbles(stored[f"{name}_packed"], 1)[:rows, :columns].float()
        zero = stored.get(f"{name}_zero_point")
        zeros = 0 if zero is None else _nibbles(zero, 0)[:rows].float().repeat_interleave(columns // scale.shape[1], 1)
        found[name] = (whole - zeros) * scale.repeat_interleave(columns // scale.shape[1], 1)
    return found


def _holding(source: Artifact, weights: dict[str, Any], *, rounds_activations: bool) -> Any:
    """The source's float module with these weights; inputs of its quantised layers rounded to E4M3 where asked for."""
    import torch

    module = open_module(source.path)
    missing, unknown = module.load_state_dict(weights, strict=False)
    assert not unknown and set(missing) <= {"lm_head.weight"}

    def rounded(layer: Any, args: Any) -> Any:
        scale = args[0].abs().amax(-1, keepdim=True) / 448
        return ((args[0] / scale).to(torch.float8_e4m3fn).float() * scale,)

    for name, layer in module.named_modules():
        if rounds_activations and type(layer) is torch.nn.Linear and name != "lm_head":
            layer.register_forward_pre_hook(rounded)
    return module


@pytest.mark.parametrize("kind", ["llama", "qwen2", "mistral"])
@pytest.mark.parametrize("scheme", ["fp8", "gptq", "awq"])
def test_what_is_read_back_computes_what_the_file_says(
    store: Store, texts: Path, tmp_path: Path, scheme: str, kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    source = _source(store, tmp_path / kind, kind)
    capfd.readouterr()
    made, facts = _quantised(store, source, texts, scheme)
    assert (made.layout, made.engine, made.task) == ("huggingface", "transformers", TEXT_GENERATION)
    config = json.loads((made.path / "config.json").read_text())["quantization_config"]
    assert config["quant_method"] == "compressed-tensors" and config["ignore"] == ["lm_head"]
    assert config["format"] == ("float-quantized" if scheme == "fp8" else "pack-quantized")
    wanted = _logits(_holding(source, _decoded(made.path), rounds_activations=scheme == "fp8"))
    got = _logits(open_module(made.path))
    assert np.abs(wanted - got).max() < 1e-3 * np.abs(wanted).max()
    assert np.abs(_logits(open_module(source.path)) - got).max() > 0
    said = capfd.readouterr()
    assert said.out == "" and "%|" not in said.err
    assert "vLLM itself was not run" in facts["says"]
    assert made.size_bytes < source.size_bytes


@pytest.mark.parametrize("scheme", ["gptq", "awq"])
def test_calibration_brings_outputs_closer_than_rounding_to_nearest(
    store: Store, texts: Path, tmp_path: Path, scheme: str
) -> None:
    source = _source(store, tmp_path / "llama", num_key_value_heads=4)
    _, facts = _quantised(store, source, texts, scheme)
    errors = facts["output_error"]
    assert errors[scheme] < 0.95 * errors["round_to_nearest"]
    assert facts["calibration"]["says"] == "20 unlabelled examples of --calibrate"


def test_gptq_is_closer_than_rounding_on_inputs_like_those_it_saw() -> None:
    import torch

    from maasdam.pipeline.quantize.gptq import gptq
    from maasdam.pipeline.quantize.groups import grid_of

    torch.manual_seed(0)
    mix = torch.randn(256, 256) * torch.linspace(0.05, 2, 256)
    seen, new = torch.randn(4000, 256) @ mix, torch.randn(500, 256) @ mix
    weight = torch.randn(48, 256)
    grid, rounded = gptq(weight, seen.T @ seen / len(seen), 64, torch.bfloat16)
    assert torch.equal(grid.round(rounded), rounded)
    plain = grid_of(weight, 64, torch.bfloat16, is_symmetric=True).round(weight)
    error = [float((new @ (w - weight).T).square().mean()) for w in (rounded, plain)]
    assert error[0] < 0.6 * error[1]


def test_scaling_for_awq_changes_nothing_before_rounding(store: Store, texts: Path, tmp_path: Path) -> None:
    import torch

    from maasdam.pipeline.quantize.awq import MAKERS, _fold
    from maasdam.pipeline.quantize.layerwise import walk

    source = _source(store, tmp_path / "qwen2", "qwen2", num_key_value_heads=4)
    module = open_module(source.path).requires_grad_(False)
    torch.manual_seed(1)
    for layer in module.model.layers:
        layer.self_attn.v_proj.bias.data.normal_()
    wanted = _logits(module)
    for stage in walk(module, [list(range(3, 40))], lambda *_: None):
        for first in MAKERS:
            _fold(stage, first, torch.rand(len(stage.seen[first].size)) + 0.5)
    assert np.allclose(wanted, _logits(module), atol=1e-3)


def test_an_engine_generates_from_it(store: Store, texts: Path, tmp_path: Path) -> None:
    made, _ = _quantised(store, _source(store, tmp_path / "llama"), texts, "awq")
    again = ingest(str(made.path), store, task=TEXT_GENERATION)
    assert again.engine == "transformers"
    engine: Any = open_engine(again, threads=1)
    try:
        assert len(greedy(engine, [[5, 6, 7]], 4)[0]) == 4
    finally:
        engine.close()
    with pytest.raises(Unsupported, match=r"quantised already \(compressed-tensors\)"):
        _quantised(store, again, texts, "fp8")


def test_widths_and_groups_that_do_not_fit_are_refused(store: Store, texts: Path, tmp_path: Path) -> None:
    source = _source(store, tmp_path / "llama")
    with pytest.raises(InvalidInput, match=r"has 32 inputs, which groups of 64 don't divide; set group_size = 32"):
        _quantised(store, source, texts, "gptq", group_size=64)
    with pytest.raises(InvalidInput, match=r"takes group_size 32, 64, 128, as vLLM's kernels do; not 16"):
        _quantised(store, source, texts, "awq", group_size=16)
    odd = _source(store, tmp_path / "odd", hidden_size=40, intermediate_size=80)
    with pytest.raises(Unsupported, match="has 40 inputs, which no group size vLLM takes divides"):
        _quantised(store, odd, texts, "gptq")
    with pytest.raises(InvalidInput, match="gptq needs calibration texts"):
        _quantised(store, source, None, "gptq")


def test_other_architectures_are_refused_by_name(store: Store, texts: Path, tmp_path: Path) -> None:
    bloom = _source(store, tmp_path / "bloom", "bloom")
    with pytest.raises(Unsupported, match="BloomForCausalLM is not known to gptq and awq here"):
        _quantised(store, bloom, texts, "awq")
    made, _ = _quantised(store, bloom, None, "fp8")
    assert np.isfinite(_logits(open_module(made.path))).all()
    gpt2 = _source(store, tmp_path / "gpt2", "gpt2")
    with pytest.raises(Unsupported, match="GPT2LMHeadModel has no linear layer but its head"):
        _quantised(store, gpt2, None, "fp8")


def test_a_missing_library_names_its_extra(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from maasdam.engines import compressed_weights

    made, _ = _quantised(store, _source(store, tmp_path / "llama"), None, "fp8")

    def absent(self: Any) -> None:
        raise ImportError("No module named 'compressed_tensors'")

    monkeypatch.setattr(compressed_weights.CompressedTensors, "__init__", absent)
    compressed_weights.open_compressed_tensors.cache_clear()
    with pytest.raises(MissingExtra, match=r"compressed-tensors is not installed; run: pip install 'maasdam\[pytorch\]'"):
        open_module(made.path)
    compressed_weights.open_compressed_tensors.cache_clear()
