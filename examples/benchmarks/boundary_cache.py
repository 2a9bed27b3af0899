"""Times gradual fine-tuning with and without what frozen stages return being kept.

A plan of four phases (the head; the last stage; the last two; the last three) on MobileNetV2 at
96x96 pixels, with the same images, seeds and start. Without, every epoch runs the whole network.
With, each phase decides by cost where the frozen beginning ends, runs it once over the images, and
its epochs run the rest. Both are run in turn, each with an empty cache; deciding, computing and
writing are part of the time. Before, both have run on a few images, so that neither pays for
TensorFlow's start. Seconds of the processors are told too, which other programs disturb less.

Images are made, textures of ten kinds; weights are random unless `--weights` names some.
"""

import tempfile
import time

import keras
import numpy as np
from absl import app, flags, logging

from tfxfer import load_backbone
from tfxfer.cache import Cache
from tfxfer.data.arrays import open_arrays
from tfxfer.data.parts import Part
from tfxfer.data.pipeline import batches, train_batches
from tfxfer.models import FineTuner
from tfxfer.plan import Phase
from tfxfer.training.boundary import BoundaryCache
from tfxfer.training.epochs import Data
from tfxfer.training.loop import train
from tfxfer.training.objective import objective

ALPHA = flags.DEFINE_float("alpha", 0.35, "Width of MobileNetV2.")
SIZE = flags.DEFINE_integer("size", 96, "Height and width of the images that it takes.")
WEIGHTS = flags.DEFINE_string("weights", "none", "Weights of MobileNetV2.")
COUNT = flags.DEFINE_integer("count", 1000, "Training images.")
EPOCHS = flags.DEFINE_integer("per_phase", 3, "Epochs in each phase.")
PHASES = flags.DEFINE_integer("phases", 4, "The head, and how many stages less one.")
REPEATS = flags.DEFINE_integer("repeats", 3, "How often each is timed.")
MODE = flags.DEFINE_enum("mode", "auto", ["auto", "on", "off"], "What is compared with off.")

BATCH, CLASSES = 32, 10


def textures(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Makes images of waves whose direction and length tell their class, in noise."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % CLASSES
    rows, columns = np.indices((SIZE.value, SIZE.value))
    images = np.empty((count, SIZE.value, SIZE.value, 3), np.uint8)
    for i, label in enumerate(labels):
        angle = np.pi * (label % 5) / 5 + rng.normal(0, 0.08)
        length = 6 if label < 5 else 14
        wave = (rows * np.cos(angle) + columns * np.sin(angle)) / length + rng.random()
        shown = 128 + 60 * np.sin(2 * np.pi * wave)[..., None] + rng.normal(0, 40, images[i].shape)
        images[i] = np.clip(shown, 0, 255)
    return images, labels


def phases(model: FineTuner, epochs: int) -> list[Phase]:
    """Plans from the head down, each phase to its last epoch."""
    names = model.stage_names
    return [
        Phase(names[-depth], names[-depth:], epochs, 1e-3 if depth == 1 else 1e-4, patience=0)
        for depth in range(1, PHASES.value + 1)
    ]


def parts(count: int) -> tuple[Part, Part]:
    """Makes training images, and a tenth as many for validation."""
    source = open_arrays({"train": textures(count, 0), "test": textures(count // 10, 1)})
    sizes = source.info.examples
    train_part, validation = (
        Part(source, split, np.arange(sizes[split]), split) for split in ("train", "test")
    )
    return train_part, validation


def fine_tune(mode: str, data: tuple[Part, Part], epochs: int, *, said: bool = False):
    """Fine-tunes; returns seconds by the clock and of the processors, and the weights."""
    train_part, validation = data
    keras.utils.set_random_seed(0)
    backbone = load_backbone(
        f"keras:MobileNetV2(alpha={ALPHA.value}, weights={WEIGHTS.value})", image_size=SIZE.value
    )
    model = FineTuner(backbone, keras.layers.Dense(train_part.source.info.task.units))
    plan = phases(model, epochs)
    images = Data(
        train_batches(train_part, BATCH, seed=0, image_size=backbone.contract.size),
        batches(validation, BATCH, image_size=backbone.contract.size),
    )
    with tempfile.TemporaryDirectory() as folder:
        start, processors = time.perf_counter(), time.process_time()
        kept = BoundaryCache(model, Cache(folder, 10**10), train_part, validation, mode=mode)
        choices = kept.choose(plan, BATCH)
        decided = time.perf_counter() - start
        results = train(
            model,
            plan,
            images,
            objective(train_part.source.info.task, train_part.labels),
            shortcut=kept.shortcut(choices, BATCH),
        )
        seconds = np.array([time.perf_counter() - start, time.process_time() - processors])
    if said:
        print(f"mode {mode}: deciding took {decided:.2f} s")
        for result in results:
            choice = choices[result.name]
            where = choice.where or "nothing kept"
            undone = "" if result.kept else ", undone"
            print(f"  {result.name}: {result.seconds:.1f} s{undone}; {where}: {choice.reason}")
    return seconds, [np.array(weight) for weight in model.get_weights()]


def main(argv) -> None:
    """Compares."""
    del argv
    logging.set_verbosity(logging.ERROR)
    few, data = parts(100), parts(COUNT.value)
    for mode in ("off", MODE.value):
        fine_tune(mode, few, 1)
    ratios, apart = [], []
    for turn in range(REPEATS.value):
        slow, expected = fine_tune("off", data, EPOCHS.value, said=not turn)
        fast, weights = fine_tune(MODE.value, data, EPOCHS.value, said=not turn)
        ratios.append(fast / slow)
        apart.append(max(np.abs(a - b).max() for a, b in zip(expected, weights, strict=True)))
        print(
            f"off {slow[0]:.1f} s, {MODE.value} {fast[0]:.1f} s, ratio {ratios[-1][0]:.3f}, "
            f"of processor seconds {ratios[-1][1]:.3f}; "
            f"weights differ by {apart[-1]:.1e} at most",
            flush=True,
        )
    clock, processor = np.median(ratios, axis=0)
    print(
        f"median ratio {clock:.3f}, of processor seconds {processor:.3f}, "
        f"greatest difference {max(apart):.1e}"
    )


if __name__ == "__main__":
    app.run(main)
