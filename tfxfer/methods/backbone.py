"""What every mode does first: load the backbone that the config names, and check it."""

import keras
import numpy as np
import tensorflow as tf

from tfxfer.backbones import Backbone, KerasBackbone, load_backbone
from tfxfer.backbones.self_check import check_features, check_value_range
from tfxfer.config import RunConfig
from tfxfer.data.base import IMAGE, DataInfo

_LOOKED_AT = 8


def configured_backbone(config: RunConfig, data: DataInfo | None = None) -> Backbone:
    """Loads the backbone of a config.

    Args:
        config: The settings.
        data: What the images are like, if there are any.

    Returns:
        The backbone, frozen.

    Raises:
        UserError: If it cannot be loaded.
    """
    keras.utils.set_random_seed(config.seed)  # A network without weights of its own draws some.
    height, width = data.shape[:2] if data and data.inputs == IMAGE else (None, None)
    backbone = load_backbone(
        config.backbone,
        image_size=config.image_pixels,
        value_range=config.image_values,
        data_size=(height, width) if height and width else None,
        stages=config.stages,
        bn=config.bn,
    )
    if config.sync_bn and isinstance(backbone, KerasBackbone):
        for layer in backbone.network._flatten_layers():
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.synchronized = True
    return backbone


def check_backbone(backbone: Backbone, train_data: tf.data.Dataset) -> None:
    """Checks features and value range of a backbone before anyone trains on it.

    Args:
        backbone: Any.
        train_data: Batches `(images, labels)`, of which the first is looked at.

    Raises:
        UserError: If they look wrong.
    """
    images, _ = next(iter(train_data.take(1).as_numpy_iterator()))
    different = np.unique(images, axis=0)[:_LOOKED_AT]
    if len(different) > 1:
        check_features(backbone, different)
    check_value_range(backbone)
