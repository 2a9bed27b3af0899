"""Features over a part of the data: computed once, bit by bit what a fresh computation gives."""

import dataclasses
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.conftest import small_network
from tfxfer.backbones import Backbone, load_backbone
from tfxfer.cache import Cache
from tfxfer.data.base import IMAGE, TEXT, DataInfo, DataSource
from tfxfer.data.parts import Part
from tfxfer.data.pipeline import batches
from tfxfer.feature_data import feature_batches, feature_part
from tfxfer.features import compute_once, covering, extract, weights_digest
from tfxfer.task import MULTI_LABEL, REGRESSION, SINGLE_LABEL, Task


class Memory(DataSource):
    """Inputs in memory; counts how often they are read."""

    def __init__(self, x: Any, y: np.ndarray, kind: str = SINGLE_LABEL, inputs: str = IMAGE):
        units = y.max() + 1 if kind == SINGLE_LABEL else y.shape[1]
        task = Task(kind, tuple(map(str, range(units))))
        shape = np.shape(x)[1:]
        self.info = DataInfo("memory", task, inputs, shape, {"train": len(x), "test": len(x)})
        self.fingerprint = "0"
        self.reads = 0
        self._x, self._y = x, y

    def read(self, name, rows=None):
        self.reads += 1
        kept = np.arange(len(self._x)) if rows is None else rows
        ids = np.array([f"{name} {row}" for row in kept])
        return tf.data.Dataset.from_tensor_slices((ids, self._x[kept], self._y[kept]))

    def labels(self, name):
        return self._y


class Encoded(Memory):
    """Images of many sizes, as PNG files."""

    def __init__(self, images: list[np.ndarray], y: np.ndarray):
        super().__init__(np.array([tf.io.encode_png(image).numpy() for image in images]), y)
        self.info = dataclasses.replace(self.info, shape=(None, None, 3))

    def decode(self, raw):
        return tf.io.decode_png(raw, channels=3)


def images(count: int, size: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def part_of(source: DataSource, rows: Any = None, split: str = "train") -> Part:
    kept = np.arange(source.info.examples[split]) if rows is None else np.asarray(rows)
    return Part(source, split, kept, "given")


def counted(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> tuple[tf.Variable, list]:
    """Counts the images that a backbone sees, and how often it is traced."""
    seen, traces, features = tf.Variable(0), [], backbone.features

    def counting(images, training):
        traces.append(training)
        seen.assign_add(tf.shape(images)[0])
        return features(images, training)

    monkeypatch.setattr(backbone, "features", counting)
    backbone.retrace()  # What was traced before would not be counted.
    return seen, traces


def same(one: np.ndarray, other: np.ndarray) -> bool:
    return one.shape == other.shape and one.tobytes() == other.tobytes()


@pytest.fixture(scope="module")
def mobilenet() -> Backbone:
    keras.utils.set_random_seed(0)
    return load_backbone("keras:MobileNetV2(alpha=0.35, weights=none)", image_size=(96, 96))


@pytest.fixture
def small() -> Backbone:
    layers = [
        keras.Input((16, 16, 3)),
        keras.layers.Conv2D(4, 3),
        keras.layers.BatchNormalization(),
        keras.layers.ReLU(),
        keras.layers.GlobalAveragePooling2D(),
    ]
    return load_backbone(keras.Sequential(layers))


@pytest.fixture
def part() -> Part:
    return part_of(Memory(images(10, 16), np.arange(10) % 3))


@pytest.fixture
def cache(tmp_path) -> Cache:
    return Cache(tmp_path, 10**12)


def test_features_are_those_of_the_weights_of_now(small, part, cache):
    before = extract(small, part, cache).first
    small.set_weights([1.5 * weight for weight in small.get_weights()])
    after = extract(small, part, cache).first
    asked = np.concatenate([x for x, _ in batches(part, 10)])
    np.testing.assert_allclose(after, small(asked, training=False), rtol=1e-4)
    assert np.abs(after - before).max() > 0.1


def test_the_second_extraction_costs_a_tenth_at_most(mobilenet, cache, monkeypatch):
    source = Memory(images(300, 96), np.arange(300) % 5)
    seen, traces = counted(mobilenet, monkeypatch)
    seconds, found = [], []
    for _ in range(2):
        start = time.perf_counter()
        found.append(extract(mobilenet, part_of(source), cache))
        seconds.append(time.perf_counter() - start)
    assert int(seen) == 300
    assert traces == [False]
    assert source.reads == 1
    assert same(found[0].x, found[1].x)
    assert seconds[1] <= 0.1 * seconds[0]


def test_features_are_bit_by_bit_those_computed_afresh(mobilenet, cache, tmp_path):
    part = part_of(Memory(images(100, 96), np.arange(100) % 5))
    extract(mobilenet, part, cache, batch_size=32)
    cached = extract(mobilenet, part, cache, batch_size=32)
    assert same(cached.x, extract(mobilenet, part, Cache(tmp_path / "2", 0), batch_size=32).x)
    data = batches(part, 32)
    mobilenet.retrace()
    graph: Any = mobilenet.infer_fixed("now")
    step = graph.get_concrete_function(data.element_spec[0])
    fresh = np.concatenate([step(x) for x, _ in data])
    assert same(cached.first, fresh)
    by_variables = np.concatenate([mobilenet.infer(x) for x, _ in data])
    np.testing.assert_allclose(fresh, by_variables, atol=1e-5 * by_variables.max())
    assert fresh.std() > 0


def test_features_are_memory_mapped_and_in_order(small, cache):
    source = Memory(images(10, 16), np.arange(10) % 3)
    rows = np.array([1, 4, 5, 9])
    for _ in range(2):
        found = extract(small, part_of(source, rows), cache, batch_size=3)
        assert isinstance(found.x, np.memmap)
        assert isinstance(found.y, np.memmap)
        assert found.x.shape == (1, 4, 4)
        assert found.x.dtype == np.float32
        assert found.y.dtype == np.int64
        np.testing.assert_array_equal(found.y, rows % 3)
        np.testing.assert_array_equal(found.part.rows, rows)
        expected = np.asarray(small(images(10, 16)[rows]))
        np.testing.assert_allclose(found.first, expected, atol=1e-5)
    assert len(cache.entries()) == 1


def test_the_last_smaller_batch_is_not_traced_anew(small, part, cache, monkeypatch):
    seen, traces = counted(small, monkeypatch)
    extract(small, part, cache, batch_size=4)
    assert (int(seen), len(traces)) == (10, 1)


def test_a_backbone_that_was_trained_since_is_computed_anew(small, part, cache, monkeypatch):
    seen, _ = counted(small, monkeypatch)
    before = extract(small, part, cache)
    pretrained = small.get_weights()
    (stage, *_) = [stage for stage in small.stages if stage.learned]
    stage.learned[0].assign_add(keras.ops.full(stage.learned[0].shape, 1e-3))
    trained = extract(small, part, cache)
    assert int(seen) == 20
    assert not np.allclose(before.x, trained.x, rtol=0, atol=1e-6)
    small.set_weights(pretrained)
    assert same(extract(small, part, cache).x, before.x)
    assert int(seen) == 20


def test_statistics_of_batch_normalization_are_weights_too(small):
    before = weights_digest(small)
    (statistics, *_) = [stage.statistics for stage in small.stages if stage.statistics]
    value = statistics[0].numpy()
    statistics[0].assign(value + 1)
    assert weights_digest(small) != before
    statistics[0].assign(value)
    assert weights_digest(small) == before


def other_bn(backbone: Backbone, part: Part) -> tuple:
    backbone.regroup(bn="stage")
    return backbone, part, {}


def other_contract(backbone: Backbone, part: Part) -> tuple:
    backbone.contract = dataclasses.replace(backbone.contract, value_range=(0.0, 1.0000001))
    return backbone, part, {}


def other_fingerprint(backbone: Backbone, part: Part) -> tuple:
    backbone.fingerprint = "another"
    return backbone, part, {}


def fewer_rows(backbone: Backbone, part: Part) -> tuple:
    return backbone, part.keep(np.arange(part.examples) != 3), {}


def other_split(backbone: Backbone, part: Part) -> tuple:
    return backbone, dataclasses.replace(part, split="test"), {}


def other_data(backbone: Backbone, part: Part) -> tuple:
    part.source.fingerprint = "1"
    return backbone, part, {}


def other_batches(backbone: Backbone, part: Part) -> tuple:
    return backbone, part, {"batch_size": 5}


def augmented(backbone: Backbone, part: Part) -> tuple:
    return backbone, part, {"augment": "light"}


CHANGES = [
    other_bn,
    other_contract,
    other_fingerprint,
    fewer_rows,
    other_split,
    other_data,
    other_batches,
    augmented,
]


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_features_depend_on_is_in_the_key(small, part, cache, monkeypatch, change):
    seen, _ = counted(small, monkeypatch)
    extract(small, part, cache)
    extract(small, part, cache)
    assert int(seen) == 10
    backbone, other, options = change(small, part)
    for _ in range(2):
        extract(backbone, other, cache, **options)
        assert int(seen) == 10 + other.examples
    assert len(cache.entries()) == 2


def test_as_many_other_rows_are_another_entry(small, cache):
    source = Memory(images(10, 16), np.arange(10) % 3)
    one = extract(small, part_of(source, [0, 1, 2]), cache)
    other = extract(small, part_of(source, [0, 1, 3]), cache)
    np.testing.assert_array_equal(other.y, [0, 1, 0])
    assert same(one.first[:2], other.first[:2])
    assert not same(one.first[2:], other.first[2:])


@pytest.mark.parametrize(
    "changes", [{"seed": 1}, {"views": 3}, {"augment": "randaugment"}, {"batch_size": 3}]
)
def test_augmentation_is_in_the_key(small, part, cache, monkeypatch, changes):
    options = {"augment": "light", "views": 2, "seed": 0}
    extract(small, part, cache, **options)
    seen, _ = counted(small, monkeypatch)
    extract(small, part, cache, **options)
    assert int(seen) == 0
    extract(small, part, cache, **(options | changes))
    assert int(seen) == 10 * (options | changes)["views"]


def test_an_entry_says_what_it_is(small, part, cache):
    extract(small, part, cache)
    extract(small, part, cache, augment="light", views=2)
    texts = {entry.about for entry in cache.entries()}
    plain = f"{small.source} on memory train, 10 examples"
    assert texts == {plain, f"{plain}, 2 x light"}


def test_the_name_of_a_backbone_does_not_matter(small, part, cache):
    extract(small, part, cache)
    small.source = "the same from elsewhere"
    extract(small, part, cache)
    assert len(cache.entries()) == 1


def test_the_seed_does_not_matter_without_augmentation(small, part, cache):
    extract(small, part, cache, seed=0)
    extract(small, part, cache, seed=1)
    assert len(cache.entries()) == 1


@pytest.mark.parametrize("augment", ["light", "randaugment"])
def test_views_differ_and_are_the_same_again(small, part, tmp_path, augment):
    one, again, other = (
        extract(small, part, Cache(tmp_path / name, 0), augment=augment, views=3, seed=seed)
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert one.x.shape == (3, 10, 4)
    assert same(one.x, again.x)
    np.testing.assert_array_equal(one.y, np.arange(10) % 3)
    views = [view.tobytes() for found in (one, other) for view in found.x]
    assert len(set(views)) == 6
    alone = extract(small, part, Cache(tmp_path / "d", 0), augment=augment, views=1)
    assert same(alone.first, one.first)
    assert not same(alone.x, extract(small, part, Cache(tmp_path / "e", 0)).x)


def test_a_view_of_an_example_does_not_depend_on_the_others(small, part, tmp_path):
    whole = extract(small, part, Cache(tmp_path / "a", 0), augment="light", views=2)
    some = part.keep(np.arange(10) >= 4)
    alone = extract(small, some, Cache(tmp_path / "b", 0), augment="light", views=2)
    np.testing.assert_allclose(alone.x, whole.x[:, 4:], atol=1e-5)


@pytest.mark.parametrize("views", [0, 2])
def test_views_without_augmentation_are_one(small, part, cache, views):
    with pytest.raises(ValueError, match="Expected 1 view"):
        extract(small, part, cache, views=views)


def test_images_of_many_sizes_are_brought_to_the_backbones(small, cache):
    sizes = [(16, 16), (20, 30), (40, 17), (8, 9)]
    generator = np.random.default_rng(0)
    drawn = [generator.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
    part = part_of(Encoded(drawn, np.arange(4)))
    found = extract(small, part, cache)
    alone = np.concatenate([np.asarray(small(image[None])) for image in drawn])
    np.testing.assert_allclose(found.first, alone, atol=1e-4)
    views = extract(small, part, cache, augment="light", views=2)
    assert views.x.shape == (2, 4, 4)


@pytest.mark.parametrize("kind", [MULTI_LABEL, REGRESSION])
def test_labels_are_as_the_task_has_them(small, cache, kind):
    y = np.random.default_rng(0).integers(0, 2, (6, 3)).astype(np.float32)
    for _ in range(2):
        found = extract(small, part_of(Memory(images(6, 16), y, kind)), cache)
        assert found.y.dtype == np.float32
        np.testing.assert_array_equal(found.y, y)


def test_logits_of_a_teacher_are_computed_once(part, cache):
    teacher = keras.Sequential(
        [keras.Input((16, 16, 3)), keras.layers.Flatten(), keras.layers.Dense(3)]
    )
    calls = []

    def logits(batch):
        calls.append(1)
        return teacher(tf.cast(batch, tf.float32), training=False)

    def compute(**parts):
        return compute_once(
            logits, part, cache, kind="logits", source="mine", parts=parts, batch_size=4
        )

    parts = {"teacher": "dense", "weights": weights_digest(teacher)}
    found, again = compute(**parts), compute(**parts)
    assert len(calls) == 1
    assert same(found.x, again.x)
    np.testing.assert_allclose(found.first, np.asarray(teacher(images(10, 16))), rtol=1e-4)
    assert [entry.kind for entry in cache.entries()] == ["logits"]
    teacher.layers[-1].bias.assign([1.0, 2.0, 3.0])
    compute(**(parts | {"weights": weights_digest(teacher)}))
    assert len(calls) == 2


def test_maps_and_texts_go_through_the_same_door(cache):
    texts = np.array([b"a", b"bcd", b""])
    part = part_of(Memory(texts, np.arange(3), inputs=TEXT))

    def lengths(batch):
        count = tf.strings.length(batch)
        return tf.stack([count, 2 * count], axis=-1)[:, :, None]

    found = compute_once(lengths, part, cache, kind="lengths", source="lengths", parts={})
    np.testing.assert_array_equal(found.first[..., 0], [[1, 2], [3, 6], [0, 0]])


@pytest.mark.parametrize(
    "function",
    [
        lambda batch: (batch, batch),
        lambda batch: {"a": batch},
        lambda batch: tf.strings.as_string(batch),
        lambda batch: tf.reduce_mean(tf.cast(batch, tf.float32)),
        lambda batch: tf.reshape(batch, [-1, tf.size(batch)]),
    ],
)
def test_an_output_that_is_no_array_is_refused(part, cache, function: Callable):
    with pytest.raises(ValueError, match="Expected one tensor of numbers"):
        compute_once(function, part, cache, kind="anything", source="", parts={})
    assert cache.entries() == []


def test_parts_that_speak_of_the_data_are_refused(part, cache):
    with pytest.raises(ValueError, match="'split'"):
        compute_once(tf.identity, part, cache, kind="anything", source="", parts={"split": "mine"})


def test_missing_examples_leave_no_entry(small, part, cache):
    short = dataclasses.replace(part, rows=np.arange(12))
    with pytest.raises((ValueError, tf.errors.OpError, IndexError)):
        extract(small, short, cache)
    assert cache.entries() == []


def test_parts_that_share_examples_share_features(small, cache):
    source = Memory(images(10, 16), np.arange(10) % 3)
    parts = [part_of(source, rows) for rows in ([1, 4, 5], [0, 4, 9])]
    whole = covering(parts)
    assert whole.rows.tolist() == [0, 1, 4, 5, 9]
    features = extract(small, whole, cache)
    for part in parts:
        found = feature_part(features, part)
        examples = list(found.dataset.as_numpy_iterator())
        alone = extract(small, part, cache)
        np.testing.assert_allclose(np.stack([x for _, x, _ in examples]), alone.first, rtol=1e-5)
        assert [y for _, _, y in examples] == alone.y.tolist()
    with pytest.raises(ValueError, match="Expected examples of"):
        feature_part(features, part_of(source, [1, 2]))


def test_an_epoch_of_features_takes_its_turn_of_the_views(small, cache):
    part = part_of(Memory(images(10, 16), np.arange(10) % 3))
    features = extract(small, part, cache, augment="light", views=3)
    data = feature_batches(features, part, 4, seed=0)
    batches = list(data.epochs().take(4 * data.steps).as_numpy_iterator())
    later = list(data.epochs(2).take(2 * data.steps).as_numpy_iterator())
    for epoch in range(4):
        own = batches[epoch * data.steps : (epoch + 1) * data.steps]
        x, y = (np.concatenate(column) for column in zip(*own, strict=True))
        expected = features.x[epoch % 3]
        assert len(x) == part.examples
        for row in x:
            assert (expected == row).all(-1).any()
        assert sorted(y) == sorted(features.y)
    for ours, theirs in zip(batches[2 * data.steps :], later, strict=True):
        np.testing.assert_array_equal(ours[0], theirs[0])


@pytest.mark.parametrize(
    ("examples", "options"),
    [
        (1, {}),
        (7, {}),
        (8, {}),
        (10, {}),
        (4, {"augment": "light", "views": 3}),
        (9, {"augment": "light", "views": 3}),
    ],
)
def test_replicas_share_the_work(mirrored, tmp_path, monkeypatch, examples, options):
    with mirrored.scope():
        backbone = load_backbone(small_network())
    part = part_of(Memory(images(examples, 16), np.arange(examples) % 3))
    alone = extract(backbone, part, Cache(tmp_path / "1", 0), batch_size=4, **options)
    places = []
    features = backbone.features

    def placed(inputs, training):
        context = tf.distribute.get_replica_context()
        places.append(tf.get_static_value(context.replica_id_in_sync_group))
        return features(inputs, training)

    monkeypatch.setattr(backbone, "features", placed)
    cache = Cache(tmp_path / "2", 0)
    shared = extract(backbone, part, cache, batch_size=4, strategy=mirrored, **options)
    assert sorted(places) == [0, 1]  # Each is traced once, whatever the last batch is.
    assert shared.x.std() > 0
    np.testing.assert_allclose(shared.x, alone.x, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(shared.y, alone.y)
    found = extract(backbone, part, cache, batch_size=4, **options)
    assert same(found.x, shared.x)
    assert len(places) == 2


# A process that stops in its fourth batch, having told so, and waits to be killed.
CHILD = """
import sys
import tensorflow as tf
import tests.test_features as here
from tfxfer import features

features._SHARD_SECONDS = 0.0
seen = tf.Variable(0)

def stop(count):
    if count == 4:
        print("stopped", flush=True)
        sys.stdin.readline()
    return count

def watched(batch):
    tf.numpy_function(stop, [seen.assign_add(1)], tf.int32)
    return here.projected(batch)

here.project(watched, sys.argv[1], sys.argv[2])
"""


def projected(batch: tf.Tensor) -> tf.Tensor:
    """A function of images that does not depend on the process."""
    flat = tf.reshape(tf.cast(batch, tf.float32), [-1, 16 * 16 * 3])
    return tf.sin(flat @ tf.random.stateless_normal([16 * 16 * 3, 5], [1, 2]))


def project(function: Callable, folder: Any, augment: str, strategy: Any = None):
    part = part_of(Memory(images(22, 16), np.arange(22) % 3))
    return compute_once(
        function,
        part,
        Cache(folder, 10**12),
        kind="projections",
        source="sines",
        parts={},
        batch_size=3,
        augment=augment,
        views=1 if augment == "none" else 2,
        strategy=strategy,
    )


@pytest.mark.parametrize(("augment", "replicas"), [("none", 1), ("light", 1), ("none", 2)])
def test_a_killed_extraction_goes_on_where_it_was(tmp_path, mirrored, augment, replicas):
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, str(tmp_path / "killed"), augment],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "stopped\n"
        finally:
            process.kill()
    assert process.returncode == -signal.SIGKILL
    # What was not recorded may be half-written.
    (left,) = (tmp_path / "killed").glob("*/.unfinished-*")
    for name in ("x", "y"):
        array = np.load(left / f"{name}.npy", mmap_mode="r+")
        (array.reshape(-1, 5) if name == "x" else array)[9:] = 77
        array.flush()
    seen = tf.Variable(0)

    def counting(batch):
        seen.assign_add(tf.shape(batch)[0])
        return projected(batch)

    views = 1 if augment == "none" else 2
    if replicas == 1:
        resumed = project(counting, tmp_path / "killed", augment)
        assert int(seen) == 22 * views - 9
    else:
        resumed = project(projected, tmp_path / "killed", augment, mirrored)
    whole = project(projected, tmp_path / "whole", augment)
    assert same(resumed.x, whole.x)
    assert same(resumed.y, whole.y)
    assert list((tmp_path / "killed").glob("*/.*")) == []
