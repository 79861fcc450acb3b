"""Files that TensorFlow and Keras really write. One process writes them all: importing TensorFlow takes seconds."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from maasdam.artifacts.store import Store
from maasdam.core import Signature, TensorSpec
from maasdam.errors import UnsafeModel, Unsupported
from maasdam.sources import ingest, inspect

WRITE = """
import os, sys
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import keras, tensorflow as tf
out = sys.argv[1]

class Plain(tf.Module):
    def __init__(self):
        self.w = tf.Variable(tf.ones((4, 3)), name="w")
    @tf.function(input_signature=[tf.TensorSpec([None, 4], tf.float32, name="x")])
    def call(self, x):
        zeros = lambda: tf.zeros([tf.shape(x)[0], 3])
        return {"y": tf.cond(tf.reduce_sum(x) > 0, lambda: x @ self.w, zeros)}

class Files(Plain):
    @tf.function(input_signature=[tf.TensorSpec([None, 4], tf.float32, name="x")])
    def call(self, x):
        def write():
            tf.io.write_file(out + "/canary", tf.io.read_file("/etc/hostname"))
            return x @ self.w
        return {"y": tf.cond(tf.reduce_sum(x) > 0, write, lambda: x @ self.w)}

class Python(Plain):
    @tf.function(input_signature=[tf.TensorSpec([None, 4], tf.float32, name="x")])
    def call(self, x):
        return {"y": tf.ensure_shape(tf.py_function(lambda v: v, [x], tf.float32), [None, 4])}

class Vocabulary(tf.Module):
    def __init__(self, path):
        lines = tf.lookup.TextFileInitializer(path, tf.string, 0, tf.int64, 1, delimiter=",")
        self.table = tf.lookup.StaticHashTable(lines, -1)
    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="words")])
    def call(self, words):
        return {"ids": self.table.lookup(words)}

open(out + "/words.csv", "w").write("a,1\\nb,2\\n")
for kind in (Plain, Files, Python):
    model = kind()
    tf.saved_model.save(model, f"{out}/{kind.__name__}", signatures={"serving_default": model.call})
model = Vocabulary(out + "/words.csv")
tf.saved_model.save(model, f"{out}/Vocabulary", signatures={"serving_default": model.call})

image = keras.Input((8, 8, 3), name="image")
x = keras.layers.BatchNormalization()(keras.layers.Conv2D(4, 3, activation="relu")(image))
x = keras.layers.GlobalAveragePooling2D()(x * 2.0)
net = keras.Model(image, keras.layers.Dense(5, activation="softmax", name="classes")(x))
net.compile("adam", "mse")
net.save(out + "/net.keras")
net.export(out + "/exported")
net.save(out + "/net.h5")
keras.Sequential([keras.Input((4,)), keras.layers.Lambda(lambda t: t + 1)]).save(out + "/lambda.keras")
"""


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with what WRITE wrote."""
    if importlib.util.find_spec("tensorflow") is None:
        pytest.skip("tensorflow is not installed")
    folder = tmp_path_factory.mktemp("written")
    subprocess.run([sys.executable, "-c", WRITE, str(folder)], check=True, capture_output=True, timeout=280)
    return folder


def test_a_savedmodel_with_its_own_saver_passes(written: Path, store: Store) -> None:
    artifact = ingest(str(written / "Plain"), store)
    assert artifact.signature == Signature(
        (TensorSpec("x", "float32", (None, 4)),),
        (TensorSpec("y", "float32", (None, 3)),),
    )
    assert inspect(str(written / "Plain")).parameters == 12


def test_a_savedmodel_that_keras_exported_passes(written: Path) -> None:
    found = inspect(str(written / "exported"))
    assert not found.blocked
    assert found.parameters == 3 * 4 * 9 + 4 + 4 * 4 + 4 * 5 + 5, "each weight counts once, though exported twice"


def test_file_operators_in_a_branch_of_the_signature_are_found(written: Path, store: Store) -> None:
    with pytest.raises(UnsafeModel, match="ReadFile, WriteFile"):
        ingest(str(written / "Files"), store)
    assert store.digests() == []
    assert not (written / "canary").exists()


def test_python_in_the_signature_is_refused_whoever_is_trusted(written: Path) -> None:
    with pytest.raises(UnsafeModel, match="EagerPyFunc"):
        inspect(str(written / "Python"), trust=True)


def test_a_vocabulary_read_at_start_up_is_refused_without_trust_and_kept_with_it(written: Path, store: Store) -> None:
    with pytest.raises(UnsafeModel, match="InitializeTableFromTextFile"):
        inspect(str(written / "Vocabulary"))
    artifact = ingest(str(written / "Vocabulary"), store, trust=True)
    assert (artifact.path / "assets" / "words.csv").is_file()
    assert artifact.signature is not None
    assert artifact.signature.inputs[0].dtype == "object"


def test_a_keras_file_says_its_signature_and_parameters(written: Path, store: Store) -> None:
    found = inspect(str(written / "net.keras"))
    assert found.signature == Signature(
        (TensorSpec("image", "float32", (None, 8, 8, 3)),),
        (TensorSpec("classes", "float32", (None, 5)),),
    )
    assert found.parameters == 3 * 4 * 9 + 4 + 4 * 4 + 4 * 5 + 5, "the optimiser's numbers do not count"
    assert ingest(str(written / "net.keras"), store).engine == "tensorflow"


def test_a_lambda_layer_is_refused(written: Path) -> None:
    with pytest.raises(UnsafeModel, match="Lambda"):
        inspect(str(written / "lambda.keras"), trust=True)


def test_the_old_keras_format_is_not_read_and_says_how_to_convert(written: Path) -> None:
    with pytest.raises(Unsupported, match=r"model\.keras"):
        inspect(str(written / "net.h5"))
