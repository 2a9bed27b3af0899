"""What the models share: a backbone, a head on it, and a step whose tape watches what trains."""

from typing import Any

import keras
import tensorflow as tf

from tfxfer.backbones import HEAD, Backbone, Stage


class BackboneModel(keras.Model):
    """A backbone and a head.

    Args:
        backbone: Inputs to features.
        head: Features `[batch, backbone.units]` to what the task wants, such as logits.
        **kwargs: As for every `keras.Model`.

    Raises:
        TypeError: If `backbone` is none.
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
