"""What every mode that trains does last: export the model, and check what was exported."""

from pathlib import Path

import numpy as np
from scipy.special import expit, softmax

from tfxfer.data.parts import Part
from tfxfer.export import save_keras_model, save_predictor, served_outputs
from tfxfer.models.base import BackboneModel
from tfxfer.report import workdir
from tfxfer.report.result import ExportCheck
from tfxfer.task import MULTI_LABEL, REGRESSION, SINGLE_LABEL, Task

# A SavedModel may run fused kernels where the trained model did not, and round differently; more
# than this is another model.
_TOLERANCE = 1e-3
_EXAMPLES = 1000


def export(model: BackboneModel, test: Part, outputs: np.ndarray, path: Path) -> ExportCheck:
    """Writes a model as a SavedModel and as a `.keras` file, and asks the SavedModel again.

    Args:
        model: From inputs to outputs.
        test: Examples to ask for, given as they are.
        outputs: What the model said of these, `[examples, units]`.
        path: The workdir.

    Returns:
        How far the answers are apart.
    """
    info = test.source.info
    served = path / workdir.SAVED_MODEL / "1"
    save_predictor(model, served, info.task, info.shape)
    save_keras_model(model, path / workdir.KERAS_MODEL)
    examples = min(test.examples, _EXAMPLES)
    inputs = test.dataset.take(examples).map(lambda example_id, x, y: x)
    inputs = inputs.batch(1 if None in info.shape else 32)
    expected = _answers(info.task, outputs[:examples].astype(np.float64))
    difference = np.abs(served_outputs(served, inputs) - expected).max()
    if info.task.kind == REGRESSION:
        difference /= max(np.abs(expected).max(), 1e-12)
    return ExportCheck(float(difference), _TOLERANCE, examples)


def _answers(task: Task, outputs: np.ndarray) -> np.ndarray:
    """Returns what a served model says where the trained one says `outputs`."""
    if task.kind == SINGLE_LABEL:
        return softmax(outputs, axis=-1)
    return expit(outputs) if task.kind == MULTI_LABEL else outputs
