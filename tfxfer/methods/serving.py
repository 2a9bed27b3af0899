"""What a model costs where it serves the examples of a dataset."""

import keras
import numpy as np

from tfxfer.costs import ModelCost, cost_on, model_cost
from tfxfer.data.base import TEXT
from tfxfer.data.parts import Part
from tfxfer.data.pipeline import batches


def serving_cost(
    model: keras.Model, part: Part, image_size: tuple[int, int] | None = None
) -> ModelCost:
    """Counts and measures what a model costs for one example.

    Args:
        model: From images or texts of the dataset.
        part: Examples; the first text is the one to measure on, and of images only the size counts.
        image_size: Height and width of images where the dataset has several.

    Returns:
        The cost.
    """
    info = part.source.info
    if info.inputs == TEXT:
        (batch,) = batches(part.pick(np.array([0])), 1)
        return cost_on(model, batch[0])
    height, width = image_size or info.shape[:2]
    return model_cost(model, (height, width, info.shape[-1] or 3))
