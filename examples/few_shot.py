"""Is the transfer real? Few labelled digits, with pretrained weights and without.

    python examples/few_shot.py --shots=5 --seeds=5

draws a few labelled digits of each class and trains on these alone, in three ways:

*   `head`: the frozen backbone `glyphs` and a new head;
*   `fine-tuned`: the head first, then the whole network from its pretrained weights;
*   `random`: the same network from random weights, all of it from the first step.

Each way has its learning rate and its number of steps chosen on validation digits, over draws of
their own, before the test digits are looked at; so the baseline is as well tuned as the rest, and
trains long enough for its batch normalization to settle. Then each of the seeds is a new draw of
labelled digits and is scored on the 360 test digits.
"""

import itertools

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags, logging
from scipy.stats import t as student_t

from tfxfer import FineTuner, load_backbone, open_dataset

SHOTS = flags.DEFINE_integer("shots", 5, "Labelled digits of each class.", lower_bound=1)
SEEDS = flags.DEFINE_integer("seeds", 5, "Draws that are scored on test.", lower_bound=2)
TUNING = flags.DEFINE_integer("tuning", 3, "Draws that choose rate and steps.", lower_bound=1)

HEAD_RATE = 1e-2
HEAD_STEPS = 100
RATES = {
    "head": (1e-3, 3e-3, 1e-2),
    "fine-tuned": (1e-4, 3e-4, 1e-3),
    "random": (3e-4, 1e-3, 3e-3, 1e-2),
}
STEPS = {
    "head": (100, 300, 1000),
    "fine-tuned": (50, 100, 300),
    "random": (100, 300, 1000),
}


def arrays(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns images and labels of a split of digits, which fit into memory."""
    _, images, labels = zip(*open_dataset("digits").split(name).as_numpy_iterator(), strict=True)
    return np.stack(images), np.stack(labels)


def draw(labels: np.ndarray, shots: int, seed: int) -> np.ndarray:
    """Returns the rows of `shots` examples of each class."""
    rng = np.random.default_rng(seed)
    rows = [
        rng.choice(np.flatnonzero(labels == c), shots, replace=False) for c in np.unique(labels)
    ]
    return np.concatenate(rows)


def randomise(model: FineTuner) -> None:
    """Gives every weight of the backbone the value that a new network starts with."""
    for weight in model.backbone.weights:
        if len(weight.shape) > 1:
            weight.assign(keras.initializers.HeNormal()(weight.shape))
        else:
            ones = weight.path.endswith(("gamma", "moving_variance"))
            weight.assign(np.full(weight.shape, float(ones)))


def train(model: FineTuner, stages, rate: float, images, labels, steps: int) -> None:
    """Trains some stages on one batch of everything for a number of steps."""
    model.unfreeze(stages)
    model.compile(
        keras.optimizers.Adam(rate), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    model.fit(
        tf.data.Dataset.from_tensors((images, labels)).repeat(steps), shuffle=False, verbose=0
    )


def fit(way: str, images, labels, rate: float, steps: int, seed: int) -> FineTuner:
    """Trains a model in one of the ways."""
    keras.utils.set_random_seed(seed)
    model = FineTuner(load_backbone("glyphs"), keras.layers.Dense(10))
    if way == "random":
        randomise(model)
    if way == "fine-tuned":
        train(model, ["head"], HEAD_RATE, images, labels, HEAD_STEPS)
    train(model, ["head"] if way == "head" else model.stage_names, rate, images, labels, steps)
    return model


def accuracy(model: FineTuner, images, labels) -> float:
    """Returns the share of right answers."""
    return float(np.mean(model.predict(images, verbose=0).argmax(-1) == labels))


def choose(way: str, images, labels) -> tuple[float, int]:
    """Returns the rate and the steps with the best mean accuracy on validation digits."""
    scores = {}
    for rate, steps in itertools.product(RATES[way], STEPS[way]):
        found = []
        for seed in range(1000, 1000 + TUNING.value):
            rows = draw(labels, SHOTS.value, seed)
            rest = np.setdiff1d(np.arange(len(labels)), rows)
            model = fit(way, images[rows], labels[rows], rate, steps, seed)
            found.append(accuracy(model, images[rest], labels[rest]))
        scores[rate, steps] = np.mean(found)
        print(
            f"  {way}: rate {rate:g}, {steps} steps: validation {scores[rate, steps]:.4f}",
            flush=True,
        )
    return max(scores, key=scores.__getitem__)


def main(argv) -> None:
    """Prints mean test accuracy, and its 95% interval over draws, of each way."""
    del argv
    logging.set_verbosity(logging.ERROR)
    images, labels = arrays("train")
    test_images, test_labels = arrays("test")
    means = {}
    for way in RATES:
        rate, steps = choose(way, images, labels)
        found = []
        for seed in range(SEEDS.value):
            rows = draw(labels, SHOTS.value, seed)
            model = fit(way, images[rows], labels[rows], rate, steps, seed)
            found.append(accuracy(model, test_images, test_labels))
        means[way] = np.mean(found)
        half = student_t.ppf(0.975, len(found) - 1) * np.std(found, ddof=1) / len(found) ** 0.5
        each = " ".join(f"{value:.4f}" for value in found)
        print(
            f"{way}: rate {rate:g}, {steps} steps: test {means[way]:.4f} +- {half:.4f} ({each})",
            flush=True,
        )
    gain = 100 * (means["fine-tuned"] - means["random"])
    print(f"fine-tuned is {gain:.1f} points above random")


if __name__ == "__main__":
    app.run(main)
