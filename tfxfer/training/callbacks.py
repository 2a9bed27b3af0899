"""What is written down while a model trains."""

import json
import time
from pathlib import Path

import keras

from tfxfer.plan import Phase


class MetricsLog(keras.callbacks.Callback):
    """Appends one JSON line an epoch: phase, epoch from 1, Keras' logs, rate, seconds.

    Args:
        path: File to append to.
        phase: The phase that is running.
        model: Which model it trains, such as `fold 1`, if there are several.
    """

    def __init__(self, path: Path, phase: Phase, model: str = ""):
        super().__init__()
        self._path = path
        self._phase = phase
        self._named = {"model": model} if model else {}
        self._start = 0.0

    def on_epoch_begin(self, epoch, logs=None):
        """Starts the clock."""
        self._start = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        """Writes the line."""
        line = {
            **self._named,
            "phase": self._phase.name,
            "epoch": epoch + 1,
            **{name: float(value) for name, value in (logs or {}).items()},
            "learning_rate": self._phase.learning_rate,
            "seconds": round(time.perf_counter() - self._start, 3),
        }
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
