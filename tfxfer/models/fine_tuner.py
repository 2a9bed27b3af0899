"""`FineTuner`: a backbone and a head, trained stage by stage."""

from collections.abc import Collection

import keras

from tfxfer.backbones import HEAD, Stage
from tfxfer.models.base import BackboneModel


@keras.saving.register_keras_serializable(package="tfxfer")
class FineTuner(BackboneModel):
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

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages of the backbone, input side first, and then the head's, `head`."""
        return (*self.backbone.stages, self._head_stage)

    @property
    def stage_names(self) -> tuple[str, ...]:
        """Names of the stages, input side first; the last is `head`."""
        return tuple(stage.name for stage in self.stages)

    def unfreeze(self, stages: str | Collection[str], bn: str = "") -> None:
        """Makes exactly these stages trainable and freezes the others; then compile again.

        Args:
            stages: One name or several of `stage_names`.
            bn: Where batch normalization goes by the statistics of the batch from now on; as
                before if empty.

        Raises:
            ValueError: If there is no stage of such a name.
        """
        stages = [stages] if isinstance(stages, str) else stages
        if unknown := sorted(set(stages) - set(self.stage_names)):
            raise ValueError(f"Expected stages among {list(self.stage_names)}, received {unknown}.")
        self.trainable = True
        self.head.trainable = HEAD in stages
        self._head_stage.train(HEAD in stages)
        self.backbone.unfreeze([name for name in stages if name != HEAD], bn)

    def call(self, inputs, training=False):
        """Computes the head's output; see the class for shapes."""
        return self.head(self.backbone(inputs, training=training), training=training)
