"""Logistic regression: the linear head of least negative log-likelihood, plus a penalty."""

import copy
import warnings

import numpy as np
from scipy.special import logit
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from tfxfer.errors import UserError
from tfxfer.heads.fitted import UNSEEN, Data, FittedHead, mean_loss, strengths
from tfxfer.heads.standard import standardised
from tfxfer.task import MULTI_LABEL, REGRESSION, Task

Weights = tuple[np.ndarray, np.ndarray]
"""Kernel `[d, units]` and bias `[units]`."""

_STRENGTHS = tuple(float(10**power) for power in np.arange(-4.0, 5.0))
_FIRST = _STRENGTHS.index(0.01)  # Often the best, or next to it.
_WORSE = 1.05  # Beyond this much of the best loss, going on only makes it worse.

# To choose a strength, scikit-learn's own tolerance is enough, and float32 twice as fast. The
# coefficients of the one that is chosen are brought to about 1e-5, in float64, unless that would
# take more than some seconds: an iteration costs examples x features x classes.
_ROUGH, _FINE = 1e-4, 1e-8
_MOST, _LEAST, _WORK = 1000, 20, 5e8


def fit(task: Task, train: Data, validation: Data, strength: float | None = None) -> FittedHead:
    """Fits what scikit-learn's `LogisticRegression(C=strength)` fits to standardised features.

    From a usual penalty to weaker ones, then to stronger ones, each start being the last solution,
    until validation is clearly worse. Several labels are one regression each, of one strength.

    Args:
        task: Classes.
        train: Features and labels.
        validation: What chooses the strength, of classes in `train`.
        strength: The inverse of the penalty, if not to be chosen.

    Returns:
        The head, a dense layer on the features as they are.

    Raises:
        UserError: If the task is a regression, or `train` has one class only, or for the strength.
    """
    if task.kind == REGRESSION:
        raise UserError("The logistic head tells classes, not numbers", "Take the ridge head.")
    x, y = train
    if task.kind != MULTI_LABEL and len(np.unique(y)) < 2:
        raise UserError(
            "The logistic head must have examples of two classes at least, not of one",
            "Give more examples, or take the prototype head.",
        )
    z, standard = standardised(x)
    checked = standard(validation[0])
    path = _LabelsPath if task.kind == MULTI_LABEL else _ClassesPath
    tried: dict[float, float] = {}
    # Products of matrices as small as these wait longer for threads than they take, and many
    # times longer where other threads of the machine are busy.
    with threadpool_limits(1), warnings.catch_warnings():
        # Close to the solution is good enough: validation judges it.
        warnings.simplefilter("ignore", ConvergenceWarning)
        usual = list(strengths(strength, _STRENGTHS))
        solved = path(y, task.units)
        chosen = usual[0]
        if len(usual) > 1:
            rough = z.astype(np.float32)
            solutions = {}
            for side in (usual[_FIRST:], usual[:_FIRST][::-1]):
                solved = copy.deepcopy(solutions.get(usual[_FIRST], solved))
                for each in side:
                    kernel, bias = solved(rough, each, _ROUGH, _MOST)
                    tried[each] = mean_loss(task, checked @ kernel + bias, validation[1], y)
                    solutions[each] = copy.deepcopy(solved)
                    if tried[each] > _WORSE * min(tried.values()):
                        break
            chosen = min(sorted(tried), key=lambda each: tried[each])
            solved = solutions[chosen]
        iterations = int(np.clip(_WORK / (z.size * task.units), _LEAST, _MOST))
        kernel, bias = solved(z, chosen, _FINE, iterations)
    return FittedHead(
        layer=standard.dense(kernel, bias),
        name="logistic",
        strength=chosen,
        sweep=tuple(sorted(tried.items())),
    )


class _ClassesPath:
    """Weights at one strength after the other, one class an example."""

    def __init__(self, y: np.ndarray, units: int):
        self._y, self._units = y, units
        self._model = LogisticRegression(warm_start=True)

    def __call__(self, z: np.ndarray, strength: float, tolerance: float, most: int) -> Weights:
        model = self._model.set_params(C=strength, tol=tolerance, max_iter=most).fit(z, self._y)
        kernel = np.zeros((z.shape[1], self._units))
        bias = np.full(self._units, UNSEEN)
        seen, coefficients, intercepts = model.classes_, model.coef_, model.intercept_
        if len(seen) == 2:  # scikit-learn keeps the difference of two logits.
            half = np.array([-0.5, 0.5])
            coefficients, intercepts = np.outer(half, coefficients), half * intercepts
        kernel[:, seen], bias[seen] = coefficients.T, intercepts
        return kernel, bias


class _LabelsPath:
    """Weights at one strength after the other, several labels an example."""

    def __init__(self, y: np.ndarray, units: int):
        del units
        self._y = y
        positive = y.sum(axis=0)
        # A label that never varies gets its smoothed odds.
        self._bias = logit((positive + 0.5) / (len(y) + 1))
        self._models = {
            label: LogisticRegression(warm_start=True)
            for label in np.flatnonzero((positive > 0) & (positive < len(y)))
        }

    def __call__(self, z: np.ndarray, strength: float, tolerance: float, most: int) -> Weights:
        kernel, bias = np.zeros((z.shape[1], len(self._bias))), self._bias.copy()
        for label, model in self._models.items():
            model.set_params(C=strength, tol=tolerance, max_iter=most)
            model.fit(z, self._y[:, label] > 0.5)
            kernel[:, [label]], bias[[label]] = model.coef_.T, model.intercept_
        return kernel, bias
