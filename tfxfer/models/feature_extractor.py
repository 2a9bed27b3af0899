"""`FeatureExtractor`: a frozen backbone that runs once, and a head on its features."""

import tempfile
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfxfer.backbones import Backbone
from tfxfer.cache import Cache, default_folder
from tfxfer.data.parts import Part
from tfxfer.data.pipeline import batches
from tfxfer.feature_data import feature_batches, feature_part
from tfxfer.features import extract
from tfxfer.models.base import BackboneModel

_CACHE_BYTES = 10 * 10**9


@keras.saving.register_keras_serializable(package="tfxfer")
class FeatureExtractor(BackboneModel):
    """A classifier or regressor on the features of a backbone that stays frozen.

    `min over theta of L(g_theta(F(x)), y)`, with the backbone `F` fixed. A plain Keras model, but
    that `fit` runs the backbone once over each input, keeps its features, and trains the head on
    these, so that an epoch costs the head alone::

        model = FeatureExtractor(load_backbone("glyphs"), keras.layers.Dense(10))
        model.compile(...)
        model.fit(images, labels, epochs=20)

    Args:
        backbone: Inputs to features; frozen here, and kept frozen.
        head: Features `[batch, backbone.units]` to what the task wants, such as logits.
        **kwargs: As for every `keras.Model`.

    Input: images with values 0 to 255, `[batch, height, width, 1 or 3]`, texts, or features
        `[batch, backbone.units]`.
    Output: what `head` returns, for a dense layer `[batch, units]`.

    Raises:
        TypeError: If `backbone` is none.
    """

    def __init__(self, backbone: Backbone, head: keras.layers.Layer, **kwargs):
        super().__init__(backbone, head, **kwargs)
        backbone.unfreeze([])

    def call(self, inputs, training=False):
        """Computes the head's output; see the class for shapes."""
        as_features = len(inputs.shape) == 2 and inputs.dtype not in ("string", tf.string)
        if not as_features:
            inputs = self.backbone(inputs, training=False)
        return self.head(inputs, training=training)

    def fit(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        *,
        validation_data: Any = None,
        augment: str = "none",
        views: int = 1,
        seed: int = 0,
        cache: Cache | None = None,
        initial_epoch: int = 0,
        **kwargs: Any,
    ) -> keras.callbacks.History:
        """Trains the head, as Keras' `fit`, on features that are computed once.

        Args:
            x: A `Part` of a dataset, whose features are kept in the cache and stay there; images;
                or a finite `tf.data.Dataset` of batches `(x, y)`, whose features are kept for the
                length of this call. A dataset without end is trained on as it is.
            y: Labels, if `x` is images.
            batch_size: Examples a step; 32, or that of the dataset, if `None`.
            validation_data: A `Part`, `(x, y)` or a dataset; features of it are computed once too.
            augment: Policy of augmentation, for a `Part`; see `train_batches`.
            views: How many augmented views of each example of a `Part` the epochs take in turn.
            seed: Of the order of a `Part`, and of its augmentation.
            cache: Where features of a `Part` are kept; the user's own folder if `None`.
            initial_epoch: As in Keras.
            **kwargs: As in Keras: `epochs`, `callbacks`, `class_weight`, `verbose` and so on.

        Returns:
            Keras' history.

        Raises:
            ValueError: If `augment` or `views` is given for anything but a `Part`.
            UserError: If a `Part` cannot be read, or the cache cannot be used.
        """
        self.backbone.unfreeze([])  # Somebody may have touched it since.
        cache = cache or Cache(default_folder(), _CACHE_BYTES)
        if not isinstance(x, Part) and (augment != "none" or views != 1):
            raise ValueError(f"Expected a Part to augment, received {type(x).__name__}.")
        if validation_data is not None:
            kwargs["validation_data"] = self._validation(validation_data, batch_size or 32, cache)
        if isinstance(x, Part):
            features = extract(
                self.backbone,
                x,
                cache,
                augment=augment,
                views=views,
                seed=seed,
                strategy=self.distribute_strategy,
            )
            data = feature_batches(features, x, batch_size or 32, seed=seed)
            kwargs |= {"steps_per_epoch": data.steps, "shuffle": False}
            return super().fit(data.epochs(initial_epoch), initial_epoch=initial_epoch, **kwargs)
        if isinstance(x, tf.data.Dataset) and x.cardinality() == tf.data.INFINITE_CARDINALITY:
            return super().fit(x, initial_epoch=initial_epoch, **{"shuffle": False, **kwargs})
        x, y, weight, size = self._features(x, y, kwargs.pop("sample_weight", None), batch_size)
        return super().fit(x, y, size, sample_weight=weight, initial_epoch=initial_epoch, **kwargs)

    def _validation(self, data: Any, batch_size: int, cache: Cache) -> Any:
        if isinstance(data, Part):
            features = extract(self.backbone, data, cache, strategy=self.distribute_strategy)
            return batches(feature_part(features, data), batch_size)
        given = (*(data if isinstance(data, tuple) else (data,)), None, None)
        x, y, weight, _ = self._features(given[0], given[1], given[2], batch_size)
        return (x, y) if weight is None else (x, y, weight)

    def _features(self, x: Any, y: Any, weight: Any, batch_size: int | None) -> tuple[Any, ...]:
        """Returns features, labels, weights and the batch size, each example once."""
        if not isinstance(x, tf.data.Dataset):
            columns = [each for each in (x, y, weight) if each is not None]
            if len(np.shape(x)) == 2:
                return x, y, weight, batch_size
            size = batch_size or 32
            x = tf.data.Dataset.from_tensor_slices(tuple(columns)).batch(size)
        rest: list[tuple[np.ndarray, ...]] = []
        # On disk, since features of many images may not fit into memory.
        with tempfile.TemporaryFile() as file:
            for inputs, *others in x:
                file.write(self.backbone.infer(inputs).numpy().tobytes())
                rest.append(tuple(np.asarray(each) for each in others))
                batch_size = batch_size or len(inputs)
            file.flush()
            columns = [np.concatenate(column) for column in zip(*rest, strict=True)]
            shape = (len(columns[0]), self.backbone.units)
            features = np.memmap(file, np.float32, "r", shape=shape)
        return features, columns[0], columns[1] if len(columns) > 1 else None, batch_size
