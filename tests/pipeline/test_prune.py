"""Pruning tiny models: what was cut is gone, what is left runs under the same names, and the facts say what shrank."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maasdam.artifacts.store import Store
from maasdam.convert.probes import Sizes, probe
from maasdam.core import IMAGE_CLASSIFICATION, TEXT_GENERATION, Artifact, silent
from maasdam.engines import open_engine
from maasdam.errors import InvalidInput, Unsupported
from maasdam.pipeline.passes import find_pass
from maasdam.pipeline.prune import prune_magnitude
from maasdam.pipeline.prune.magnitude import parse_pattern
from maasdam.pipeline.recipe import Use
from maasdam.pipeline.run_recipe import Build, Data
from maasdam.pipeline.training import Plan, labels_loss, loss_of, train, training_samples
from maasdam.sources import ingest
from tests.engines import networks, tiny_language_model
from tests.pipeline.networks import SIDE, write_photographs, write_resnet, write_vit

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def resnet(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return ingest(str(write_resnet(tmp_path_factory.mktemp("resnet"))), store)


@pytest.fixture(scope="module")
def vit(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return ingest(str(write_vit(tmp_path_factory.mktemp("vit"))), store)


@pytest.fixture(scope="module")
def llama(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """4 query heads of 8 that share 2 key heads."""
    folder = tmp_path_factory.mktemp("llama")
    tiny_language_model.huggingface(folder)
    return ingest(str(folder), store, task=TEXT_GENERATION)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photographs(tmp_path_factory.mktemp("train"), 30)


def _prune(store: Store, source: Artifact, train_on: Path | None = None, **settings: Any) -> tuple[Artifact, dict[str, Any]]:
    building = Build(store, Data(train=train_on))
    made = building.apply(Use("prune", find_pass("prune", "test").check(settings, "test")), source)
    return made, dict(building.steps[-1].facts)


def _as_program(store: Store, source: Artifact) -> Artifact:
    return Build(store).apply(Use("convert", {"to": "pytorch"}), source)


def _logits(artifact: Artifact, batch: int = 2) -> Any:
    engine: Any = open_engine(artifact, threads=1)
    pixels = np.random.default_rng(0).random((batch, 3, SIDE, SIDE), dtype=np.float32)
    try:
        return engine.run({"pixel_values": pixels})["logits"]
    finally:
        engine.close()


@pytest.mark.parametrize("layout", ["huggingface", "pt2"])
def test_channels_are_cut_and_the_rest_keeps_its_names_and_dynamic_batch(store: Store, resnet: Artifact, layout: str) -> None:
    source = resnet if layout == "huggingface" else _as_program(store, resnet)
    made, facts = _prune(store, source, ratio=0.5)
    assert (made.layout, made.engine, made.signature) == ("pt2", "pytorch", source.signature)
    shrank = facts["shrank"]
    for what in ("parameters", "macs"):
        assert shrank[what]["after"] < 0.6 * shrank[what]["before"], what
    if layout == "pt2":  # a program's own text outweighs so small a network's weights
        assert shrank["file_bytes"]["after"] < shrank["file_bytes"]["before"]
    assert _logits(made, 2).shape == (2, 3) and _logits(made, 5).shape == (5, 3)
    assert (made.path / "preprocessor_config.json").is_file()


def _keras_network(folder: Path) -> Path:
    """Convolutions with a residual, and a dense head: [batch, 16, 16, 3] to [batch, 3]."""
    import keras

    keras.utils.set_random_seed(0)
    layers = keras.layers
    image = keras.Input((SIDE, SIDE, 3), name="image")
    x = layers.Conv2D(24, 3, padding="same", use_bias=False)(image)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    y = layers.Conv2D(24, 3, padding="same", activation="relu")(x)
    x = layers.GlobalAveragePooling2D()(layers.Add()([x, layers.Conv2D(24, 1)(y)]))
    x = layers.Dense(48, activation="relu")(layers.Flatten()(x))
    keras.Model(image, layers.Dense(3, name="scores")(x)).save(folder / "model.keras")
    return folder / "model.keras"


@pytest.mark.parametrize("format", ["onnx", "tensorflow"])
def test_a_network_of_another_format_is_cut_as_a_program(store: Store, resnet: Artifact, tmp_path: Path, format: str) -> None:
    source = Build(store).convert(resnet, "onnx") if format == "onnx" else ingest(str(_keras_network(tmp_path)), store)
    assert source.signature is not None and source.format == format
    building = Build(store)
    made = building.apply(Use("prune", find_pass("prune", "test").check({"ratio": 0.5}, "test")), source)
    assert [step.use for step in building.steps] == ["convert", "prune"]
    shrank = building.steps[-1].facts["shrank"]
    assert shrank["macs"]["after"] < 0.6 * shrank["macs"]["before"]
    assert made.layout == "pt2" and made.signature is not None and made.signature.inputs == source.signature.inputs
    back = Build(store).convert(made, "openvino")
    for batch in (2, 5):
        inputs = probe(made.signature, Sizes(batch), seed=0, folder=made.path)
        one, other = (_run(artifact, inputs) for artifact in (made, back))
        assert one.shape == (batch, 3) and np.allclose(one, other, atol=1e-4)


def _run(artifact: Artifact, inputs: Any) -> Any:
    engine: Any = open_engine(artifact, threads=1)
    try:
        return next(iter(engine.run(inputs).values()))
    finally:
        engine.close()


def test_matrix_products_of_another_format_are_layers_with_their_bias(store: Store, vit: Artifact) -> None:
    """ViT from ONNX: its hidden units can be cut, whatever the products were named."""
    building = Build(store)
    use = Use("prune", find_pass("prune", "test").check({"ratio": 0.3, "targets": "ffn"}, "test"))
    made = building.apply(use, Build(store).convert(vit, "onnx"))
    as_module, _ = _prune(store, vit, ratio=0.3, targets="ffn")
    assert np.allclose(_logits(made), _logits(as_module), atol=1e-4)


def test_both_layouts_of_one_network_lose_the_same_channels(store: Store, resnet: Artifact) -> None:
    as_module, _ = _prune(store, resnet, ratio=0.4)
    as_program, _ = _prune(store, _as_program(store, resnet), ratio=0.4)
    assert np.allclose(_logits(as_module), _logits(as_program), atol=1e-5)


def test_a_lifted_program_computes_what_it_did(store: Store, resnet: Artifact, vit: Artifact) -> None:
    from maasdam.pipeline.prune import example_of, open_to_cut

    for source in (resnet, vit):
        program = _as_program(store, source)
        lifted = open_to_cut(program)
        kinds = {type(m) for m in lifted.modules()}
        assert torch.nn.Conv2d in kinds and torch.nn.Linear in kinds
        assert kinds & {torch.nn.BatchNorm2d, torch.nn.LayerNorm}
        example = example_of(program)
        engine: Any = open_engine(program, threads=1)
        wanted = engine.run({name: tensor.numpy() for name, tensor in example.items()})["logits"]
        engine.close()
        with torch.no_grad():
            assert np.allclose(lifted(**example)["logits"].numpy(), wanted, atol=1e-5)
        lifted.requires_grad_(True).train()
        lifted(**example)["logits"].sum().backward()
        assert all(p.grad is not None for p in lifted.parameters())


@pytest.mark.parametrize("layout", ["huggingface", "pt2"])
@pytest.mark.parametrize(("targets", "fewer"), [("heads", 2096), ("ffn", 3120), ("heads+ffn", 5216)])
def test_heads_and_hidden_units_are_cut(store: Store, vit: Artifact, layout: str, targets: str, fewer: int) -> None:
    source = vit if layout == "huggingface" else _as_program(store, vit)
    made, facts = _prune(store, source, ratio=0.3, targets=targets)
    parameters = facts["shrank"]["parameters"]
    assert parameters["before"] - parameters["after"] == fewer  # one head of 8, 24 hidden units, in each of two layers
    assert facts["targets"] == targets and facts.get("heads") == ([4, 3] if "heads" in targets else None)
    assert made.signature == source.signature and _logits(made, 3).shape == (3, 3)
    assert made.layout == ("huggingface" if layout == "huggingface" and targets == "ffn" else "pt2")


def test_heads_that_matter_least_go_first(store: Store, vit: Artifact) -> None:
    from maasdam.pipeline.prune import example_of, open_to_cut
    from maasdam.pipeline.prune.layers import attentions
    from maasdam.pipeline.prune.structured import prune_structured

    model = open_to_cut(vit)
    attention = next(iter(attentions(model)))
    with torch.no_grad():  # the third head says nothing at all
        for layer in (attention.query, attention.key, attention.value):
            layer.weight[16:24] = 0
        attention.output.weight[:, 16:24] = 0
    kept = attention.query.weight.detach()[[*range(16), *range(24, 32)]].clone()
    prune_structured(model, example_of(vit), 0.3, "heads", vit.path)
    assert torch.equal(attention.query.weight, kept)


def test_query_heads_go_with_the_key_head_they_share_and_the_config_says_so(store: Store, llama: Artifact) -> None:
    made, facts = _prune(store, llama, ratio=0.5, targets="heads+ffn")
    assert made.layout == "huggingface" and facts["heads"] == [2, 1]
    from maasdam.engines.transformers_library import open_module

    model = open_module(made.path)
    config = model.config
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (2, 1, 8)
    assert config.intermediate_size == 32
    with torch.no_grad():
        assert torch.isfinite(model(torch.arange(1, 9)[None]).logits).all()


def test_targets_that_a_network_has_not_are_refused(store: Store, resnet: Artifact, vit: Artifact) -> None:
    with pytest.raises(Unsupported, match="this network has no attention: use 'channels'"):
        _prune(store, resnet, targets="heads")
    with pytest.raises(Unsupported, match=r"this one attends: use 'heads', 'ffn' or 'heads\+ffn'"):
        _prune(store, vit, targets="channels")
    with pytest.raises(Unsupported, match=r"no attention head could be cut at ratio 0\.1: the fewest there are is 4"):
        _prune(store, vit, targets="heads", ratio=0.1)


def test_pruning_another_layout_is_refused(store: Store, tmp_path: Path) -> None:
    source = networks.artifact(tmp_path, networks.MLP, "torchscript", "pytorch")
    with pytest.raises(Unsupported, match=r"in Hugging Face layout or as \.pt2; this one is pytorch \(torchscript\)"):
        _prune(store, source)


def test_widths_stay_multiples_of_what_was_asked(store: Store, resnet: Artifact) -> None:
    made, _ = _prune(store, resnet, ratio=0.3, round_to=16)
    from maasdam.pipeline.prune import open_to_cut
    from maasdam.pipeline.prune.layers import head, layers

    model = open_to_cut(made)
    widths = [layer.weight.shape[0] for layer in layers(model) if layer is not head(model)]
    assert widths and all(width % 16 == 0 for width in widths)


def test_a_small_ratio_cuts_little_of_narrow_layers(store: Store, resnet: Artifact) -> None:
    _, facts = _prune(store, resnet, ratio=0.05)
    parameters = facts["shrank"]["parameters"]
    assert 0.75 < parameters["after"] / parameters["before"] < 1


@pytest.mark.parametrize("layout", ["huggingface", "pt2"])
def test_zeros_shrink_only_the_compressed_file(store: Store, resnet: Artifact, layout: str) -> None:
    source = resnet if layout == "huggingface" else _as_program(store, resnet)
    made, facts = _prune(store, source, method="magnitude", ratio=0.8)
    assert made.layout == layout
    shrank = facts["shrank"]
    for what in ("parameters", "macs"):
        assert shrank[what]["after"] == shrank[what]["before"]
    assert shrank["file_bytes"]["after"] > 0.85 * shrank["file_bytes"]["before"]
    assert shrank["compressed_bytes"]["after"] < 0.6 * shrank["compressed_bytes"]["before"]
    assert shrank["nonzero"]["after"] < 0.35 * shrank["nonzero"]["before"]
    assert "only a compressed file shrinks" in facts["says"] and "smaller is not faster" in shrank["says"]
    assert not np.array_equal(_logits(made), _logits(source))


def test_of_every_four_neighbours_the_two_largest_stay(store: Store, resnet: Artifact) -> None:
    made, facts = _prune(store, resnet, method="magnitude", pattern="2:4")
    assert facts["layers_left_whole"] == 1  # the first, of three input channels
    from maasdam.engines.transformers_library import open_module

    was, now = open_module(resnet.path), open_module(made.path)
    convolutions = [(a, b) for a, b in zip(was.modules(), now.modules(), strict=True) if isinstance(a, torch.nn.Conv2d)]
    for before, after in convolutions[1:]:
        groups = after.weight.movedim(1, -1).reshape(-1, 4)
        assert ((groups != 0).sum(1) == 2).all()
        of = before.weight.movedim(1, -1).reshape(-1, 4).abs()
        assert (of.topk(2).values.sum(1) - groups.abs().sum(1)).abs().max() < 1e-6


@pytest.mark.parametrize("pattern", ["4:2", "2:2", "0:4", "two", "2:4:8"])
def test_patterns_that_mean_nothing_are_refused(pattern: str) -> None:
    with pytest.raises(InvalidInput, match="N:M' with N below M, such as '2:4'"):
        parse_pattern(pattern)


def test_a_pattern_that_fits_no_layer_is_refused(store: Store, resnet: Artifact) -> None:
    with pytest.raises(Unsupported, match="no layer's inputs divide into groups of 13"):
        _prune(store, resnet, method="magnitude", pattern="2:13")


def test_zeros_stay_zero_through_fine_tuning(resnet: Artifact, photographs: Path, tmp_path: Path) -> None:
    from maasdam.engines.transformers_library import open_module

    model = open_module(resnet.path)
    zeros = prune_magnitude(model, 0.5)
    samples, _ = training_samples(resnet, photographs)
    loss = labels_loss(loss_of(resnet.task, 0))
    train(model, samples, loss, Plan(1), checkpoint=tmp_path / "c.pt", progress=silent, stage="t", after_step=zeros.again)
    found = sum(int((m.weight == 0).sum()) for m in model.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear))
    assert found >= zeros.count


@pytest.mark.parametrize("recover", ["finetune", "distill"])
@pytest.mark.parametrize("layout", ["huggingface", "pt2"])
def test_what_is_left_recovers_by_training(
    store: Store, resnet: Artifact, photographs: Path, layout: str, recover: str
) -> None:
    source = resnet if layout == "huggingface" else _as_program(store, resnet)
    assert source.task == IMAGE_CLASSIFICATION
    bare, _ = _prune(store, source, ratio=0.5)
    made, facts = _prune(store, source, photographs, ratio=0.5, finetune_epochs=1, recover=recover, batch=8, rate=1e-3)
    assert facts["recovery"] == {"by": recover, "epochs": 1, "samples": 27}
    assert not np.allclose(_logits(made), _logits(bare))
