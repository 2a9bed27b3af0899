"""SavedModels: a model to serve, and a backbone in the format of TensorFlow Hub."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfxfer.backbones import Backbone
from tfxfer.backbones.loading import resources_of
from tfxfer.files import written_whole
from tfxfer.models.base import BackboneModel
from tfxfer.task import MULTI_LABEL, REGRESSION, Task


def save_predictor(
    model: BackboneModel, path: str | os.PathLike, task: Task, shape: Sequence[int | None]
) -> None:
    """Saves a model as a SavedModel that takes images or texts as they are and says what it sees.

    The signature `serving_default` takes `images`, uint8 `[batch, height, width, channels]` of
    any size, or `texts`, strings `[batch]` or pairs of them `[batch, 2]`. For one class an example
    it gives `probabilities`, float32 `[batch, classes]`, and `labels`, the name of the most
    probable class, string `[batch]`; for several classes `probabilities` and `names`, string
    `[classes]`; for a regression `values`, float32 `[batch, targets]`, and `names`, string
    `[targets]`. The signature `features` gives what the backbone says, float32 `[batch, units]`.
    Reading it needs TensorFlow alone, and tensorflow_text where that cuts texts into tokens.

    Args:
        model: From inputs to logits, or to the numbers of a regression, `[batch, task.units]`;
            what prepares the inputs is inside.
        path: The folder to write, which appears whole or not at all; one already there is
            replaced.
        task: What the model tells.
        shape: Of one input as the data has it: height, width and channels of an image, `()` of a
            text, `(2,)` of a pair.
    """
    inputs = model.backbone.contract.served(shape)

    @tf.function(input_signature=[inputs], autograph=False)
    def serve(inputs):
        outputs = tf.cast(model(inputs, training=False), tf.float32)
        names = tf.constant(task.names)
        if task.kind == REGRESSION:
            return {"values": outputs, "names": names}
        if task.kind == MULTI_LABEL:
            return {"probabilities": tf.sigmoid(outputs), "names": names}
        labels = tf.gather(names, tf.argmax(outputs, axis=-1))
        return {"probabilities": tf.nn.softmax(outputs), "labels": labels}

    features = _serve_features(model.backbone, inputs)
    _save(model, path, {"serving_default": serve, "features": features})


def save_backbone(backbone: Backbone, path: str | os.PathLike, shape: Sequence[int | None]) -> None:
    """Saves a backbone as a SavedModel from images or texts as they are to features.

    The signatures `serving_default` and `features` take `images` or `texts`, as those of
    `save_predictor`, and give `features`, float32 `[batch, units]`.

    Args:
        backbone: Inputs to features; what prepares the inputs is inside.
        path: The folder to write, which appears whole or not at all; one already there is
            replaced.
        shape: Of one input, as for `save_predictor`.
    """
    features = _serve_features(backbone, backbone.contract.served(shape))
    _save(backbone, path, {"serving_default": features, "features": features})


def save_keras_model(model: keras.Model, path: str | os.PathLike) -> None:
    """Saves a model as a `.keras` file that appears whole or not at all.

    Args:
        model: Any Keras model.
        path: The file, ending in `.keras`; a file already there is replaced.
    """
    with _whole(path) as unfinished:
        model.save(unfinished)


def _serve_features(backbone: Backbone, inputs: tf.TensorSpec) -> Any:
    return tf.function(
        lambda inputs: {"features": backbone(inputs, training=False)},
        input_signature=[inputs],
        autograph=False,
    )


def _save(layer: keras.Layer, path: str | os.PathLike, signatures: dict[str, Any]) -> None:
    # Not model.export(): Keras 3.15 writes every weight twice, once by itself and once wrapped.
    module = tf.Module()
    module.weights = [weight.value for weight in layer.weights]
    backbone = getattr(layer, "backbone", layer)
    module.resources = backbone.resources() if isinstance(backbone, Backbone) else []
    with _whole(path) as unfinished:
        tf.saved_model.save(module, str(unfinished), signatures=signatures)


def served_outputs(path: str | os.PathLike, inputs: tf.data.Dataset) -> np.ndarray:
    """Asks a saved predictor for its answers, loading it anew.

    Args:
        path: A folder that `save_predictor` wrote.
        inputs: Batches of images or texts as they are, of the shape that the predictor takes.

    Returns:
        Probabilities, or the numbers of a regression, float32 `[examples, units]`, in the order
        of `inputs`.
    """
    loaded = tf.saved_model.load(os.fspath(path))  # Held, since lookup tables live with it.
    serve = loaded.signatures["serving_default"]
    (name,) = serve.structured_input_signature[1]
    answers = [serve(**{name: batch}) for batch in inputs]
    key = "probabilities" if "probabilities" in answers[0] else "values"
    return np.concatenate([answer[key].numpy() for answer in answers])


@contextlib.contextmanager
def _whole(path: str | os.PathLike) -> Iterator[Path]:
    """As `written_whole`, in a folder that need not be there."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as unfinished:
        yield unfinished


def save_hub_module(model: keras.Model, path: str | os.PathLike) -> None:
    """Saves a Keras model as a TF2 reusable SavedModel, the format of TensorFlow Hub.

    What `tf.saved_model.load(path)` or `hub.load(path)` gives back has

    *   `__call__(inputs, training=False)`, where `training` is a Python bool: with `True`, dropout
        is active and batch normalization uses, and moves its averages towards, the batch;
    *   `variables` and `trainable_variables`, lists of `tf.Variable` in the order of the model's
        own, each named by its Keras path in the model, e.g. `"block1/conv/kernel:0"`;
    *   `regularization_losses`, a list of functions without arguments, one for each trainable
        variable that the model regularizes;
    *   `signatures["serving_default"]`, which is `__call__` with `training=False` on an argument
        named `inputs`. A model with a single output gives it under the key `"outputs"`.

    The model is left as it was. Its weights are copied once, since Keras names a `tf.Variable` by
    the last part of its path only. A variable is trainable in the saved module if it is trainable
    in `model` now, so unfreeze the layers that may be fine-tuned later.

    Args:
        model: A built functional or Sequential model with exactly one input tensor, of any shape
            and dtype, whose first axis is the batch, and with one output tensor or a dict of them.
            Shape and dtype of the input are fixed in the saved module as the model has them;
            `None` axes stay free. To be a backbone for images, it must take values in [0, 1]: put
            a `Rescaling` layer in front if it wants others.
        path: The folder to write, which appears whole or not at all; one already there is
            replaced.

    Raises:
        ValueError: If `model` is not built, or has more than one input.
        TypeError: If `model` returns neither a tensor nor a dict of tensors.
    """
    inputs = getattr(model, "inputs", None) or []
    if not model.built or len(inputs) != 1:
        raise ValueError(
            f"Model {model.name!r} must be a built functional or Sequential model with one input "
            f"tensor, and has {len(inputs)}."
        )
    spec = tf.TensorSpec(inputs[0].shape, inputs[0].dtype, name="inputs")
    module = _HubModule(model)
    for training in (False, True):
        outputs = module.__call__.get_concrete_function(spec, training=training).structured_outputs
    if not isinstance(outputs, (tf.Tensor, dict)):
        raise TypeError(f"Model {model.name!r} must return a tensor or a dict, not {outputs}.")

    @tf.function(input_signature=[spec])
    def serve(inputs):
        outputs = module(inputs, training=False)
        return outputs if isinstance(outputs, dict) else {"outputs": outputs}

    with _whole(path) as unfinished:
        tf.saved_model.save(module, str(unfinished), signatures=serve)


class _HubModule(tf.Module):
    """A Keras model behind TF Hub's interface, with its own copy of the variables."""

    # Hides the properties of tf.Module, which sort by attribute rather than by layer.
    variables = None
    trainable_variables = None

    def __init__(self, model: keras.Model):
        super().__init__()
        copies = {
            id(v): tf.Variable(
                v.value, trainable=v.trainable, name=v.path.removeprefix(f"{model.name}/")
            )
            for v in model.variables
        }
        # Without the states of random generators, which are no weights.
        self.variables = [copies[id(v)] for v in model.weights]
        self.trainable_variables = [copies[id(v)] for v in model.trainable_variables]
        self.regularization_losses = [
            _regularization_loss(v.regularizer, copies[id(v)])
            for v in model.trainable_variables
            if v.regularizer is not None
        ]
        self._non_trainable_variables = [copies[id(v)] for v in model.non_trainable_variables]
        self._resources = resources_of(model)
        # In a function, so that the Keras model and its variables are not saved too.
        self._call = lambda *args, **kwargs: model.stateless_call(*args, **kwargs)

    @tf.function
    def __call__(self, inputs, training=False):
        outputs, updates = self._call(
            self.trainable_variables, self._non_trainable_variables, inputs, training=training
        )
        if training:
            for variable, value in zip(self._non_trainable_variables, updates, strict=True):
                variable.assign(value)
        return outputs


def _regularization_loss(regularizer: keras.Regularizer, variable: tf.Variable):
    return tf.function(lambda: regularizer(variable), input_signature=[])
