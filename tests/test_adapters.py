"""Fine-tuning few weights: low-rank additions, and biases and norms alone."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.conftest import moved, small_network, values
from tfxfer.backbones import Backbone, load_backbone
from tfxfer.backbones.adapters import adapt, merge, merging
from tfxfer.backbones.precision import set_precision
from tfxfer.errors import UserError
from tfxfer.export import save_keras_model, save_predictor, served_outputs
from tfxfer.models import FineTuner
from tfxfer.task import SINGLE_LABEL, Task


def network(*, constraint=None) -> keras.Model:
    """Convolutions, one of them depthwise, batch normalization and a dense layer of 6 features."""
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((16, 16, 3)),
            layers.Conv2D(4, 3, strides=2, name="block1_conv", kernel_constraint=constraint),
            layers.BatchNormalization(momentum=0.5, name="block1_bn"),
            layers.ReLU(),
            layers.DepthwiseConv2D(3, use_bias=False, name="block2_depthwise"),
            layers.Conv2D(8, 1, name="block3_conv", kernel_constraint=constraint),
            layers.Dense(6, name="block4_dense", kernel_constraint=constraint),
            layers.LayerNormalization(name="block4_norm"),
            layers.GlobalAveragePooling2D(),
        ]
    )


@pytest.fixture
def conv() -> Backbone:
    return load_backbone(network(), value_range=(0, 1))


def fine_tuner(backbone: Backbone) -> FineTuner:
    return FineTuner(backbone, keras.layers.Dense(3))


def train(model: FineTuner, images, labels, stages=None) -> None:
    model.unfreeze(model.stage_names if stages is None else stages)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-2), loss)
    model.fit(images, labels, batch_size=12, epochs=1, verbose=0)


def predict(model, images) -> np.ndarray:
    return np.asarray(model(images, training=False))


def learned(backbone: Backbone) -> dict[str, list[str]]:
    """Names of what each stage trains."""
    return {stage.name: [weight.name for weight in stage.learned] for stage in backbone.stages}


def test_lora_says_what_the_backbone_said_until_it_trains(conv, images):
    before = conv.infer(images).numpy()
    adapt(conv, "lora", rank=2)
    np.testing.assert_allclose(conv.infer(images).numpy(), before, atol=1e-6)


def test_lora_trains_low_rank_matrices_alone(conv, images, labels):
    adapt(conv, "lora", rank=2)
    pair = ["lora_kernel_a", "lora_kernel_b"]
    # The depthwise convolution has nothing to train: it goes with the block before.
    assert learned(conv) == {"block1": pair, "block3": pair, "block4": pair}
    assert conv.stages[-1].learned[0].shape == (8, 2)
    model = fine_tuner(conv)
    fixed = [w for stage in conv.stages for w in (*stage.fixed, *stage.statistics)]
    matrices = [w for stage in conv.stages for w in stage.learned]
    before, matrices_before = values(fixed), values(matrices)
    train(model, images, labels)
    assert len(fixed) == 13
    assert not any(moved(before, fixed))
    assert all(moved(matrices_before, matrices))
    assert {id(w) for w in model.trainable_weights} == {
        id(w) for w in (*matrices, *model.head.weights)
    }


def test_every_weight_is_in_one_stage_and_has_its_path(conv):
    kernels = {path for stage in conv.stages for path in stage.paths}
    for kind in ("lora", "bitfit"):
        backbone = load_backbone(network(), value_range=(0, 1))
        adapt(backbone, kind)
        held = [id(weight) for stage in backbone.stages for weight in stage.weights]
        assert sorted(held) == sorted(id(weight) for weight in backbone.weights)
        paths = {path for stage in backbone.stages for path in stage.paths}
        added = {path for path in paths if "lora_kernel" in path}
        assert paths - added == kernels
        assert len(added) == (6 if kind == "lora" else 0)
        for stage in backbone.stages:
            for weight, path in zip(stage.weights, stage.paths, strict=True):
                assert path.rpartition("/")[2] == weight.name


@pytest.mark.parametrize("kind", ["lora", "bitfit"])
def test_frozen_stages_stay(kind, conv, images, labels):
    adapt(conv, kind, rank=2)
    model = fine_tuner(conv)
    below = [weight for stage in conv.stages[:-1] for weight in stage.weights]
    before, top = values(below), values(conv.stages[-1].learned)
    train(model, images, labels, stages=["block4", "head"])
    assert not any(moved(before, below))
    assert all(moved(top, conv.stages[-1].learned))
    assert conv.unfrozen == ("block4",)


def test_batch_normalization_moves_with_lora_only_if_it_is_to(images, labels):
    for bn, expected in (("stage", False), ("freeze", False), ("train", True)):
        backbone = load_backbone(network(), value_range=(0, 1), bn=bn)
        adapt(backbone, "lora")
        statistics = [w for stage in backbone.stages for w in stage.statistics]
        before = values(statistics)
        train(fine_tuner(backbone), images, labels)
        assert all(moved(before, statistics)) == any(moved(before, statistics)) == expected


def test_merging_leaves_the_plain_network(conv, images, labels, tmp_path):
    plain = [(weight.path, weight.shape) for weight in conv.weights]
    stages = [(stage.name, stage.paths) for stage in conv.stages]
    adapt(conv, "lora", rank=2)
    model = fine_tuner(conv)
    kernels = [w for stage in conv.stages for w in stage.fixed if len(w.shape) > 1]
    train(model, images, labels)
    before, expected = values(kernels), predict(model, images)
    traced = tf.function(model)
    np.testing.assert_allclose(traced(images), expected, atol=1e-6)

    merge(conv)
    np.testing.assert_allclose(predict(model, images), expected, atol=1e-6)
    np.testing.assert_allclose(traced(images), expected, atol=1e-6)
    assert sum(moved(before, kernels)) == 3  # All but the depthwise one.
    assert [(weight.path, weight.shape) for weight in conv.weights] == plain
    assert [(stage.name, stage.paths) for stage in conv.stages] == stages
    assert conv.unfrozen == ("block1", "block3", "block4")
    assert not any(stage.fixed for stage in conv.stages)

    save_keras_model(model, tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", compile=False)
    np.testing.assert_array_equal(predict(loaded, images), predict(model, images))
    assert [(stage.name, stage.paths) for stage in loaded.backbone.stages] == stages

    task = Task(SINGLE_LABEL, ("a", "b", "c"))
    save_predictor(model, tmp_path / "saved", task, (None, None, 1))
    served = served_outputs(tmp_path / "saved", tf.data.Dataset.from_tensors(images))
    np.testing.assert_allclose(served, tf.nn.softmax(expected), atol=1e-5)

    train(model, images, labels)  # It is a network like any other.
    adapt(conv, "lora", rank=3)
    assert conv.stages[-1].learned[0].shape == (8, 3)


def test_low_rank_matrices_of_half_precision_and_of_replicas(mirrored, images, labels):
    with mirrored.scope():
        backbone = load_backbone(network(), value_range=(0, 1))
        set_precision(backbone, "mixed_bfloat16")
        adapt(backbone, "lora", rank=2)
        model = fine_tuner(backbone)
    matrices = [w for stage in backbone.stages for w in stage.learned]
    fixed = [w for stage in backbone.stages for w in stage.fixed]
    before, fixed_before = values(matrices), values(fixed)
    with mirrored.scope():
        train(model, images, labels)
    assert all(moved(before, matrices))
    assert not any(moved(fixed_before, fixed))
    set_precision(backbone, "float32")
    expected = predict(model, images)
    merge(backbone)
    np.testing.assert_allclose(predict(model, images), expected, atol=1e-6)


def test_merging_what_has_nothing_to_merge(conv, hub_folder):
    for backbone in (conv, load_backbone(str(hub_folder))):
        before, stages = values(backbone.weights), backbone.stages
        merge(backbone)
        assert not any(moved(before, backbone.weights))
        assert backbone.stages is stages


def test_earlier_weights_are_read_into_the_merged_network(conv, images, labels):
    adapt(conv, "lora", rank=2)
    model = fine_tuner(conv)
    train(model, images, labels)
    earlier, expected = model.get_weights(), predict(model, images)
    train(model, images, labels)
    assert np.abs(predict(model, images) - expected).max() > 1e-3
    merged, latest = merging(conv, model.weights), model.get_weights()
    merge(conv)
    for value, found in zip(merged(latest), model.get_weights(), strict=True):
        np.testing.assert_allclose(value, found, atol=1e-6)
    plain = merged(earlier)
    model.set_weights(plain)
    np.testing.assert_allclose(predict(model, images), expected, atol=1e-6)
    assert merging(conv, model.weights)(plain) == plain


def test_a_keras_file_of_what_is_not_merged_answers_alike(conv, images, labels, tmp_path):
    adapt(conv, "lora", rank=2)
    model = fine_tuner(conv)
    train(model, images, labels)
    model.optimizer = None
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", compile=False)
    np.testing.assert_allclose(predict(loaded, images), predict(model, images), atol=1e-6)


def test_attention_and_embeddings_have_low_rank_additions(images, labels):
    inputs = keras.Input((16, 16, 3))
    patches = keras.layers.Reshape((64, 12))(inputs)
    x = keras.layers.EinsumDense("abc,cd->abd", (64, 8), bias_axes="d", name="project")(patches)
    x = x + keras.layers.Embedding(12, 8, name="embed")(keras.ops.argmax(patches, axis=-1))
    x = keras.layers.LayerNormalization(name="norm")(x)
    x = keras.layers.MultiHeadAttention(2, 4, name="attention")(x, x)
    backbone = load_backbone(keras.Model(inputs, x), value_range=(0, 1))
    adapt(backbone, "lora", rank=2)
    trained = [weight for stage in backbone.stages for weight in stage.learned]
    model = fine_tuner(backbone)
    before = values(trained)
    train(model, images, labels)
    assert len(trained) == 12
    assert all(moved(before, trained))
    expected = predict(model, images)
    merge(backbone)
    np.testing.assert_allclose(predict(model, images), expected, atol=1e-6)


def test_biases_of_attention_are_biases():
    inputs = keras.Input((16, 16, 3))
    patches = keras.layers.Reshape((64, 12))(inputs)
    x = keras.layers.MultiHeadAttention(2, 4, name="attention")(patches, patches)
    backbone = load_backbone(keras.Model(inputs, x), value_range=(0, 1))
    adapt(backbone, "bitfit")
    assert learned(backbone) == {"attention": ["bias"] * 4}
    fixed = [weight.name for stage in backbone.stages for weight in stage.fixed]
    assert fixed == ["kernel"] * 4


@pytest.mark.parametrize("kind", ["keras", "saved_model"])
def test_bitfit_trains_biases_and_norms_alone(kind, backbone, images, labels):
    if kind == "keras":
        backbone = load_backbone(small_network(), value_range=(0, 1))
    stages = [stage.name for stage in backbone.stages]
    adapt(backbone, "bitfit")
    assert [stage.name for stage in backbone.stages] == stages
    assert {len(weight.shape) for stage in backbone.stages for weight in stage.learned} == {1}
    fixed = [weight for stage in backbone.stages for weight in stage.fixed]
    assert [len(weight.shape) for weight in fixed] == [4, 4]
    trained = [weight for stage in backbone.stages for weight in stage.learned]
    model = fine_tuner(backbone)
    before, trained_before = values(fixed), values(trained)
    train(model, images, labels)
    assert not any(moved(before, fixed))
    assert any(moved(trained_before, trained))
    assert {id(w) for w in model.trainable_weights} == {
        id(w) for w in (*trained, *model.head.weights)
    }


def test_bitfit_joins_stages_without_biases(conv):
    adapt(conv, "bitfit")
    assert learned(conv) == {
        "block1": ["bias", "gamma", "beta"],
        "block3": ["bias"],
        "block4": ["bias", "gamma", "beta"],
    }
    assert [len(stage.fixed) for stage in conv.stages] == [2, 1, 1]


def test_none_changes_nothing(conv):
    stages = conv.stages
    adapt(conv, "none")
    assert conv.stages is stages


def test_what_cannot_be_adapted(backbone, conv):
    with pytest.raises(UserError, match="bitfit"):
        adapt(backbone, "lora")
    with pytest.raises(UserError, match="none of them"):
        constrained = network(constraint=keras.constraints.NonNeg())
        adapt(load_backbone(constrained, value_range=(0, 1)), "lora")
    plain = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3, use_bias=False)])
    with pytest.raises(UserError, match="has none"):
        adapt(load_backbone(plain, value_range=(0, 1)), "bitfit")
    empty = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.GlobalAveragePooling2D()])
    with pytest.raises(UserError, match="frozen"):
        adapt(load_backbone(empty, value_range=(0, 1)), "bitfit")
    with pytest.raises(ValueError, match="adapter"):
        adapt(conv, "prompt")
    with pytest.raises(ValueError, match="rank"):
        adapt(conv, "lora", rank=0)
    adapt(conv, "lora")
    with pytest.raises(ValueError, match="merge"):
        adapt(conv, "lora")
