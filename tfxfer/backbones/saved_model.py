"""Backbones that are SavedModels, made at home in Keras 3."""

import inspect
import shutil
import tempfile
import weakref
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf
from keras.src.saving.serialization_lib import in_safe_mode  # Keras shows it nowhere else.

from tfxfer.backbones.base import Backbone, Stage, contract_of
from tfxfer.backbones.graph import variables_by_depth
from tfxfer.backbones.hub import GLYPHS, resolve
from tfxfer.backbones.packing import fingerprint_of, pack, unpack
from tfxfer.backbones.stages import by_block, by_pattern
from tfxfer.errors import UserError, first_line

_REUSABLE = ("__call__", "variables", "trainable_variables", "regularization_losses")
_SIGNATURES = ("serving_default", "default")


@keras.saving.register_keras_serializable(package="tfxfer")
class SavedModelBackbone(Backbone):
    """A Keras layer around a SavedModel; see `Backbone` for shapes.

    `hub.KerasLayer` belongs to Keras 2 and does not train in Keras 3. Here every variable of the
    SavedModel is adopted, not copied, as a weight of this layer, so that it is trained, frozen,
    saved, distributed and exported as any other weight. Under `tf.distribute`, make the layer
    inside the strategy's scope.

    A TF2 reusable SavedModel can be trained. One that has no such interface, such as one in TF1
    format or with a serving signature alone, has no stages and stays frozen.

    A loaded graph is one piece: with `bn="stage"` it runs as in training, with dropout and with
    batch normalization on the statistics of the batch, only while every stage is unfrozen. With any
    stage frozen it runs as in inference, since otherwise the averages of frozen stages would
    move. With `bn="freeze"` it always runs as in inference, with `bn="train"` always as in training
    while training. Its regularization losses are added in training while any stage is unfrozen.

    Interface of the SavedModel: https://www.tensorflow.org/hub/reusable_saved_models and
    https://www.tensorflow.org/hub/common_signatures/images.

    Args:
        folder: The folder of the SavedModel; not needed any more once the layer is made.
        source: What was asked for, such as a handle; the folder if empty.
        output: Name of the output to take where there are several.
        image_size: Height and width, where the SavedModel leaves them open.
        value_range: Values of black and of white; 0 to 1 if `None`.
        pattern: Regular expressions of the stages, between semicolons; found if empty.
        bn: Where batch normalization goes by the statistics of the batch while training.
        unfrozen: Names of the stages to train; none freezes the backbone.
        **kwargs: `name`, `dtype` and the like, as for every Keras layer.

    Raises:
        UserError: If there is no such SavedModel, or it does not take images and give features.
    """

    def __init__(
        self,
        folder: str | Path,
        source: str = "",
        output: str = "",
        image_size: tuple[int, int] | None = None,
        value_range: tuple[float, float] | None = None,
        pattern: str = "",
        bn: str = "freeze",
        unfrozen: list[str] | tuple[str, ...] = (),
        **kwargs,
    ):
        super().__init__(**kwargs)
        folder = Path(folder)
        self.source = source or str(folder)
        self.output_name = output
        self.fingerprint = fingerprint_of(folder, output)
        # In a plain object, which Keras does not track: the weights are the state of this layer,
        # and an exported model must not carry the functions of the SavedModel a second time.
        self._graph = graph = _read(folder, self.source)
        self.contract = contract_of(graph.inputs, self.source, image_size, value_range)
        self.units = _units(_pick(graph.outputs, output, self.source), self.source)
        self.untrainable = graph.untrainable
        trained = {id(variable) for variable in graph.learned}
        self.graph_weights = [_adopt(v, trainable=id(v) in trained) for v in graph.variables]
        self._packed = "" if folder == resolve(GLYPHS) else pack(folder, graph.hidden)
        self.built = True
        self.regroup(pattern, bn)
        self.unfreeze(unfrozen)

    def find_stages(self):
        """Groups the variables; see `Backbone`."""
        variables = self._graph.variables
        trained = {id(variable) for variable in self._graph.learned}
        if self.pattern and self.untrainable:
            raise UserError(
                f"--stages is for backbones that can be trained, and {self.source!r} stays frozen: "
                f"{self.untrainable}",
                "Leave it out.",
            )
        order = _by_layer(variables_by_depth(self._graph.trace, variables), variables)
        names = [variables[i].name.split(":")[0] for i in order]
        weights = [self.graph_weights[i] for i in order]
        learned = [id(variables[i]) in trained for i in order]
        if self.pattern:
            groups = by_pattern(names, learned, self.pattern)
        else:
            groups = by_block(names, learned, [len(weight.shape) > 1 for weight in weights])
        return tuple(
            Stage(
                group.name,
                learned=tuple(weights[i] for i in group.members if learned[i]),
                statistics=tuple(weights[i] for i in group.members if not learned[i]),
                bn=self.bn,
                paths=tuple(
                    names[i]
                    for wanted in (True, False)
                    for i in group.members
                    if learned[i] is wanted
                ),
            )
            for group in groups
        )

    def features(self, images, training):
        """Runs the SavedModel; see `Backbone`."""
        graph = self._graph
        strategy = tf.distribute.get_strategy()
        if tf.distribute.has_strategy() and strategy is not graph.strategy:
            raise RuntimeError(
                f"Backbone {self.name!r} was made under {type(graph.strategy).__name__} and "
                f"is called under {type(strategy).__name__}. "
                "Make it inside `with strategy.scope():`."
            )
        whole = bool(self.stages) and len(self.unfrozen) == len(self.stages)
        as_in_training = (self.bn == "train" or (self.bn == "stage" and whole)) and training
        extra = {}
        if graph.takes_training:
            extra["training"] = as_in_training and graph.has_training
        features = _pick(graph.function(images, **extra), self.output_name, self.source)
        if training and self.trainable:
            for loss in graph.regularization_losses:
                self.add_loss(loss())
        return features

    def get_config(self) -> dict[str, Any]:
        """Returns the graph of the SavedModel, without its weights, beside the usual."""
        return {
            **super().get_config(),
            "output": self.output_name,
            "saved_model": self._packed,
        }

    @classmethod
    def from_config(cls, config):
        """Makes the layer again, from the graph that `get_config` packed; weights come after.

        Raises:
            ValueError: In Keras' safe mode, for any SavedModel but the embedded one, since a
                SavedModel is a program.
        """
        config = dict(config)
        packed, fingerprint = config.pop("saved_model"), config.pop("fingerprint")
        size, value_range = config.pop("size"), config.pop("value_range")
        config |= {"image_size": tuple(size) if size else None, "value_range": tuple(value_range)}
        if not packed:
            return cls(resolve(GLYPHS), **{**config, "source": GLYPHS})
        if in_safe_mode() is not False:
            raise ValueError(
                f"This model runs the SavedModel {config['source']!r}, which it was saved with and "
                "which may do anything that a program may. If you trust it, load the model with "
                "`safe_mode=False`, or, to clone one in memory, call "
                "`keras.config.enable_unsafe_deserialization()` first."
            )
        folder = tempfile.mkdtemp(prefix="tfxfer-")
        try:
            hidden = unpack(packed, Path(folder))
            layer = cls(folder, **config)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        # It stays as long as the layer: exporting that copies assets, such as vocabularies.
        weakref.finalize(layer, shutil.rmtree, folder, ignore_errors=True)
        layer.fingerprint, layer._packed = fingerprint, packed
        for variable, value in zip(layer._graph.hidden, hidden, strict=True):
            variable.assign(value)
        return layer


@dataclass(frozen=True)
class _Graph:
    """A loaded SavedModel, and how it may be called.

    Attributes:
        module: What was loaded, held because variables that it does not list live with it.
        function: From images, and from `training` if it takes that, to features.
        trace: The concrete function of inference.
        inputs: Shape and dtype of the images.
        outputs: A tensor or a dict of tensors.
        takes_training: Whether the function takes `training` at all.
        has_training: Whether it was saved for `training=True` too.
        variables: All that it lists or reads, each once.
        learned: Those that a gradient may train.
        hidden: What it reads and does not list as its variables, such as the state of a dropout
            generator.
        regularization_losses: Functions without arguments.
        untrainable: Why it cannot be trained; empty if it can.
        strategy: The strategy that it was loaded under.
    """

    module: Any
    function: Callable[..., Any]
    trace: Any
    inputs: Any
    outputs: Any
    takes_training: bool
    has_training: bool
    variables: tuple[tf.Variable, ...]
    learned: tuple[tf.Variable, ...]
    hidden: tuple[tf.Variable, ...]
    regularization_losses: tuple[Callable[[], tf.Tensor], ...]
    untrainable: str
    strategy: tf.distribute.Strategy


def _read(folder: Path, source: str) -> _Graph:
    """Loads a SavedModel of whichever kind."""
    # TF Hub's mark of its TF1 format, in which the graph for inference has no tag.
    first_format = (folder / "tfhub_module.pb").is_file()
    try:
        module = tf.saved_model.load(str(folder), tags=[] if first_format else None)
    except Exception as error:  # A broken file fails in whichever layer meets it first.
        raise UserError(
            f"Backbone {source!r} must hold a readable SavedModel: {first_line(error)}",
            "Download or export it again.",
        ) from error
    traces = _traces(module)
    if not traces:
        return _signature(module, source)
    trace = min(traces, key=_rank)
    missing = [name for name in _REUSABLE if not hasattr(module, name)]
    listed = _unique(() if missing else module.variables)
    learned = () if missing else tuple(module.trainable_variables)
    read = _unique(variable for each in traces for variable in each.variables)
    hidden = tuple(v for v in read if not any(v is other for other in listed))
    untrainable = f"its SavedModel lacks {', '.join(missing)}" if missing else ""
    return _Graph(
        module=module,
        function=module.__call__,
        trace=trace,
        inputs=_images(trace),
        outputs=trace.structured_outputs,
        takes_training="training" in inspect.signature(module.__call__).parameters,
        has_training=any(_is_for_training(each) for each in traces),
        variables=hidden if missing else listed,
        learned=learned,
        hidden=() if missing else hidden,
        regularization_losses=() if missing else tuple(module.regularization_losses),
        untrainable=untrainable
        or ("" if learned else "its SavedModel lists no trainable variables"),
        strategy=tf.distribute.get_strategy(),
    )


def _signature(module: Any, source: str) -> _Graph:
    """Takes a SavedModel by its serving signature, which cannot be trained."""
    signatures = dict(getattr(module, "signatures", {}))
    name = next((name for name in _SIGNATURES if name in signatures), None)
    if name is None and len(signatures) == 1:
        (name,) = signatures
    inputs = signatures[name].structured_input_signature[1] if name else {}
    if len(inputs) != 1:
        raise UserError(
            f"Backbone {source!r} must take one tensor of images, in its __call__ or in a "
            f"signature, and has signatures {sorted(signatures)} with inputs {sorted(inputs)}",
            "Choose an image feature vector, or export it with tfxfer.save_hub_module.",
        )
    (argument,) = inputs
    trace = signatures[name]
    return _Graph(
        module=module,
        function=lambda images: trace(**{argument: images}),
        trace=trace,
        inputs=inputs[argument],
        outputs=trace.structured_outputs,
        takes_training=False,
        has_training=False,
        variables=_unique([*getattr(module, "variables", ()), *trace.variables]),
        learned=(),
        hidden=(),
        regularization_losses=(),
        untrainable=f"its SavedModel has the signature {name!r} alone, and no __call__ to train",
        strategy=tf.distribute.get_strategy(),
    )


def _unique(variables: Any) -> tuple[tf.Variable, ...]:
    return tuple({id(variable): variable for variable in variables}.values())


def _traces(module: Any) -> list[Any]:
    call = module.__call__ if callable(module) else None
    return [
        trace
        for trace in getattr(call, "concrete_functions", ())
        if trace.structured_input_signature[0] and isinstance(_images(trace), tf.TensorSpec)
    ]


def _images(trace: Any) -> Any:
    return trace.structured_input_signature[0][0]


def _is_for_training(trace: Any) -> bool:
    positional, named = trace.structured_input_signature
    return any(value is True for value in (*positional[1:], named.get("training")))


def _rank(trace: Any) -> tuple[bool, bool]:
    """Puts the traces for inference first, and those with a free batch before them."""
    shape = _images(trace).shape
    return bool(shape.rank and shape[0] is not None), _is_for_training(trace)


def _by_layer(order: list[int], variables: tuple[tf.Variable, ...]) -> list[int]:
    """Keeps the variables of a layer together, at the place of the first.

    Else a branch would tear kernel and bias apart: the bias is met as deep as the kernel of the
    layer after, on a shorter way.
    """
    layers = [variables[i].name.rpartition("/")[0] or str(i) for i in order]
    first = {layer: place for place, layer in reversed(list(enumerate(layers)))}
    return [i for _, i in sorted(zip(layers, order, strict=True), key=lambda each: first[each[0]])]


def _pick(outputs: Any, name: str, source: str) -> Any:
    """Takes the features out of a dict of outputs; TF Hub calls them `default`."""
    if not isinstance(outputs, dict):
        if name:
            raise UserError(
                f"Backbone {source!r} has one output, which has no name, and not {name!r}",
                "Leave output=NAME out.",
            )
        return outputs
    if name in outputs:
        return outputs[name]
    floats = [key for key, value in outputs.items() if value.dtype.is_floating]
    if not name and "default" in outputs:
        return outputs["default"]
    if not name and len(floats) == 1:
        return outputs[floats[0]]
    raise UserError(
        f"Backbone {source!r} has the outputs {', '.join(sorted(outputs))}"
        + (f", and no {name!r}" if name else ""),
        "Name one of them with output=NAME.",
    )


def _units(features: Any, source: str) -> int:
    shape = getattr(features, "shape", tf.TensorShape(None))
    if shape.rank not in (2, 3, 4) or shape[-1] is None:
        raise UserError(
            f"Backbone {source!r} must return features [batch, units], [batch, n, units] or "
            f"[batch, h, w, units], and returns {features}",
            "Choose a feature vector rather than a detector.",
        )
    return shape[-1]


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
