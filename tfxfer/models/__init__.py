"""The Keras models: each works by itself with `compile`, `fit`, `evaluate` and `save`."""

import os
from typing import Any

import keras

from tfxfer.models.fine_tuner import FineTuner

__all__ = ["FineTuner", "load_model"]


def load_model(path: str | os.PathLike, **kwargs: Any) -> keras.Model:
    """Loads a `.keras` file of one of these models, which Keras alone does not know.

    Args:
        path: The file.
        **kwargs: As for `keras.models.load_model`. A model on a SavedModel of your own needs
            `safe_mode=False`, since it runs that SavedModel.

    Returns:
        The model, compiled if it was.

    Raises:
        ValueError: If the file cannot be read, or needs `safe_mode=False`, or its SavedModel has
            changed since.
    """
    return keras.models.load_model(path, **kwargs)
