"""`random=`: weights of a backbone drawn anew."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.backbone_sources import keras_file, signature
from tests.conftest import values
from tests.memory import Memory
from tfxfer.backbones import Backbone, load_backbone
from tfxfer.backbones.scratch import from_scratch
from tfxfer.backbones.self_check import check_features, check_value_range
from tfxfer.config import RunConfig
from tfxfer.errors import UserError
from tfxfer.methods.opening import opened
from tfxfer.methods.students import new_student
from tfxfer.models import FineTuner, load_model
from tfxfer.spec import parse_spec

IMAGES = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), dtype=np.uint8)
TEXTS = np.array(["a list of numbers", "the name of a file", "what a layer returns"], object)


def drawn(spec: str, seed: int = 5, **options) -> Backbone:
    keras.utils.set_random_seed(seed)
    return load_backbone(spec, **options)


def by_stage(backbone: Backbone) -> dict[str, list[bytes]]:
    return {stage.name: values(stage.weights) for stage in backbone.stages}


def check_drawn(weight: keras.Variable, deviation: float) -> None:
    value = weight.numpy()
    np.testing.assert_allclose(value.std(), deviation, rtol=0.1)
    assert abs(value.mean()) < 0.1 * deviation


def test_all_weights_of_a_saved_model_are_drawn():
    backbone = drawn("glyphs(random=all)")
    for weight in backbone.weights:
        if len(weight.shape) > 1:
            check_drawn(weight, (2 / np.prod(weight.shape[:-1])) ** 0.5)
        else:
            ones = weight.name in ("gamma", "moving_variance")
            assert np.all(weight.numpy() == ones), weight.path
    assert backbone.source == "glyphs(random=all)"
    assert backbone.unfrozen == ()
    check_features(backbone, IMAGES)
    check_value_range(backbone)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [("block4", {"block4"}), ('"block3; block4"', {"block3", "block4"}), ("stem;", {"stem"})],
)
def test_stages_are_drawn_and_the_others_stay(asked, expected):
    before, backbone = by_stage(load_backbone("glyphs")), drawn(f"glyphs(random={asked})")
    after = by_stage(backbone)
    assert {name for name in before if before[name] != after[name]} == expected
    check_value_range(backbone)


def test_stages_are_those_that_are_asked_for():
    before = by_stage(load_backbone("glyphs", stages="stem;block"))
    after = by_stage(drawn("glyphs(random=block)", stages="stem;block"))
    assert [before[name] == after[name] for name in before] == [True, False]


def test_the_seed_decides():
    for spec in ("glyphs(random=block4)", "words(random=all)", "bag(random=all)"):
        first, second, other = (drawn(spec, seed) for seed in (5, 5, 6))
        assert values(first.weights) == values(second.weights) != values(other.weights)
        fingerprints = {each.fingerprint for each in (first, second, other)}
        assert len(fingerprints) == 2
        assert load_backbone(spec.partition("(")[0]).fingerprint not in fingerprints


def test_the_order_of_stages_does_not_matter():
    one, other = drawn('glyphs(random="stem;block4")'), drawn('glyphs(random="block4;stem")')
    assert one.fingerprint == other.fingerprint


def test_texts_keep_their_words():
    backbone, pretrained = drawn("words(random=all)"), load_backbone("words")
    (vectors,) = backbone.weights
    check_drawn(vectors, 0.05)
    check_features(backbone, TEXTS)
    both = tf.constant(["layer", "LAYER"])  # One word of the vocabulary, still.
    for each in (backbone, pretrained):
        features = each(both)
        np.testing.assert_array_equal(features[0], features[1])


def test_attention_and_norms_start_as_they_should():
    backbone = drawn("transformer(units=64, random=all)")
    named = {weight.path: weight for weight in backbone.weights}
    for path, weight in named.items():
        if path.endswith(("gamma", "beta", "bias")):
            assert np.all(weight.numpy() == path.endswith("gamma")), path
    check_drawn(named["token_embedding/embeddings"], 0.05)
    check_drawn(named["block0_dense/kernel"], (2 / 64) ** 0.5)


def test_a_keras_network_is_drawn(tmp_path):
    file = keras_file(tmp_path)
    before, after = by_stage(load_backbone(file)), by_stage(drawn(f"{file}(random=block2)"))
    assert [before[name] == after[name] for name in ("block1", "block2")] == [True, False]
    whole = drawn(f"{file}(random=all)")
    kernels = values(weight for weight in whole.weights if len(weight.shape) > 1)
    assert not set(kernels) & {value for stage in before.values() for value in stage}
    assert from_scratch(whole.source)


def test_preprocessing_stays(tmp_path):
    normalization = keras.layers.Normalization(name="scaling")
    normalization.adapt(np.float32(IMAGES))
    layers = [normalization, keras.layers.Conv2D(4, 3), keras.layers.GlobalAveragePooling2D()]
    keras.Sequential([keras.Input((16, 16, 3)), *layers]).save(tmp_path / "scaled.keras")
    spec = str(tmp_path / "scaled.keras")
    before, backbone = load_backbone(spec), drawn(f"{spec}(random=all)")
    same = [a == b for a, b in zip(*map(values, (before.weights, backbone.weights)), strict=True)]
    assert same == [True, True, True, False, True]  # The bias is zero in both.
    assert backbone.contract == before.contract


def test_a_filter_for_each_channel_is_as_strong_as_one_for_all():
    backbone = drawn("keras:MobileNetV2(alpha=0.35, random=all)", image_size=96)
    depthwise = [weight for weight in backbone.weights if "depthwise/kernel" in weight.path]
    assert len(depthwise) == 17
    check_drawn(depthwise[-1], (2 / 9) ** 0.5)
    assert 0.01 < np.abs(backbone(IMAGES)).mean() < 100


def test_nothing_is_downloaded_only_to_be_drawn_anew(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a download")

    monkeypatch.setattr("keras.src.applications.mobilenet_v2.file_utils.get_file", refuse)
    backbone = drawn("keras:MobileNetV2(alpha=0.35, random=all)", image_size=96)
    assert backbone.source == "keras:MobileNetV2(alpha=0.35, random=all)"
    with pytest.raises(UserError, match="a download"):
        load_backbone("keras:MobileNetV2(alpha=0.35, random=Conv1)", image_size=96)


@pytest.mark.parametrize("spec", ["glyphs(random=all)", "words(random=all)", "tiny(random=block2)"])
def test_it_is_saved_and_loaded(spec, tmp_path):
    model = FineTuner(drawn(spec), keras.layers.Dense(3))
    inputs = tf.constant(TEXTS) if model.backbone.contract.inputs == "text" else IMAGES
    answers = model(inputs)
    model.save(tmp_path / "model.keras")
    keras.utils.set_random_seed(9)
    again = load_model(tmp_path / "model.keras")
    assert values(again.weights) == values(model.weights)
    assert again.backbone.source == spec
    np.testing.assert_array_equal(again(inputs), answers)


def test_a_student_is_drawn_by_its_seed():
    config = RunConfig(mode="distill", dataset="memory", scan=False, self_check=False)
    run = opened(config.replace(backbone="tiny"), Memory(side=8, train=40, test=6))
    first, second, other = (new_student(run, "glyphs(random=all)", seed) for seed in (4, 4, 5))
    assert values(first.weights) == values(second.weights)
    assert first.backbone.fingerprint != other.backbone.fingerprint
    assert first.backbone.bn == "train"


def test_under_a_strategy_it_draws_the_same(mirrored):
    for spec in ("glyphs(random=all)", "tiny(random=block2)"):
        alone = drawn(spec)
        with mirrored.scope():
            both = drawn(spec)
        assert values(both.weights) == values(alone.weights)
        assert both.fingerprint == alone.fingerprint
        for weight in both.weights:
            first, second = mirrored.experimental_local_results(weight.value)
            np.testing.assert_array_equal(first, second)


def test_a_network_without_stages_is_drawn_whole(tmp_path):
    spec = signature(tmp_path)
    assert drawn(f"{spec}(random=all)").fingerprint != load_backbone(spec).fingerprint
    with pytest.raises(UserError, match="has no stages: give all"):
        load_backbone(f"{spec}(random=block1)")


@pytest.mark.parametrize("asked", ["block5", "block4;head", "all;stem", "true", "none", "", "';'"])
def test_an_unknown_stage_is_refused(asked):
    with pytest.raises(UserError, match="Its stages are stem, block1, block2, block3, block4"):
        load_backbone(f"glyphs(random={asked})")


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("glyphs(random=all)", True),
        ("keras:ResNet50(random=all)", True),
        ("glyphs(random=block4)", False),
        ('glyphs(random="stem;block1;block2;block3;block4")', False),
    ],
)
def test_only_what_is_drawn_whole_is_from_scratch(spec, expected):
    assert from_scratch(spec) == expected


@pytest.mark.parametrize("spec", ["keras:MobileNetV2(alpha=0.35)", "keras:MobileNetV2"])
def test_it_is_the_pretrained_network_but_for_its_weights(spec):
    drawn = load_backbone(parse_spec(spec).having("random", "all").text, data_size=(40, 40))
    assert drawn.contract.size == (224, 224)
    small = load_backbone("keras:MobileNetV2(weights=none, random=all)", data_size=(40, 40))
    assert small.contract.size == (40, 40)
