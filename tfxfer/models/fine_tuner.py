"""`FineTuner`: a backbone and a head, trained stage by stage."""

from collections.abc import Collection
from typing import Any

import keras
import tensorflow as tf

from tfxfer.backbones import HEAD, Backbone, Stage


@keras.saving.register_keras_serializable(package="tfxfer")
class FineTuner(keras.Model):
    """A classifier whose backbone starts from pretrained weights and is unfrozen by stages.

    A plain Keras model: `compile`, `fit`, `evaluate`, `predict` and `save` are Keras' own. What
    it adds is `unfreeze`::

        model = FineTuner(load_backbone("glyphs"), keras.layers.Dense(10))
        model.unfreeze(["head"])
        model.compile(...)
        model.fit(...)
        model.unfreeze(["block4", "head"])
        model.compile(...)  # Keras reads what is trainable when it compiles
        model.fit(...)

    Args:
        backbone: Images to features.
        head: Features `[batch, backbone.units]` to logits; trained in every phase that names it.
        **kwargs: As for every `keras.Model`.

    Raises:
        TypeError: If `backbone` is none.

    Input: images with values 0 to 255, `[batch, height, width, 1 or 3]`.
    Output: what `head` returns, for a dense layer logits `[batch, units]`.
    """

    def __init__(self, backbone: Backbone, head: keras.layers.Layer, **kwargs):
        super().__init__(**kwargs)
        if not isinstance(backbone, Backbone):
            raise TypeError(
                "Expected a backbone, such as load_backbone('glyphs') returns, received "
                f"{backbone!r}."
            )
        self.backbone = backbone
        self.head = head
        if not head.built:
            head.build((None, backbone.units))
        head.trainable = True
        self._head_stage = Stage(
            HEAD, tuple(head.trainable_weights), tuple(head.non_trainable_weights)
        )
        self.built = True

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages of the backbone, input side first, and then the head's, `head`."""
        return (*self.backbone.stages, self._head_stage)

    @property
    def stage_names(self) -> tuple[str, ...]:
        """Names of the stages, input side first; the last is `head`."""
        return tuple(stage.name for stage in self.stages)

    def unfreeze(self, stages: str | Collection[str]) -> None:
        """Makes exactly these stages trainable and freezes the others; then compile again.

        Args:
            stages: One name or several of `stage_names`.

        Raises:
            ValueError: If there is no stage of such a name.
        """
        stages = [stages] if isinstance(stages, str) else stages
        if unknown := sorted(set(stages) - set(self.stage_names)):
            raise ValueError(f"Expected stages among {list(self.stage_names)}, received {unknown}.")
        self.trainable = True
        self.head.trainable = HEAD in stages
        self._head_stage.train(HEAD in stages)
        self.backbone.unfreeze([name for name in stages if name != HEAD])

    def call(self, inputs, training=False):
        """Computes the head's output; see the class for shapes."""
        return self.head(self.backbone(inputs, training=training), training=training)

    def train_step(self, data):
        """Takes one step, as Keras does, except that the tape watches nothing frozen.

        Keras' own step watches every variable that the forward pass reads, so that a frozen
        network would keep its activations for a gradient that nobody asks for.
        """
        inputs, targets, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        trained = self.trainable_weights
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            for weight in trained:
                tape.watch(weight.value)
            outputs = self(inputs, training=True)
            loss = self.compute_loss(inputs, targets, outputs, sample_weight, training=True)
            # Keras divides a loss by the number of replicas, whose gradients are then summed.
            replicas = tf.distribute.get_strategy().num_replicas_in_sync
            self._loss_tracker.update_state(loss * replicas, sample_weight=tf.shape(inputs)[0])
            scaled = self.optimizer.scale_loss(loss)
        if trained:
            gradients = tape.gradient(scaled, trained)
            self.optimizer.apply_gradients(zip(gradients, trained, strict=True))
        return self.compute_metrics(inputs, targets, outputs, sample_weight=sample_weight)

    def get_config(self) -> dict[str, Any]:
        """Returns backbone and head, serialized."""
        return {
            **super().get_config(),
            "backbone": keras.saving.serialize_keras_object(self.backbone),
            "head": keras.saving.serialize_keras_object(self.head),
        }

    @classmethod
    def from_config(cls, config):
        """Makes the model again from `get_config`."""
        config = dict(config)
        for part in ("backbone", "head"):
            config[part] = keras.saving.deserialize_keras_object(config[part])
        return cls(**config)
