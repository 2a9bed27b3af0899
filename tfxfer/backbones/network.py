"""Backbones that are Keras networks, whatever they were read from."""

import difflib
import hashlib
import importlib
import json
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf

from tfxfer.backbones.base import Backbone, Stage
from tfxfer.backbones.contracts import IMAGE, Contract, as_taken, contract_from
from tfxfer.backbones.loading import resources_of
from tfxfer.backbones.stages import Group, by_block, by_pattern, by_transformer_block
from tfxfer.backbones.tokenizer import Tokenizer
from tfxfer.errors import UserError, first_line


@keras.saving.register_keras_serializable(package="tfxfer")
class KerasBackbone(Backbone):
    """A Keras network as a backbone; see `Backbone` for shapes.

    The network is shared, not copied: its weights are the weights of this layer. Batch
    normalization in frozen stages runs as in inference, so that its averages stay. While any stage
    trains, dropout acts in the whole network.

    Args:
        network: From images, or what `tokenizer` makes of texts, to features: one output, and one
            input, or for texts several in a dict.
        contract: What the network wants, ahead of its family's preprocessing.
        family: Module of `keras.applications` whose `preprocess_input` the images go through;
            none if empty.
        source: What the network was loaded from.
        pattern: Regular expressions of the stages, between semicolons; found if empty.
        bn: Where batch normalization goes by the statistics of the batch while training.
        unfrozen: Names of the stages to train; none freezes the backbone.
        fingerprint: That of the pretrained weights; computed if empty.
        tokenizer: What makes of texts what the network takes; for texts only.
        **kwargs: `name`, `dtype` and the like, as for every Keras layer.

    Raises:
        UserError: If the network does not return features, or the pattern does not fit.
    """

    def __init__(
        self,
        network: keras.Model,
        contract: Contract,
        family: str = "",
        source: str = "a Keras model",
        pattern: str = "",
        bn: str = "freeze",
        unfrozen: list[str] | tuple[str, ...] = (),
        fingerprint: str = "",
        tokenizer: Tokenizer | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.source = source
        self.contract = contract
        self.family, self.tokenizer = family, tokenizer
        self.preprocess: Any = lambda inputs: as_taken(inputs, network.input_shape)
        if family:
            self.preprocess = _family(family).preprocess_input
        self.preprocessing = f"keras.applications.{family}.preprocess_input" if family else ""
        told = ""
        if tokenizer is not None:
            self.preprocess, self.preprocessing = tokenizer, tokenizer.words
            told = tokenizer.fingerprint
        shape = network.output_shape
        if not isinstance(shape, tuple) or len(shape) not in (2, 3, 4) or shape[-1] is None:
            raise UserError(
                f"Backbone {source!r} must return features [batch, units], [batch, n, units] or "
                f"[batch, h, w, units], and returns {shape}",
                "Name the layer to cut at with layer=NAME.",
            )
        self.units = shape[-1]
        self.network = network
        self.fingerprint = fingerprint or _fingerprint(
            network, f"{contract!r}, {self.preprocessing}{told}"
        )
        self.built = True
        self.regroup(pattern, bn)
        self.untrainable = "" if self.stages else "it has no weights to train"
        self.unfreeze(unfrozen)

    def find_stages(self):
        """Groups the layers; see `Backbone`."""
        # So that every weight shows whether it is one to train. Each layer by itself, first off,
        # since Keras passes over what is on already, even if layers or weights in it are off.
        for layer in self.network._flatten_layers():
            layer.trainable = False
            layer.trainable = True
        return _stages(self.network, self.pattern, self.bn, tokens=self.tokenizer is not None)

    def features(self, inputs, training):
        """Runs the network; see `Backbone`."""
        return self.network(self.preprocess(inputs), training=training)

    def resources(self) -> list[Any]:
        """Returns tables of words, which a network may look up itself; see `Backbone`."""
        tokenizer = self.tokenizer
        if self.contract.inputs == IMAGE:
            return []
        return resources_of(self.network) if tokenizer is None else tokenizer.resources()

    def get_config(self) -> dict[str, Any]:
        """Returns the network, serialized, beside the usual."""
        return {
            **super().get_config(),
            "network": keras.saving.serialize_keras_object(self.network),
            "family": self.family,
            "tokenizer": self.tokenizer and keras.saving.serialize_keras_object(self.tokenizer),
        }

    @classmethod
    def from_config(cls, config):
        """Makes the layer again from `get_config`."""
        config = dict(config)
        config["contract"] = contract_from(config["contract"])
        for part in ("network", "tokenizer"):
            if config[part] is not None:
                config[part] = keras.saving.deserialize_keras_object(config[part])
        return cls(**config)


def cut(network: keras.Model, source: str, layer: str = "", top: bool = False) -> keras.Model:
    """Cuts the classifier off a network.

    Args:
        network: Any Keras model with one input.
        source: What it was loaded from.
        layer: Name of the layer whose output are the features. If empty, these are what goes into
            the last layer with weights, if that is dense and the only way to an output, and else
            the output.
        top: Whether to keep a dense layer at the end.

    Returns:
        A functional model that shares the layers of `network`.

    Raises:
        UserError: If there is no such layer, or not one input and one output.
    """
    inputs, outputs = network.inputs, network.outputs
    if len(inputs) != 1:
        raise UserError(
            f"Backbone {source!r} must have one input, and has {len(inputs)}",
            "Give a network that takes images alone.",
        )
    (images,) = inputs
    if layer:
        try:
            return keras.Model(images, _layer(network, source, layer).output)
        except ValueError as error:
            raise UserError(
                f"Backbone {source!r} cannot be cut at {layer!r}: {first_line(error)}",
                "Name a layer between the input and the output.",
            ) from error
    last: Any = next((each for each in reversed(network.layers) if each.weights), None)
    if isinstance(last, keras.layers.Dense) and not top and not _bypassed(outputs, last):
        return keras.Model(images, last.input)
    if len(outputs) != 1:
        names = ", ".join(each.name for each in network.layers[-4:])
        raise UserError(
            f"Backbone {source!r} must have one output, and has {len(outputs)}",
            f"Name the layer to cut at with layer=NAME; the last are {names}.",
        )
    return keras.Model(images, outputs[0])


def _bypassed(outputs: Any, layer: keras.layers.Layer) -> bool:
    """Whether images reach an output of the layer by another way too: then it is no classifier."""
    for output in outputs:
        seen, open_ends, through, around = set(), [output], False, False
        while open_ends:
            operation, node, _ = open_ends.pop()._keras_history
            if operation is layer:
                through = True
            elif isinstance(operation, keras.layers.InputLayer):
                around = True
            elif (id(operation), node) not in seen:
                seen.add((id(operation), node))
                open_ends += operation._inbound_nodes[node].input_tensors
        if through and around:
            return True
    return False


def _layer(network: keras.Model, source: str, name: str) -> keras.layers.Layer:
    names = [layer.name for layer in network.layers]
    if name in names:
        return network.get_layer(name)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0) or names[-3:]
    raise UserError(
        f"Backbone {source!r} has no layer {name!r}", f"Did you mean {' or '.join(near)}?"
    )


def _family(name: str) -> Any:
    try:
        return importlib.import_module(f"keras.applications.{name}")
    except ImportError as error:
        raise UserError(
            f"There is no family {name!r} in keras.applications",
            "Give preprocessing=resnet, vgg16, mobilenet_v2 or the like.",
        ) from error


def _stages(network: keras.Model, pattern: str, bn: str, tokens: bool = False) -> tuple[Stage, ...]:
    layers, paths = zip(*_layers(network), strict=True) if network.weights else ((), ())
    learned = [any(weight.trainable for weight in layer.weights) for layer in layers]
    if pattern and layers:
        groups = _by_pattern(layers, paths, pattern)
    elif tokens:
        groups = by_transformer_block(paths, learned)
    else:
        groups = by_block(paths, learned, [_has_kernel(layer) for layer in layers])
    return tuple(_stage(group, layers, paths, bn) for group in groups)


def _has_kernel(layer: keras.layers.Layer) -> bool:
    return any(len(weight.shape) > 1 for weight in layer.weights)


def _stage(
    group: Group, layers: tuple[keras.layers.Layer, ...], paths: tuple[str, ...], bn: str
) -> Stage:
    members = [layers[i] for i in group.members]
    named = {
        id(weight): (weight, _path(paths[i], layers[i], weight))
        for i in group.members
        for weight in layers[i].weights
    }
    learned = [(weight, path) for weight, path in named.values() if weight.trainable]
    statistics = [(weight, path) for weight, path in named.values() if not weight.trainable]
    return Stage(
        group.name,
        learned=tuple(weight for weight, _ in learned),
        statistics=tuple(weight for weight, _ in statistics),
        layers=tuple(inner for layer in members for inner in layer._flatten_layers()),
        bn=bn,
        paths=tuple(path for _, path in (*learned, *statistics)),
    )


def _by_pattern(
    layers: tuple[keras.layers.Layer, ...], paths: tuple[str, ...], pattern: str
) -> tuple[Group, ...]:
    """Groups layers by patterns that are searched in the paths of their weights."""
    weights = [
        (i, _path(path, layer, weight), weight.trainable)
        for i, (layer, path) in enumerate(zip(layers, paths, strict=True))
        for weight in layer.weights
    ]
    owners, names, learned = zip(*weights, strict=True)
    groups = by_pattern(names, learned, pattern)
    stage_of: dict[int, str] = {}
    for group in groups:
        for position in group.members:
            layer = owners[position]
            if stage_of.setdefault(layer, group.name) != group.name:
                raise UserError(
                    f"--stages must keep the weights of a layer together, and {paths[layer]!r} is "
                    f"in {stage_of[layer]!r} and in {group.name!r}",
                    "Search for the name of the layer.",
                )
    return tuple(
        Group(group.name, tuple(sorted({owners[position] for position in group.members})))
        for group in groups
    )


def _path(path: str, layer: keras.layers.Layer, weight: keras.Variable) -> str:
    """The path of a layer and what comes after its name in that of a weight of it."""
    inside = f"/{weight.path}".rpartition(f"/{layer.name}/")[2]
    return f"{path}/{inside or weight.name}"


def _layers(network: keras.Model, root: str = "") -> Iterator[tuple[keras.layers.Layer, str]]:
    """Gives the layers with weights and their paths, each once, from the input side."""
    seen = set()
    for layer in network.layers:
        path = f"{root}{layer.name}"
        # A subclassed model may have weights of its own, such as position embeddings: one piece.
        splits = isinstance(layer, keras.Model) and len(layer.weights) == len(
            {id(weight) for each in layer.layers for weight in each.weights}
        )
        inner = _layers(layer, f"{path}/") if splits else [(layer, path)]
        for each, name in inner:
            if each.weights and id(each) not in seen:
                seen.add(id(each))
                yield each, name


def _fingerprint(network: keras.Model, contract: str) -> str:
    """Hashes contract, graph and weights; the names of layers, which Keras counts up, do not go in.

    A layer stands for its name by its position.
    """
    names: dict[str, str] = {}

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            if isinstance(value.get("name"), str):
                names.setdefault(value["name"], f"layer {len(names)}")
            return {key: plain(inner) for key, inner in value.items() if key != "build_config"}
        if isinstance(value, list | tuple):
            return [plain(inner) for inner in value]
        return names.get(value, value) if isinstance(value, str) else value

    try:
        described = plain(network.get_config())
    except NotImplementedError:  # A subclassed model that does not say how it was made.
        described = [type(layer).__name__ for layer in network._flatten_layers()]
    config = json.dumps(described, sort_keys=True, default=str)
    digest = hashlib.sha256(f"{contract}\n{config}".encode())
    for layer in network._flatten_layers():
        # Of a layer that has read its words off data, the config does not tell them.
        if hasattr(layer, "get_vocabulary"):
            digest.update(json.dumps(layer.get_vocabulary(), default=str).encode())
    for weight in network.weights:
        digest.update(tf.convert_to_tensor(weight.value).numpy().tobytes())
    return digest.hexdigest()
