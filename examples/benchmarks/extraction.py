"""Feature extraction against Keras' own recipe for transfer learning, on the same images.

    python examples/benchmarks/extraction.py --data=folder:photos

Keras' guide to transfer learning puts the frozen base inside the model and calls `fit`, so that the
base runs over every image in every epoch, those of validation too. Here the base runs once, and a
head is fitted on its features. Both get the same MobileNetV2 (alpha 0.35, 96x96 pixels), the same
images to train on, to validate with and to test, in one process, in turn, each with a base that was
loaded just before. The time is that of everything else: graphs traced, features computed, head
trained, test images told. Before, both have run once on a few images, so that neither pays for
TensorFlow's start.

Without `--data`, images are made: textures of ten kinds, which even random weights tell apart to
some degree. `--weights=FILE` gives the base ImageNet weights.
"""

import tempfile
import time

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags, logging
from scipy.stats import binomtest

from tfxfer import FeatureExtractor, heads, load_backbone
from tfxfer.cache import Cache
from tfxfer.data.arrays import open_arrays
from tfxfer.data.pipeline import batches
from tfxfer.data.sources import open_dataset
from tfxfer.data.splits import split_data
from tfxfer.features import covering, extract

DATA = flags.DEFINE_string("data", "", "A dataset, as --dataset of the command line.")
WEIGHTS = flags.DEFINE_string("weights", "none", "Weights of MobileNetV2, alpha 0.35.")
IMAGES = flags.DEFINE_integer("images", 2000, "Training images, validation among them.")
EPOCHS = flags.DEFINE_integer("epochs", 20, "Of Keras' recipe.")
ROUNDS = flags.DEFINE_integer("rounds", 3, "How often each is timed.")

SIZE = 96
CLASSES = 10


def textures(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Makes images of waves whose direction and length tell their class, in noise."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % CLASSES
    grid = np.stack(np.meshgrid(np.arange(SIZE), np.arange(SIZE), indexing="ij"))
    images = np.empty((count, SIZE, SIZE, 3), np.uint8)
    for i, label in enumerate(labels):
        angle = np.pi * (label % 5) / 5 + rng.normal(0, 0.08)
        length = (6 if label < 5 else 14) * rng.uniform(0.85, 1.15)
        wave = np.tensordot([np.cos(angle), np.sin(angle)], grid, 1) / length
        shape = np.sin(2 * np.pi * (wave + rng.random()))[..., None] * rng.uniform(30, 90, 3)
        noisy = 128 + shape + rng.normal(0, 40, (SIZE, SIZE, 3))
        images[i] = np.clip(noisy, 0, 255)
    return images, labels


def source():
    """Opens the data."""
    if DATA.value:
        return open_dataset(DATA.value)
    return open_arrays({"train": textures(IMAGES.value, 0), "test": textures(500, 1)})


def base():
    """Loads the base with weights that are the same every time."""
    keras.utils.set_random_seed(0)
    spec = f"keras:MobileNetV2(alpha=0.35, weights={WEIGHTS.value})"
    return load_backbone(spec, image_size=SIZE)


def recipe(network: keras.Model, splits, classes: int, epochs: int) -> float:
    """Follows Keras' guide: the frozen base inside the model, `fit`, Adam."""
    network.trainable = False
    inputs = keras.Input((SIZE, SIZE, 3))
    x = keras.applications.mobilenet_v2.preprocess_input(inputs)
    x = network(x, training=False)
    x = keras.layers.Dropout(0.2)(x)
    model = keras.Model(inputs, keras.layers.Dense(classes)(x))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(), loss, metrics=["accuracy"])
    train, validation, test = (
        batches(part, 32, image_size=(SIZE, SIZE)).map(
            lambda x, y: (tf.image.resize(x, (SIZE, SIZE)), y)
        )
        for part in (splits.train, splits.validation, splits.test)
    )
    model.fit(
        train.cache(),
        epochs=epochs,
        validation_data=validation.cache(),
        shuffle=False,
        verbose=0,
    )
    return model.evaluate(test, verbose=0)[1]


def ours(backbone, splits, task) -> float:
    """Runs the base once, and fits a head whose strength validation chooses."""
    with tempfile.TemporaryDirectory() as folder:
        cache = Cache(folder, 10**10)
        features = extract(backbone, covering([splits.train, splits.validation]), cache)
        test = extract(backbone, splits.test, cache)
        arrays = [
            (features.first[rows], features.y[rows])
            for rows in map(features.positions, (splits.train, splits.validation))
        ]
        head = heads.fit_head("logistic", task, *arrays)
        model = FeatureExtractor(backbone, head.layer)
        said = np.argmax(model.predict(test.first, batch_size=256, verbose=0), axis=-1)
        return float(np.mean(said == test.y))


def interval(accuracy: float, examples: int) -> str:
    """Returns an accuracy with Wilson's 95% interval."""
    found = binomtest(round(accuracy * examples), examples).proportion_ci(method="wilson")
    return f"{accuracy:.4f} (95% interval {found.low:.4f} to {found.high:.4f})"


def compare() -> tuple[float, float, float]:
    """Times both in turn; returns the median ratio of their times, and both accuracies."""
    data = source()
    splits = split_data(data, max_examples=round(IMAGES.value * 0.9))
    few = split_data(data, max_examples=64)
    task = data.info.task
    recipe(base().network, few, task.units, 1)
    ours(base(), few, task)
    ratios, theirs, mine = [], 0.0, 0.0
    for _ in range(ROUNDS.value):
        network, backbone = base().network, base()
        start = time.perf_counter()
        theirs = recipe(network, splits, task.units, EPOCHS.value)
        middle = time.perf_counter()
        mine = ours(backbone, splits, task)
        slow, fast = middle - start, time.perf_counter() - middle
        ratios.append(slow / fast)
        print(
            f"Keras' recipe {slow:.1f} s, here {fast:.2f} s: {ratios[-1]:.1f} times faster",
            flush=True,
        )
    examples = splits.test.examples
    print(f"{splits.train.examples} training images, {examples} test images")
    print(f"Keras' recipe: test accuracy {interval(theirs, examples)}")
    print(f"here:          test accuracy {interval(mine, examples)}")
    print(f"median: {np.median(ratios):.1f} times faster")
    return float(np.median(ratios)), theirs, mine


def main(argv) -> None:
    """Compares."""
    del argv
    logging.set_verbosity(logging.ERROR)
    compare()


if __name__ == "__main__":
    app.run(main)
