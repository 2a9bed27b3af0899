"""What frozen stages return, kept: the same training, without running them again."""

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.conftest import moved, small_network, values
from tfxfer.backbones import Backbone, load_backbone
from tfxfer.backbones.boundary import find_boundary
from tfxfer.cache import Cache
from tfxfer.data import pipeline
from tfxfer.data.arrays import open_arrays
from tfxfer.data.parts import Part
from tfxfer.data.pipeline import batches, train_batches
from tfxfer.feature_data import feature_batches
from tfxfer.features import extract
from tfxfer.models import FineTuner
from tfxfer.models.suffix import Suffix
from tfxfer.plan import Phase
from tfxfer.training import boundary as choosing
from tfxfer.training.boundary import BoundaryCache
from tfxfer.training.boundary_cost import Cost, Speed, Timed, time_boundaries
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
    # Each image or view once, for all phases, and the few that were timed.
    timed = 3 + 1 + 2  # Traces run nothing.
    once = (views or 1) * EXAMPLES
    assert once <= int(counter(kept).seen) <= once + timed


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
    monkeypatch.setattr(
        choosing,
        "time_boundaries",
        lambda boundaries, *args, **kwargs: {
            boundary.place: Timed(seconds, shape) for boundary in boundaries
        },
    )
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
    cost = Cost(once=100, each=100, epochs=4, seconds=0.01, row_bytes=1000, speed=speed)
    assert cost.without == pytest.approx(4)
    assert cost.kept == pytest.approx(1 + 0.1 + 4e-4)
    assert cost.share == pytest.approx(cost.kept / 4)
    # What does not stay in memory is read from the disk each time.
    slow = Cost(100, 100, 4, 0.01, 1000, Speed(1e6, 10**12, 10**5))
    assert slow.kept == pytest.approx(1 + 0.1 + 0.4)


def test_timing_finds_the_shapes(parts, cache):
    backbone: Backbone = load_backbone(network())
    found = [find_boundary(backbone, [name]) for name in ("block3", "block4")]
    boundaries = [boundary for boundary in found if boundary]
    timed = time_boundaries(boundaries, parts[0], augmented=False)
    assert [timed[each.place].shape for each in boundaries] == [(5, 5, 4), (5, 5, 4)]
    first, second = (timed[each.place].seconds for each in boundaries)
    assert 0 < first < second
    assert Speed.of(cache.folder).disk > 0  # The folder is not there yet.


@pytest.mark.parametrize("balance", ["none", "sampling", "class_weights"])
def test_features_come_in_the_order_of_the_images(parts, cache, monkeypatch, balance):
    monkeypatch.setattr(pipeline, "_SHUFFLE_BYTES", 12_000)  # Less than the images take.
    part, _ = parts
    backbone = load_backbone(small_network())
    features = extract(backbone, part, cache)
    images = train_batches(part, BATCH, seed=5, balance=balance).epochs(1).take(12)
    kept = feature_batches(features, part, BATCH, seed=5, balance=balance).epochs(1).take(12)
    for (x, *rest), (own, *other) in zip(images, kept, strict=True):
        np.testing.assert_allclose(backbone(x), own, atol=1e-5)
        for one, two in zip(rest, other, strict=True):
            np.testing.assert_array_equal(one, two)
