"""Quantisation on a small convolutional network: smaller, close, in the precision it says; stdout stays clean."""

from __future__ import annotations

import importlib
import inspect
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maasdam.artifacts.store import Store
from maasdam.core import IMAGE_CLASSIFICATION, TEXT_GENERATION, Artifact
from maasdam.engines import open_engine
from maasdam.errors import InvalidInput, Unsupported
from maasdam.pipeline.parity import cosine, flat
from maasdam.pipeline.passes import find_pass
from maasdam.pipeline.quantize import SCHEMES, Scheme, formats_of
from maasdam.pipeline.recipe import Use
from maasdam.pipeline.run_recipe import Build, Data
from maasdam.sources import ingest
from tests.engines import tiny_language_model
from tests.pipeline.networks import convolutional, write_colours, write_photographs, write_resnet, write_tensors


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def source(store: Store) -> Artifact:
    return convolutional(store)


@pytest.fixture(scope="module")
def tensors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tensors(tmp_path_factory.mktemp("data") / "x.npz")


def _quantized(store: Store, source: Artifact, tensors: Path, scheme: str, **settings: Any) -> tuple[Artifact, dict[str, Any]]:
    building = Build(store, Data(calibrate=tensors))
    use = Use("quantize", find_pass("quantize", "test").check({"scheme": scheme, **settings}, "test"))
    return building.apply(use, source), dict(building.steps[-1].facts)


def _outputs(artifact: Artifact, tensors: Path) -> Any:
    engine: Any = open_engine(artifact, threads=1)
    try:
        return flat([engine.run(dict(np.load(tensors)))]), engine.precisions()
    finally:
        engine.close()


@pytest.mark.parametrize(
    ("scheme", "format", "smaller", "closeness", "precision"),
    [
        ("static-int8", "openvino", 2.5, 0.99, ("i8", "u8")),
        ("static-int8", "onnx", 3.0, 0.99, ("i8", "u8")),
        ("dynamic-int8", "onnx", 0.9, 0.99, ()),
        ("weights-int8", "openvino", 2.5, 0.999, ()),
        ("bf16", "openvino", 1.7, 0.999, ()),
        ("fp16", "openvino", 1.7, 0.9999, ("f32",)),
        ("fp16", "onnx", 1.8, 0.9999, ()),
    ],
)
def test_each_scheme_keeps_what_it_promises(
    store: Store,
    source: Artifact,
    tensors: Path,
    scheme: str,
    format: str,
    smaller: float,
    closeness: float,
    precision: tuple[str, ...],
    capfd: pytest.CaptureFixture[str],
) -> None:
    made, _ = _quantized(store, source, tensors, scheme, format=format)
    assert capfd.readouterr().out == ""
    assert made.format == format and made.signature == source.signature
    assert source.size_bytes / made.size_bytes >= smaller
    wanted, _ = _outputs(source, tensors)
    got, precisions = _outputs(made, tensors)
    assert cosine(wanted, got) >= closeness and not np.array_equal(wanted, got)
    if precision:
        assert any(precisions.get(p, 0) > 0 for p in precision), precisions


def test_bf16_is_computed_in_bf16(store: Store, source: Artifact, tensors: Path) -> None:
    made, _ = _quantized(store, source, tensors, "bf16")
    assert made.settings == {"precision": "bf16"}


def test_the_facts_say_what_it_was_calibrated_on(store: Store, source: Artifact, tensors: Path) -> None:
    _, facts = _quantized(store, source, tensors, "static-int8", format="onnx")
    assert facts["calibration"]["says"] == "12 unlabelled examples of --calibrate"
    building = Build(store, Data(data=tensors))
    use = Use("quantize", find_pass("quantize", "t").check({"scheme": "static-int8", "format": "onnx", "samples": 5}, "t"))
    building.apply(use, source)
    says = building.steps[-1].facts["calibration"]["says"]
    assert "sample of the evaluation data" in says and "5 examples" in says and "--calibrate was not given" in says


def test_calibration_data_that_does_not_fit_is_refused_and_nothing_kept(store: Store, source: Artifact, tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", picture=np.zeros((2, 3), np.float32))
    before = store.digests()
    with pytest.raises(InvalidInput, match="no input 'picture'"):
        _quantized(store, source, tmp_path / "other.npz", "static-int8", format="onnx")
    assert store.digests() == before


def test_text_generation_has_no_static_int8() -> None:
    with pytest.raises(Unsupported, match="use weights-int8 or weights-int4"):
        formats_of("static-int8", "text-generation")


def test_a_graph_for_tensorrt_has_symmetric_ranges_weights_of_a_byte_and_float_biases(
    store: Store, source: Artifact, tensors: Path
) -> None:
    import onnx
    from onnx.numpy_helper import to_array

    made, facts = _quantized(store, source, tensors, "tensorrt-int8")
    assert made.settings["int8"] is True and "TensorRT" in facts["method"]
    graph = onnx.load(made.path / "model.onnx").graph
    constants = {t.name: to_array(t) for t in graph.initializer}
    pairs = [n for n in graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert pairs and all(constants[n.input[2]].dtype == np.int8 and not constants[n.input[2]].any() for n in pairs)
    stored = [n for n in pairs if n.input[0] in constants]
    assert stored and all(constants[n.input[0]].dtype == np.int8 for n in stored)
    assert any(constants[n.input[1]].size > 1 for n in stored), "no weight has a scale for each channel"
    biases = [n.input[2] for n in graph.node if n.op_type in ("Conv", "Gemm") and len(n.input) > 2]
    assert biases and all(constants[name].dtype == np.float32 for name in biases)
    quantised = {name for n in graph.node if n.op_type == "QuantizeLinear" for name in n.input[:1]}
    assert not quantised & {n.output[0] for n in graph.node if n.op_type == "Conv"}, (
        "a pair keeps TensorRT from fusing Conv, Relu"
    )
    wanted, _ = _outputs(source, tensors)
    got, precisions = _outputs(made, tensors)
    assert cosine(wanted, got) >= 0.99 and not np.array_equal(wanted, got)
    assert set(precisions) == {"f32"}, "the roundings of a graph for TensorRT are compared in float on a processor"


@pytest.mark.parametrize("scheme", ["fp8", "awq", "gptq"])
def test_what_is_for_vllm_is_for_language_models(scheme: str) -> None:
    assert formats_of(scheme, "text-generation") == ("pytorch",)
    with pytest.raises(Unsupported, match=f"scheme '{scheme}' exists for text-generation only; use "):
        formats_of(scheme, "tensors")


@pytest.fixture(scope="module")
def encoder(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """An untrained BERT that classifies sentences: [batch, sequence] token ids, without a task of ours."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=500,
        hidden_size=64,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_labels=5,
        initializer_range=0.2,
        max_position_embeddings=64,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    return replace(ingest(str(folder), store), task=None)


@pytest.fixture(scope="module")
def sentences(encoder: Artifact) -> dict[str, Any]:
    """Three sentences of eleven tokens, for every input the encoder names."""
    random = np.random.default_rng(0)
    assert encoder.signature is not None
    made = {s.name: np.zeros((3, 11), s.dtype) for s in encoder.signature.inputs}
    made["input_ids"] = random.integers(1, 500, (3, 11))
    if "attention_mask" in made:
        made["attention_mask"][:] = 1
    return made


def _answers(artifact: Artifact, inputs: dict[str, Any]) -> Any:
    engine: Any = open_engine(artifact, threads=1)
    try:
        return engine.run(inputs)["logits"]
    finally:
        engine.close()


@pytest.mark.parametrize(
    ("scheme", "format", "smaller", "closeness"),
    [
        ("dynamic-int8", "pytorch", 1.0, 0.99),
        ("weights-int8", "pytorch", 1.2, 0.998),
        ("bf16", "pytorch", 1.8, 0.999),
        ("fp16", "pytorch", 1.8, 0.99999),
        ("weights-int8", "onnx", 1.5, 0.999),
        ("weights-int4", "onnx", 1.5, 0.9),
    ],
)
def test_an_encoder_is_quantised_in_its_own_format(
    store: Store, encoder: Artifact, sentences: dict[str, Any], scheme: str, format: str, smaller: float, closeness: float
) -> None:
    """Small networks carry much beside their weights, programs most of all: the ratios here are floors."""
    plain = encoder if format == "pytorch" else Build(store).convert(encoder, "onnx")
    if "int8" in scheme and format == "pytorch":  # what it becomes is a program, so it is compared with one
        plain = Build(store).apply(Use("convert", {"to": "pytorch"}), encoder)
    building = Build(store)
    how = {"scheme": scheme, "format": format, "group_size": 32}
    made = building.apply(Use("quantize", find_pass("quantize", "t").check(how, "t")), plain)
    assert made.format == format and made.signature == plain.signature
    wanted, got = _answers(plain, sentences), _answers(made, sentences)
    assert cosine(wanted.ravel(), got.ravel()) >= closeness and not np.array_equal(wanted, got)
    shorter = {name: array[:2, :5] for name, array in sentences.items()}
    assert _answers(made, shorter).shape == (2, 5)
    assert plain.size_bytes / made.size_bytes >= smaller, plain.size_bytes / made.size_bytes


def test_int8_in_pytorch_multiplies_integers() -> None:
    import torch

    from maasdam.pipeline.quantize.pytorch_models import quantize_layers

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.ReLU(), torch.nn.Linear(64, 8)).eval()
    x = torch.randn(5, 32)
    with torch.no_grad():
        wanted = model(x)
        assert quantize_layers(model, is_dynamic=True) == {"linear": 2, "embedding": 0}
        got = model(x)
    assert torch.nn.functional.cosine_similarity(wanted, got).min() > 0.999
    program = torch.export.export(model, (x,))
    assert sum("_int_mm" in str(node.target) for node in program.graph.nodes) == 2
    assert {b.dtype for n, b in model.named_buffers() if n.endswith("weight")} == {torch.int8}


def test_static_int8_for_pytorch_is_refused_before_any_work(source: Artifact) -> None:
    quantize = find_pass("quantize", "t")
    with pytest.raises(Unsupported, match="'static-int8' does not exist for --to pytorch; it does for: openvino, onnx"):
        quantize.expands(quantize.check({"scheme": "static-int8"}, "t"), source, "pytorch", ())


@pytest.mark.parametrize("row", SCHEMES, ids=lambda row: f"{row.name}-{row.format}-{row.kinds[0]}")
def test_every_row_of_the_schemes_names_what_makes_it(row: Scheme) -> None:
    for name in filter(None, (row.make, row.held)):
        module, _, function = name.partition(".")
        made = getattr(importlib.import_module(f"maasdam.pipeline.quantize.{module}"), function)
        assert list(inspect.signature(made).parameters) == ["source", "out", "settings", "context"]
    same = [r for r in SCHEMES if (r.name, r.format) == (row.name, row.format) and set(r.kinds) & set(row.kinds)]
    assert same == [row], "a kind of model is made by one row"


@pytest.fixture(scope="module")
def trained(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The small ResNet, taught the three colours."""
    source = ingest(str(write_resnet(tmp_path_factory.mktemp("resnet"))), store)
    data = write_photographs(tmp_path_factory.mktemp("teach"), 45, seed=8)
    use = Use("prune", find_pass("prune", "t").check({"ratio": 0.05, "finetune_epochs": 6, "rate": 3e-3}, "t"))
    return Build(store, Data(train=data)).apply(use, source)


def test_accuracy_control_holds_the_drop_on_training_data(store: Store, trained: Artifact, tmp_path: Path) -> None:
    train = write_photographs(tmp_path / "train", 24, seed=3)
    calibrate = write_photographs(tmp_path / "calibrate", 9, seed=4, labelled=False)
    use = Use("quantize", find_pass("quantize", "t").check({"scheme": "static-int8", "max_drop": 0.05}, "t"))
    building = Build(store, Data(data=tmp_path / "no evaluation data is there", calibrate=calibrate, train=train))
    made = building.apply(replace(use, settings={**use.settings, "format": "openvino"}), trained)
    control = building.steps[-1].facts["control"]
    assert control["examples"] == 24 and control["float"] > 0.9
    assert control["float"] - control["quantized"] <= 0.05 + 1e-9
    assert building.steps[-1].facts["calibration"]["is_sample_of_evaluation_data"] is False
    engine: Any = open_engine(made, threads=1)
    precisions = engine.precisions()
    engine.close()
    assert precisions.get("i8", 0) + precisions.get("u8", 0) > 0, precisions


def test_accuracy_control_takes_a_network_in_halves(store: Store, tmp_path: Path) -> None:
    source = ingest(str(write_colours(tmp_path / "halves", dtype="float16")), store, task=IMAGE_CLASSIFICATION)
    train = write_photographs(tmp_path / "train", 12, seed=3)
    how = {"scheme": "static-int8", "max_drop": 0.05, "format": "openvino"}
    building = Build(store, Data(train=train))
    made = building.apply(Use("quantize", find_pass("quantize", "t").check(how, "t")), source)
    assert building.steps[-1].facts["control"]["quantized"] > 0.9
    assert made.signature is not None and made.signature.inputs[0].dtype == "float16"
    engine: Any = open_engine(made, threads=1)
    assert engine.run({"pixel_values": np.ones((1, 3, 16, 16), np.float16)})["logits"].dtype == np.float16
    engine.close()


def test_accuracy_control_wants_labels_of_training_data(store: Store, trained: Artifact, tmp_path: Path) -> None:
    use = Use("quantize", find_pass("quantize", "t").check({"scheme": "static-int8", "max_drop": 0.05}, "t"))
    use = replace(use, settings={**use.settings, "format": "openvino"})
    photographs = write_photographs(tmp_path / "p", 6, labelled=False)
    with pytest.raises(InvalidInput, match="max_drop needs labelled data that is not evaluated on: name it with --train"):
        Build(store, Data(data=photographs)).apply(use, trained)
    with pytest.raises(InvalidInput, match=r"'000\.png' of --train has no label"):
        Build(store, Data(train=photographs)).apply(use, trained)
    with pytest.raises(Unsupported, match="max_drop is for static-int8 on openvino; this is static-int8 on onnx"):
        Build(store, Data(train=photographs)).apply(replace(use, settings={**use.settings, "format": "onnx"}), trained)


def test_how_int4_computes_is_kept_with_the_artifact(store: Store, tmp_path: Path) -> None:
    tiny_language_model.huggingface(tmp_path / "llama")
    source = ingest(str(tmp_path / "llama"), store, task=TEXT_GENERATION)
    sizes = {}
    for ends in ("int8", "int4"):
        how = {"scheme": "weights-int4", "ends": ends, "precision": "bf16", "activations": "dynamic-int8", "group_size": 32}
        made = Build(store).apply(Use("quantize", find_pass("quantize", "t").check({**how, "format": "openvino"}, "t")), source)
        assert made.layout == "genai"
        assert made.settings == {"precision": "bf16", "kv_precision": "bf16", "dynamic_quantization": True}
        sizes[ends] = (made.path / "openvino_model.bin").stat().st_size
        open_engine(made, threads=1).close()
    assert sizes["int4"] < sizes["int8"]


def test_only_products_with_weights_are_rounded_where_an_onnx_network_attends(
    store: Store, encoder: Artifact, sentences: dict[str, Any], tmp_path: Path
) -> None:
    import onnx

    np.savez(tmp_path / "x.npz", **sentences)
    made, facts = _quantized(store, Build(store).convert(encoder, "onnx"), tmp_path / "x.npz", "static-int8", format="onnx")
    assert "into products with weights" in facts["method"]
    graph = onnx.load(made.path / "model.onnx").graph
    made_by = {name: node for node in graph.node for name in node.output}
    fresh = {
        node.output[0]
        for node in graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in made_by  # not a stored weight
    }
    rounded = [node for node in graph.node if fresh & set(node.input)]
    assert rounded and {node.op_type for node in rounded} <= {"MatMul", "Gemm"}
    assert any(node.op_type == "MatMul" and node not in rounded for node in graph.node), "attention itself stays float"
    wanted, got = _answers(encoder, sentences), _answers(made, sentences)
    assert cosine(wanted.ravel(), got.ravel()) > 0.99
