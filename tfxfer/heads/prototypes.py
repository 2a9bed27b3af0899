"""Prototypes: one vector a class, the mean of its examples; a class more takes no training."""

import keras
import numpy as np
from keras import ops

from tfxfer.errors import UserError
from tfxfer.heads.fitted import UNSEEN, Data, FittedHead, temperature
from tfxfer.task import SINGLE_LABEL, Task


@keras.saving.register_keras_serializable(package="tfxfer")
class Prototypes(keras.layers.Layer):
    """Tells the class whose prototype is nearest.

    By the squared distance to the mean of the features, as in Snell et al. 2017, "Prototypical
    Networks for Few-shot Learning", eq. 2; or by the cosine with the mean of the features brought
    to length 1, as in Gidaris and Komodakis 2018, "Dynamic Few-Shot Visual Learning without
    Forgetting", sec. 3.2.

    Args:
        units: Number of classes.
        cosine: Whether the cosine counts, not the distance.
        **kwargs: As for every Keras layer.

    Input: features, `[batch, d]`.
    Output: logits, `[batch, units]`: minus the squared distance, or the cosine, times the
        temperature; far below the others for a class without examples.
    """

    def __init__(self, units: int, cosine: bool = False, **kwargs):
        super().__init__(**{"dtype": "float32", **kwargs})
        self.units, self.cosine = units, cosine

    def build(self, input_shape):
        """Makes room for the prototypes `[units, d]`; `seen` `[units]` is 1 where there is one."""
        shape = (self.units, input_shape[-1])
        self.prototypes = self.add_weight(shape=shape, name="prototypes")
        self.temperature = self.add_weight(shape=(), initializer="ones", name="temperature")
        self.seen = self.add_weight(
            shape=(self.units,), initializer="ones", name="seen", trainable=False
        )

    def call(self, inputs):
        """Computes the output; see the class for shapes."""
        logits = self.temperature * similarity(inputs, self.prototypes, self.cosine)
        least = ops.min(logits, axis=-1, keepdims=True)
        return ops.where(self.seen > 0, logits, least + UNSEEN)

    def get_config(self):
        """Returns the arguments beside the usual ones."""
        return {**super().get_config(), "units": self.units, "cosine": self.cosine}


def similarity(x, prototypes, cosine: bool):
    """Returns cosines, or minus squared distances, `[n, units]` from `[n, d]` and `[units, d]`."""
    if cosine:
        return ops.matmul(
            ops.normalize(x, axis=-1), ops.transpose(ops.normalize(prototypes, axis=-1))
        )
    products = ops.matmul(x, ops.transpose(prototypes))
    lengths = ops.sum(ops.square(x), axis=-1, keepdims=True)
    return 2 * products - lengths - ops.sum(ops.square(prototypes), axis=-1)


def prototype(features: np.ndarray, cosine: bool) -> np.ndarray:
    """Returns the prototype of some examples of a class, float32 `[d]` from `[n, d]`."""
    if cosine:
        features = ops.convert_to_numpy(ops.normalize(features, axis=-1))
    return features.mean(axis=0, dtype=np.float64).astype(np.float32)


def with_class(layer: Prototypes, features: np.ndarray) -> Prototypes:
    """Returns a layer that tells one class more, the last, without training.

    Args:
        layer: What tells the others; it is left as it is.
        features: Of examples of the new class, float32 `[n, d]`, one at least.

    Raises:
        ValueError: If `features` are not of this form.
    """
    known, scale, seen = layer.get_weights()
    if features.ndim != 2 or not len(features) or features.shape[1] != known.shape[1]:
        raise ValueError(f"Expected features [n, {known.shape[1]}], received {features.shape}.")
    more = Prototypes.from_config({**layer.get_config(), "units": layer.units + 1})
    more.build((None, known.shape[1]))
    new = prototype(features, layer.cosine)
    more.set_weights([np.vstack([known, new]), scale, np.append(seen, 1)])
    return more


def fit(
    name: str, task: Task, train: Data, validation: Data, strength: float | None = None
) -> FittedHead:
    """Takes the mean of each class, and chooses the temperature on validation.

    Args:
        name: `prototype`, by distance, or `cosine`.
        task: One class an example.
        train: Features and labels.
        validation: What chooses the temperature, of classes in `train`.
        strength: None.

    Returns:
        The head.

    Raises:
        UserError: If the task is another, or a strength is given.
    """
    if task.kind != SINGLE_LABEL:
        raise UserError(
            f"The {name} head tells one class an example, not {task}", "Take the ridge head."
        )
    if strength is not None:
        raise UserError(f"The {name} head has no strength, not {strength}", "Leave it out.")
    x, y = train
    cosine = name == "cosine"
    seen = np.unique(y)
    means = np.stack([prototype(x[y == label], cosine) for label in seen])
    scores = ops.convert_to_numpy(similarity(validation[0], means, cosine))
    scale = temperature(task, scores.astype(np.float64), np.searchsorted(seen, validation[1]))
    layer = Prototypes(task.units, cosine, name="head")
    layer.build((None, x.shape[1]))
    prototypes, has = np.zeros((task.units, x.shape[1]), np.float32), np.zeros(task.units)
    prototypes[seen], has[seen] = means, 1
    layer.set_weights([prototypes, np.float32(scale), has])
    return FittedHead(layer, name, None, ())
