"""Nearest neighbours: the labels of the most similar training examples, weighed."""

import keras
import numpy as np
from keras import ops

from tfxfer.errors import UserError
from tfxfer.heads.fitted import Data, FittedHead, mean_loss, strengths
from tfxfer.task import MULTI_LABEL, REGRESSION, SINGLE_LABEL, Task

_SHARPNESS = 0.07
_LEAST = 1e-7  # Share of the votes of a class without any.
_STRENGTHS = (10, 20, 100, 200)
_BATCH = 256


@keras.saving.register_keras_serializable(package="tfxfer")
class Neighbours(keras.layers.Layer):
    """Tells what the `k` most similar examples say.

    As in Caron et al. 2021, "Emerging Properties in Self-Supervised Vision Transformers": the
    similarity is the cosine, and votes weigh `softmax(similarity / 0.07)` over the `k`.

    Args:
        k: How many vote, from 1 to `examples`.
        examples: How many the layer holds.
        units: Number of classes or targets.
        kind: Of the task.
        **kwargs: As for every Keras layer.

    Input: features, `[batch, d]`.
    Output: `[batch, units]`. Of one class, logarithms of the shares of the votes, which `softmax`
        gives back; of several, their log-odds, for `sigmoid`; of a regression, the weighted mean.
    """

    def __init__(self, k: int, examples: int, units: int, kind: str, **kwargs):
        super().__init__(**{"dtype": "float32", **kwargs})
        self.k, self.examples, self.units, self.kind = k, examples, units, kind

    def build(self, input_shape):
        """Makes room for the examples: unit vectors `[examples, d]`, and what they say."""
        shape = (self.examples, input_shape[-1])
        self.features = self.add_weight(shape=shape, name="features", trainable=False)
        shape = (self.examples, self.units)
        self.labels = self.add_weight(shape=shape, name="labels", trainable=False)

    def call(self, inputs):
        """Computes the output; see the class for shapes."""
        return vote(self.kind, *self.nearest(inputs, self.k))

    def nearest(self, inputs, k: int):
        """Returns similarities `[batch, k]`, largest first, and labels `[batch, k, units]`."""
        similar = ops.matmul(ops.normalize(inputs, axis=-1), ops.transpose(self.features))
        similar, rows = ops.top_k(similar, k)
        return similar, ops.take(self.labels, rows, axis=0)

    def get_config(self):
        """Returns the arguments beside the usual ones."""
        own = {"k": self.k, "examples": self.examples, "units": self.units, "kind": self.kind}
        return {**super().get_config(), **own}


def vote(kind: str, similar, labels):
    """Returns the output of `Neighbours` from what `nearest` returned, or its first `k`."""
    # A softmax, without the warning that Keras' own gives for one neighbour.
    weights = ops.exp((similar - similar[:, :1]) / _SHARPNESS)
    weights /= ops.sum(weights, axis=-1, keepdims=True)
    mean = ops.einsum("bk,bku->bu", weights, labels)
    if kind == REGRESSION:
        return mean
    if kind == MULTI_LABEL:
        shares = ops.clip(mean, _LEAST, 1 - _LEAST)
        return ops.log(shares) - ops.log1p(-shares)
    return ops.log(ops.maximum(mean, _LEAST))


def fit(task: Task, train: Data, validation: Data, strength: float | None = None) -> FittedHead:
    """Takes the training examples as they are, and chooses how many of them vote.

    Args:
        task: Any.
        train: Features and labels.
        validation: What chooses the number.
        strength: The number, if not to be chosen.

    Returns:
        The head.

    Raises:
        UserError: If the strength is not a whole number from 1 to that of the training examples.
    """
    x, y = train
    usual = tuple(k for k in _STRENGTHS if k <= len(x)) or (len(x),)
    numbers = [int(k) for k in strengths(strength, usual) if k in range(1, len(x) + 1)]
    if not numbers:
        raise UserError(
            f"The knn head must have a whole number of neighbours from 1 to {len(x)}, the number "
            f"of training examples, not {strength}",
            "Give another.",
        )
    layer = Neighbours(numbers[-1], len(x), task.units, task.kind, name="head")
    layer.build((None, x.shape[1]))
    labels = np.eye(task.units, dtype=np.float32)[y] if task.kind == SINGLE_LABEL else y
    layer.set_weights([ops.convert_to_numpy(ops.normalize(x, axis=-1)), labels])
    sweep = []
    if strength is None:
        outputs = _outputs(layer, validation[0], numbers)
        sweep = [
            (k, mean_loss(task, each, validation[1], y))
            for k, each in zip(numbers, outputs, strict=True)
        ]
        layer.k = min(sweep, key=lambda pair: pair[1])[0]
    return FittedHead(layer, "knn", layer.k, tuple(sweep))


def _outputs(layer: Neighbours, x: np.ndarray, numbers: list[int]) -> list[np.ndarray]:
    """Returns the outputs for each number of neighbours, from one look for the most."""
    outputs: list[list[np.ndarray]] = [[] for _ in numbers]
    for first in range(0, len(x), _BATCH):
        batch = ops.convert_to_tensor(x[first : first + _BATCH])
        similar, labels = layer.nearest(batch, numbers[-1])
        for k, own in zip(numbers, outputs, strict=True):
            own.append(ops.convert_to_numpy(vote(layer.kind, similar[:, :k], labels[:, :k])))
    return [np.concatenate(own) for own in outputs]
