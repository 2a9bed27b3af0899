"""`FeatureExtractor` as a plain Keras model that runs its backbone once."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.conftest import values
from tests.memory import Memory
from tfxfer.backbones import load_backbone
from tfxfer.cache import Cache
from tfxfer.data.splits import split_data
from tfxfer.models import FeatureExtractor, load_model


@pytest.fixture
def extractor(hub_folder):
    model = FeatureExtractor(load_backbone(str(hub_folder)), keras.layers.Dense(3))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-2), loss, metrics=["accuracy"])
    return model


@pytest.fixture
def counted(extractor, monkeypatch):
    """Counts the images that the backbone sees."""
    seen = tf.Variable(0)
    features = extractor.backbone.features

    def counting(images, training):
        assert not training
        seen.assign_add(tf.shape(images)[0])
        return features(images, training)

    monkeypatch.setattr(extractor.backbone, "features", counting)
    return seen


FORMS = {
    "arrays": lambda x, y: {"x": x, "y": y},
    "dataset": lambda x, y: {"x": tf.data.Dataset.from_tensor_slices((x, y)).batch(7)},
    "weighted": lambda x, y: {"x": x, "y": y, "sample_weight": np.ones(len(x), np.float32)},
    "validation arrays": lambda x, y: {"x": x, "y": y, "validation_data": (x[:6], y[:6])},
    "validation dataset": lambda x, y: {
        "x": x,
        "y": y,
        "validation_data": tf.data.Dataset.from_tensor_slices((x[:6], y[:6])).batch(4),
    },
}


@pytest.mark.parametrize("form", FORMS)
def test_each_image_goes_through_the_backbone_once(form, extractor, counted, images, labels):
    before = values(extractor.backbone.weights)
    history = extractor.fit(**FORMS[form](images, labels), epochs=6, verbose=0).history
    assert counted == len(images) + (6 if "validation" in form else 0)
    assert history["loss"][-1] < history["loss"][0]
    assert ("val_loss" in history) == ("validation" in form)
    assert values(extractor.backbone.weights) == before


def test_it_learns_what_keras_learns_with_the_backbone_inside(hub_folder, images, labels):
    def trained(make):
        keras.utils.set_random_seed(4)
        model = make()
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.SGD(0.1), loss)
        model.fit(images, labels, epochs=5, batch_size=24, shuffle=False, verbose=0)
        return (
            model.head.get_weights() if hasattr(model, "head") else model.layers[-1].get_weights()
        )

    backbone = load_backbone(str(hub_folder))
    ours = trained(lambda: FeatureExtractor(backbone, keras.layers.Dense(3)))
    inputs = keras.Input((12, 12, 1))
    theirs = trained(lambda: keras.Model(inputs, keras.layers.Dense(3)(backbone(inputs))))
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_a_part_is_computed_once_for_ever(extractor, counted, tmp_path):
    splits = split_data(Memory(train=60, test=10))
    cache = Cache(tmp_path, 10**9)
    for _ in range(2):
        history = extractor.fit(
            splits.train, validation_data=splits.validation, cache=cache, epochs=3, verbose=0
        ).history
        assert counted == 60
        assert len(history["val_loss"]) == 3
    extractor.fit(splits.train, cache=cache, augment="light", views=2, epochs=3, verbose=0)
    assert counted == 60 + 2 * splits.train.examples


def test_a_dataset_without_end_is_taken_as_it_is(extractor, counted, images, labels):
    endless = tf.data.Dataset.from_tensor_slices((images, labels)).batch(8).repeat()
    before = values(extractor.backbone.weights)
    extractor.fit(endless, steps_per_epoch=3, epochs=2, verbose=0)
    assert counted == 48
    assert values(extractor.backbone.weights) == before


def test_features_are_taken_for_images(extractor, images, labels):
    features = np.asarray(extractor.backbone(images))
    np.testing.assert_allclose(extractor(features), extractor(images), atol=1e-6)
    extractor.fit(features, labels, epochs=1, verbose=0)
    assert extractor.predict(images, verbose=0).shape == (24, 3)
    assert extractor.evaluate(images, labels, verbose=0)[1] <= 1


def test_the_backbone_stays_frozen_whatever_anybody_does(extractor, images, labels):
    extractor.trainable = True
    extractor.backbone.unfreeze(["block1", "block2"])
    extractor.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    before = values(extractor.backbone.weights)
    extractor.fit(images, labels, epochs=2, verbose=0)
    assert values(extractor.backbone.weights) == before
    assert [weight.path for weight in extractor.trainable_weights] == [
        weight.path for weight in extractor.head.weights
    ]


def test_it_is_saved_and_loaded(extractor, images, labels, tmp_path):
    extractor.fit(images, labels, epochs=1, verbose=0)
    extractor.save(tmp_path / "model.keras")
    again = load_model(tmp_path / "model.keras", safe_mode=False)
    np.testing.assert_allclose(again(images), extractor(images), atol=1e-6)
    again.fit(images, labels, epochs=1, verbose=0)


def test_only_a_part_is_augmented(extractor, images, labels):
    with pytest.raises(ValueError, match="Expected a Part to augment"):
        extractor.fit(images, labels, augment="light")


def test_it_wants_a_backbone():
    with pytest.raises(TypeError, match="Expected a backbone"):
        FeatureExtractor("glyphs", keras.layers.Dense(3))  # type: ignore[arg-type]
