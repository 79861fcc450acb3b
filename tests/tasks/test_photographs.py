"""The key check of preprocessing: the published accuracy of a real classifier on real photographs."""

from __future__ import annotations

from pathlib import Path

from maasdam.core import Artifact, Signature, TensorEngine, TensorSpec
from maasdam.engines import open_engine
from maasdam.tasks import load_examples, open_processor, score
from maasdam.tasks.files import labels_of


def test_a_real_classifier_gets_its_published_accuracy_on_all_photographs(shared_data: Path) -> None:
    files, weights = shared_data / "mobilenet-v2-1001", shared_data / "mobilenet-v2-1001-savedmodel"
    signature = Signature(
        (TensorSpec("keras_tensor", "float32", (None, 224, 224, 3)),), (TensorSpec("output_0", "float32", (None, 1001)),)
    )
    examples = load_examples("image-classification", shared_data / "imagenet-sample", labels=labels_of(files))
    processor = open_processor("image-classification", files, signature)
    artifact = Artifact("sha256:m", weights, "tensorflow", "savedmodel", "image-classification", "openvino", signature, 1)
    engine = open_engine(artifact)
    assert isinstance(engine, TensorEngine)
    answers = [processor.finish([engine.run(processor.prepare(e.payload)[0])], e.payload) for e in examples]
    engine.close()
    found = score("image-classification", answers, examples)
    assert (found.metric, found.value, found.examples) == ("top1", 0.882, 500)
