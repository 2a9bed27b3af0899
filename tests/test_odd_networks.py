"""Networks that people do have, and that are easily taken for what they are not."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tests.backbone_sources import pack, preset, range_of, save_quietly
from tests.conftest import small_network
from tfxfer.backbones import load_backbone
from tfxfer.backbones.hub import resolve
from tfxfer.backbones.self_check import check_features
from tfxfer.errors import UserError


@pytest.fixture
def colour():
    return np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)


def augmentation():
    return keras.Sequential([layers.RandomFlip("horizontal"), layers.RandomRotation(0.1)])


def mobilenet():
    return keras.applications.MobileNetV2(
        alpha=0.35, weights=None, include_top=False, input_shape=(32, 32, 3)
    )


SCALED = {
    "family's arithmetic": keras.applications.mobilenet_v2.preprocess_input,
    "rescaling": layers.Rescaling(1 / 127.5, offset=-1),
    "lambda": layers.Lambda(lambda x: x / 127.5 - 1),
}


@pytest.mark.parametrize("scaling", SCALED)
def test_scaling_behind_augmentation_is_not_done_twice(scaling, colour):
    """As Keras' own guide to transfer learning builds it."""
    inputs = keras.Input((32, 32, 3))
    scaled = SCALED[scaling](augmentation()(inputs))
    features = layers.GlobalAveragePooling2D()(mobilenet()(scaled, training=False))
    by_hand = keras.Model(inputs, features)
    backbone = load_backbone(keras.Model(inputs, layers.Dense(3)(features)))
    assert range_of(backbone) == (0, 255)
    assert backbone.preprocessing == ""
    expected = np.asarray(by_hand(colour.astype(np.float32), training=False))
    scale = np.abs(expected).max()
    np.testing.assert_allclose(np.asarray(backbone(colour)) / scale, expected / scale, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "value_range"),
    [
        (lambda x: x / 255.0, (0, 255)),
        (lambda x: x - 104.0, (0, 255)),
        (lambda x: x * (1 / 255), (0, 255)),
        (lambda x: x * 2 - 1, (0, 1)),
        (lambda x: keras.ops.image.resize(x, (16, 16)), (0, 1)),
        (lambda x: keras.ops.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), (0, 1)),
    ],
)
def test_arithmetic_tells_the_value_range(change, value_range):
    inputs = keras.Input((32, 32, 3))
    network = keras.Model(inputs, layers.Conv2D(4, 3)(change(inputs)))
    assert range_of(load_backbone(network)) == value_range


def test_arithmetic_of_keras_2_tells_the_value_range(colour, tmp_path):
    import tf_keras

    inputs = tf_keras.Input((32, 32, 3))
    x = tf_keras.applications.mobilenet_v2.preprocess_input(inputs)
    x = tf_keras.layers.GlobalAveragePooling2D()(tf_keras.layers.Conv2D(4, 3)(x))
    model = tf_keras.Model(inputs, x)
    save_quietly(model, tmp_path / "scaled.h5")
    backbone = load_backbone(str(tmp_path / "scaled.h5"))
    assert range_of(backbone) == (0, 255)
    expected = model(colour.astype(np.float32))
    np.testing.assert_allclose(backbone(colour), expected, atol=1e-5)


def test_frozen_layers_of_a_keras_2_file_can_be_unfrozen(tmp_path):
    import tf_keras

    inputs = tf_keras.Input((16, 16, 3))
    base = tf_keras.layers.Conv2D(4, 3, name="a")
    x = tf.nn.relu(base(inputs))
    model = tf_keras.Model(inputs, tf_keras.layers.Conv2D(4, 3, name="b")(x))
    base.trainable = False
    save_quietly(model, tmp_path / "frozen.h5")
    backbone = load_backbone(str(tmp_path / "frozen.h5"))
    assert [stage.name for stage in backbone.stages] == ["a", "b"]


def test_code_in_a_file_does_not_run_unasked(tmp_path):
    import tf_keras

    ran = tmp_path / "ran"
    code = f"lambda x: __import__('pathlib').Path({str(ran)!r}).touch() or x"
    inputs = tf_keras.Input((8, 8, 3))
    x = tf_keras.layers.Lambda(eval(code))(inputs)
    save_quietly(tf_keras.Model(inputs, tf_keras.layers.Conv2D(2, 3)(x)), tmp_path / "code.h5")
    ran.unlink()
    with pytest.raises(UserError, match="safe_mode=false"):
        load_backbone(str(tmp_path / "code.h5"))
    assert not ran.exists()
    load_backbone(f"{tmp_path / 'code.h5'}(safe_mode=false)")
    assert ran.exists()


@keras.saving.register_keras_serializable(package="tests")
class WithPosition(keras.Model):
    """A model with a weight that is of no layer."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.conv = layers.Conv2D(4, 3, name="conv")
        self.position = self.add_weight(shape=(30, 30, 4), name="position")

    def call(self, inputs):
        return self.conv(inputs) + self.position


def test_a_models_own_weights_are_in_a_stage_too():
    backbone = load_backbone(WithPosition(), image_size=32)
    held = [id(weight) for stage in backbone.stages for weight in stage.weights]
    assert sorted(held) == sorted(id(weight) for weight in backbone.weights)
    assert len(held) == 3
    assert backbone.trainable_weights == []


def test_a_dense_layer_inside_a_block_is_no_classifier():
    inputs = keras.Input((16, 16, 3))
    maps = layers.Conv2D(16, 3)(inputs)
    squeezed = layers.Dense(4, "relu")(layers.GlobalAveragePooling2D()(maps))
    gates = layers.Dense(16, "sigmoid")(squeezed)
    scaled = layers.Multiply()([maps, layers.Reshape((1, 1, 16))(gates)])
    network = keras.Model(inputs, layers.GlobalAveragePooling2D()(scaled))
    assert load_backbone(network).units == 16
    two_heads = [layers.Dense(2, name=name)(layers.Flatten()(maps)) for name in "ab"]
    with_heads = keras.Model(inputs, two_heads[1])
    assert load_backbone(with_heads).units == 14 * 14 * 16


@pytest.mark.parametrize("pool", [False, True])
def test_images_that_are_too_small_are_told_as_such(pool):
    inputs = keras.Input((None, None, 3))
    x = inputs
    for _ in range(4):
        x = layers.MaxPooling2D()(x) if pool else layers.Conv2D(4, 3, strides=2)(x)
    backbone = load_backbone(keras.Model(inputs, layers.Conv2D(4, 1)(x)))
    small = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    with pytest.raises(UserError, match=r"fails on images of 8x8.*larger --image_size"):
        check_features(backbone, small)


def test_a_keras_hub_preset_is_cut_at_a_layer(tmp_path):
    whole = load_backbone(preset(tmp_path))
    name = next(layer.name for layer in whole.stages[0].layers if layer.weights)
    cut = load_backbone(f"{preset(tmp_path)}(layer={name})")
    assert cut.count_params() < whole.count_params()


def test_half_precision_inputs_are_given(tmp_path, colour):
    module = tf.Module()
    module.kernel = tf.Variable(tf.ones((3, 4), tf.float16))

    @tf.function(input_signature=[tf.TensorSpec((None, 32, 32, 3), tf.float16)])
    def serve(images):
        return {"features": tf.reduce_mean(images, (1, 2)) @ module.kernel}

    tf.saved_model.save(module, str(tmp_path / "half"), signatures=serve)
    features = load_backbone(str(tmp_path / "half"))(colour)
    expected = colour.mean((1, 2)).sum(-1, keepdims=True) / 255
    np.testing.assert_allclose(features, np.repeat(expected, 4, -1), rtol=1e-2)


def test_damaged_archives_are_refused(hub_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("TFHUB_CACHE_DIR", str(tmp_path / "cache"))
    whole = pack(str(hub_folder), tmp_path / "whole.tar.gz").read_bytes()
    rng = np.random.default_rng(0)
    for place in rng.integers(20, len(whole) - 20, 12):
        damaged = bytearray(whole)
        damaged[place : place + 8] = bytes(255 - byte for byte in damaged[place : place + 8])
        (tmp_path / "damaged.tar.gz").write_bytes(damaged)
        with pytest.raises(UserError, match="damaged"):
            resolve(str(tmp_path / "damaged.tar.gz"))
    assert not list((tmp_path / "cache").iterdir())


def test_a_legacy_file_with_a_classifier_of_other_classes_and_size(tmp_path):
    whole = keras.applications.MobileNetV2(alpha=0.35, weights=None, classes=10)
    save_quietly_weights(whole, tmp_path / "ten.h5")
    backbone = load_backbone(
        f"keras:MobileNetV2(alpha=0.35,weights={tmp_path / 'ten.h5'})", image_size=32
    )
    for ours, theirs in zip(backbone.weights, whole.weights, strict=False):
        np.testing.assert_array_equal(ours, theirs)


def save_quietly_weights(model, path):
    """Writes weights alone as Keras 2 does, which is how published files are written."""
    import h5py
    from keras.src.legacy.saving.legacy_h5_format import save_weights_to_hdf5_group

    with h5py.File(path, "w") as file:
        save_weights_to_hdf5_group(file, model)


def test_weights_of_another_width_are_told_by_shape(tmp_path):
    narrow = keras.applications.MobileNetV2(
        alpha=0.35, weights=None, include_top=False, input_shape=(32, 32, 3)
    )
    save_quietly_weights(narrow, tmp_path / "narrow.h5")
    with pytest.raises(UserError, match=r"(?i)shape"):
        load_backbone(f"keras:MobileNetV2(weights={tmp_path / 'narrow.h5'})", image_size=32)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("glyps", "Did you mean glyphs"),
        ("MobileNetV2", "Did you mean keras:MobileNetV2"),
        ("~nosuchuser/model", "there is no"),
        ("x" * 300, "there is no"),
        ("keras:MobileNetV2(weights=none", "Close them"),
        ("http://127.0.0.1:9/model.keras", "Download it"),
    ],
)
def test_mistakes_are_helped_with(spec, says):
    with pytest.raises(UserError, match=says):
        load_backbone(spec)


def test_near_misses_are_helped_with(hub_folder, tmp_path):
    (tmp_path / "model.py").write_text("pass")
    with pytest.raises(UserError, match="no kind that is known"):
        load_backbone(str(tmp_path / "model.py"))
    (tmp_path / "run" / "1").mkdir(parents=True)
    (tmp_path / "run" / "1" / "saved_model.pb").touch()
    with pytest.raises(UserError, match="run/1"):
        load_backbone(str(tmp_path / "run"))
    with pytest.raises(UserError, match="give keras_hub:"):
        load_backbone(preset(tmp_path).removeprefix("keras_hub:"))
    with pytest.raises(UserError, match="one output, which has no name"):
        load_backbone(f"{hub_folder}(output=features)")


def test_stages_go_from_input_to_output():
    with pytest.raises(UserError, match="'block2' stands before 'block1'"):
        load_backbone(small_network(), stages="block2;block1")


def test_weights_are_listed_by_the_paths_that_stages_search():
    inputs = keras.Input((32, 32, 3))
    nested = keras.Model(inputs, mobilenet()(inputs))
    backbone = load_backbone(nested)
    paths = [path for stage in backbone.stages for path in stage.paths]
    assert len(paths) == len(backbone.weights)
    chosen = ";".join(f"^({'|'.join(stage.paths)})$" for stage in backbone.stages)
    again = load_backbone(nested, stages=chosen)
    assert [len(s.weights) for s in again.stages] == [len(s.weights) for s in backbone.stages]
