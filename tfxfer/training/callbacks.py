"""What is written down while a model trains."""

import json
import time
from pathlib import Path

import keras
import numpy as np

from tfxfer.files import written_whole
from tfxfer.plan import Phase


class MetricsLog(keras.callbacks.Callback):
    """Appends one JSON line an epoch: phase, epoch from 1, losses, metrics, rate, seconds.

    What is not finite is written as null, since JSON has no other number for it.

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

    def on_train_begin(self, logs=None):
        """Drops lines of epochs that a killed process wrote after its last checkpoint."""
        first = self.params.get("initial_epoch", 0)
        if not self._path.is_file():
            return

        def stands(line: dict) -> bool:
            other = line.get("model") != self._named.get("model")
            return other or line["phase"] != self._phase.name or line["epoch"] <= first

        lines = self._path.read_text(encoding="utf-8").splitlines(keepends=True)
        # Of a line that is not whole the process was killed in the middle.
        kept = [line for line in lines if line.endswith("\n") and stands(json.loads(line))]
        if kept != lines:
            with written_whole(self._path) as unfinished:
                unfinished.write_text("".join(kept), encoding="utf-8")

    def on_epoch_begin(self, epoch, logs=None):
        """Starts the clock."""
        self._start = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        """Writes the line."""
        line = {
            **self._named,
            "phase": self._phase.name,
            "epoch": epoch + 1,
            **{name: _finite(value) for name, value in (logs or {}).items()},
            "seconds": round(time.perf_counter() - self._start, 3),
        }
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
