"""What frozen stages return, kept: the same training, without running them again."""

import json
from dataclasses import replace
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.conftest import moved, small_network, values
from tfxfer.backbones import load_backbone
from tfxfer.backbones.boundary import Boundary, find_boundary
from tfxfer.cache import Cache
from tfxfer.data import epoch
from tfxfer.data.arrays import open_arrays
from tfxfer.data.parts import Part, Splits
from tfxfer.data.pipeline import batches, train_batches
from tfxfer.evaluate import predict
from tfxfer.feature_data import feature_batches
from tfxfer.features import extract
from tfxfer.models import FineTuner
from tfxfer.models.suffix import Suffix
from tfxfer.plan import Phase
from tfxfer.training import boundary as choosing
from tfxfer.training.boundary import BoundaryCache, places
from tfxfer.training.boundary_cost import (
    Cost,
    Speed,
    noise_images,
    prefix_seconds,
    slow_enough,
)
from tfxfer.training.epochs import Data
from tfxfer.training.loop import train
from tfxfer.training.objective import objective

EXAMPLES, BATCH, SIZE = 40, 8, 12


class Count(keras.layers.Layer):
    """Passes on what it gets, and counts the examples."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.seen = tf.Variable(0, trainable=False)

    def call(self, inputs):
        self.seen.assign_add(tf.shape(inputs)[0])
        return inputs


def residual(x, name: str, dropout: float = 0.0):
    y = keras.layers.Conv2D(4, 3, padding="same", use_bias=False, name=f"{name}_conv")(x)
    y = keras.layers.BatchNormalization(momentum=0.8, name=f"{name}_bn")(y)
    y = keras.layers.Dropout(dropout, name=f"{name}_drop")(y)
    return keras.layers.ReLU(name=f"{name}_relu")(keras.layers.Add(name=f"{name}_add")([x, y]))


def network(dropout: float = 0.0) -> keras.Model:
    """Three blocks with skip connections, batch normalization, and dropout in the second."""
    inputs = keras.Input((SIZE, SIZE, 3))
    x = Count(name="count")(inputs)
    x = keras.layers.Conv2D(4, 3, strides=2, name="block1_conv")(x)
    x = keras.layers.BatchNormalization(name="block1_bn")(x)
    x = residual(x, "block2", dropout)
    x = residual(x, "block3")
    return keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(residual(x, "block4")))


def nested() -> keras.Model:
    inputs = keras.Input((SIZE, SIZE, 3))
    x = network()(keras.layers.Rescaling(1 / 255)(inputs), training=False)
    return keras.Model(inputs, x)


def _boundary(whole: keras.Model, trained: str) -> Boundary:
    backbone = load_backbone(whole)
    (stage,) = (each for each in backbone.stages if trained in " ".join(each.paths))
    boundary = find_boundary(backbone, [stage.name])
    assert boundary is not None
    return boundary


@pytest.fixture
def parts() -> tuple[Part, Part]:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2 * EXAMPLES, SIZE, SIZE, 3), dtype=np.uint8)
    y = np.arange(EXAMPLES) % 3
    source = open_arrays({"train": (images[:EXAMPLES], y), "test": (images[EXAMPLES:], y)})
    return Part(source, "train", np.arange(EXAMPLES), ""), Part(
        source, "test", np.arange(EXAMPLES // 2), ""
    )


@pytest.fixture
def cache(tmp_path) -> Cache:
    return Cache(tmp_path / "cache", 10**9)


def tuner(whole: keras.Model | None = None, bn: str = "stage") -> FineTuner:
    keras.utils.set_random_seed(3)
    return FineTuner(load_backbone(whole or network(), bn=bn), keras.layers.Dense(3))


PLAN = [
    Phase("head", ("head",), 2, 1e-2, patience=0),
    Phase("+block4", ("block4", "head"), 3, 1e-2, patience=0),
    Phase("+block3", ("block3", "block4", "head"), 3, 1e-2, patience=0),
]


def fine_tune(model: FineTuner, parts, kept: BoundaryCache, plan=PLAN, **options) -> dict[str, str]:
    """Trains as a run does; returns where each phase began."""
    train_part, _ = parts
    images = Data(train_batches(train_part, BATCH, seed=kept.seed, **options), None)
    choices = kept.choose(plan, BATCH)
    aim = objective(train_part.source.info.task, train_part.labels)
    train(model, plan, images, aim, shortcut=kept.shortcut(choices, BATCH))
    return {name: choice.where for name, choice in choices.items()}


@pytest.mark.parametrize("whole", [network, nested])
def test_both_ends_together_are_the_backbone(whole, parts):
    backbone = load_backbone(whole())
    images, _ = next(iter(batches(parts[0], BATCH)))
    expected = backbone(images)
    for stages, name in (("block4", "block3_relu"), ("block3", "block2_relu")):
        boundary = find_boundary(backbone, {stages, "block4", "head"})
        assert boundary is not None
        assert boundary.name == name
        kept = boundary.prefix(images)
        np.testing.assert_allclose(boundary.suffix(kept, False), expected, atol=1e-6)
        stage = next(each for each in backbone.stages if each.name == stages)
        after = {id(weight) for weight in stage.weights}
        assert not after & {id(weight) for weight in boundary.weights}


def test_a_later_boundary_goes_on_from_an_earlier_one(parts):
    backbone = load_backbone(nested())
    images, _ = next(iter(batches(parts[0], BATCH)))
    early, late = (find_boundary(backbone, stages) for stages in (["block3"], ["block4"]))
    assert early and late
    assert late.follows(early)
    assert not early.follows(late)
    np.testing.assert_allclose(
        late.since(early)(early.prefix(images)), late.prefix(images), atol=1e-6
    )


def test_no_boundary_where_the_beginning_is_not_fixed(model):
    assert find_boundary(load_backbone(network()), ["block1"]) is None
    assert find_boundary(load_backbone(network()), ["block4"], bn="train") is None
    assert find_boundary(model.backbone, ["block2"]) is None  # A SavedModel.
    # Dropout acts in frozen stages too: what comes before it is fixed.
    boundary = find_boundary(load_backbone(network(dropout=0.5)), ["block4"])
    assert boundary is not None
    assert boundary.name == "block1_bn"


def test_a_skip_connection_around_a_model_is_not_cut():
    inputs = keras.Input((SIZE, SIZE, 3))
    x = keras.layers.Conv2D(4, 1, name="block1_conv")(inputs)
    inner = keras.Input((SIZE, SIZE, 4))
    y = keras.layers.Conv2D(4, 1, name="block2_conv")(inner)
    y = keras.Model(inner, keras.layers.Conv2D(4, 1, name="block3_conv")(y), name="inside")(x)
    whole = keras.Model(inputs, keras.layers.Add()([x, y]))
    last = load_backbone(whole).stages[-1].name
    boundary = find_boundary(load_backbone(whole), [last])
    assert boundary is not None
    assert boundary.name == "block1_conv"


@pytest.mark.parametrize(("augment", "views"), [("none", 0), ("light", 2)])
def test_training_is_the_same_and_does_not_run_the_beginning(parts, cache, augment, views):
    plain, kept = tuner(), tuner()
    before = values(plain.weights)
    options = {"augment": augment, "views": views}
    where = fine_tune(plain, parts, BoundaryCache(plain, cache, parts[0], mode="off"), **options)
    assert set(where.values()) == {""}
    assert sum(moved(before, plain.weights)) > 6
    where = fine_tune(
        kept, parts, BoundaryCache(kept, cache, parts[0], mode="on", **options), **options
    )
    assert where == {"head": "features", "+block4": "block3_relu", "+block3": "block2_relu"}
    for one, other in zip(plain.get_weights(), kept.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)
    # Each image or view once, for all phases; where it is asked for, nothing is timed.
    assert int(counter(kept).seen) == (views or 1) * EXAMPLES


def counter(model: FineTuner) -> Count:
    return model.backbone.network.get_layer("count")  # pyright: ignore


def test_what_is_kept_is_found_by_the_next_run(parts, cache):
    seen = []
    for _ in range(2):
        model = tuner()
        kept = BoundaryCache(model, cache, *parts, mode="on")
        choices = kept.choose(PLAN, BATCH)
        counter(model).seen.assign(0)
        for phase in PLAN:
            kept.data(choices[phase.name], BATCH)
        seen.append(int(counter(model).seen))
    assert seen == [EXAMPLES + EXAMPLES // 2, 0]


def test_weights_that_train_must_come_after_the_boundary(parts):
    model = tuner()
    boundary = find_boundary(model.backbone, ["block4"])
    model.unfreeze(["block3", "head"])
    with pytest.raises(ValueError, match="block3"):
        Suffix(model, boundary)
    with pytest.raises(ValueError, match="block3"):
        Suffix(model)
    model.unfreeze(["block4", "head"])
    suffix = Suffix(model, boundary)
    assert [id(weight) for weight in suffix.trainable_weights] == [
        id(weight) for weight in model.trainable_weights
    ]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"mode": "off"}, "turned off"),
        ({"augment": "light"}, "augmented anew"),
        ({"mix": "mixup"}, "mixed anew"),
    ],
)
def test_images_that_change_are_not_kept(parts, cache, options, reason):
    choices = BoundaryCache(tuner(), cache, *parts, **options).choose(PLAN, BATCH)
    for choice in choices.values():
        assert (choice.where, choice.boundary) == ("", None)
        assert reason in choice.reason


def test_batch_norm_by_the_batch_everywhere_is_not_kept(parts, cache):
    choices = BoundaryCache(tuner(bn="train"), cache, *parts, mode="on").choose(PLAN, BATCH)
    assert {choice.where for choice in choices.values()} == {""}


def chosen(parts, cache, monkeypatch, seconds: float, shape=(8, 8, 4), **options: Any) -> str:
    """Says where a phase begins if the frozen stages take so many seconds an image."""
    monkeypatch.setattr(choosing, "prefix_seconds", lambda boundary, images: seconds)
    monkeypatch.setattr(Boundary, "shape", lambda boundary, size: shape)
    monkeypatch.setattr(Speed, "of", classmethod(lambda cls, folder: Speed(1e8, 10**12, 10**10)))
    phase = Phase("+block4", ("block4", "head"), **{"epochs": 3, "learning_rate": 1e-3, **options})
    kept = BoundaryCache(tuner(), cache, *parts)
    return kept.choose([phase], BATCH)["+block4"].where


def test_it_is_kept_where_it_pays(parts, cache, monkeypatch):
    given = parts, cache, monkeypatch
    assert chosen(*given, 1e-3) == "block3_relu"
    assert chosen(*given, 1e-7) == ""  # Faster than a disk.
    assert chosen(*given, 1e-3, (200, 200, 64)) == ""  # Wide.
    assert chosen(*given, 1e-3, epochs=1) == ""
    assert chosen(*given, 1e-3, epochs=9, patience=1) == "block3_relu"
    assert chosen(*given, 1e-3, epochs=0, steps=EXAMPLES // BATCH) == ""
    small = Cache(cache.folder, 1000)
    assert chosen(parts, small, monkeypatch, 1e-3) == ""


def test_cost_counts_the_pass_the_writing_and_the_reading():
    speed = Speed(disk=1e6, free_bytes=10**12, memory_bytes=10**9)
    cost = Cost(held=100, models=1, each=100, epochs=4, row_bytes=1000, speed=speed)
    assert cost.transfer == pytest.approx(0.1 + 4e-4)
    assert cost.share(0.01) == pytest.approx((1 + cost.transfer) / 4)
    assert cost.share(cost.least_seconds(0.8)) == pytest.approx(0.8)
    assert cost.least_seconds(0.25) == np.inf  # One epoch of four runs in any case.
    # What does not stay in memory is read from the disk each time.
    assert replace(cost, speed=Speed(1e6, 10**12, 10**5)).transfer == pytest.approx(0.1 + 0.4)
    # Four models share what one computes and writes.
    assert replace(cost, models=4).share(0.01) == pytest.approx((0.25 + 0.025 + 4e-4) / 4)


@pytest.mark.parametrize(
    ("least", "seconds", "expected", "tried"),
    [
        ([3, 2, 1], [3, 4, 5], [True, True, True], [0]),  # All after it take as long.
        ([9, 4, 5], [3, 4, 5], [False, True, True], [0, 2, 1]),
        ([9, 9, 9, 9, 9], [1, 2, 3, 4, 5], [False] * 5, [0, 3, 4]),
        ([], [], [], []),
    ],
)
def test_few_beginnings_are_timed(least, seconds, expected, tried):
    timed = []

    def seconds_of(i: int) -> float:
        timed.append(i)
        return seconds[i]

    assert [pays for pays, _ in slow_enough(least, seconds_of)] == expected
    assert timed == tried


def test_shapes_are_known_without_a_run_and_timing_takes_few_images(parts, cache):
    backbone: Any = load_backbone(network())
    images = noise_images(parts[0], backbone.contract.size, augmented=False)
    assert (images.shape, images.dtype) == ((1, SIZE, SIZE, 3), tf.uint8)  # Few against 40.
    for name in ("block3", "block4"):
        boundary = find_boundary(backbone, [name])
        assert boundary is not None
        assert boundary.shape((SIZE, SIZE)) == (5, 5, 4) == boundary.prefix(images).shape[1:]
        assert prefix_seconds(boundary, images) > 0
    inner = find_boundary(load_backbone(nested()), ["block4"])
    assert inner is not None
    assert inner.shape((SIZE, SIZE)) == (5, 5, 4)
    assert Speed.of(cache.folder).disk > 0  # The folder is not there yet.


def test_what_cannot_pay_is_not_timed(parts, cache, monkeypatch):
    monkeypatch.setattr(choosing, "prefix_seconds", lambda *args: pytest.fail("It was timed."))
    for epochs, steps in ((1, 0), (0, 6)):  # 6 steps of 8 images are 1.2 epochs of 40.
        phase = Phase("+block4", ("block4", "head"), epochs, 1e-3, steps=steps)
        assert not BoundaryCache(tuner(), cache, *parts).choose([phase], BATCH)["+block4"].where
    narrow = BoundaryCache(tuner(), Cache(cache.folder, 1000), *parts).choose(PLAN, BATCH)
    assert "cache" in narrow["+block4"].reason


def test_choices_are_made_again_without_the_clock(parts, cache, monkeypatch):
    seconds = iter([1.0, 1e-9, 1e-9])
    monkeypatch.setattr(choosing, "prefix_seconds", lambda boundary, images: next(seconds))
    kept = BoundaryCache(tuner(), cache, *parts)
    slow, fast = kept.choose(PLAN, BATCH), kept.choose(PLAN, BATCH)
    assert places(slow) == {"head": "features", "+block4": "block3_relu", "+block3": "block2_relu"}
    assert places(fast) == {"head": "features", "+block4": "", "+block3": ""}
    monkeypatch.setattr(choosing, "prefix_seconds", lambda *args: pytest.fail("It was timed."))
    for first in (slow, fast):
        before = json.loads(json.dumps(places(first)))
        another = BoundaryCache(tuner(), cache, *parts)
        again = another.choose(PLAN, BATCH, before)
        assert places(again) == before
        for name, choice in again.items():
            since, expected = choice.since, first[name].since
            assert (since and since.where) == (expected and expected.where)
            own = {id(weight) for weight in another.model.weights}
            assert choice.boundary is None or own >= set(map(id, choice.boundary.weights))
    # Where it can no longer be, it is not.
    off = BoundaryCache(tuner(), cache, *parts, mode="off")
    assert not any(places(off.choose(PLAN, BATCH, places(slow))).values())


@pytest.mark.parametrize(
    ("make", "fixed"),
    [
        (lambda: keras.layers.Dense(4), True),
        (lambda: keras.layers.EinsumDense("bhwc,cd->bhwd", (None, None, 4)), True),
        (lambda: keras.layers.MultiHeadAttention(2, 2), True),
        (lambda: keras.layers.MultiHeadAttention(2, 2, dropout=0.1), False),
        (lambda: keras.layers.Attention(), True),
        (lambda: keras.layers.Attention(dropout=0.1), False),
        (lambda: keras.layers.GaussianNoise(0.0), True),
        (lambda: keras.layers.GaussianNoise(0.1), False),
        (lambda: keras.layers.SpatialDropout2D(0.1), False),
        (lambda: keras.layers.Resizing(9, 9), True),
        (lambda: keras.layers.CenterCrop(9, 9), True),
        (lambda: keras.layers.RandomFlip(), False),
        (lambda: keras.layers.Lambda(lambda x: x), True),
        (lambda: keras.layers.Lambda(lambda x, training: x), False),
        (lambda: keras.layers.TimeDistributed(keras.layers.LSTM(4)), True),
        (lambda: keras.layers.TimeDistributed(keras.layers.LSTM(4, dropout=0.1)), False),
        (lambda: keras.layers.SpectralNormalization(keras.layers.Conv2D(4, 1)), False),
    ],
)
def test_only_what_differs_in_training_is_in_the_way(make, fixed):
    layer = make()
    inputs = keras.Input((SIZE, SIZE, 3))
    x = keras.layers.Conv2D(4, 1, name="block1_conv")(inputs)
    if isinstance(layer, keras.layers.MultiHeadAttention):
        x = layer(x, x)
    else:
        x = layer([x, x] if isinstance(layer, keras.layers.Attention) else x)
    x = keras.layers.ReLU(name="after")(x)
    x = keras.layers.LayerNormalization(name="last")(x)
    boundary = _boundary(keras.Model(inputs, x), "last")
    assert boundary.name == ("after" if fixed else "block1_conv")


def test_dense_layers_are_not_in_the_way_in_convnext():
    whole = keras.applications.ConvNeXtTiny(
        include_top=False, weights=None, input_shape=(32, 32, 3), pooling="avg"
    )
    backbone = load_backbone(whole)
    boundary = find_boundary(backbone, [backbone.stages[-1].name])
    assert boundary is not None
    assert boundary.name == f"{whole.name}_downsampling_block_2"


def test_validation_counts_every_example_on_several_devices(parts, cache):
    train_part, validation = parts[0], replace(parts[1], rows=np.arange(19))
    kept = BoundaryCache(tuner(), cache, train_part, validation, mode="on")
    choice = kept.choose(PLAN, BATCH)["+block4"]
    data = kept.data(choice, BATCH, replicas=2, one_hot=True)
    assert data.validation is not None
    y = np.concatenate([y for _, y in data.validation])
    assert y.shape == (19, 3)


@pytest.mark.parametrize(("augment", "views"), [("none", 0), ("light", 3)])
def test_views_are_of_training_examples_alone(parts, cache, augment, views):
    train_part, validation = (
        replace(parts[0], rows=rows) for rows in (np.arange(30), np.arange(30, EXAMPLES))
    )
    model = tuner()
    kept = BoundaryCache(
        model,
        cache,
        train_part,
        validation,
        sharing=[Splits(train_part, validation, parts[1])],
        mode="on",
        augment=augment,
        views=views,
    )
    choice = kept.choose(PLAN, BATCH)["+block3"]
    kept.data(choice, BATCH)
    asked_for = (views or 1) * 30 + 10
    assert int(counter(model).seen) == kept._held(choice) == asked_for


def test_folds_share_what_none_of_them_has_trained(parts, cache):
    rows = np.arange(EXAMPLES)
    odd, even = (replace(parts[0], rows=rows[i::2]) for i in (1, 0))
    folds = [Splits(odd, even, parts[1]), Splits(even, odd, parts[1])]
    seen = []
    upward = [Phase("block1", ("block1", "head"), 2, 1e-2), PLAN[1]]
    for fold in folds:
        model = tuner()
        kept = BoundaryCache(model, cache, fold.train, fold.validation, folds, mode="on")
        choices = kept.choose(PLAN, BATCH)
        assert (kept._held(choices["+block4"]), kept._models(choices["+block4"])) == (EXAMPLES, 2)
        kept.data(choices["+block4"], BATCH)
        seen.append(int(counter(model).seen))
        # Each fold has trained the beginning in a way of its own.
        own = kept.choose(upward, BATCH)["+block4"]
        assert own.where
        assert not own.shared
        assert kept._models(own) == 1
    assert seen == [EXAMPLES, 0]


def test_views_that_cost_more_than_epochs_are_not_kept_for_a_head(parts, cache):
    def where(epochs: int, views: int, mode: str = "auto") -> str:
        kept = BoundaryCache(tuner(), cache, parts[0], mode=mode, augment="light", views=views)
        return kept.choose([Phase("head", ("head",), epochs, 1e-2)], BATCH)["head"].where

    assert where(1, 20) == ""
    assert where(20, 20) == ""
    assert where(21, 20) == "features"
    assert where(1, 20, "on") == "features"


def test_a_solved_head_is_validated_on_the_features_that_solved_it(parts, cache):
    model, (train_part, validation) = tuner(), parts
    phase = Phase("head", ("head",), 0, 1e-3, solved=True)
    kept = BoundaryCache(
        model,
        cache,
        train_part,
        validation,
        sharing=[Splits(train_part, validation, validation)],
        augment="light",
        mix="mixup",
    )
    for part in parts:  # As they are solved.
        extract(model.backbone, part, cache)
    counter(model).seen.assign(0)
    shorter = kept.shortcut(kept.choose([phase], BATCH), BATCH)(phase)
    assert shorter is not None
    trained, data = shorter
    outputs, _ = predict(trained, data.validation)
    assert int(counter(model).seen) == 0
    expected, _ = predict(model, batches(validation, BATCH))
    np.testing.assert_allclose(outputs, expected, atol=1e-5)


@pytest.mark.parametrize("balance", ["none", "sampling", "class_weights"])
def test_features_come_in_the_order_of_the_images(parts, cache, monkeypatch, balance):
    monkeypatch.setattr(epoch, "_SHUFFLE_BYTES", 12_000)  # Less than the images take.
    part, _ = parts
    backbone = load_backbone(small_network())
    features = extract(backbone, part, cache)
    images = train_batches(part, BATCH, seed=5, balance=balance).epochs(1).take(12)
    kept = feature_batches(features, part, BATCH, seed=5, balance=balance).epochs(1).take(12)
    for (x, *rest), (own, *other) in zip(images, kept, strict=True):
        np.testing.assert_allclose(backbone(x), own, atol=1e-5)
        for one, two in zip(rest, other, strict=True):
            np.testing.assert_array_equal(one, two)
