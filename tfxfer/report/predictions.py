"""What a trained model said of the examples it was judged on, as a file in the workdir."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tfxfer.data.parts import Part
from tfxfer.files import written_whole

PARTS = ("validation", "test")


@dataclass(frozen=True)
class Predictions:
    """What a model said of a part of the data.

    Attributes:
        outputs: Logits, or numbers of a regression, float32 `[examples, units]`.
        y: What is true, as the task has it.
    """

    outputs: np.ndarray
    y: np.ndarray


def write_predictions(path: Path, parts: Mapping[str, tuple[Part, np.ndarray, np.ndarray]]) -> None:
    """Writes a NumPy archive with `NAME_outputs`, `NAME_y` and `NAME_rows` of each part.

    Args:
        path: The file; it appears whole or not at all.
        parts: The examples, the outputs and `y` of them in their order, by name.
    """
    arrays = {}
    for name, (part, outputs, y) in parts.items():
        arrays |= {f"{name}_outputs": outputs, f"{name}_y": y, f"{name}_rows": part.rows}
    with written_whole(path) as unfinished, unfinished.open("wb") as file:
        np.savez(file, **arrays)


def read_predictions(path: Path) -> dict[str, Predictions]:
    """Reads what `write_predictions` wrote, by name of the part."""
    with np.load(path) as found:
        return {
            name: Predictions(found[f"{name}_outputs"], found[f"{name}_y"])
            for name in PARTS
            if f"{name}_y" in found
        }
