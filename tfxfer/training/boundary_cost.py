"""What it costs to keep activations, and what it saves."""

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf

from tfxfer.backbones.boundary import Boundary
from tfxfer.data.parts import Part

_MEMORY_BYTES_A_SECOND = 1e9  # Half of what was measured through tf.data, rows of 150 kB.
_IN_MEMORY = 0.25  # Of all memory: an entry that is smaller stays in the system's page cache.
_PROBE_BYTES = 4 * 2**20
_MOST_TIMED, _ONE_OF = 16, 25  # Images that a network is timed on: few against an epoch.


@dataclass(frozen=True)
class Speed:
    """What a disk and the memory before it can do.

    Attributes:
        disk: Bytes a second, written and brought to the disk.
        free_bytes: What the disk has room for.
        memory_bytes: What the machine's memory holds.
    """

    disk: float
    free_bytes: int
    memory_bytes: int

    @classmethod
    def of(cls, folder: Path) -> "Speed":
        """Measures the disk of a folder, which need not be there yet, by writing 4 MiB."""
        there = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        data = np.random.default_rng(0).bytes(_PROBE_BYTES)
        start = time.perf_counter()
        try:
            with tempfile.TemporaryFile(dir=there) as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError:  # Whoever writes an entry says what is wrong.
            return cls(np.inf, shutil.disk_usage(there).free, memory)
        seconds = time.perf_counter() - start
        return cls(_PROBE_BYTES / seconds, shutil.disk_usage(there).free, memory)


@dataclass(frozen=True)
class Cost:
    """What a phase costs up to its boundary, with and without the activations there kept.

    Attributes:
        held: Images that entries hold, views counted.
        models: How many, such as those of folds, share them.
        each: Images of an epoch, those of validation too.
        epochs: How many run.
        row_bytes: What is kept of an image.
        speed: Of the disk.
    """

    held: int
    models: int
    each: int
    epochs: float
    row_bytes: int
    speed: Speed

    @property
    def transfer(self) -> float:
        """Seconds in which all is written once, by one of the models, and read in each epoch."""
        total = self.held * self.row_bytes
        in_memory = total <= _IN_MEMORY * self.speed.memory_bytes
        read = _MEMORY_BYTES_A_SECOND if in_memory else self.speed.disk
        written = total / self.models / self.speed.disk
        return written + self.epochs * self.each * self.row_bytes / read

    def share(self, seconds: float) -> float:
        """Tells how long it takes if activations are kept, over how long it takes if not.

        Args:
            seconds: Of the network up to the boundary, for one image.
        """
        kept = self.held / self.models * seconds + self.transfer
        return kept / (self.epochs * self.each * seconds)

    def least_seconds(self, share: float) -> float:
        """Tells how long the network must take, at least, for `share` not to be above this.

        Returns:
            Seconds an image; infinite if however slow it is that cannot be.
        """
        saved = share * self.epochs * self.each - self.held / self.models
        return self.transfer / saved if saved > 0 else np.inf


def slow_enough(
    least: Sequence[float], seconds_of: Callable[[int], float]
) -> list[tuple[bool, float]]:
    """Tells which beginnings of a network take long enough, and times few of them.

    Each is a part of the next, so that one that is timed tells that those after it take as long,
    and that those before it do not take longer. The first goes first, since it takes least to try
    and mostly is the widest.

    Args:
        least: Seconds that each must take, input side first.
        seconds_of: Times one, by its position.

    Returns:
        Of each, whether, and the seconds that told it.
    """
    found: dict[int, tuple[bool, float]] = {}
    unknown, at = list(range(len(least))), 0
    while unknown:
        tried = unknown[at]
        seconds = seconds_of(tried)
        for i in unknown:
            if i >= tried and seconds >= least[i]:
                found[i] = True, seconds
            elif i <= tried and seconds < least[i]:
                found[i] = False, seconds
        unknown = [i for i in unknown if i not in found]
        at = len(unknown) // 2
    return [found[i] for i in range(len(least))]


def prefix_seconds(boundary: Boundary, images: tf.Tensor) -> float:
    """Times a network up to a boundary; returns seconds an image, the lesser of two runs."""
    # Traced as it will run over all images, so that this is not in vain.
    run = boundary.prefix.get_concrete_function(
        tf.TensorSpec((None, *images.shape[1:]), images.dtype)
    )
    run(images).numpy()
    taken = []
    for _ in range(2):
        start = time.perf_counter()
        run(images).numpy()
        taken.append(time.perf_counter() - start)
    return min(taken) / len(images)


def noise_images(
    part: Part, contract_size: tuple[int, int] | None, *, augmented: bool
) -> tf.Tensor:
    """Makes images of the shape and type in which those of a part come, 16 at most.

    Args:
        part: Any.
        contract_size: What those whose size varies are brought to.
        augmented: Whether they come as floats.
    """
    height, width, channels = part.source.info.shape
    size = contract_size if height is None or width is None else (height, width)
    assert size and channels  # Else images could not stand in one batch.
    shape = (int(size[0]), int(size[1]), channels)
    count = max(1, min(_MOST_TIMED, part.examples // _ONE_OF))
    dtype = tf.float32 if augmented or size != (height, width) else tf.uint8
    images = np.random.default_rng(0).integers(0, 256, (count, *shape), dtype=np.uint8)
    return tf.cast(images, dtype)
