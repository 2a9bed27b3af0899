"""`keras:NAME`: the networks of keras.applications."""

import keras
import numpy as np
import pytest

from tfxfer.backbones import load_backbone
from tfxfer.backbones.applications import _LEAST, _SIZES, application_names, family_of
from tfxfer.errors import UserError

# The smallest network of each family.
FAMILIES = {
    "convnext": "ConvNeXtTiny",
    "densenet": "DenseNet121",
    "efficientnet": "EfficientNetB0",
    "efficientnet_v2": "EfficientNetV2B0",
    "inception_resnet_v2": "InceptionResNetV2",
    "inception_v3": "InceptionV3",
    "mobilenet": "MobileNet",
    "mobilenet_v2": "MobileNetV2",
    "mobilenet_v3": "MobileNetV3Small",
    "nasnet": "NASNetMobile",
    "resnet": "ResNet50",
    "resnet_v2": "ResNet50V2",
    "vgg16": "VGG16",
    "vgg19": "VGG19",
    "xception": "Xception",
}


@pytest.fixture
def saved_mobilenet(tmp_path):
    """Weights files of one MobileNetV2, with and without its classifier."""
    options = {"alpha": 0.35, "weights": None, "input_shape": (32, 32, 3)}
    whole = keras.applications.MobileNetV2(**options)
    bare = keras.applications.MobileNetV2(include_top=False, pooling="avg", **options)
    for ours, theirs in zip(bare.weights, whole.weights, strict=False):
        ours.assign(theirs)
    whole.save_weights(tmp_path / "whole.weights.h5")
    bare.save_weights(tmp_path / "bare.weights.h5")
    return bare, tmp_path


def test_every_family_is_known():
    assert {family_of(name) for name in application_names()} == set(FAMILIES)


@pytest.mark.parametrize("family", FAMILIES)
def test_features_are_those_by_hand(family):
    name = FAMILIES[family]
    size = max(_LEAST.get(name, 32), 48)
    keras.utils.set_random_seed(5)
    backbone = load_backbone(f"keras:{name}(weights=none)", image_size=(size, size))
    keras.utils.set_random_seed(5)
    network = getattr(keras.applications, name)(
        include_top=False, pooling="avg", weights=None, input_shape=(size, size, 3)
    )
    assert [w.shape for w in backbone.weights] == [w.shape for w in network.weights]
    assert backbone.preprocessing == f"keras.applications.{family}.preprocess_input"
    images = np.random.default_rng(0).integers(0, 256, (2, size, size, 3), dtype=np.uint8)
    prepared = getattr(keras.applications, family).preprocess_input(images.astype(np.float32))
    expected = np.asarray(network(prepared, training=False))
    scale = np.abs(expected).max()  # Features of random weights may be as small as 1e-12.
    np.testing.assert_allclose(np.asarray(backbone(images)) / scale, expected / scale, atol=1e-5)
    unprepared = np.asarray(network(images.astype(np.float32), training=False))
    if np.ptp(prepared - images):
        assert np.abs(unprepared - expected).max() > 1e-3 * scale


@pytest.mark.slow
@pytest.mark.parametrize("name", application_names())
def test_sizes_are_those_of_keras(name):
    with keras.StatelessScope():  # Draws no weights.
        whole = getattr(keras.applications, name)(weights=None)
    # MobileNetV3 takes any size with its classifier too; its weights were trained on 224.
    assert whole.input_shape[1:3] in ((_SIZES.get(name, 224),) * 2, (None, None))


@pytest.mark.parametrize("name", ["InceptionV3", "VGG16", "Xception"])
def test_least_size_is_that_of_keras(name):
    least = _LEAST.get(name, 32)
    make = getattr(keras.applications, name)
    make(include_top=False, weights=None, input_shape=(least, least, 3))
    with pytest.raises(ValueError, match="at least"):
        make(include_top=False, weights=None, input_shape=(least - 1, least - 1, 3))
    with pytest.raises(UserError, match=f"at least {least}x{least}"):
        load_backbone(f"keras:{name}(weights=none)", image_size=(least - 1, least))


def test_size_is_that_of_the_data_only_without_weights(saved_mobilenet):
    _, folder = saved_mobilenet
    spec = "keras:MobileNetV2(alpha=0.35, weights={})"
    random = load_backbone(spec.format("none"), data_size=(8, 40))
    assert random.contract.size == (32, 40)
    pretrained = load_backbone(spec.format(folder / "bare.weights.h5"), data_size=(8, 40))
    assert pretrained.contract.size == (224, 224)


@pytest.mark.parametrize("file", ["whole.weights.h5", "bare.weights.h5"])
def test_weights_come_from_a_file_with_or_without_a_classifier(file, saved_mobilenet):
    bare, folder = saved_mobilenet
    spec = f"keras:MobileNetV2(alpha=0.35, weights={folder / file})"
    backbone = load_backbone(spec, image_size=(32, 32))
    for ours, theirs in zip(backbone.weights, bare.weights, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_layer_is_where_it_is_cut():
    spec = "keras:MobileNetV2(alpha=0.35, weights=none, layer=block_6_expand_relu)"
    backbone = load_backbone(spec, image_size=(32, 32))
    assert backbone.units == 96
    assert backbone.stages[-1].layers[-1].name.startswith("block_6_expand")
    with pytest.raises(UserError, match="Did you mean block_6_expand_relu"):
        load_backbone(spec.replace("relu", "rilu"), image_size=(32, 32))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("keras:ResNet5", "Did you mean ResNet50"),
        ("keras:mobilenetv2(weights=none)", "Did you mean MobileNetV2"),
        ("keras:MobileNetV2(alfa=1)", "no option 'alfa'. It takes alpha"),
        ("keras:MobileNetV2(include_top=true)", "no option 'include_top'"),
        ("keras:ConvNeXtTiny(include_preprocessing=false)", "no option"),
        ("keras:MobileNetV2(weights=/no/such.h5)", "is no file"),
        ("keras:MobileNetV2(alpha=0.11, weights=imagenet)", "alpha"),
    ],
)
def test_mistakes_are_named(spec, message):
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        load_backbone(spec)


def test_unreachable_weights_are_one_error(monkeypatch, tmp_path):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))

    def offline(*args, **kwargs):
        raise OSError("Name or service not known")

    monkeypatch.setattr("urllib.request.urlopen", offline)
    with pytest.raises(UserError, match="give weights=FILE"):
        load_backbone("keras:MobileNetV2(alpha=0.35)")


def test_value_range_is_its_own():
    with pytest.raises(UserError, match="--value_range"):
        load_backbone("keras:MobileNetV2(weights=none)", value_range=(0, 1))
