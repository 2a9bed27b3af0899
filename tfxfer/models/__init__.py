"""The Keras models: each works by itself with `compile`, `fit`, `evaluate` and `save`."""

import os
from pathlib import Path
from typing import Any

import keras

import tfxfer.heads  # noqa: F401 (so that Keras knows the layers of heads in files)
from tfxfer.errors import UserError
from tfxfer.models.distiller import Distiller
from tfxfer.models.feature_extractor import FeatureExtractor
from tfxfer.models.fine_tuner import FineTuner
from tfxfer.models.loss_schedule import LossSchedule
from tfxfer.models.mutual import MutualLearner
from tfxfer.models.teachers import Teacher

__all__ = [
    "Distiller",
    "FeatureExtractor",
    "FineTuner",
    "LossSchedule",
    "MutualLearner",
    "Staged",
    "Teacher",
    "load_model",
]

Staged = FineTuner | Distiller
"""Models whose stages train in phases."""


def load_model(path: str | os.PathLike, **kwargs: Any) -> keras.Model:
    """Loads a `.keras` file of one of these models, which Keras alone does not know.

    Args:
        path: The file.
        **kwargs: As for `keras.models.load_model`. A model on a SavedModel of your own needs
            `safe_mode=False`, since it runs that SavedModel.

    Returns:
        The model, compiled if it was.

    Raises:
        UserError: If `path` is not a `.keras` file.
        ValueError: If the file cannot be read, or needs `safe_mode=False`, or its SavedModel has
            changed since.
    """
    if Path(path).suffix != ".keras" or not Path(path).is_file():
        raise UserError(
            f"load_model must be given a .keras file, and {str(path)!r} is none",
            "A run writes its model to model.keras in its workdir.",
        )
    return keras.models.load_model(path, **kwargs)
