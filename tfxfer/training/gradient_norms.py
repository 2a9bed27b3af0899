"""Which stages a new task would move most: gradients relative to the weights."""

from collections.abc import Iterable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfxfer.backbones import HEAD
from tfxfer.errors import UserError
from tfxfer.models import FineTuner


def relative_gradient_norms(
    model: FineTuner, batches: Iterable[Any], loss: keras.losses.Loss
) -> dict[str, float]:
    """Measures how large the gradient of each stage is, relative to its weights.

    The relative gradient norm of Auto-RGN: Lee et al. 2023, "Surgical Fine-Tuning Improves
    Adaptation to Distribution Shifts", section 5. The model runs as in inference, so that no
    statistic moves; no weight moves either, and afterwards the same stages train as before.

    The gradient of a backbone is that of what stands on it: with a head that has learned nothing
    yet, it says little.

    Args:
        model: Any.
        batches: A few batches `(x, y)` or `(x, y, weight)`.
        loss: Of `y` and the model's outputs.

    Returns:
        By stage, input side first: the mean of `|g| / |w|` over its learned tensors and over the
        batches, at least 0. Tensors that are zero have no such ratio and are left out.

    Raises:
        UserError: If a gradient is not finite.
        ValueError: If there is no batch.
    """
    before = [stage.name for stage in model.stages if any(w.trainable for w in stage.learned)]
    learned = {
        stage.name: [(weight, size) for weight in stage.learned if (size := _norm(weight))]
        for stage in model.stages
    }
    weights = [weight for pairs in learned.values() for weight, _ in pairs]

    @tf.function(reduce_retracing=True, autograph=False)
    def gradient_norms(inputs, targets, sample_weight):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            for weight in weights:
                tape.watch(weight.value)
            value = loss(targets, model(inputs, training=False), sample_weight)
        gradients = tape.gradient(
            value,
            [weight.value for weight in weights],
            unconnected_gradients=tf.UnconnectedGradients.ZERO,
        )
        return tf.stack([tf.norm(tf.convert_to_tensor(gradient)) for gradient in gradients])

    model.unfreeze(model.stage_names)
    try:
        found = [
            gradient_norms(*keras.utils.unpack_x_y_sample_weight(batch)).numpy()
            for batch in batches
        ]
    finally:
        model.unfreeze(before)
    if not found:
        raise ValueError("Expected at least one batch, received none.")
    means, norms = iter(np.stack(found).astype(np.float64).mean(axis=0)), {}
    for name, pairs in learned.items():
        ratios = [next(means) / size for _, size in pairs]
        norms[name] = float(np.mean(ratios)) if ratios else 0.0
        if not np.isfinite(norms[name]):
            raise UserError(
                f"The gradient of stage {name!r} must be finite to choose stages by it",
                "Name them, as in --plan=surgical(stages=...), or choose --precision=float32.",
            )
    return norms


def _norm(weight: keras.Variable) -> float:
    return float(np.linalg.norm(weight.numpy().astype(np.float64)))


def surgical_choice(norms: Mapping[str, float], count: int = 1) -> tuple[str, ...]:
    """Chooses the stages of the backbone that a task would move most.

    Args:
        norms: What `relative_gradient_norms` measured, input side first.
        count: Number of stages, at least 1.

    Returns:
        Their names, input side first.

    Raises:
        ValueError: If the backbone does not have so many stages.
    """
    below = [name for name in norms if name != HEAD]
    if not 1 <= count <= len(below):
        raise ValueError(f"Expected a count from 1 to {len(below)}, received {count}.")
    largest = sorted(below, key=lambda name: norms[name], reverse=True)[:count]
    return tuple(name for name in below if name in largest)
