"""How fast the data pipeline is, and whether its memory grows with the data.

    python examples/benchmarks/pipeline.py --what=throughput

writes JPEG files of 400x300 and 300x400 pixels, and passes over them in turns: with a bare loop of
`list_files`, `read_file`, `decode_jpeg`, `resize` and `batch`, with the batches of evaluation and
with those of training, all with as many threads. It prints images per second of every round, and
the ratios to the bare loop, each way by its fastest round: what else runs on a machine only slows.

    python examples/benchmarks/pipeline.py --what=memory

passes once over folders of 2,000 and of 20,000 small JPEG files as an epoch of training does, each
time in a new process, and prints the peaks of resident memory and the ratio of their medians.
"""

import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from absl import app, flags
from PIL import Image

# TensorFlow is imported where it is used: the peak that a new process reports starts from the
# memory of the process that started it.

WHAT = flags.DEFINE_enum("what", "throughput", ("throughput", "memory"), "What to measure.")
IMAGES = flags.DEFINE_integer("images", 2000, "Files of the throughput.", lower_bound=2)
FEW = flags.DEFINE_integer("few", 2000, "Files of the small folder.", lower_bound=2)
MANY = flags.DEFINE_integer("many", 20000, "Files of the large folder.", lower_bound=2)
ROUNDS = flags.DEFINE_integer("rounds", 10, "Rounds of the throughput.", lower_bound=1)
PASSES = flags.DEFINE_integer("passes", 3, "Passes over each folder.", lower_bound=1)
BATCH_SIZE = flags.DEFINE_integer("batch_size", 32, "Images a batch.", lower_bound=1)
SIZE = flags.DEFINE_integer("size", 224, "Height and width after the resize.", lower_bound=1)
FOLDER = flags.DEFINE_string("folder", None, "Pass over this folder once and print the peak.")


def write_images(folder: Path, count: int, size: tuple[int, int]) -> None:
    """Writes JPEG files of two classes, lying and upright in turn.

    Args:
        folder: Where; it gets a folder for each class.
        count: How many.
        size: Width and height of those that lie.
    """
    rng = np.random.default_rng(0)
    for name in ("0", "1"):
        (folder / name).mkdir(parents=True)
    for number in range(count):
        # Blots of colour: of pure noise, a file would be far larger than a photograph.
        blots = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8))
        width, height = size if number % 2 else size[::-1]
        image = blots.resize((width, height), Image.Resampling.BICUBIC)
        image.save(folder / str(number // 2 % 2) / f"{number:06}.jpg", quality=90)


def images_per_second(dataset, count: int) -> float:
    """Returns the rate of one pass, from the first batch on: before it, graphs are made."""
    passing = iter(dataset)
    next(passing)
    start = time.perf_counter()
    for _ in passing:
        pass
    return (count - BATCH_SIZE.value) / (time.perf_counter() - start)


def whole(folder: Path):
    """Returns all images of a folder."""
    from tfxfer.data.folder import open_folder
    from tfxfer.data.parts import Part
    from tfxfer.spec import parse_spec

    source = open_folder(parse_spec(f"folder:{folder}"))
    return Part(source, "train", np.arange(source.info.examples["train"]), "benchmark")


def throughput(folder: Path) -> None:
    """Prints images per second and the ratios to the bare loop."""
    import tensorflow as tf

    from tfxfer.data.pipeline import batches, train_batches

    size = (SIZE.value, SIZE.value)
    write_images(folder, IMAGES.value, (400, 300))

    def image(path):
        decoded = tf.io.decode_jpeg(tf.io.read_file(path), channels=3)
        return tf.image.resize(decoded, size, antialias=True)

    files = tf.data.Dataset.list_files(f"{folder}/*/*.jpg", shuffle=False)
    bare = files.map(image, tf.data.AUTOTUNE).batch(BATCH_SIZE.value).prefetch(tf.data.AUTOTUNE)
    part = whole(folder)
    ways = {
        "bare loop": bare,
        "batches": batches(part, BATCH_SIZE.value, image_size=size),
        "train_batches": train_batches(part, BATCH_SIZE.value, seed=0, image_size=size).epoch(0),
    }
    rates = {way: [] for way in ways}
    for number in range(ROUNDS.value + 1):
        for way, dataset in ways.items():
            rate = images_per_second(dataset, IMAGES.value)
            if number:  # The first round warms up.
                rates[way].append(rate)
    for way, found in rates.items():
        print(f"{way}: {', '.join(f'{rate:.0f}' for rate in found)} images/s")
    for way in list(ways)[1:]:
        print(f"ratio {max(rates[way]) / max(rates['bare loop']):.3f} of {way}")


def memory(folder: Path) -> None:
    """Prints peaks of resident memory and their ratio."""
    counts = FEW.value, MANY.value
    peaks = {count: [] for count in counts}
    for count in counts:
        write_images(folder / str(count), count, (128, 96))
    for _ in range(PASSES.value):
        for count in counts:
            command = [sys.executable, __file__, f"--folder={folder / str(count)}", "--size=96"]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            peaks[count].append(float(done.stdout))
    for count, found in peaks.items():
        print(f"{count} files: {', '.join(f'{peak:.0f}' for peak in found)} MiB")
    few, many = (statistics.median(peaks[count]) for count in counts)
    print(f"ratio {many / few:.3f} of peak memory")


def peak_of_an_epoch(folder: Path) -> float:
    """Returns the peak of resident memory after an epoch over a folder, in MiB."""
    from tfxfer.data.pipeline import train_batches

    part = whole(folder)
    size = (SIZE.value, SIZE.value)
    data = train_batches(part, BATCH_SIZE.value, seed=0, image_size=size, augment="light")
    seen = sum(len(labels) for _, labels in data.epochs().take(data.steps))
    assert seen == part.examples
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**10 if sys.platform != "darwin" else peak / 2**20


def main(argv: list[str]) -> None:
    """Measures what was asked for."""
    del argv
    if FOLDER.value:
        print(peak_of_an_epoch(Path(FOLDER.value)))
        return
    with tempfile.TemporaryDirectory() as folder:
        (throughput if WHAT.value == "throughput" else memory)(Path(folder))


if __name__ == "__main__":
    app.run(main)
