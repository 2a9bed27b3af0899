"""What it costs to keep activations, and what it saves."""

import os
import shutil
import tempfile
import time
from collections.abc import Sequence
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
        once: Examples that are kept, views counted.
        each: Examples of an epoch, those of validation too.
        epochs: How many run.
        seconds: Of the network up to the boundary, for one example.
        row_bytes: What is kept of an example.
        speed: Of the disk.
    """

    once: int
    each: int
    epochs: float
    seconds: float
    row_bytes: int
    speed: Speed

    @property
    def without(self) -> float:
        """Seconds if the network runs in every epoch."""
        return self.epochs * self.each * self.seconds

    @property
    def kept(self) -> float:
        """Seconds if it runs once, and epochs read what it returned."""
        total = self.once * self.row_bytes
        in_memory = total <= _IN_MEMORY * self.speed.memory_bytes
        read = _MEMORY_BYTES_A_SECOND if in_memory else self.speed.disk
        written = self.once * self.seconds + total / self.speed.disk
        return written + self.epochs * self.each * self.row_bytes / read

    @property
    def share(self) -> float:
        """`kept` over `without`."""
        return self.kept / self.without


@dataclass(frozen=True)
class Timed:
    """What a network takes up to a boundary.

    Attributes:
        seconds: For one image.
        shape: Of what it returns of one image.
    """

    seconds: float
    shape: tuple[int, ...]


def time_boundaries(
    boundaries: Sequence[Boundary], part: Part, *, augmented: bool
) -> dict[tuple[int, ...], Timed]:
    """Times a network up to each of some boundaries, on images of noise, 16 at most.

    Args:
        boundaries: Of one network, input side first.
        part: Whose images it is for.
        augmented: Whether they come as floats.

    Returns:
        By place of the boundary.
    """
    images = _noise(part, boundaries[0].contract.size, augmented)
    found: dict[tuple[int, ...], Timed] = {}
    before, given, seconds = None, images, 0.0
    for boundary in boundaries:
        if before is not None and boundary.follows(before):
            run = boundary.since(before)
        else:
            run, given, seconds = boundary.prefix, images, 0.0
        # As it will run over all of them.
        run = run.get_concrete_function(tf.TensorSpec((None, *given.shape[1:]), given.dtype))
        run(given)
        taken = []
        for _ in range(2):
            start = time.perf_counter()
            run(given).numpy()
            taken.append(time.perf_counter() - start)
        seconds += min(taken) / len(images)
        before, given = boundary, tf.cast(run(given), tf.float32)
        found[boundary.place] = Timed(seconds, tuple(given.shape[1:]))
    return found


def _noise(part: Part, contract_size: tuple[int, int] | None, augmented: bool) -> tf.Tensor:
    """Makes images of the shape and type in which those of a part come."""
    height, width, channels = part.source.info.shape
    size = contract_size if height is None or width is None else (height, width)
    assert size and channels  # Else images could not stand in one batch.
    shape = (int(size[0]), int(size[1]), channels)
    count = max(1, min(_MOST_TIMED, part.examples // _ONE_OF))
    dtype = tf.float32 if augmented or size != (height, width) else tf.uint8
    images = np.random.default_rng(0).integers(0, 256, (count, *shape), dtype=np.uint8)
    return tf.cast(images, dtype)
