"""Backbones that compute in half precision."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.conftest import moved, small_network, values
from tests.memory import Memory
from tfxfer.backbones import KerasBackbone, load_backbone
from tfxfer.backbones.precision import set_precision
from tfxfer.cache import Cache
from tfxfer.data.parts import Part
from tfxfer.errors import UserError
from tfxfer.export import save_keras_model, save_predictor, served_outputs
from tfxfer.features import extract
from tfxfer.models import FineTuner
from tfxfer.task import SINGLE_LABEL, Task

HALF = ("mixed_bfloat16", "mixed_float16")
# A unit in the last place of a number near 1, relative to it.
EPSILON = {"mixed_bfloat16": 2**-8, "mixed_float16": 2**-11}


def network() -> keras.Model:
    """Scaling, nested models with batch normalization, and an operation that is no layer."""
    inputs = keras.Input((16, 16, 3))
    x = keras.layers.Rescaling(1 / 255)(inputs)
    x = keras.layers.Normalization(mean=(0.4, 0.5, 0.6), variance=(0.1, 0.2, 0.3))(x)
    x = small_network()(x)
    x = keras.layers.Dense(6, activation="gelu", name="dense")(x)
    return keras.Model(inputs, keras.layers.LayerNormalization()(x) * 2.0 + 1.0)


@pytest.fixture
def half() -> KerasBackbone:
    backbone = load_backbone(network())
    assert isinstance(backbone, KerasBackbone)
    return backbone


@pytest.mark.parametrize(
    ("spec", "policy", "variance"),
    [
        # As small as this, or what an untrained network says is below what float16 can hold.
        ("keras:MobileNetV2(alpha=0.35, weights=none)", "mixed_bfloat16", 0.1),
        ("keras:MobileNetV2(alpha=0.35, weights=none)", "mixed_float16", 0.1),
        ("keras:ResNet50(weights=none)", "mixed_float16", 1.0),
        ("keras:EfficientNetB0(weights=none)", "mixed_bfloat16", 1.0),
    ],
)
def test_networks_compute_in_half_precision(spec, policy, variance, images):
    backbone = load_backbone(spec, image_size=32)
    assert isinstance(backbone, KerasBackbone)
    for layer in backbone.network._flatten_layers():
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.moving_variance.assign(keras.ops.full_like(layer.moving_variance, variance))
    expected, before = backbone.infer(images).numpy(), values(backbone.weights)
    set_precision(backbone, policy)
    found = backbone.infer(images)
    assert found.dtype == tf.float32
    assert 0 < np.abs(found - expected).max() < 25 * EPSILON[policy] * np.abs(expected).max()
    assert backbone.network(np.zeros((1, 32, 32, 3), "float32")).dtype == policy[len("mixed_") :]
    assert {weight.dtype for weight in backbone.weights} <= {"float32", "int64"}
    set_precision(backbone, "float32")
    np.testing.assert_array_equal(backbone.infer(images), expected)
    assert not any(moved(before, backbone.weights))


def test_layers_that_scale_stay_exact(half):
    set_precision(half, "mixed_bfloat16")
    policies = {
        type(layer).__name__: layer.dtype_policy.name for layer in half.network._flatten_layers()
    }
    assert policies["Conv2D"] == policies["BatchNormalization"] == policies["Dense"]
    assert policies["Dense"] == half.dtype_policy.name == "mixed_bfloat16"
    assert policies["Rescaling"] == policies["Normalization"] == "float32"


def test_a_layer_with_a_policy_of_its_own_keeps_it(images):
    inputs = keras.Input((16, 16, 3))
    x = keras.layers.Conv2D(4, 3)(inputs)
    x = keras.layers.Softmax(dtype="float64", name="own")(x)
    backbone = load_backbone(keras.Model(inputs, x), value_range=(0, 1))
    assert isinstance(backbone, KerasBackbone)
    for policy in ("mixed_float16", "float32"):
        set_precision(backbone, policy)
        assert backbone.network.get_layer("own").dtype_policy.name == "float64"
        assert backbone.infer(images).dtype == tf.float32


def test_images_are_not_rounded_on_their_way_in(half):
    set_precision(half, "mixed_bfloat16")
    seen = []
    features = half.features

    def watched(images, training):
        seen.append(images)
        return features(images, training)

    half.features = watched
    half(np.full((1, 16, 16, 3), 200.3, "float32"))
    assert seen[0].dtype == tf.float32
    assert np.ptp(seen[0]) == 0
    assert seen[0][0, 0, 0, 0] == np.float32(200.3)


def test_features_of_another_precision_are_computed_anew(half, tmp_path):
    part = Part(Memory(train=8), "train", np.arange(8), "given")
    cache = Cache(tmp_path, 10**9)
    exact = np.array(extract(half, part, cache).x)
    set_precision(half, "mixed_bfloat16")
    assert np.abs(extract(half, part, cache).x - exact).max() > 0
    set_precision(half, "float32")
    np.testing.assert_array_equal(extract(half, part, cache).x, exact)
    assert len(list(tmp_path.glob("**/meta.json"))) == 2


@pytest.mark.parametrize("policy", HALF)
def test_training_and_export_in_half_precision(policy, half, images, labels, tmp_path):
    set_precision(half, policy)
    model = FineTuner(half, keras.layers.Dense(3))
    model.unfreeze(model.stage_names)
    optimizer = keras.optimizers.Adam(1e-2)
    if policy == "mixed_float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=2.0**8)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss)
    before = values(model.trainable_weights)
    history = model.fit(images, labels, batch_size=12, epochs=3, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    assert all(moved(before, model.trainable_weights))
    assert all(weight.dtype == "float32" for weight in model.trainable_weights)

    outputs = np.asarray(model(images, training=False))
    assert outputs.dtype == np.float32
    save_keras_model(model, tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", compile=False)
    assert loaded.backbone.dtype_policy.name == policy
    np.testing.assert_array_equal(loaded(images, training=False), outputs)

    save_predictor(model, tmp_path / "saved", Task(SINGLE_LABEL, ("a", "b", "c")), (None, None, 1))
    served = served_outputs(tmp_path / "saved", tf.data.Dataset.from_tensors(images))
    np.testing.assert_allclose(served, tf.nn.softmax(outputs), atol=8 * EPSILON[policy])


def test_what_has_no_other_precision(backbone, half):
    with pytest.raises(UserError, match="SavedModel"):
        set_precision(backbone, "mixed_bfloat16")
    set_precision(backbone, "float32")
    with pytest.raises(ValueError, match="precision"):
        set_precision(half, "float16")
    half.network.get_layer("dense").quantize("int8")
    with pytest.raises(UserError, match="quantized"):
        set_precision(half, "mixed_bfloat16")
