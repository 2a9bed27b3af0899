"""Ranking backbones against running each of them once over the data.

    python examples/benchmarks/selection.py

One side loads each backbone and computes its features, through a cache that is empty; the other is
`tfxfer.select` on the same images, which computes them too, and ranks: neighbours, a linear probe,
and the scores. Latency, memory and FLOPs, which it measures beside, are shown by themselves: they
take the same few seconds however many images there are. Weights are random, which costs the same.
Both sides take turns.
"""

import contextlib
import io
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags, logging

import tfxfer
from tfxfer.cache import Cache
from tfxfer.data.parts import Part
from tfxfer.features import covering, extract
from tfxfer.spec import split_specs

BACKBONES = flags.DEFINE_string(
    "backbones",
    "keras:ResNet50(weights=none), keras:MobileNetV2(weights=none), "
    "keras:EfficientNetB0(weights=none)",
    "As --backbones of the command line.",
)
IMAGES = flags.DEFINE_integer("images", 2000, "Training examples.", lower_bound=20)
SIZE = flags.DEFINE_integer("size", 224, "Height and width of the images.")
ROUNDS = flags.DEFINE_integer("rounds", 2, "Turns of each.", lower_bound=1)
CLASSES = 10


def images() -> Any:
    """Returns data in memory."""
    rng = np.random.default_rng(0)
    labels = np.arange(IMAGES.value) % CLASSES
    tint = rng.integers(0, 128, (CLASSES, 1, 1, 3))
    noise = rng.integers(0, 128, (IMAGES.value, SIZE.value, SIZE.value, 3), dtype=np.uint8)
    return tfxfer.open_dataset(
        {
            "train": ((noise + tint[labels]).astype(np.uint8), labels),
            "test": (noise[:20], labels[:20]),
        }
    )


def features(data: Any, parts: list[Part], folder: Path) -> float:
    """Runs each backbone once; returns seconds."""
    start = time.perf_counter()
    for name in split_specs(BACKBONES.value):
        backbone = tfxfer.load_backbone(name, data_size=data.info.shape[:2])
        extract(backbone, covering(parts), Cache(folder, 10**11))
    return time.perf_counter() - start


def ranking(data: Any, folder: Path) -> tuple[float, float]:
    """Ranks the backbones; returns seconds without and with what is measured of costs."""
    start = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        result = tfxfer.select(
            data,
            backbones=BACKBONES.value,
            max_examples=IMAGES.value,
            workdir=str(folder / "run"),
            cache_dir=str(folder / "cache"),
            scan=False,
        )
    seconds = time.perf_counter() - start
    assert result is not None
    return seconds - result.timings["costs"], seconds


def compare() -> float:
    """Takes turns; returns the ratio of the sums."""
    data = images()
    splits = tfxfer.split_data(data)
    once, ranked, whole = 0.0, 0.0, 0.0
    for _ in range(ROUNDS.value):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            alone = features(data, [splits.train, splits.validation], folder / "alone")
            without, seconds = ranking(data, folder)
        once, ranked, whole = once + alone, ranked + without, whole + seconds
        print(f"features {alone:.1f} s, ranking {without:.1f} s, with costs {seconds:.1f} s")
    print(f"ratio {ranked / once:.3f}, with costs {whole / once:.3f}")
    return ranked / once


def main(argv) -> None:
    """Compares."""
    del argv
    logging.set_verbosity(logging.ERROR)
    compare()


if __name__ == "__main__":
    app.run(main)
