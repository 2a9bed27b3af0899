"""What training leaves on the disk, so that a process that was killed can go on."""

import contextlib
import errno
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import keras
import numpy as np
import tensorflow as tf

from tfxfer.errors import CheckpointError, UserError
from tfxfer.files import written_whole

_IDENTITY, _DONE, _STEP, _WEIGHTS = "identity.json", "done.json", "step", "weights"
_PROGRESS = "progress/.ATTRIBUTES/py_state"
# What TensorFlow raises of files that are whole.
_PASSING = (
    tf.errors.ResourceExhaustedError,
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
)

State = dict[str, Any]
"""Where training stands, of what JSON can hold."""


class Checkpoints:
    """A folder with the state of one model's training, and with weights to come back to.

    Every file appears whole or not at all: weights are renamed into place, and steps are written
    by TensorFlow's `CheckpointManager`, which names a checkpoint once it is there. If the disk is
    full, methods that write raise `OSError`, and what was there still counts. Methods that read
    raise `CheckpointError` if a file is damaged.

    Args:
        folder: Where; made if it is not there.
        identity: What the training depends on, of what JSON can hold: plan, data, backbone.
        seconds: Least time between two checkpoints of steps.

    Raises:
        UserError: If the folder holds a training of another identity.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any], seconds: float = 30.0):
        self._folder = folder
        self._seconds = seconds
        self._saved = time.monotonic()
        if names := changed(folder, identity):
            raise UserError(
                f"The unfinished training in {folder} must go on with what it was begun with, and "
                f"this has another {names}",
                "Replace it with --overwrite, or name another folder.",
            )
        if not (folder / _IDENTITY).is_file():
            shutil.rmtree(folder, ignore_errors=True)
            (folder / _WEIGHTS).mkdir(parents=True)
            stated = json.dumps(identity).encode()
            _write(folder / _IDENTITY, lambda file: file.write(stated))

    @property
    def due(self) -> bool:
        """Whether it is time for another checkpoint."""
        return time.monotonic() - self._saved >= self._seconds

    def write(self, variables: Mapping[str, Sequence[keras.Variable | tf.Variable]], state: State):
        """Writes a checkpoint.

        Args:
            variables: By name of their group.
            state: Where training stands.
        """
        manager = tf.train.CheckpointManager(
            _checkpoint(variables, state), str(self._folder / _STEP), max_to_keep=1
        )
        # One that is there must not be written over: until the new one is whole, it counts.
        number = int(manager.latest_checkpoint.rpartition("-")[2]) if manager.checkpoints else 0
        try:
            manager.save(checkpoint_number=number + 1)
        except tf.errors.ResourceExhaustedError as error:
            for code in (errno.ENOSPC, errno.EDQUOT):
                if os.strerror(code) in str(error):
                    raise OSError(code, os.strerror(code), str(self._folder)) from error
            raise
        self._saved = time.monotonic()

    def state(self) -> State | None:
        """Returns where training stood at the last checkpoint; `None` if there is none."""
        if not _steps(self._folder).is_file():
            return None
        with _damage_told(self._folder):
            return json.loads(tf.train.load_checkpoint(self._latest()).get_tensor(_PROGRESS))

    def restore(self, variables: Mapping[str, Sequence[keras.Variable | tf.Variable]]) -> None:
        """Gives variables the values of the last checkpoint, which must have them all."""
        with _damage_told(self._folder):
            status = _checkpoint(variables, {}).restore(self._latest())
        status.assert_existing_objects_matched()

    def _latest(self) -> str:
        latest = tf.train.latest_checkpoint(str(self._folder / _STEP))
        if latest is None:
            raise ValueError("it names no checkpoint that is there")
        return latest

    def write_weights(
        self, name: str, model: keras.Model, losses: np.ndarray | None = None
    ) -> None:
        """Writes the weights of a model.

        Args:
            name: Of these weights.
            model: The model.
            losses: Validation loss of each example with these weights, if there is validation.
        """
        if losses is not None:
            _write(self._losses_file(name), lambda file: np.save(file, losses))
        self.write_arrays(name, model.get_weights())

    def write_arrays(self, name: str, arrays: Sequence[np.ndarray]) -> None:
        """Writes what `read_weights` reads."""
        # With types by name: of bfloat16, NumPy's files keep the bytes alone.
        named: dict[str, Any] = {
            f"{number} {each.dtype.name}": each for number, each in enumerate(arrays)
        }
        _write(self.weights_file(name), lambda file: np.savez(file, **named))

    def read_losses(self, name: str) -> np.ndarray | None:
        """Returns the losses that were written with weights; `None` if there were none."""
        path = self._losses_file(name)
        with _damage_told(self._folder):
            return np.load(path) if path.is_file() else None

    def read_weights(self, name: str) -> list[np.ndarray]:
        """Returns weights as `model.get_weights()` gave them, or the arrays of that name."""
        return read_weights(self.weights_file(name))

    def has_weights(self, name: str) -> bool:
        """Whether there are weights of that name."""
        return self.weights_file(name).is_file()

    def remove_weights(self, name: str) -> None:
        """Removes weights, if they are there."""
        self.weights_file(name).unlink(missing_ok=True)

    def finish(self, model: keras.Model, state: State) -> None:
        """Notes that training is done; what only steps needed is removed."""
        self.write_weights("final", model)
        noted = json.dumps(state).encode()
        _write(self._folder / _DONE, lambda file: file.write(noted))
        shutil.rmtree(self._folder / _STEP, ignore_errors=True)

    def finished(self) -> State | None:
        """Returns what `finish` noted; `None` if training is not done."""
        path = self._folder / _DONE
        return read_object(self._folder, path) if path.is_file() else None

    def weights_file(self, name: str) -> Path:
        """Returns where weights of that name are, of `write_weights`."""
        return self._folder / _WEIGHTS / f"{name}.npz"

    def _losses_file(self, name: str) -> Path:
        return self._folder / _WEIGHTS / f"{name}-losses.npy"


def changed(folder: Path, identity: Mapping[str, Any]) -> str:
    """Names what of an identity is not as the training in a folder has it.

    Args:
        folder: Of `Checkpoints`; it need not be there.
        identity: As `Checkpoints` takes it.

    Returns:
        Such as `plan` or `data and backbone`; empty if all is the same, or there is no training.

    Raises:
        CheckpointError: If the folder cannot be read.
    """
    file = folder / _IDENTITY
    if not file.is_file():
        return ""
    held = read_object(folder, file)
    given = json.loads(json.dumps(identity))  # As it would come back: lists for tuples.
    return " and ".join(name for name in given if held.get(name) != given[name])


def can_go_on(folder: Path) -> bool:
    """Whether a folder of `Checkpoints` holds more than what training started from.

    Weights alone do not count: where training stands is in its steps, and at last in `finish`.
    """
    return _steps(folder).is_file() or (folder / _DONE).is_file()


class _Progress(tf.train.experimental.PythonState):
    def __init__(self, state: State):
        self.state = state

    def serialize(self):
        return json.dumps(self.state)

    def deserialize(self, string_value):
        self.state = json.loads(string_value)


def read_weights(path: Path) -> list[np.ndarray]:
    """Returns the weights in a file that `Checkpoints` wrote, as `model.get_weights()` has them.

    Raises:
        CheckpointError: If the file is damaged.
    """
    with _damage_told(path.parents[1]), np.load(path) as arrays:
        return [arrays[key].view(key.split()[1]) for key in arrays.files]


@contextlib.contextmanager
def _damage_told(folder: Path) -> Iterator[None]:
    try:
        yield
    except (MemoryError, *_PASSING):
        raise
    except Exception as error:  # NumPy, zipfile and TensorFlow raise what comes, of broken files.
        raise CheckpointError(folder, error) from error


def read_object(folder: Path, path: Path) -> State:
    """Returns the JSON object in a file of what training left in a folder.

    Raises:
        CheckpointError: If there is none in it.
    """
    with _damage_told(folder):
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError(f"{path.name} holds no object")
        return found


def _steps(folder: Path) -> Path:
    """Returns the file that names the last checkpoint of steps."""
    return folder / _STEP / "checkpoint"


def _checkpoint(
    variables: Mapping[str, Sequence[keras.Variable | tf.Variable]], state: State
) -> tf.train.Checkpoint:
    plain = {
        name: [each.value if isinstance(each, keras.Variable) else each for each in group]
        for name, group in variables.items()
    }
    return tf.train.Checkpoint(progress=_Progress(state), **plain)


def _write(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Writes a file that appears whole or not at all."""
    with written_whole(path) as unfinished, unfinished.open("wb") as file:
        write(file)
