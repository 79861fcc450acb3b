"""Every direction gives the same numbers under the same names, with the same axes left open."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from maasdam.convert import convert
from maasdam.convert.directions import to_openvino
from maasdam.convert.proof.certificate import certify
from maasdam.core import Artifact, Format
from maasdam.errors import Unsupported
from tests.convert import tiny
from tests.engines.networks import CNN, PAIR, WORDS, Network, artifact

pytestmark = [
    # TorchScript is a format we read: what torch says of its age is not ours to heed
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Manually populate:UserWarning"),
]
ENGINES = {"pt2": "pytorch", "torchscript": "pytorch", "onnx": "onnxruntime", "savedmodel": "tensorflow", "keras": "tensorflow"}
WAYS: list[tuple[str, Format, Network]] = [
    ("pt2", "onnx", CNN),
    ("pt2", "onnx", PAIR),
    ("pt2", "onnx", WORDS),
    ("pt2", "openvino", CNN),
    ("pt2", "openvino", PAIR),
    ("pt2", "openvino", WORDS),
    ("torchscript", "onnx", CNN),
    ("torchscript", "openvino", CNN),
    ("torchscript", "pytorch", CNN),
    ("onnx", "openvino", CNN),
    ("onnx", "openvino", PAIR),
    ("onnx", "openvino", WORDS),
    ("savedmodel", "onnx", CNN),
    ("savedmodel", "onnx", PAIR),
    ("savedmodel", "onnx", WORDS),
    ("savedmodel", "openvino", CNN),
    ("savedmodel", "openvino", PAIR),
    ("savedmodel", "openvino", WORDS),
    ("keras", "onnx", PAIR),
    ("keras", "openvino", CNN),
    ("keras", "tensorflow", CNN),
    ("onnx", "pytorch", CNN),
    ("onnx", "pytorch", PAIR),
    ("onnx", "pytorch", WORDS),
    ("onnx", "tensorflow", CNN),
    ("onnx", "tensorflow", PAIR),
    ("onnx", "tensorflow", WORDS),
    ("pt2", "tensorflow", CNN),
    ("pt2", "tensorflow", PAIR),
    ("pt2", "tensorflow", WORDS),
    ("torchscript", "tensorflow", CNN),
    ("savedmodel", "pytorch", CNN),
    ("savedmodel", "pytorch", PAIR),
    ("savedmodel", "pytorch", WORDS),
    ("keras", "pytorch", CNN),
]


def converted(source: Artifact, to: Format, out: Path) -> Artifact:
    """What `convert` made, as an artifact."""
    out.mkdir()
    made = convert(source, to, out)
    return Artifact(f"sha256:{to}", out, made.format, made.layout, source.task, made.engine, made.signature, 1)


@pytest.mark.parametrize(("layout", "to", "network"), WAYS, ids=lambda v: getattr(v, "name", v))
def test_a_direction_keeps_numbers_names_and_open_axes(layout: str, to: Format, network: Network, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    source = artifact(tmp_path / "source", network, layout, ENGINES[layout])
    candidate = converted(source, to, tmp_path / "out")
    assert candidate.format == to
    assert candidate.signature is not None and source.signature is not None
    assert {s.name: s.shape for s in candidate.signature.inputs} == {s.name: s.shape for s in source.signature.inputs}
    assert {s.name for s in candidate.signature.outputs} == {s.name for s in source.signature.outputs}
    proof = certify(source, candidate, seeds=(0, 1))
    assert {o.name for o in proof.outputs} == {s.name for s in source.signature.outputs}


@pytest.fixture(scope="module")
def networks(tmp_path_factory: Any) -> Iterator[dict[str, Artifact]]:
    folder = tmp_path_factory.mktemp("huggingface")
    yield {
        "mobilenet": tiny.image_classifier(folder / "mobilenet"),
        "vit": tiny.image_classifier(folder / "vit", "vit"),
        "speech": tiny.speech_recogniser(folder / "speech"),
        "waveform": tiny.waveform_recogniser(folder / "waveform"),
        "resnet": tiny.residual_classifier(folder / "resnet"),
    }


@pytest.mark.parametrize("name", ["mobilenet", "vit", "speech"])
@pytest.mark.parametrize("to", ["onnx", "openvino", "pytorch", "tensorflow"])
def test_a_transformers_model_converts_with_batch_and_sequence_open(
    name: str, to: Format, networks: dict[str, Artifact], tmp_path: Path
) -> None:
    source = networks[name]
    candidate = converted(source, to, tmp_path / "out")
    assert candidate.signature is not None and source.signature is not None
    made = {s.name: s for s in candidate.signature.inputs}  # a SavedModel keeps its inputs by name, in no order of its own
    assert {s.name: (s.dtype, s.shape) for s in made.values()} == {s.name: (s.dtype, s.shape) for s in source.signature.inputs}
    first = source.signature.inputs[0]
    assert made[first.name].value_range == first.value_range
    assert (tmp_path / "out" / "config.json").is_file(), "the processor's files travel with the model"
    certify(source, candidate, seeds=(0,))


@pytest.mark.parametrize(
    ("name", "to"),
    [
        ("waveform", "onnx"),
        ("waveform", "openvino"),
        ("waveform", "tensorflow"),
        ("resnet", "onnx"),
        ("resnet", "openvino"),
        ("resnet", "tensorflow"),
    ],
)
def test_axes_with_a_shortest_length_stay_open(name: str, to: Format, networks: dict[str, Artifact], tmp_path: Path) -> None:
    candidate = converted(networks[name], to, tmp_path / "out")
    wanted = networks[name].signature
    assert candidate.signature is not None and wanted is not None
    assert [s.shape for s in candidate.signature.inputs] == [s.shape for s in wanted.inputs]
    certify(networks[name], candidate, seeds=(0,))


def test_a_program_that_returns_a_plain_tensor_converts(tmp_path: Path) -> None:
    import torch

    from maasdam.artifacts.store import Store
    from maasdam.sources import ingest

    module = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)).eval()
    program = torch.export.export(module, (torch.ones(2, 4),), dynamic_shapes=({0: torch.export.Dim("n")},))
    torch.export.save(program, tmp_path / "model.pt2")
    source = ingest(str(tmp_path / "model.pt2"), Store(tmp_path / "store"))
    ways: tuple[Format, ...] = ("onnx", "openvino")
    for to in ways:
        certify(source, converted(source, to, tmp_path / to), seeds=(0,))


def test_the_axes_of_an_onnx_file_are_called_batch_and_sequence(networks: dict[str, Artifact], tmp_path: Path) -> None:
    import onnx

    converted(networks["speech"], "onnx", tmp_path / "out")
    graph = onnx.load(tmp_path / "out" / "model.onnx").graph
    axes = [[d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in (*graph.input, *graph.output)]
    assert axes == [["batch", "sequence", 80], ["batch", "sequence"], ["batch", "sequence", 12]]


def test_a_pt2_carries_no_sample_inputs_and_inspects_as_harmless(networks: dict[str, Artifact], tmp_path: Path) -> None:
    import torch

    from maasdam.sources import inspect

    candidate = converted(networks["mobilenet"], "pytorch", tmp_path / "out")
    program = torch.export.load(tmp_path / "out" / "model.pt2")
    assert not program.example_inputs
    found = inspect(str(tmp_path / "out"))
    assert not [r for r in found.risks if r.severity != "info"]
    assert found.signature is not None and candidate.signature is not None
    assert [s.name for s in found.signature.outputs] == ["logits"] == [s.name for s in candidate.signature.outputs]


@pytest.mark.parametrize(("layout", "to"), [("ir", "pytorch"), ("ir", "onnx"), ("genai", "tensorflow")])
def test_a_direction_that_does_not_exist_is_named(layout: Any, to: Format, tmp_path: Path) -> None:
    source = Artifact("sha256:x", tmp_path, "openvino", layout, None, "", CNN.signature, 1)
    with pytest.raises(Unsupported, match=rf"can't convert openvino \({layout}\) to {to}"):
        convert(source, to, tmp_path)


def test_a_model_of_the_format_already_has_nothing_to_convert(tmp_path: Path) -> None:
    source = Artifact("sha256:x", tmp_path, "onnx", "onnx", None, "onnxruntime", CNN.signature, 1)
    with pytest.raises(Unsupported, match="already"):
        convert(source, "onnx", tmp_path)


def test_an_operator_tensorflow_has_and_onnx_has_not_is_named(tmp_path: Path) -> None:
    import tensorflow as tf

    @tf.function(input_signature=[tf.TensorSpec((None, 4), tf.float32, name="x")])
    def forward(x: Any) -> Any:
        return {"y": tf.raw_ops.Betainc(a=x, b=x, x=x)}

    module = tf.Module()
    module.forward = forward
    (tmp_path / "source").mkdir()
    tf.saved_model.save(module, str(tmp_path / "source"), signatures={"serving_default": forward.get_concrete_function()})
    source = Artifact("sha256:x", tmp_path / "source", "tensorflow", "savedmodel", None, "tensorflow", None, 1)
    (tmp_path / "out").mkdir()
    with pytest.raises(Unsupported, match="Betainc"):
        convert(source, "onnx", tmp_path / "out")


def test_keras_exact_gelu_converts_to_onnx(tmp_path: Path) -> None:
    import keras

    x = keras.Input((6,), name="x")
    model = keras.Model(x, keras.layers.Dense(4, activation="gelu", name="y")(x))
    (tmp_path / "source").mkdir()
    model.save(tmp_path / "source" / "model.keras")
    source = Artifact("sha256:x", tmp_path / "source", "tensorflow", "keras", None, "tensorflow", None, 1)
    candidate = converted(source, "onnx", tmp_path / "out")
    assert candidate.signature is not None
    wanted = replace(source, signature=candidate.signature)
    certify(wanted, candidate, seeds=(0,))


def test_a_real_savedmodel_converts_to_onnx_and_openvino(shared_data: Path, tmp_path: Path) -> None:
    from maasdam.artifacts.store import Store
    from maasdam.sources import ingest

    source = ingest(str(shared_data / "mobilenet-v2-1001-savedmodel"), Store(tmp_path / "store"))
    ways: tuple[Format, ...] = ("onnx", "openvino")
    for to in ways:
        proof = certify(source, converted(source, to, tmp_path / to), seeds=(0,))
        assert proof.outputs[0].max_rel_diff < 2e-5


def test_what_openvino_has_no_rule_for_in_pytorch_goes_through_onnx(tmp_path: Path) -> None:
    import torch

    from maasdam.artifacts.store import Store
    from maasdam.sources import ingest

    class Deformed(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.fold(x, (4, 4), (2, 2), stride=2)

    program = torch.export.export(Deformed(), (torch.randn(2, 12, 4),), dynamic_shapes=({0: torch.export.Dim("n")},))
    torch.export.save(program, tmp_path / "model.pt2")
    source = ingest(str(tmp_path / "model.pt2"), Store(tmp_path / "store"))
    certify(source, converted(source, "openvino", tmp_path / "out"), seeds=(0,))


def test_what_openvino_can_not_read_of_a_savedmodel_goes_through_onnx(tmp_path: Path) -> None:
    import tensorflow as tf

    from maasdam.artifacts.store import Store
    from maasdam.sources import ingest

    module = tf.Module()

    @tf.function(input_signature=[tf.TensorSpec((None, 4), tf.float32, name="x")])
    def serve(x: Any) -> dict[str, Any]:
        return {"y": tf.nn.sparse_softmax_cross_entropy_with_logits(tf.zeros_like(x[:, 0], tf.int64), x)}

    tf.saved_model.save(module, str(tmp_path / "saved"), signatures={"serving_default": serve})
    with pytest.raises(Unsupported, match="SparseSoftmaxCrossEntropyWithLogits"):
        to_openvino._convert(tmp_path / "saved", None, tmp_path)
    source = ingest(str(tmp_path / "saved"), Store(tmp_path / "store"))
    certify(source, converted(source, "openvino", tmp_path / "out"), seeds=(0,))


@pytest.mark.parametrize("to", ["onnx", "openvino"])
def test_what_keras_applications_begin_with_converts(tmp_path: Path, to: Format) -> None:
    """Normalization (EfficientNet), and a number added behind a convolution (MobileNetV3), on which tf2onnx broke."""
    import keras

    from maasdam.artifacts.store import Store
    from maasdam.sources import ingest

    keras.utils.set_random_seed(0)
    layers = keras.layers
    x = keras.Input((16, 16, 3), name="image")
    seen = layers.Normalization(axis=-1)(x)
    hidden = layers.Conv2D(8, 3, padding="same")(seen)
    gate = layers.ReLU(6.0)(layers.Conv2D(8, 1, use_bias=False)(hidden) + 3.0) * (1.0 / 6.0)
    hidden = layers.Multiply()([hidden, gate])
    model = keras.Model(x, layers.Dense(4, name="y")(layers.GlobalAveragePooling2D()(hidden)))
    model.save(tmp_path / "model.keras")
    source = ingest(str(tmp_path / "model.keras"), Store(tmp_path / "store"))
    certify(source, converted(source, to, tmp_path / to), seeds=(0,))


def test_a_layer_that_keras_itself_can_not_export_is_named(tmp_path: Path) -> None:
    import keras

    x = keras.Input((None, None, 3), name="x")
    up = keras.layers.UpSampling2D(2, interpolation="bilinear")(x)
    (tmp_path / "source").mkdir()
    keras.Model(x, up).save(tmp_path / "source" / "model.keras")
    source = Artifact("sha256:x", tmp_path / "source", "tensorflow", "keras", None, "tensorflow", None, 1)
    (tmp_path / "out").mkdir()
    with pytest.raises(Unsupported, match=r"Keras can't export the model: .*UpSampling2D"):
        convert(source, "onnx", tmp_path / "out")
