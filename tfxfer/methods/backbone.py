"""What every mode does first: choose the backbone, load it, and check it."""

import keras
import numpy as np
import tensorflow as tf

from tfxfer.backbones import Backbone, KerasBackbone, TextContract, load_backbone
from tfxfer.backbones.hashed import BAG
from tfxfer.backbones.hub import GLYPHS, WORDS, parsed
from tfxfer.backbones.self_check import check_features, check_value_range
from tfxfer.backbones.tiny import TINY
from tfxfer.config import AUTO, RunConfig
from tfxfer.data.base import IMAGE, TEXT, DataInfo
from tfxfer.data.splits import TEST, TRAIN, VALIDATION, Splits
from tfxfer.errors import UserError

_LOOKED_AT, _TEXTS = 8, 256
_OF_SIZES = (96, 96)  # Of `tiny`, where images have different ones.
# Backbone and student where none is named.
_USUAL = {IMAGE: (GLYPHS, TINY), TEXT: (WORDS, BAG)}


def with_usual(config: RunConfig, inputs: str = IMAGE) -> RunConfig:
    """Names the backbone and the student where the settings leave them to the inputs.

    Args:
        config: The settings.
        inputs: As `DataInfo` has them.

    Returns:
        The settings.

    Raises:
        UserError: If there is no backbone for such inputs.
    """
    if inputs not in _USUAL:
        raise UserError(
            f"--mode={config.mode} takes images or texts, and {config.dataset} holds {inputs} "
            "inputs",
            "--mode=inspect shows such a dataset; a backbone for it is not here yet.",
        )
    usual, student = _USUAL[inputs]
    changes = {}
    if config.backbone == AUTO and not config.teacher:  # Else there is none but the student's.
        changes["backbone"] = usual
    if config.student == AUTO and config.mode == "distill":
        changes["student"] = student
    return config.replace(**changes)


def check_inputs(backbone: Backbone, data: DataInfo) -> None:
    """Checks that a backbone takes what a dataset holds.

    Raises:
        UserError: If it does not.
    """
    contract, pair = backbone.contract, data.inputs == TEXT and len(data.shape) == 1
    if contract.inputs != data.inputs:
        other = f"{', '.join(_USUAL[data.inputs])} take {data.inputs}s"
        raise UserError(
            f"Backbone {backbone.source!r} takes {contract.inputs}s, and {data.name} holds "
            f"{data.inputs}s",
            f"Name another --backbone: {other}, and see --help.",
        )
    if data.inputs == IMAGE and None in data.shape[:2] and contract.size is None:
        raise UserError(
            f"Backbone {backbone.source!r} takes images of any size, and those of {data.name} are "
            "of different ones",
            "Say what they are to be resized to: --image_size=224, or image_size=224 in its "
            "parentheses where there are several backbones.",
        )
    if pair and not (isinstance(contract, TextContract) and contract.pairs):
        raise UserError(
            f"Backbone {backbone.source!r} takes single texts, and {data.name} holds pairs",
            "Join them as text=a;b, or name another --backbone: BERT, bag or transformer.",
        )
    if isinstance(contract, TextContract) and not (pair or contract.singles):
        raise UserError(
            f"Backbone {backbone.source!r} takes pairs of texts, and {data.name} holds single ones",
            "Name another --backbone.",
        )


def configured_backbone(config: RunConfig, data: DataInfo | None = None) -> Backbone:
    """Loads the backbone of a config.

    Args:
        config: The settings.
        data: What the inputs are like, if there are any.

    Returns:
        The backbone, frozen.

    Raises:
        UserError: If it cannot be loaded, or does not take the inputs.
    """
    usual, _ = _USUAL[data.inputs if data else IMAGE]
    keras.utils.set_random_seed(config.seed)  # A network without weights of its own draws some.
    spec = usual if config.backbone == AUTO else config.backbone
    backbone = load_backbone(
        spec,
        image_size=config.image_pixels,
        value_range=config.image_values,
        data_size=_data_size(spec, data),
        stages=config.stages,
        bn=config.bn,
    )
    if data is not None:
        check_inputs(backbone, data)
    if config.sync_bn and isinstance(backbone, KerasBackbone):
        for layer in backbone.network._flatten_layers():
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.synchronized = True
    return backbone


def _data_size(spec: str, data: DataInfo | None) -> tuple[int, int] | None:
    """Returns the size of images that a network without pretrained weights is to be made for."""
    if data is None or data.inputs != IMAGE:
        return None
    height, width = data.shape[:2]
    if height and width:
        return height, width
    return _OF_SIZES if parsed(spec).name == TINY else None


def count_cut(backbone: Backbone, splits: Splits) -> dict[str, int]:
    """Counts the texts that are longer than a backbone reads.

    Args:
        backbone: Any.
        splits: The data.

    Returns:
        How many there are, by part; empty where no text is cut, however long it is.
    """
    tokenizer = backbone.tokenizer
    if tokenizer is None or not tokenizer.counts:
        return {}
    found = {}
    for name, part in ((TRAIN, splits.train), (VALIDATION, splits.validation), (TEST, splits.test)):
        texts = part.dataset.map(lambda example_id, x, y: x).batch(_TEXTS)
        longer = texts.map(lambda x: tf.reduce_sum(tf.cast(tokenizer.cuts(x), tf.int64)))
        found[name] = int(longer.reduce(np.int64(0), lambda total, each: total + each))
    return found


def _different(inputs: np.ndarray) -> np.ndarray:
    """Leaves out inputs that are there already; NumPy itself does that for numbers alone."""
    if inputs.dtype == object:
        rows = {tuple(each) if inputs.ndim > 1 else each: i for i, each in enumerate(inputs)}
        return inputs[list(rows.values())]
    return np.unique(inputs, axis=0)


def check_backbone(backbone: Backbone, train_data: tf.data.Dataset) -> None:
    """Checks features and value range of a backbone before anyone trains on it.

    Args:
        backbone: Any.
        train_data: Batches `(inputs, labels)`, of which the first is looked at.

    Raises:
        UserError: If they look wrong.
    """
    inputs, _ = next(iter(train_data.take(1).as_numpy_iterator()))
    different = _different(inputs)[:_LOOKED_AT]
    if len(different) > 1:
        check_features(backbone, different)
    check_value_range(backbone)
