"""`Suffix`: what of a `FineTuner` is left to run where the beginning of its backbone is cached."""

import tensorflow as tf

from tfxfer.backbones.boundary import Boundary
from tfxfer.models.fine_tuner import FineTuner
from tfxfer.models.step import StepModel


class Suffix(StepModel):
    """The end of a fine-tuner, which trains in place of it on what the frozen beginning returned.

    Its weights are those of the fine-tuner: a step here moves them there, exactly as a step on
    images would. What trains is what the fine-tuner has unfrozen.

    Args:
        model: The whole.
        boundary: Where the beginning ends; at the features, if `None`.
        **kwargs: As for every `keras.Model`.

    Raises:
        ValueError: If a weight that trains is before the boundary.

    Input: `[batch, ...]` as `boundary.prefix` returned it, or features `[batch, units]`.
    Output: as that of the fine-tuner.
    """

    def __init__(self, model: FineTuner, boundary: Boundary | None = None, **kwargs):
        super().__init__(**kwargs)
        # The whole of both, so that the order of the weights is that of the fine-tuner.
        self.backbone, self.head = model.backbone, model.head
        self._boundary = boundary
        before = (boundary or self.backbone).weights
        if moving := [weight.path for weight in before if weight.trainable]:
            raise ValueError(f"Expected frozen weights before the boundary, received {moving}.")
        self.built = True

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Computes the head's output; see the class for shapes."""
        features = inputs
        if self._boundary is not None:
            features = self._boundary.suffix(inputs, training)
        return self.head(features, training=training)
