"""Backbones that nobody should train on are refused, and told why."""

import keras
import numpy as np
import pytest

from tests.conftest import small_network, values
from tfxfer.backbones import load_backbone
from tfxfer.backbones.self_check import check_features, check_value_range
from tfxfer.errors import UserError
from tfxfer.export import save_hub_module


@pytest.fixture
def colour():
    return np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), dtype=np.uint8)


def trained_on(low: float, high: float) -> keras.Model:
    """A network whose batch normalization has seen natural spectra from `low` to `high`."""
    from tfxfer.backbones.self_check import _noise

    network = small_network()
    noise = _noise(16, 16, 3)
    for seed in range(30):
        images = np.random.default_rng(seed).permutation(noise)
        network(images * (high - low) + low, training=True)
    return network


def layer_backbone(function):
    inputs = keras.Input((16, 16, 3))
    layer = keras.layers.Lambda(function, output_shape=(4,))
    return load_backbone(keras.Model(inputs, layer(inputs)))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: keras.ops.mean(x, (1, 2)) / 0.0, "must be finite"),
        (lambda x: keras.ops.zeros_like(keras.ops.mean(x, (1, 2))), "all are 0"),
        (
            lambda x: (
                keras.ops.zeros_like(keras.ops.mean(x, (1, 2))) + np.array([1, 2, 3], np.float32)
            ),
            "must tell images apart",
        ),
    ],
)
def test_useless_features_are_refused(function, message, colour):
    with pytest.raises(UserError, match=message):
        check_features(layer_backbone(function), colour)


def test_good_features_pass(backbone, colour):
    check_features(backbone, colour)
    check_features(load_backbone("glyphs"), colour)


@pytest.mark.parametrize("kind", ["Keras", "SavedModel"])
@pytest.mark.parametrize("bn", ["stage", "freeze", "train"])
@pytest.mark.parametrize(
    ("trained", "given", "fits"),
    [
        ((0, 1), (0, 255), "0,1|-1,1"),
        ((-1, 1), (0, 255), "-1,1|0,1"),
        ((0, 255), (0, 1), "0,255"),
        ((0, 1), (0, 1), None),
        ((0, 255), (0, 255), None),
        ((0, 1), (-1, 1), None),
    ],
)
def test_wrong_value_range_is_named(kind, bn, trained, given, fits, tmp_path):
    network = trained_on(*trained)
    if kind == "SavedModel":
        save_hub_module(network, tmp_path / "hub")
    source = str(tmp_path / "hub") if kind == "SavedModel" else network
    backbone = load_backbone(source, value_range=given, bn=bn)
    before = values(backbone.weights)
    if fits:
        with pytest.raises(UserError, match=f"--value_range=({fits}) fits"):
            check_value_range(backbone)
    else:
        check_value_range(backbone)
    assert values(backbone.weights) == before
    assert backbone.unfrozen == ()
    assert backbone.bn == bn


def test_wrong_value_range_of_glyphs_is_named():
    with pytest.raises(UserError, match="--value_range=0,1 fits"):
        check_value_range(load_backbone("glyphs", value_range=(0, 255)))


def test_averages_that_were_never_trained_tell_nothing():
    check_value_range(load_backbone(small_network(), value_range=(0, 255)))
