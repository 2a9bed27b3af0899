"""Backbones in TF Hub's format: TF2 reusable SavedModels, made at home in Keras 3."""

import hashlib
import inspect
import re
import warnings
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise, takewhile
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf
from keras.src.saving.serialization_lib import in_safe_mode  # Keras shows it nowhere else.

from tfxfer.backbones.base import HEAD, Backbone, ImageContract, Stage
from tfxfer.backbones.graph import variables_by_depth
from tfxfer.errors import UserError, first_line

GLYPHS = "glyphs"
_GLYPHS_FOLDER = Path(__file__).parent / "glyphs"
_MOST_STAGES = 8
_BLOCK = re.compile(r".*?(block|stage|layer|conv)_?\d+[a-z]?(?=_|$)", re.IGNORECASE)


@keras.saving.register_keras_serializable(package="tfxfer")
class HubBackbone(Backbone):
    """A Keras layer around a TF2 reusable SavedModel; takes images, gives features.

    `hub.KerasLayer` belongs to Keras 2 and does not train in Keras 3. Here every variable of the
    SavedModel is adopted, not copied, as a weight of this layer, so that it is trained, frozen,
    saved, distributed and exported as any other weight. Under `tf.distribute`, make the layer
    inside the strategy's scope.

    A loaded graph is one piece: it runs as in training, with dropout and with batch
    normalization on the statistics of the batch, only while every stage is unfrozen. With any
    stage frozen it runs as in inference, since otherwise the averages of frozen stages would
    move. Its regularization losses are added in training while any stage is unfrozen.

    Interface of the SavedModel: https://www.tensorflow.org/hub/reusable_saved_models and
    https://www.tensorflow.org/hub/common_signatures/images.

    Args:
        handle: `glyphs`, the path of a folder, or a handle that TF Hub resolves, such as
            `https://tfhub.dev/...`.
        unfrozen: Names of the stages to train; none freezes the backbone.
        **kwargs: `name`, `dtype` and the like, as for every Keras layer.

    Input: images with values 0 to 255, `[batch, height, width, 1 or 3]`, of any size.
    Output: features `[batch, units]`, float32. Maps `[batch, h, w, units]` are averaged.

    Raises:
        UserError: If there is no such SavedModel, or it has not the interface of an image
            feature vector.
    """

    def __init__(self, handle: str, unfrozen: list[str] | tuple[str, ...] = (), **kwargs):
        super().__init__(**kwargs)
        self.handle = handle
        folder = resolve(handle)
        self.fingerprint = _fingerprint(folder)
        module = _load(folder, handle)
        trace = _trace(module, handle)
        inputs = trace.structured_input_signature[0][0]
        self.contract = _contract(inputs, handle)
        self.units = _units(trace.structured_outputs, handle)
        # In a plain object, which Keras does not track: the weights are the state of this layer,
        # and an exported model must not carry the functions of the SavedModel a second time.
        self._graph = _Graph(
            module,
            takes_training="training" in inspect.signature(module.__call__).parameters,
            has_training=any(_is_for_training(t) for t in module.__call__.concrete_functions),
            strategy=tf.distribute.get_strategy(),
        )
        variables = list({id(variable): variable for variable in module.variables}.values())
        learned = {id(variable) for variable in module.trainable_variables}
        self.hub_weights = [_adopt(v, trainable=id(v) in learned) for v in variables]
        order = variables_by_depth(trace, variables)
        names = [variable.name.split(":")[0] for variable in variables]
        self.stages = _stages([(names[i], self.hub_weights[i]) for i in order])
        self.built = True
        self.unfreeze(unfrozen)

    def call(self, images, training=False):
        """Computes features; see the class for shapes and for what `training` does."""
        strategy = tf.distribute.get_strategy()
        if tf.distribute.has_strategy() and strategy is not self._graph.strategy:
            raise RuntimeError(
                f"Backbone {self.name!r} was made under {type(self._graph.strategy).__name__} and "
                f"is called under {type(strategy).__name__}. "
                "Make it inside `with strategy.scope():`."
            )
        whole = bool(self.stages) and len(self.unfrozen) == len(self.stages)
        as_in_training = bool(training) and whole and self._graph.has_training
        extra = {"training": as_in_training} if self._graph.takes_training else {}
        features = _features(self._graph.module(self.contract.prepare(images), **extra))
        if features.shape.rank == 4:
            features = tf.reduce_mean(features, axis=(1, 2))
        features = tf.cast(features, tf.float32)
        if not self.trainable:
            return tf.stop_gradient(features)
        if training:
            for loss in self._graph.module.regularization_losses:
                self.add_loss(loss())
        return features

    def get_config(self):
        """Returns handle and fingerprint beside the usual; the SavedModel stays where it is."""
        return {**super().get_config(), "handle": self.handle, "fingerprint": self.fingerprint}

    @classmethod
    def from_config(cls, config):
        """Makes the layer again from its handle.

        Raises:
            ValueError: In Keras' safe mode, for any handle but the embedded one, since a
                SavedModel is a program; and if the SavedModel at the handle is not the same.
        """
        config = dict(config)
        fingerprint = config.pop("fingerprint")
        if config["handle"] != GLYPHS and in_safe_mode() is not False:
            raise ValueError(
                f"This model runs the SavedModel {config['handle']!r}, which may do anything that "
                "a program may. If you trust it, load the model with `safe_mode=False`, or, to "
                "clone one in memory, call `keras.config.enable_unsafe_deserialization()` first."
            )
        layer = cls(**config)
        if layer.fingerprint != fingerprint:
            raise ValueError(
                f"Expected the SavedModel {config['handle']!r} that the model was saved with "
                f"(sha256 {fingerprint}), received another (sha256 {layer.fingerprint})."
            )
        return layer


@dataclass(frozen=True)
class _Graph:
    """A loaded SavedModel, and how it may be called.

    Attributes:
        module: What was loaded.
        takes_training: Whether it takes `training` at all.
        has_training: Whether it was saved for `training=True` too.
        strategy: The strategy that it was loaded under.
    """

    module: Any
    takes_training: bool
    has_training: bool
    strategy: tf.distribute.Strategy


def resolve(handle: str) -> Path:
    """Finds the folder of a SavedModel, downloading it through TF Hub if it is remote.

    Args:
        handle: `glyphs`, the path of a folder, or a handle with a scheme.

    Returns:
        A folder that holds a SavedModel.

    Raises:
        UserError: If there is none.
    """
    if handle == GLYPHS:
        return _GLYPHS_FOLDER
    if "://" in handle:
        try:
            folder = Path(_tensorflow_hub().resolve(handle))
        except Exception as error:  # Resolvers raise what their transport raises.
            raise UserError(
                f"Backbone {handle!r} could not be downloaded: {first_line(error)}",
                "Check the handle and the network, or give the path of a downloaded folder.",
            ) from error
    else:
        folder = Path(handle).expanduser()
    if not folder.is_dir():
        raise UserError(
            f"A backbone must be 'glyphs', a folder in TF Hub format or a URL, "
            f"and {handle!r} is no folder",
            "Check the path.",
        )
    if not (folder / "saved_model.pb").is_file():
        raise UserError(
            f"Backbone {handle!r} must hold a SavedModel, and has no saved_model.pb",
            "Give the folder that contains saved_model.pb and variables/.",
        )
    return folder


def _tensorflow_hub() -> Any:
    """Imports tensorflow_hub, which takes a second, and only a remote handle needs it."""
    with warnings.catch_warnings():
        # It imports pkg_resources, which warns of its own end in setuptools 82.
        warnings.filterwarnings("ignore", "pkg_resources is deprecated", UserWarning)
        import tensorflow_hub
    return tensorflow_hub


def _load(folder: Path, handle: str) -> Any:
    try:
        module = tf.saved_model.load(str(folder))
    except Exception as error:  # A broken file fails in whichever layer meets it first.
        raise UserError(
            f"Backbone {handle!r} must hold a readable SavedModel: {first_line(error)}",
            "Download or export it again.",
        ) from error
    missing = [
        name
        for name in ("__call__", "variables", "trainable_variables", "regularization_losses")
        if not hasattr(module, name)
    ]
    if missing:
        raise UserError(
            f"Backbone {handle!r} must be a TF2 reusable SavedModel, and lacks {missing}",
            "Export it with tfxfer.save_hub_module, or choose a TF2 version of the model.",
        )
    return module


def _is_for_training(trace: Any) -> bool:
    positional, named = trace.structured_input_signature
    return any(value is True for value in (*positional[1:], named.get("training")))


def _trace(module: Any, handle: str) -> Any:
    """Returns the trace of `__call__` for inference, with a free batch if there is one."""

    def rank(trace: Any) -> tuple[bool, bool]:
        inputs = trace.structured_input_signature[0][0]
        batch = inputs.shape[0] if inputs.shape.rank else None
        return batch is not None, _is_for_training(trace)

    traces = [
        trace
        for trace in getattr(module.__call__, "concrete_functions", ())
        if trace.structured_input_signature[0]
        and isinstance(trace.structured_input_signature[0][0], tf.TensorSpec)
    ]
    if not traces:
        raise UserError(
            f"Backbone {handle!r} must take one tensor of images, and its __call__ does not",
            "Choose an image feature vector.",
        )
    return min(traces, key=rank)


def _contract(inputs: Any, handle: str) -> ImageContract:
    shape = getattr(inputs, "shape", tf.TensorShape(None))
    if shape.rank != 4 or shape[-1] not in (1, 3) or not inputs.dtype.is_floating:
        raise UserError(
            f"Backbone {handle!r} must take float images [batch, height, width, 1 or 3] "
            f"in [0, 1], and takes {inputs}",
            "Choose an image feature vector.",
        )
    _, height, width, channels = shape
    return ImageContract(size=(height, width) if height and width else None, channels=channels)


def _units(outputs: Any, handle: str) -> int:
    shape = getattr(_features(outputs), "shape", tf.TensorShape(None))
    if shape.rank not in (2, 4) or shape[-1] is None:
        raise UserError(
            f"Backbone {handle!r} must return features [batch, units] or [batch, h, w, units], "
            f"and returns {outputs}",
            "Choose a feature vector rather than a detector.",
        )
    return shape[-1]


def _features(outputs: Any) -> Any:
    """Takes the features out of a dict of outputs; TF Hub calls them `default`."""
    if isinstance(outputs, dict):
        return outputs["default"] if "default" in outputs else next(iter(outputs.values()))
    return outputs


def _adopt(variable: tf.Variable, *, trainable: bool) -> keras.Variable:
    *scopes, name = variable.name.split(":")[0].split("/")
    with ExitStack() as stack:
        for scope in scopes:
            stack.enter_context(keras.name_scope(scope))
        return keras.Variable(
            initializer=variable,
            trainable=trainable,
            dtype=variable.dtype.name,
            autocast=False,
            name=name,
        )


def _stages(weights: list[tuple[str, keras.Variable]]) -> tuple[Stage, ...]:
    """Groups weights, given with their names from the input side to the output side.

    Neighbours of the same block form a group: the first part of their names that tells any apart
    agrees, up to the number of a block, so that `conv2_block1_1_conv` and `conv2_block2_0_bn` are
    both `conv2`. Where that gives more groups than anyone would unfreeze one by one, neighbours
    are joined. A weight that has nothing to train with it, such as a counter, goes with the group
    before it.
    """
    if not any(weight.trainable for _, weight in weights):
        return ()
    paths = [name.split("/") for name, _ in weights]
    agree = (len(set(parts)) == 1 for parts in zip(*(path[:-1] for path in paths), strict=False))
    root = len(list(takewhile(bool, agree)))
    groups: list[tuple[str, list[keras.Variable]]] = []
    for path, (_, weight) in zip(paths, weights, strict=True):
        block = _BLOCK.match(path[root])
        name = block[0] if block else path[root]
        settled = bool(groups) and any(w.trainable for w in groups[-1][1])
        if groups and (name == groups[-1][0] or not weight.trainable or not settled):
            groups[-1][1].append(weight)
        else:
            groups.append((name, [weight]))
    count = min(len(groups), _MOST_STAGES)
    bounds = [len(groups) * i // count for i in range(count + 1)]
    stages: list[Stage] = []
    for low, high in pairwise(bounds):
        first, last = groups[low][0], groups[high - 1][0]
        name = first if high - low == 1 else f"{first}..{last}"
        taken = [HEAD, *(stage.name for stage in stages)]
        members = [weight for _, group in groups[low:high] for weight in group]
        stages.append(
            Stage(
                name if name not in taken else f"{name}_{len(stages)}",
                learned=tuple(w for w in members if w.trainable),
                statistics=tuple(w for w in members if not w.trainable),
            )
        )
    return tuple(stages)


def _fingerprint(folder: Path) -> str:
    """Hashes graph, weights and assets, with their names."""
    digest = hashlib.sha256()
    files = [folder / "saved_model.pb"]
    for part in ("variables", "assets"):
        files += sorted(path for path in (folder / part).rglob("*") if path.is_file())
    for path in files:
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0")
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
