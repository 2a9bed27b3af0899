"""What every backbone is: a Keras layer with a contract, stages and a fingerprint."""

from collections.abc import Collection
from dataclasses import dataclass

import keras
import tensorflow as tf

HEAD = "head"
"""The name of what stands on a backbone; no stage of a backbone has it."""


@dataclass(frozen=True)
class ImageContract:
    """What a network wants of its images; the backbone brings them there itself.

    Attributes:
        size: Height and width in pixels; `None` if the network takes any size.
        channels: 1 or 3.
        value_range: Values of black and of white.
    """

    size: tuple[int, int] | None
    channels: int
    value_range: tuple[float, float] = (0.0, 1.0)

    def prepare(self, images: tf.Tensor) -> tf.Tensor:
        """Brings images to the size, channels and value range of the contract.

        Args:
            images: Values 0 to 255 of any dtype, `[batch, height, width, 1 or 3]`.

        Returns:
            Float32 `[batch, height, width, channels]` in the value range.

        Raises:
            ValueError: If `images` has another rank or another number of channels.
        """
        if len(images.shape) != 4 or images.shape[-1] not in (1, 3):
            raise ValueError(
                f"Expected images [batch, height, width, 1 or 3], received {images.shape}."
            )
        images = tf.cast(images, tf.float32)
        if self.size is not None and tuple(images.shape[1:3]) != self.size:
            images = tf.image.resize(images, self.size, antialias=True)
        if self.channels == 3 and images.shape[-1] == 1:
            images = tf.image.grayscale_to_rgb(images)
        elif self.channels == 1 and images.shape[-1] == 3:
            images = tf.image.rgb_to_grayscale(images)
        low, high = self.value_range
        return images * ((high - low) / 255.0) + low


@dataclass(frozen=True)
class Stage:
    """A named group of weights that is frozen or trained as one.

    Attributes:
        name: Such as `block1`.
        learned: The weights that a gradient trains.
        statistics: The weights that no gradient reaches, such as the averages of batch
            normalization.
    """

    name: str
    learned: tuple[keras.Variable, ...]
    statistics: tuple[keras.Variable, ...] = ()

    @property
    def weights(self) -> tuple[keras.Variable, ...]:
        """All weights of the stage."""
        return self.learned + self.statistics

    def train(self, on: bool) -> None:
        """Makes the learned weights trainable, or freezes them.

        Each by itself: Keras skips `layer.trainable = True` where that is `True` already, even if
        single weights of the layer are frozen.
        """
        for weight in self.learned:
            weight.trainable = on


class Backbone(keras.layers.Layer):
    """A pretrained network from images to features, frozen until a stage is unfrozen.

    A subclass sets the attributes below in `__init__` and writes `call`.

    Attributes:
        contract: What the network wants of its images.
        units: Size of the feature vector.
        stages: Groups of weights, input side first; every weight is in exactly one. A network
            that cannot be trained has none.
        fingerprint: Hash of the graph and of the pretrained weights.
    """

    contract: ImageContract
    units: int
    stages: tuple[Stage, ...]
    fingerprint: str

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        # XLA has no antialiased resize, and Keras would turn it on by itself on a GPU.
        self.supports_jit = False

    def unfreeze(self, stages: str | Collection[str]) -> None:
        """Makes exactly these stages trainable and freezes the others.

        As everywhere in Keras, a model that is compiled already must be compiled again.

        Args:
            stages: One name or several; none freezes the whole backbone.

        Raises:
            ValueError: If there is no stage of such a name.
        """
        stages = [stages] if isinstance(stages, str) else stages
        known = [stage.name for stage in self.stages]
        if unknown := sorted(set(stages) - set(known)):
            raise ValueError(f"Expected stages among {known}, received {unknown}.")
        self.trainable = bool(stages)
        for stage in self.stages:
            stage.train(stage.name in stages)

    def freeze_below(self, stage: str) -> None:
        """Freezes every stage on the input side of `stage`, and unfreezes it and the rest.

        Args:
            stage: Name of the first stage to train.

        Raises:
            ValueError: If there is no stage of that name.
        """
        names = [s.name for s in self.stages]
        if stage not in names:
            raise ValueError(f"Expected a stage among {names}, received {stage!r}.")
        self.unfreeze(names[names.index(stage) :])

    @property
    def unfrozen(self) -> tuple[str, ...]:
        """Names of the stages that train now, input side first."""
        if not self.trainable:
            return ()
        return tuple(stage.name for stage in self.stages if any(w.trainable for w in stage.learned))

    def get_config(self):
        """Returns what makes the layer again, which stages train now included."""
        return {**super().get_config(), "unfrozen": list(self.unfrozen)}

    def compute_output_shape(self, input_shape):
        """Returns `(batch, units)`."""
        return (input_shape[0], self.units)
