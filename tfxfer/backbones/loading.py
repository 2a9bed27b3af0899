"""How SavedModels are loaded, whatever they hold."""

from pathlib import Path
from typing import Any

import tensorflow as tf
from keras.src.saving.serialization_lib import in_safe_mode  # Keras shows it nowhere else.

# What a SavedModel holds beside functions and variables; TensorFlow shows it nowhere else.
from tensorflow.python.trackable.asset import Asset
from tensorflow.python.trackable.resource import CapturableResource

from tfxfer.errors import UserError, first_line

_NO_OPERATION = "Op type not registered"


def load_saved_model(folder: Path, what: str) -> Any:
    """Loads a SavedModel of either format, with the operations of tensorflow_text if it has any.

    Args:
        folder: Of it.
        what: What it is, for messages, such as "Backbone 'small_bert'".

    Raises:
        UserError: If it cannot be read, or needs tensorflow_text, and that is not installed.
    """
    # TF Hub's mark of its TF1 format, in which the graph for inference has no tag.
    first_format = (folder / "tfhub_module.pb").is_file()

    def load() -> Any:
        return tf.saved_model.load(str(folder), tags=[] if first_format else None)

    try:
        try:
            return load()
        except Exception as error:
            if _NO_OPERATION not in str(error):
                raise
            import_tensorflow_text(what)
            return load()
    except UserError:
        raise
    except Exception as error:  # A broken file fails in whichever layer meets it first.
        raise UserError(
            f"{what} must hold a readable SavedModel: {first_line(error)}",
            "Download or export it again.",
        ) from error


def import_tensorflow_text(what: str) -> Any:
    """Imports tensorflow_text, whose operations TensorFlow then knows.

    Args:
        what: What needs it.

    Raises:
        UserError: If it is not installed.
    """
    try:
        import tensorflow_text
    except ImportError as error:
        raise UserError(
            f"{what} needs the package tensorflow-text, which is not installed",
            "Install it with pip install 'tfxfer[text]'.",
        ) from error
    return tensorflow_text


def resources_of(module: Any) -> list[Any]:
    """Returns the lookup tables, vocabularies and the like that a loaded SavedModel holds."""
    kinds = (CapturableResource, Asset)
    return [
        each for each in tf.train.TrackableView(module).descendants() if isinstance(each, kinds)
    ]


def check_trusted(source: str) -> None:
    """Checks that a SavedModel inside of a Keras file may be run.

    Raises:
        ValueError: In Keras' safe mode.
    """
    if in_safe_mode() is not False:
        raise ValueError(
            f"This model runs the SavedModel {source!r}, which it was saved with and "
            "which may do anything that a program may. If you trust it, load the model with "
            "`safe_mode=False`, or, to clone one in memory, call "
            "`keras.config.enable_unsafe_deserialization()` first."
        )
