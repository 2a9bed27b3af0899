"""What layers of a model return, by name, in the same pass as its output."""

import difflib
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import keras
import tensorflow as tf

from tfxfer.backbones import Backbone, KerasBackbone, SavedModelBackbone
from tfxfer.backbones.contracts import TEXT
from tfxfer.errors import UserError
from tfxfer.models.attention import attention_of, recorded
from tfxfer.models.base import BackboneModel

FEATURES, MAPS = "features", "maps"
"""What a backbone returns, `[batch, units]`, and the same before it is averaged over places."""


SCORES = ".scores"
"""What stands after the name of a stage or layer for the attention in it, `[batch, n, n]`."""


class AmbiguousName(UserError):
    """Several layers have a name."""


class Taps:
    """A model that also gives what some of its layers return.

    Args:
        model: A model on a backbone, or a functional or Sequential one; or, if no names are wanted,
            anything that is called with inputs and `training`.
        names: Of layers; those of models within models too, as `outer/inner` or, where one layer
            alone has it, as `inner`. Of a model on a backbone also of its stages, whose last output
            it then is, `features` and `maps`. Of another model `features` is what goes into its
            last layer with weights. Of a text encoder that is a SavedModel, the stages `block0` and
            so on are told; of any other, `NAME.scores` is also how much each token of a text
            attends to each, averaged over the heads of the last attention in a layer or stage.
            Where texts are padded, all this is zero.
        source: What the model is called in messages.

    Attributes:
        channels: Size of the last axis of what is given, by name; `None` if it is not known.
        tokens: What cuts texts into tokens, by the names of what is given of each token; empty if
            the network does that itself.

    Raises:
        UserError: If there is no layer of a name, or several are, or the model does not show its
            layers.
    """

    def __init__(self, model: Any, names: Collection[str] = (), source: str = "the model"):
        self._model = model
        self._backbone = model.backbone if isinstance(model, BackboneModel) else None
        # What is kept of the graph: outputs by the layer that gives them, and what goes into one.
        self._names: dict[int, list[str]] = {}
        self._last: keras.layers.Layer | None = None
        self._attention: dict[str, keras.layers.MultiHeadAttention] = {}
        self._hidden: tuple[str, ...] = ()
        own = () if self._backbone is None else (FEATURES, MAPS)
        self.channels: dict[str, int | None] = {}
        self.tokens: dict[str, tuple[Any, ...]] = {}
        wanted = sorted(set(names) - set(own))
        for name in set(names) & set(own):
            self.channels[name] = model.backbone.units
        encoder = self._backbone if isinstance(self._backbone, SavedModelBackbone) else None
        if encoder is not None and encoder.hidden_states:
            self._take_hidden(encoder, wanted, source)
            return
        if not wanted:
            return
        graph = graph_of(model if self._backbone is None else _network(self._backbone))
        if graph is None:
            raise UserError(
                f"{source} does not show its layers, and is asked for {wanted[0]!r}",
                f"Ask for {' or '.join(own)}." if own else "Give a functional or Sequential model.",
            )
        known = dict(_paths(graph))
        if isinstance(self._backbone, KerasBackbone):
            known |= _stage_ends(self._backbone, graph)
        if self._backbone is None and FEATURES in wanted:
            wanted.remove(FEATURES)
            last = self._last = _last_with_weights(graph, source)
            self.channels[FEATURES] = last.input.shape[-1]
        for name in wanted:
            if name.endswith(SCORES):
                layers = self._within(name.removesuffix(SCORES), known, own, source)
                self._attention[name] = attention = attention_of(layers, name, source)
                self.channels[name] = _length(attention, self._backbone)
                self._note_tokens(name)
                continue
            layer = _named(name, known, own, source)
            self._names.setdefault(id(layer), []).append(name)
            self.channels[name] = _shape(layer)[-1]
            if len(_shape(layer)) == 3:
                self._note_tokens(name)

    def __call__(self, inputs: Any, training: bool) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """Runs the model once.

        Args:
            inputs: As the model takes them.
            training: As in `call` of the model.

        Returns:
            What the model itself returns, and what was wanted by name, with `features` and `maps`
            of a model on a backbone in any case.
        """
        found: dict[str, tf.Tensor] = {}
        if self._backbone is not None:
            return self._on_backbone(self._backbone, inputs, training, found), found
        if self._names or self._attention or self._last is not None:
            with recorded(self._attention, found):
                return self._run(self._model, inputs, training, found), found
        return self._model(inputs, training=training), found

    def _take_hidden(self, backbone: SavedModelBackbone, wanted: list[str], source: str) -> None:
        """Takes the names of the blocks of an encoder, which has no layers to look into."""
        for name in wanted:
            if name not in backbone.hidden_states:
                attention = name.endswith(SCORES)
                raise UserError(
                    f"{source} is a SavedModel, and is asked for {name!r}",
                    "Its interface does not tell attention; compare what blocks return."
                    if attention
                    else f"Ask for {', '.join((*backbone.hidden_states, FEATURES))}.",
                )
            self.channels[name] = backbone.hidden_units
            self._note_tokens(name)
        self._hidden = tuple(wanted)

    def _note_tokens(self, name: str) -> None:
        if self._backbone is not None and self._backbone.contract.inputs == TEXT:
            own, found = self._backbone.tokenizer, ()
            if own is not None:
                found = type(own).__name__, own.fingerprint, own.sequence_length
            self.tokens[name] = found

    def _within(
        self, name: str, known: Mapping[str, keras.layers.Layer], own: Collection[str], source: str
    ) -> list[keras.layers.Layer]:
        """Gives the layers of a stage, or in a layer."""
        for stage in () if self._backbone is None else self._backbone.stages:
            if stage.name == name:
                return list(stage.layers)
        return list(_named(name, known, own, source)._flatten_layers())

    def _on_backbone(
        self, backbone: Backbone, inputs: Any, training: bool, found: dict[str, tf.Tensor]
    ) -> tf.Tensor:
        """Does what the backbone and the model on it do in `call`."""
        learns = bool(training) and (backbone.trainable or backbone.bn == "train")
        taken = backbone.contract.prepare(inputs)
        if self._hidden and isinstance(backbone, SavedModelBackbone):
            found[MAPS], hidden = backbone.features_and_hidden(taken, learns)
            found |= {name: hidden[name] for name in self._hidden}
        elif (self._names or self._attention) and isinstance(backbone, KerasBackbone):
            tokens = backbone.preprocess(taken)
            with recorded(self._attention, found):
                found[MAPS] = self._run(backbone.network, tokens, learns, found)
            if backbone.tokenizer is not None:
                mask = backbone.tokenizer.mask(tokens)
                named = [name for names in self._names.values() for name in names]
                for name in (*named, *self._attention):
                    found[name] = _without_padding(found[name], mask)
        else:
            found[MAPS] = backbone.features(taken, learns)
        found[FEATURES] = backbone.vectors(found[MAPS])
        return self._model.head(found[FEATURES], training=training)

    def _run(self, model: Any, inputs: Any, training: bool, found: dict[str, tf.Tensor]) -> Any:
        """Runs a graph of layers as Keras does, and keeps what is wanted."""
        graph: Any = graph_of(model)

        def told(operation: Any) -> Any:
            if not isinstance(operation, keras.layers.Layer):
                return operation

            def call(*args: Any, **kwargs: Any) -> Any:
                if operation is self._last:
                    found[FEATURES] = args[0]
                if self._is_within(operation):
                    outputs = self._run(operation, args[0], training, found)
                else:
                    outputs = operation(*args, **{**kwargs, "training": training})
                for name in self._names.get(id(operation), ()):
                    found[name] = outputs
                return outputs

            return call

        outputs = graph._run_through_graph(graph._standardize_inputs(inputs), operation_fn=told)
        return outputs[0] if isinstance(outputs, list | tuple) and len(outputs) == 1 else outputs

    def _is_within(self, operation: keras.layers.Layer) -> bool:
        """Whether something that is wanted is inside of a model within the model."""
        inner = graph_of(operation)
        return inner is not None and any(
            id(each) in self._names or each is self._last for each in _layers(inner)
        )


def check_tokens(term: Any, student: Mapping[str, tuple], teacher: Mapping[str, tuple]) -> None:
    """Checks that a loss which compares texts token by token sees the same tokens on both sides.

    Args:
        term: The loss.
        student: `Taps.tokens` of the student.
        teacher: The same of the teachers.

    Raises:
        UserError: If it does not.
    """
    own, other = student.get(term.student), teacher.get(term.teacher)
    if None not in (own, other) and own != other:
        raise UserError(
            f"The loss {term} compares texts token by token, and student and teacher cut them into "
            "different tokens",
            "Let the student read those of the teacher, as "
            "transformer(preprocess=HANDLE, seq_length=N) does, or compare features.",
        )


def _length(attention: keras.layers.Layer, backbone: Backbone | None) -> int | None:
    """How many tokens an attention is over, as far as it is known."""
    if backbone is not None and backbone.tokenizer is not None:
        return backbone.tokenizer.sequence_length
    return _shape(attention)[1] if attention._inbound_nodes else None


def _without_padding(found: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
    """Sets to zero what stands for padding: `[batch, n, ...]` and `[batch, n]`."""
    if found.shape.rank < 3 or found.shape[1] != mask.shape[1]:
        return found
    kept = tf.reshape(mask, [-1, mask.shape[1], *[1] * (found.shape.rank - 2)])
    return found * tf.cast(kept, found.dtype)


def _network(backbone: Backbone) -> keras.Model | None:
    return backbone.network if isinstance(backbone, KerasBackbone) else None


def graph_of(model: Any) -> Any:
    """Returns the functional model that a model is; `None` if it is none."""
    if isinstance(model, keras.Sequential):
        return model._functional
    return model if isinstance(model, keras.Model) and hasattr(model, "_nodes_by_depth") else None


def _named(
    name: str, known: Mapping[str, keras.layers.Layer], own: Collection[str], source: str
) -> keras.layers.Layer:
    """Finds a layer by its path or the end of it."""
    ends = [path for path in known if path.endswith(f"/{name}")]
    paths = [name] if name in known else ends
    if len({id(known[path]) for path in paths}) > 1:
        raise AmbiguousName(
            f"{source} has several layers {name!r}", f"Choose one of {', '.join(paths)}."
        )
    if not paths:
        told = [*own, *known, *(path.split("/")[-1] for path in known)]
        near = difflib.get_close_matches(name, dict.fromkeys(told), n=3, cutoff=0.5)
        raise UserError(
            f"{source} has no layer or stage {name!r}",
            f"Did you mean {', '.join(near or [*own, *known][-8:])}?",
        )
    return known[paths[0]]


def _paths(graph: Any, within: str = "") -> Iterator[tuple[str, keras.layers.Layer]]:
    """Gives layers by path, in the order in which they run, those within a model ahead of it."""
    for depth in sorted(graph._nodes_by_depth, reverse=True):
        for node in graph._nodes_by_depth[depth]:
            layer = node.operation
            if isinstance(layer, keras.layers.Layer) and not node.is_input:
                if (inner := graph_of(layer)) is not None:
                    yield from _paths(inner, f"{within}{layer.name}/")
                yield within + layer.name, layer


def _layers(graph: Any) -> list[keras.layers.Layer]:
    return [layer for _, layer in _paths(graph)]


def _leaves(graph: Any) -> list[keras.layers.Layer]:
    return [layer for layer in _layers(graph) if graph_of(layer) is None]


def _last_with_weights(graph: Any, source: str) -> keras.layers.Layer:
    found = [layer for layer in _leaves(graph) if layer.weights]
    if not found:
        raise UserError(f"{source} has no weights", "Name the layer whose output is wanted.")
    return found[-1]


def _stage_ends(backbone: KerasBackbone, graph: Any) -> dict[str, keras.layers.Layer]:
    """Finds the last layer of each stage: of those with weights, and of those that follow it.

    But none that takes away places, such as pooling over all of them: maps are what losses want.
    """
    owner = {id(weight): stage.name for stage in backbone.stages for weight in stage.weights}
    ends: dict[str, keras.layers.Layer] = {}
    stage = ""
    for layer in _leaves(graph):
        if layer.weights:
            stage = owner[id(layer.weights[0])]
            ends[stage] = layer
        elif stage and len(_shape(layer)) == len(_shape(ends[stage])):
            ends[stage] = layer
    return ends


def _shape(layer: keras.layers.Layer) -> tuple[int | None, ...]:
    """Returns the shape of what a layer returned when it was last called to build a graph."""
    return tuple(layer._inbound_nodes[-1].outputs[0].shape)
