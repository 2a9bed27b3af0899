"""Where a network is cut in two, so that its frozen beginning need not run again and again."""

import functools
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

from tfxfer.backbones.base import Backbone
from tfxfer.backbones.contracts import IMAGE
from tfxfer.backbones.network import KerasBackbone

# What Keras' own layers call the strength of their noise; without any they are the same always.
_OWN_RATES = ("rate", "stddev", "dropout", "recurrent_dropout", "drop_path_rate")


class Boundary:
    """A place in a network: one tensor through which all passes that the beginning makes of images.

    Args:
        backbone: The network.
        name: Of the layer whose output it is.
        place: Where that stands in the graph, a number for each model within a model; larger
            further on. Unlike names of layers, which Keras counts up, the same in every process.
        before: Pieces of the network up to it, one after the other.
        after: Pieces from there to the output.

    Attributes:
        name: As given.
        place: As given.
        contract: That of the backbone.
        weights: Those of the beginning, input side first.
    """

    def __init__(
        self,
        backbone: KerasBackbone,
        name: str,
        place: tuple[int, ...],
        before: tuple[keras.Function, ...],
        after: tuple[keras.Function, ...],
    ):
        self.name, self.place, self.contract = name, place, backbone.contract
        self._backbone, self._before, self._after = backbone, before, after
        (self._tensor,) = after[0].inputs
        self._graphs: dict[tuple[int, ...], Any] = {}
        operations = [operation for piece in before for operation in piece.operations]
        found = [weight for each in operations for weight in getattr(each, "weights", ())]
        self.weights = tuple({id(weight): weight for weight in found}.values())

    def shape(self, size: Sequence[int]) -> tuple[int, ...]:
        """Tells the shape of what the beginning makes of one image, and runs nothing.

        Args:
            size: Height and width of the images.
        """
        x: Any = keras.KerasTensor((1, *(self.contract.size or size), self.contract.channels))
        for piece in self._before:
            (x,) = piece.compute_output_spec([x])
        return tuple(x.shape[1:])

    @functools.cached_property
    def prefix(self) -> Any:
        """Images to what the beginning makes of them, as one graph that is traced once.

        Images as for the backbone; returns `[batch, ...]`, a floating-point type.
        """

        def run(images: tf.Tensor) -> tf.Tensor:
            x = self._backbone.preprocess(self._backbone.contract.prepare(images))
            x = tf.cast(x, self._backbone.network.compute_dtype)
            return _run(self._before, x, training=False)

        return tf.function(run, reduce_retracing=True, autograph=False)

    @functools.cached_property
    def features(self) -> Any:
        """What `prefix` returned to features as in inference, as one graph."""
        return tf.function(
            lambda x: self.suffix(x, training=False), reduce_retracing=True, autograph=False
        )

    def follows(self, other: "Boundary") -> bool:
        """Whether it is further on in the same graph, so that `since` can go on from `other`."""
        return other.place[:-1] == self.place[:-1] and other.place < self.place

    def since(self, other: "Boundary") -> Any:
        """What `other.prefix` returned to what `prefix` would, as one graph that is traced once.

        Args:
            other: A boundary of the same backbone that this one follows.
        """
        if other.place not in self._graphs:
            between = keras.Function([other._tensor], [self._tensor])
            self._graphs[other.place] = tf.function(
                lambda x: _run((between,), tf.cast(x, other._tensor.dtype), training=False),
                reduce_retracing=True,
                autograph=False,
            )
        return self._graphs[other.place]

    def suffix(self, activations: tf.Tensor, training: bool) -> tf.Tensor:
        """Runs the rest of the backbone.

        Args:
            activations: What `prefix` returned, of any floating-point type.
            training: As in `Backbone.call`.

        Returns:
            Features, float32 `[batch, units]`, as the backbone itself computes them.
        """
        training = bool(training) and self._backbone.trainable
        x = tf.cast(activations, self._tensor.dtype)
        return self._backbone.vectors(_run(self._after, x, training))


def find_boundary(backbone: Backbone, trained: Collection[str], bn: str = "") -> Boundary | None:
    """Finds how far images can be brought before anything that trains, or changes by chance.

    That is the last tensor which all that comes after it depends on alone, with no layer before it
    that is in one of the stages `trained`, and none that does something else in training than in
    inference, such as dropout. Models within models are looked into.

    Args:
        backbone: Any; those that do not consist of Keras layers have no boundary.
        trained: Names of the stages that train.
        bn: Where batch normalization then goes by the batch; as the backbone has it if empty.

    Returns:
        The boundary; `None` if there is none that has weights before it and layers after it.
    """
    if not isinstance(backbone, KerasBackbone) or (bn or backbone.bn) == "train":
        return None
    if backbone.contract.inputs != IMAGE:  # Masks pass beside the tokens: there is no one tensor.
        return None
    moving = {
        id(weight) for stage in backbone.stages if stage.name in trained for weight in stage.weights
    }
    cut = _last_cut(backbone.network, moving)
    if cut is None or not cut.before or not cut.after:
        return None
    boundary = Boundary(backbone, cut.name, cut.place, cut.before, cut.after)
    return boundary if boundary.weights else None


@dataclass(frozen=True)
class _Cut:
    name: str
    place: tuple[int, ...]
    before: tuple[keras.Function, ...]
    after: tuple[keras.Function, ...]


def _last_cut(network: keras.Model, moving: Collection[int]) -> _Cut | None:
    """Cuts a network at the last place before a weight of `moving`, or chance.

    In an order of the graph, a tensor is the only way through it if at some point it alone, of all
    tensors computed so far, is still to be used. Every order shows all of them: what is not
    computed from such a tensor is what it is computed from.
    """
    whole = keras.Function(network.inputs, network.outputs)
    nodes = list(_nodes(whole))
    last_use = {id(tensor): i for i, node in enumerate(nodes) for tensor in node.input_tensors}
    last_use |= {id(tensor): len(nodes) for tensor in whole.outputs}
    waiting: dict[int, Any] = {}
    cut, position = None, 0
    for i, node in enumerate(nodes):
        if not _fixed(node.operation, moving):
            break
        waiting |= {id(tensor): tensor for tensor in node.outputs}
        waiting = {key: tensor for key, tensor in waiting.items() if last_use.get(key, -1) > i}
        if len(waiting) == 1:
            (cut,), position = waiting.values(), i
    if cut is None:
        return None
    before = () if position == 0 else (keras.Function(whole.inputs, [cut]),)
    if position == len(nodes) - 1:
        return _Cut(cut._keras_history[0].name, (position,), before, ())
    alone = last_use[id(cut)] == position + 1
    inner = _inside(nodes, position + 1, moving) if alone else None
    if inner is None:
        after = (keras.Function([cut], whole.outputs),)
        return _Cut(cut._keras_history[0].name, (position,), before, after)
    (output,) = nodes[position + 1].outputs
    rest = () if position + 1 == len(nodes) - 1 else (keras.Function([output], whole.outputs),)
    place = (position + 1, *inner.place)
    return _Cut(inner.name, place, before + inner.before, inner.after + rest)


def _inside(nodes: list[Any], i: int, moving: Collection[int]) -> _Cut | None:
    """Cuts the model that stands at a place of a graph, if one does that is used only there."""
    node = nodes[i]
    model = node.operation
    if not isinstance(model, keras.Model) or not getattr(model, "inputs", None):
        return None
    used_once = sum(other.operation is model for other in nodes) == 1
    single = len(model.inputs) == len(model.outputs) == len(node.outputs) == 1
    if not used_once or not single:
        return None
    cut = _last_cut(model, moving)
    return cut if cut is not None and cut.before and cut.after else None


def _nodes(function: keras.Function) -> Iterator[Any]:
    """Gives the calls of operations in an order in which they can be computed."""
    for depth in sorted(function._nodes_by_depth, reverse=True):
        yield from function._nodes_by_depth[depth]


def _fixed(operation: Any, moving: Collection[int]) -> bool:
    """Whether an operation gives the same for the same inputs as long as a phase lasts."""
    if not isinstance(operation, keras.layers.Layer):
        return True
    if any(id(weight) in moving for weight in operation.weights):
        return False
    return not any(_by_chance(layer) for layer in operation._flatten_layers())


def _by_chance(layer: keras.layers.Layer) -> bool:
    """Whether a frozen layer may do something else in training than in inference."""
    if not layer._call_has_training_arg or isinstance(layer, keras.layers.BatchNormalization):
        return False
    own = type(layer).__module__.startswith("keras.")
    names = _OWN_RATES if own else _OWN_RATES[:1]
    rates = [getattr(layer, name) for name in names if hasattr(layer, name)]
    if rates and not any(rates):
        return False
    if type(layer) in (keras.layers.Dense, keras.layers.EinsumDense):
        return layer.quantization_mode == "float8"  # Whose scales move in training.
    if type(layer) in (keras.layers.Resizing, keras.layers.CenterCrop):
        return False
    if type(layer) is keras.layers.Lambda:
        return layer._fn_expects_training_arg
    if isinstance(layer, keras.layers.SpectralNormalization):
        return True  # It moves its kernel in training.
    # Keras' own layers of layers pass it on to these.
    return not (own and list(layer._flatten_layers(include_self=False)))


def _run(pieces: tuple[keras.Function, ...], x: tf.Tensor, training: bool) -> tf.Tensor:
    """Runs pieces of a network as the whole would run, which tells each layer whether it trains."""

    def told(operation: Any) -> Any:
        if isinstance(operation, keras.layers.Layer):
            return lambda *args, **kwargs: operation(*args, **{**kwargs, "training": training})
        return operation

    for piece in pieces:
        (x,) = piece._run_through_graph([x], operation_fn=told)
    return x
