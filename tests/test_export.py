"""SavedModels that leave the house."""

from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.conftest import small_network
from tfxfer.export import (
    save_hub_module,
    save_keras_model,
    save_predictor,
    served_outputs,
)
from tfxfer.models import FineTuner
from tfxfer.task import MULTI_LABEL, REGRESSION, SINGLE_LABEL, Task

ABC = Task(SINGLE_LABEL, ("a", "b", "c"))


def test_classifier_answers_as_the_model(model, images, tmp_path):
    path = tmp_path / "saved_model" / "1"
    save_predictor(model, path, ABC, (None, None, 1))
    expected = tf.nn.softmax(model(images))
    data = tf.data.Dataset.from_tensor_slices(images).batch(7)
    np.testing.assert_allclose(served_outputs(path, data), expected, atol=1e-6)
    answer = tf.saved_model.load(str(path)).signatures["serving_default"](images=images)
    names = [name.decode() for name in answer["labels"].numpy()]
    assert names == ["abc"[i] for i in np.argmax(expected, -1)]


@pytest.mark.parametrize("kind", [MULTI_LABEL, REGRESSION])
def test_other_tasks_are_served_with_their_names(model, images, tmp_path, kind):
    save_predictor(model, tmp_path / "1", Task(kind, ("a", "b", "c")), (None, None, 1))
    logits = model(images)
    expected = tf.sigmoid(logits) if kind == MULTI_LABEL else logits
    data = tf.data.Dataset.from_tensor_slices(images).batch(7)
    np.testing.assert_allclose(served_outputs(tmp_path / "1", data), expected, atol=1e-6)
    answer = tf.saved_model.load(str(tmp_path / "1")).signatures["serving_default"](images=images)
    assert answer["names"].numpy().tolist() == [b"a", b"b", b"c"]


def test_classifier_takes_any_size_of_image_and_batch(model, tmp_path):
    save_predictor(model, tmp_path / "1", ABC, (None, None, 3))
    serve = tf.saved_model.load(str(tmp_path / "1")).signatures["serving_default"]
    for shape in ((1, 9, 20, 3), (4, 16, 16, 3)):
        assert serve(images=np.zeros(shape, np.uint8))["probabilities"].shape == (shape[0], 3)


def test_classifier_holds_each_weight_once_and_no_optimizer(model, images, labels, tmp_path):
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(images, labels, verbose=0)
    save_predictor(model, tmp_path / "1", ABC, (None, None, 1))
    saved = tf.train.list_variables(str(tmp_path / "1" / "variables" / "variables"))
    shapes = sorted(tuple(shape) for name, shape in saved if not name.startswith("_CHECK"))
    assert shapes == sorted(tuple(weight.shape) for weight in model.weights)


def save_all(model, path):
    save_predictor(model, path / "1", ABC, (None, None, 1))
    save_keras_model(model, path / "model.keras")
    save_hub_module(small_network(), path / "hub")


def contents(path) -> dict:
    return {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}


def test_saving_leaves_what_it_names_and_replaces_it(model, tmp_path):
    for _ in range(2):
        save_all(model, tmp_path)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "hub", "model.keras"]


def test_saving_that_fails_leaves_what_was_there(model, tmp_path, monkeypatch):
    save_all(model, tmp_path)
    before = contents(tmp_path)

    def write_half(*args, **kwargs):
        path = next(Path(a) for a in args if isinstance(a, (str, Path)))
        path.mkdir()
        (path / "half").touch()
        raise OSError("disk full")

    monkeypatch.setattr(tf.saved_model, "save", write_half)
    monkeypatch.setattr(FineTuner, "save", write_half)
    for save in (
        lambda: save_predictor(model, tmp_path / "1", ABC, (None, None, 1)),
        lambda: save_keras_model(model, tmp_path / "model.keras"),
        lambda: save_hub_module(small_network(), tmp_path / "hub"),
    ):
        with pytest.raises(OSError, match="disk full"):
            save()
        assert contents(tmp_path) == before


class TestHubModule:
    """What `save_hub_module` writes."""

    def test_interface(self, hub_folder):
        module = tf.saved_model.load(str(hub_folder))
        names = [variable.name for variable in module.variables]
        assert names[0] == "block1/conv/kernel:0"
        assert len(module.variables) == 12
        assert len(module.trainable_variables) == 8
        assert len(module.regularization_losses) == 2
        assert module(tf.zeros((5, 16, 16, 3))).shape == (5, 8)

    def test_same_answers_and_updates_as_the_network(self, tmp_path):
        network = small_network()
        save_hub_module(network, tmp_path / "hub")
        module = tf.saved_model.load(str(tmp_path / "hub"))
        images = np.random.default_rng(0).random((6, 16, 16, 3), np.float32)
        np.testing.assert_allclose(module(images, training=False), network(images), atol=1e-6)
        before = [v.numpy() for v in module.variables]
        module(images, training=False)
        assert all((b == v.numpy()).all() for b, v in zip(before, module.variables, strict=True))
        module(images, training=True)
        network(images, training=True)
        for ours, keras_own in zip(module.variables, network.weights, strict=True):
            np.testing.assert_allclose(ours, keras_own, atol=1e-6)

    def test_signature(self, hub_folder):
        serve = tf.saved_model.load(str(hub_folder)).signatures["serving_default"]
        assert serve(inputs=tf.zeros((2, 16, 16, 3)))["outputs"].shape == (2, 8)

    def test_unbuilt_model_is_refused(self, tmp_path):
        with pytest.raises(ValueError, match="built"):
            save_hub_module(keras.Sequential([keras.layers.Dense(1)]), tmp_path / "hub")
        assert not (tmp_path / "hub").exists()
