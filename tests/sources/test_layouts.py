"""What each layout's reader says of models made by hand."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from maasdam.artifacts.store import Store
from maasdam.core import Signature, TensorSpec
from maasdam.errors import InvalidInput, InvalidModel, NotFound, UnsafeModel, Unsupported
from maasdam.sources import ingest, inspect
from tests import hostile


def test_onnx_says_names_shapes_and_dtypes(tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(hostile.onnx_model())
    found = inspect(str(tmp_path / "net.onnx"))
    assert (found.format, found.layout, found.task) == ("onnx", "onnx", None)
    assert found.signature == Signature(
        (TensorSpec("x", "float32", (None, 4)),),
        (TensorSpec("y", "float32", (None, 4)),),
    )


def test_onnx_is_known_by_its_content_under_any_name(tmp_path: Path) -> None:
    (tmp_path / "model.dat").write_bytes(hostile.onnx_model())
    assert inspect(str(tmp_path / "model.dat")).layout == "onnx"


def test_onnx_keeps_its_external_weights_in_the_artifact(tmp_path: Path, store: Store) -> None:
    source = tmp_path / "source"
    (source / "parts").mkdir(parents=True)
    (source / "net.onnx").write_bytes(hostile.onnx_model(hostile.external("parts/w.bin")))
    (source / "parts" / "w.bin").write_bytes(bytes(16))
    artifact = ingest(str(source / "net.onnx"), store)
    assert (artifact.path / "model.onnx").is_file()
    assert (artifact.path / "parts" / "w.bin").read_bytes() == bytes(16)
    assert inspect(str(artifact.path)).parameters == 4


def test_onnx_names_custom_domains(tmp_path: Path) -> None:
    node = hostile.field(1, b"".join(hostile.field(n, v) for n, v in ((1, "x"), (2, "y"), (4, "Magic"), (7, "org.lab"))))
    model = hostile.onnx_model(nodes=node) + hostile.field(8, hostile.field(1, "org.lab") + hostile.field(2, 1))
    (tmp_path / "model.onnx").write_bytes(model)
    found = inspect(str(tmp_path / "model.onnx"))
    assert any("org.lab" in note for note in found.notes)
    assert any(risk.severity == "warning" and "Magic" in risk.what for risk in found.risks)


def test_onnx_with_an_operator_that_does_not_exist_is_invalid(tmp_path: Path) -> None:
    node = hostile.field(1, hostile.field(1, "x") + hostile.field(2, "y") + hostile.field(4, "Frobnicate"))
    (tmp_path / "model.onnx").write_bytes(hostile.onnx_model(nodes=node))
    with pytest.raises(InvalidModel, match="Frobnicate"):
        inspect(str(tmp_path / "model.onnx"))


def test_a_hand_made_pt2_says_its_names_and_dynamic_batch(tmp_path: Path) -> None:
    found = inspect(str(hostile.pt2(tmp_path)))
    assert (found.format, found.layout) == ("pytorch", "pt2")
    assert found.signature == Signature(
        (TensorSpec("x", "float32", (None, 4)),),
        (TensorSpec("relu", "float32", (None, 4)),),
    )
    assert not found.blocked


def test_a_pt2_saved_without_sample_inputs_passes(tmp_path: Path) -> None:
    assert inspect(str(hostile.pt2(tmp_path, samples=b""))).layout == "pt2"


@pytest.mark.parametrize(
    ("operators", "saver_only"),
    [(("MatMul", "Relu"), False), (("SaveV2", "ShardedFilename", "MergeV2Checkpoints"), True)],
)
def test_ordinary_savedmodels_pass(tmp_path: Path, operators: tuple[str, ...], saver_only: bool) -> None:
    found = inspect(str(hostile.savedmodel(tmp_path, operators, saver_only=saver_only)))
    assert (found.format, found.layout) == ("tensorflow", "savedmodel")
    assert found.signature == Signature((TensorSpec("x", "float32", (4,)),), (TensorSpec("y", "float32", (4,)),))


def test_a_savedmodel_may_be_given_by_its_pb_file(tmp_path: Path) -> None:
    hostile.savedmodel(tmp_path, ("Relu",))
    assert inspect(str(tmp_path / "saved_model.pb")).layout == "savedmodel"


def test_a_savedmodel_that_lost_a_data_file_is_invalid(tmp_path: Path) -> None:
    hostile.savedmodel(tmp_path, ("Relu",))
    (tmp_path / "variables").mkdir()
    (tmp_path / "variables" / "variables.index").write_bytes(b"x")
    with pytest.raises(InvalidModel, match="incomplete"):
        inspect(str(tmp_path))


def test_huggingface_says_task_labels_parameters_and_image_size(tmp_path: Path) -> None:
    hostile.huggingface(tmp_path, num_channels=1)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"size": {"height": 28, "width": 32}}))
    found = inspect(str(tmp_path))
    assert (found.format, found.layout, found.task) == ("pytorch", "huggingface", "image-classification")
    assert (found.labels, found.parameters, found.precision) == (2, 6, "float32")
    assert found.signature == Signature(
        (TensorSpec("pixel_values", "float32", (None, 1, 28, 32), layout="NCHW"),),
        (TensorSpec("logits", "float32", (None, 2)),),
    )


@pytest.mark.parametrize(
    "config",
    [
        {"num_labels": 10**9},
        {"text_config": {"num_labels": 10**9}},
        {"num_hidden_layers": 10**9},
        {"vision_config": {"depths": [1, 10**9]}},
    ],
)
@pytest.mark.parametrize("beside", ["weights", "onnx"])
def test_counts_that_transformers_would_write_out_are_refused(tmp_path: Path, config: dict[str, object], beside: str) -> None:
    """transformers names each label as soon as it reads a config.json: a billion took 80 seconds and all the memory."""
    hostile.huggingface(tmp_path, **config)
    if beside == "onnx":
        (tmp_path / "model.safetensors").unlink()
        (tmp_path / "model.onnx").write_bytes(hostile.onnx_model())
    with pytest.raises(InvalidModel, match=r"config.json has (num_labels|num_hidden_layers|depths) 1,000,000,000; at most"):
        inspect(str(tmp_path))


def test_huggingface_shards_are_read_through_their_index(tmp_path: Path, store: Store) -> None:
    hostile.huggingface(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    names = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    for i, name in enumerate(names):
        (tmp_path / name).write_bytes(hostile.safetensors_bytes({f"w{i}": (2, 3)}))
    mapping = {"weight_map": dict(zip(("w0", "w1"), names, strict=True))}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(mapping))
    assert inspect(str(tmp_path)).parameters == 12
    assert (ingest(str(tmp_path), store).path / names[1]).is_file()
    (tmp_path / names[1]).unlink()
    with pytest.raises(InvalidModel, match="incomplete"):
        inspect(str(tmp_path))


def test_huggingface_models_that_generate_have_no_signature_and_their_own_engine(tmp_path: Path, store: Store) -> None:
    hostile.huggingface(tmp_path, architectures=["LlamaForCausalLM"], model_type="llama")
    artifact = ingest(str(tmp_path), store)
    assert (artifact.task, artifact.engine, artifact.signature) == ("text-generation", "transformers", None)


def test_wave_models_take_a_mask_only_where_their_extractor_returns_one(tmp_path: Path) -> None:
    hostile.huggingface(tmp_path, architectures=["Wav2Vec2ForCTC"], model_type="wav2vec2", vocab_size=32, conv_kernel=[10])
    for returns, names in ((False, ["input_values"]), (True, ["input_values", "attention_mask"])):
        extractor = {"feature_extractor_type": "Wav2Vec2FeatureExtractor", "return_attention_mask": returns}
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(extractor))
        signature = inspect(str(tmp_path)).signature
        assert signature is not None
        assert [spec.name for spec in signature.inputs] == names
        assert signature.outputs[0].shape == (None, None, 32)


def test_tasks_that_are_not_served_are_still_told(tmp_path: Path, store: Store) -> None:
    hostile.huggingface(tmp_path, architectures=["BertForMultipleChoice"], model_type="bert")
    assert inspect(str(tmp_path)).task == "multiple-choice"
    assert ingest(str(tmp_path), store).task is None
    hostile.huggingface(tmp_path, architectures=["BertForSequenceClassification"], model_type="bert")
    assert inspect(str(tmp_path)).task == "text-classification"
    artifact = ingest(str(tmp_path), store)
    assert artifact.task == "text-classification"
    assert artifact.signature is not None


def test_a_sequence_of_sound_is_not_taken_for_text(tmp_path: Path) -> None:
    hostile.huggingface(tmp_path, architectures=["Wav2Vec2ForSequenceClassification"], model_type="wav2vec2", conv_kernel=[10])
    found = inspect(str(tmp_path))
    assert found.task == "audio-classification"
    assert found.signature is None or found.signature.inputs[0].name == "input_values"


def test_own_code_is_liftable_only_where_transformers_has_the_model(tmp_path: Path) -> None:
    hostile.huggingface(tmp_path, auto_map={"AutoModelForImageClassification": "modeling.Net"})
    with pytest.raises(UnsafeModel, match="never runs it"):
        inspect(str(tmp_path))
    assert inspect(str(tmp_path), trust=True).architecture == "ResNetForImageClassification"


def test_keras_says_shapes_from_its_config(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py", reason="h5py is not installed")
    with h5py.File(tmp_path / "w.h5", "w") as file:
        file["layers/dense/vars/0"] = [[0.0] * 3] * 4
        file["layers/dense/vars/1"] = [0.0] * 3
    dense = {"module": "keras.layers", "class_name": "Dense", "config": {"name": "dense", "units": 3, "activation": "relu"}}
    path = hostile.keras_file(tmp_path, dense)
    import zipfile

    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()} | {
            "model.weights.h5": (tmp_path / "w.h5").read_bytes()
        }
    path.write_bytes(hostile.stored(entries))
    found = inspect(str(path))
    assert (found.layout, found.parameters) == ("keras", 15)
    assert found.signature == Signature((TensorSpec("x", "float32", (None, 4)),), (TensorSpec("dense", "float32", (None, 3)),))


def test_keras_weights_that_point_to_other_files_are_refused(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py", reason="h5py is not installed")
    dense = {"module": "keras.layers", "class_name": "Dense", "config": {"name": "dense", "units": 3}}
    path = hostile.keras_file(tmp_path, dense)
    import zipfile

    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    for kind in ("link", "data"):
        with h5py.File(tmp_path / "w.h5", "w") as file:
            if kind == "link":
                file["layers"] = h5py.ExternalLink("/etc/other.h5", "/")
            else:
                file.create_dataset("w", (8,), "u1", external=[("/etc/passwd", 0, 8)])
        path.write_bytes(hostile.stored(entries | {"model.weights.h5": (tmp_path / "w.h5").read_bytes()}))
        with pytest.raises(UnsafeModel):
            inspect(str(path))


@pytest.mark.parametrize(
    ("how", "units"),
    [({}, 3), ({"chunks": (1024,), "compression": "gzip"}, 3), (None, 2**40)],
    ids=["room never written", "packed", "a layer wider than any weight"],
)
def test_keras_weights_that_would_unfold_in_memory_are_refused(tmp_path: Path, how: dict | None, units: int) -> None:
    h5py = pytest.importorskip("h5py", reason="h5py is not installed")
    path = hostile.keras_file(
        tmp_path, {"module": "keras.layers", "class_name": "Dense", "config": {"name": "dense", "units": units}}
    )
    with h5py.File(tmp_path / "w.h5", "w") as file:
        if how is None:
            file["layers/dense/vars/0"] = [[0.0] * 3] * 4
        else:
            file.create_dataset("layers/dense/vars/0", (2**40,), "f4", **how)
    import zipfile

    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    path.write_bytes(hostile.stored(entries | {"model.weights.h5": (tmp_path / "w.h5").read_bytes()}))
    with pytest.raises(InvalidModel, match="save the model again"):
        inspect(str(path))


def test_openvino_ir_says_its_signature(tmp_path: Path, store: Store) -> None:
    ov = pytest.importorskip("openvino", reason="openvino is not installed")
    (tmp_path / "net.onnx").write_bytes(hostile.onnx_model())
    ov.save_model(ov.convert_model(str(tmp_path / "net.onnx")), str(tmp_path / "net.xml"), compress_to_fp16=False)
    artifact = ingest(str(tmp_path / "net.xml"), store)
    assert (artifact.layout, artifact.engine) == ("ir", "openvino")
    assert artifact.signature == Signature(
        (TensorSpec("x", "float32", (None, 4)),),
        (TensorSpec("y", "float32", (None, 4)),),
    )
    assert sorted(p.name for p in artifact.path.iterdir()) == ["artifact.json", "model.bin", "model.xml"]


@pytest.mark.parametrize(
    ("name", "data", "error", "words"),
    [
        ("model.h5", b"\x89HDF\r\n\x1a\n" + bytes(64), Unsupported, "model.keras"),
        ("model.gguf", b"GGUF" + bytes(64), Unsupported, "GGUF"),
        ("model.onnx", b"version https://git-lfs.github.com/spec/v1\noid sha256:0", InvalidModel, "git lfs pull"),
        ("model.safetensors", struct.pack("<Q", 2) + b"{}" + bytes(8), InvalidModel, "config.json"),
        ("notes.txt", b"hello", InvalidModel, "taken are"),
        ("model.pt2", b"hello", InvalidModel, "zip archive"),
    ],
)
def test_known_but_not_taken_files_are_told_apart(
    tmp_path: Path, name: str, data: bytes, error: type[Exception], words: str
) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(error, match=words):
        inspect(str(tmp_path / name))


def test_a_missing_path_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no file or folder"):
        inspect(str(tmp_path / "nowhere"))


def test_a_folder_without_a_model_says_what_is_taken(tmp_path: Path) -> None:
    with pytest.raises(InvalidModel, match="taken are"):
        inspect(str(tmp_path))


def test_a_folder_of_several_models_asks_which(tmp_path: Path) -> None:
    for name in ("encoder.onnx", "decoder.onnx"):
        (tmp_path / name).write_bytes(hostile.onnx_model())
    with pytest.raises(Unsupported, match=r"encoder\.onnx"):
        inspect(str(tmp_path))


def test_a_named_pipe_does_not_hang_inspection(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "model.onnx")
    with pytest.raises(InvalidModel):
        inspect(str(tmp_path / "model.onnx"))
    with pytest.raises(UnsafeModel):
        inspect(str(tmp_path))


def test_an_unknown_task_lists_those_there_are(tmp_path: Path, store: Store) -> None:
    hostile.huggingface(tmp_path)
    with pytest.raises(Unsupported, match="image-classification, text-generation, automatic-speech-recognition"):
        ingest(str(tmp_path), store, task="mind-reading")


def test_a_task_that_contradicts_the_architecture_is_refused(tmp_path: Path, store: Store) -> None:
    hostile.huggingface(tmp_path)
    with pytest.raises(InvalidInput, match="ResNetForImageClassification"):
        ingest(str(tmp_path), store, task="text-generation")
    assert store.digests() == []


def test_the_processor_folder_gives_task_and_labels(tmp_path: Path, store: Store) -> None:
    (tmp_path / "net.onnx").write_bytes(hostile.onnx_model())
    folder = tmp_path / "processor"
    folder.mkdir()
    hostile.huggingface(folder, id2label={str(i): f"class {i}" for i in range(4)})
    (folder / "preprocessor_config.json").write_text("{}")
    artifact = ingest(str(tmp_path / "net.onnx"), store, processor=folder)
    assert artifact.task == "image-classification"
    assert {p.name for p in artifact.path.iterdir()} == {
        "artifact.json",
        "model.onnx",
        "config.json",
        "preprocessor_config.json",
    }


def test_labels_that_do_not_fit_are_refused(tmp_path: Path, store: Store) -> None:
    (tmp_path / "net.onnx").write_bytes(hostile.onnx_model())
    folder = tmp_path / "processor"
    folder.mkdir()
    hostile.huggingface(folder, id2label={str(i): "x" for i in range(7)})
    with pytest.raises(InvalidInput, match="7 labels"):
        ingest(str(tmp_path / "net.onnx"), store, processor=folder)
