"""Keras models as backbones: files of Keras 2 and 3, and objects."""

import keras
import numpy as np
import pytest

from tests.backbone_sources import (
    classifier,
    keras_2_model,
    range_of,
    save_quietly,
)
from tests.conftest import small_network
from tfxfer.backbones import KerasBackbone, SavedModelBackbone, load_backbone
from tfxfer.errors import UserError
from tfxfer.models import FineTuner


@pytest.fixture
def colour():
    return np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)


@pytest.mark.parametrize(("with_op", "kind"), [(False, KerasBackbone), (True, SavedModelBackbone)])
def test_keras_2_file_gives_equal_outputs(with_op, kind, colour, tmp_path):
    model = keras_2_model(with_op=with_op)
    save_quietly(model, tmp_path / "keras2.h5")
    with pytest.raises(TypeError):
        keras.models.load_model(tmp_path / "keras2.h5", compile=False)
    backbone = load_backbone(f"{tmp_path / 'keras2.h5'}(include_top=true)")
    assert type(backbone) is kind
    np.testing.assert_allclose(backbone(colour), model(colour / np.float32(255)), atol=1e-5)
    assert load_backbone(str(tmp_path / "keras2.h5")).units == 8
    assert load_backbone(f"{tmp_path / 'keras2.h5'}(layer=block1_bn)").units == 3


def test_classifier_is_cut_off_and_nothing_else(colour):
    whole = classifier()
    assert load_backbone(whole).units == 8
    network = whole.layers[0]
    np.testing.assert_allclose(
        load_backbone(whole)(colour), network(colour / np.float32(255)), atol=1e-5
    )
    assert load_backbone(network).units == 8
    embedding = keras.Sequential([network, keras.layers.Dense(5), keras.layers.UnitNormalization()])
    embedding.build((None, 16, 16, 3))
    assert load_backbone(embedding).units == 8


def test_frozen_layers_of_a_file_can_be_unfrozen(tmp_path):
    model = classifier()
    model.layers[0].trainable = False
    model.save(tmp_path / "model.keras")
    backbone = load_backbone(str(tmp_path / "model.keras"))
    assert [stage.name for stage in backbone.stages] == ["block1", "block2"]
    backbone.unfreeze(["block1", "block2"])
    assert len(backbone.trainable_weights) == 8


@pytest.mark.parametrize(
    ("first", "value_range"),
    [
        (keras.layers.Rescaling(1 / 255), (0, 255)),
        (keras.layers.Rescaling(1 / 127.5, offset=-1), (0, 255)),
        (keras.layers.Rescaling(2.0, offset=-1), (0, 1)),
        (keras.layers.Normalization(mean=[100, 110, 120], variance=[9, 9, 9]), (0, 255)),
        (keras.layers.Normalization(mean=[0.4, 0.5, 0.4], variance=[1, 1, 1]), (0, 1)),
        (keras.layers.ZeroPadding2D(), (0, 1)),
    ],
)
def test_value_range_is_read_off_layers_that_scale(first, value_range):
    network = keras.Sequential(
        [keras.Input((8, 8, 3)), first, keras.layers.Conv2D(4, 3), keras.layers.Rescaling(1 / 255)]
    )
    assert range_of(load_backbone(network)) == value_range
    assert range_of(load_backbone(network, value_range=(-1, 1))) == (-1, 1)


def test_value_range_of_operations_in_the_graph():
    inputs = keras.Input((8, 8, 3))
    outputs = keras.layers.Conv2D(4, 3)(inputs / 127.5 - 1)
    assert range_of(load_backbone(keras.Model(inputs, outputs))) == (0, 255)


def test_family_is_known_by_name(tmp_path, colour):
    network = keras.applications.MobileNetV2(
        alpha=0.35, weights=None, include_top=False, input_shape=(32, 32, 3)
    )
    top = keras.Sequential([network, keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(4)])
    top.save(tmp_path / "mine.keras")
    for spec in (network, str(tmp_path / "mine.keras")):
        backbone = load_backbone(spec)
        assert backbone.preprocessing == "keras.applications.mobilenet_v2.preprocess_input"
        assert range_of(backbone) == (0, 255)
    named = load_backbone(f"{tmp_path / 'mine.keras'}(preprocessing=vgg16)")
    assert named.preprocessing == "keras.applications.vgg16.preprocess_input"
    with pytest.raises(UserError, match="no family 'vgg'"):
        load_backbone(f"{tmp_path / 'mine.keras'}(preprocessing=vgg)")


def test_model_of_our_own_gives_its_backbone(tmp_path, colour):
    model = FineTuner(load_backbone("glyphs"), keras.layers.Dense(3))
    model.unfreeze(["block4"])
    model.save(tmp_path / "model.keras")
    path = str(tmp_path / "model.keras")
    backbone = load_backbone(path, bn="freeze", stages="stem|block[12];block[34]")
    assert backbone.unfrozen == ()
    assert [stage.name for stage in backbone.stages] == ["stem|block[12]", "block[34]"]
    assert sum(len(stage.learned) for stage in backbone.stages) == 21
    np.testing.assert_allclose(backbone(colour), model.backbone(colour), atol=1e-5)
    with pytest.raises(UserError, match="taken as it is"):
        load_backbone(path, value_range=(0, 255))
    first = backbone.fingerprint
    assert load_backbone(path).fingerprint == first
    model.backbone.weights[0].assign(model.backbone.weights[0] + 1)
    model.save(path)
    assert load_backbone(path).fingerprint != first


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("missing.keras", "no file"),
        ("text.keras", "must hold a Keras model"),
        ("text.h5", "must be an HDF5 file"),
        ("weights.h5", r"weights alone. Name their network"),
        ("model.keras(layer=conv)", "Did you mean"),
        ("model.keras(top=true)", "no option 'top'"),
        ("tabular.keras", "must take images"),
        ("two.keras", "one input"),
    ],
)
def test_mistakes_are_named(spec, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("text.keras", "text.h5"):
        (tmp_path / name).write_text("no model")
    small_network().save_weights("model.weights.h5")
    (tmp_path / "model.weights.h5").rename(tmp_path / "weights.h5")
    classifier().save("model.keras")
    keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]).save("tabular.keras")
    pair = [keras.Input((8, 8, 3)), keras.Input((8, 8, 3))]
    keras.Model(pair, keras.layers.Add()(pair)).save("two.keras")
    with pytest.raises(UserError, match=message):
        load_backbone(spec)


def test_code_in_a_file_needs_trust(tmp_path):
    inputs = keras.Input((8, 8, 3))
    outputs = keras.layers.Lambda(lambda x: x * 2, output_shape=(8, 8, 3))(inputs)
    keras.Model(inputs, outputs).save(tmp_path / "code.keras")
    with pytest.raises(UserError, match="safe_mode=false"):
        load_backbone(str(tmp_path / "code.keras"))
    assert load_backbone(f"{tmp_path / 'code.keras'}(safe_mode=false)").units == 3


def test_image_size_serves_where_the_network_leaves_it_open():
    open_size = keras.Sequential([keras.Input((None, None, 3)), keras.layers.Conv2D(4, 3)])
    assert load_backbone(open_size).contract.size is None
    assert load_backbone(open_size, image_size=(20, 30)).contract.size == (20, 30)
    with pytest.raises(UserError, match="16x16 pixels, not of --image_size=20x30"):
        load_backbone(small_network(), image_size=(20, 30))


def test_subclassed_model_needs_a_size():
    class Mine(keras.Model):
        def call(self, inputs):
            return inputs

    with pytest.raises(UserError, match="--image_size"):
        load_backbone(Mine())
