"""Where pretrained networks come from: a backbone is loaded by its spec."""

import difflib

import keras

from tfxfer.backbones.applications import application_names, load_application
from tfxfer.backbones.base import HEAD, Backbone, Stage
from tfxfer.backbones.bert import PREPROCESSING, load_tokenizer
from tfxfer.backbones.contracts import ImageContract, TextContract
from tfxfer.backbones.hashed import BAG, TRANSFORMER, load_bag, load_transformer
from tfxfer.backbones.hub import EMBEDDED, exists, parsed, resolve
from tfxfer.backbones.keras_file import SUFFIXES, load_keras_file
from tfxfer.backbones.keras_model import load_keras_model
from tfxfer.backbones.network import KerasBackbone
from tfxfer.backbones.presets import load_preset
from tfxfer.backbones.random_weights import draw_anew, without_random
from tfxfer.backbones.saved_model import SavedModelBackbone
from tfxfer.backbones.tiny import TINY, load_tiny
from tfxfer.errors import UserError
from tfxfer.spec import Spec

__all__ = [
    "HEAD",
    "Backbone",
    "ImageContract",
    "KerasBackbone",
    "SavedModelBackbone",
    "Stage",
    "TextContract",
    "load_backbone",
]


def load_backbone(
    source: str | keras.Model,
    *,
    image_size: int | tuple[int, int] | None = None,
    value_range: tuple[float, float] | None = None,
    data_size: tuple[int, int] | None = None,
    stages: str = "",
    bn: str = "freeze",
) -> Backbone:
    """Loads a pretrained backbone, frozen.

    Args:
        source: A Keras model, or a spec:

            *   `glyphs`, for images, or `words`, for texts, which are embedded;
            *   small networks with random weights: `tiny` for images, with `width=FACTOR` of its
                channels; `bag` and `transformer` for texts, see `hashed`;
            *   `keras:NAME`, a network of `keras.applications`, with `weights=imagenet`, `none` or
                a file, `layer=NAME` and what the network's own function takes, such as `alpha`;
            *   a `.keras` or `.h5` file of a whole model, with `layer=NAME`, `include_top=true`,
                `preprocessing=FAMILY`, `safe_mode=false`;
            *   a folder, a `.tar.gz`, a URL that TF Hub resolves or
                `kaggle://owner/model/framework/variation`, each of a SavedModel, with
                `output=NAME`, and for a text encoder such as BERT `preprocess=HANDLE` and
                `seq_length=N`;
            *   `keras_hub:PRESET`, a folder or handle of KerasHub, with `layer=NAME` for images and
                `seq_length=N` for texts.

            Options stand in parentheses: `keras:MobileNetV2(alpha=0.35, weights=none)`. Any spec
            takes

            *   `random=all`, which draws every weight anew by Keras' global seed, to see what
                pretraining is worth, or `random="block3;block4"`, those of the stages named.
        image_size: Height and width, or one number for both, where the network leaves them open.
        value_range: Values of black and of white that the network wants; found out if `None`.
        data_size: Height and width of the user's images; what `tiny` and a network of
            `keras.applications` without weights are built for, if there is no `image_size`.
        stages: Regular expressions of the stages, between semicolons, input side first; found if
            empty.
        bn: Where batch normalization goes by the statistics of the batch while training: in the
            stages that train (`stage`), nowhere (`freeze`), everywhere (`train`).

    Returns:
        The backbone, a Keras layer from images or texts to features.

    Raises:
        UserError: If there is no such backbone, or it cannot be used.
    """
    if isinstance(image_size, int):
        image_size = (image_size, image_size)
    if isinstance(source, keras.Model):
        return load_keras_model(
            source, image_size=image_size, value_range=value_range, pattern=stages, bn=bn
        )
    spec, drawn = without_random(asked := parsed(source))
    if drawn is not None and spec.name != TINY and "weights" not in asked.options:
        data_size = None  # It is the pretrained network, but for its weights.
    backbone = _load(spec, image_size, data_size, value_range, stages, bn)
    if drawn is not None:
        draw_anew(backbone, drawn)
    return backbone


def _load(
    spec: Spec,
    image_size: tuple[int, int] | None,
    data_size: tuple[int, int] | None,
    value_range: tuple[float, float] | None,
    stages: str,
    bn: str,
) -> Backbone:
    """Loads a backbone as its kind is loaded; see `load_backbone`."""
    if spec.name == TINY:
        return load_tiny(spec, image_size, data_size, value_range, stages, bn)
    if spec.name in (BAG, TRANSFORMER):
        load = load_bag if spec.name == BAG else load_transformer
        return load(spec, stages, bn, image_size=image_size, value_range=value_range)
    if spec.name.startswith("keras:"):
        if value_range is not None:
            raise UserError(
                f"{spec.name!r} has its own preprocessing, which takes values from 0 to 255",
                "Leave --value_range out.",
            )
        return load_application(spec, image_size, data_size, stages, bn)
    if spec.name.startswith("keras_hub:"):
        return load_preset(spec, image_size, value_range, stages, bn)
    if "://" in spec.name and spec.name.endswith(SUFFIXES):
        raise UserError(
            f"A backbone by URL must be a SavedModel, and {spec.name!r} is a Keras file",
            "Download it, and give its path.",
        )
    if spec.name.endswith(SUFFIXES):
        return load_keras_file(spec, image_size, value_range, stages, bn)
    _check_name(spec.name)
    spec.only(["output", *PREPROCESSING])
    return SavedModelBackbone(
        resolve(spec.name),
        source=spec.text,
        output=str(spec.options.get("output") or ""),
        image_size=image_size,
        value_range=value_range,
        pattern=stages,
        bn=bn,
        tokenizer=load_tokenizer(spec),
    )


def _check_name(name: str) -> None:
    """Helps with names that lack their prefix or have a typo."""
    if "/" in name or name in EMBEDDED or exists(name):
        return
    known = {each.lower(): f"keras:{each}" for each in application_names()}
    known |= {name: name for name in (*EMBEDDED, TINY, BAG, TRANSFORMER)}
    if near := difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.7):
        raise UserError(
            f"There is no backbone {name!r}",
            f"Did you mean {' or '.join(known[each] for each in near)}?",
        )
