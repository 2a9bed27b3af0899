"""What the models share: a backbone, and a head on it."""

from typing import Any

import keras

from tfxfer.backbones import HEAD, Backbone, Stage
from tfxfer.models.step import StepModel


class BackboneModel(StepModel):
    """A backbone and a head; see `StepModel` for its step and what `compile` takes.

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
