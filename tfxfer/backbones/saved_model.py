"""Backbones that are SavedModels, made at home in Keras 3."""

import hashlib
import shutil
import tempfile
import weakref
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from tfxfer.backbones.base import Backbone, Stage
from tfxfer.backbones.bert import MASK, BertTokenizer, encoder_contract
from tfxfer.backbones.contracts import (
    ImageContract,
    as_taken,
    check_no_images,
    contract_from,
    contract_of,
)
from tfxfer.backbones.graph import variables_by_depth
from tfxfer.backbones.hub import EMBEDDED, resolve
from tfxfer.backbones.loading import check_trusted, resources_of
from tfxfer.backbones.packing import fingerprint_of, pack, unpack
from tfxfer.backbones.saved_graph import SavedGraph, hidden_of, pick, read_graph, units_of
from tfxfer.backbones.stages import by_block, by_pattern, by_transformer_block, names_pooler
from tfxfer.backbones.tokenizer import mean_of_tokens
from tfxfer.errors import UserError


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
    while training. An encoder that reads tokens has no batch normalization: its dropout acts while
    any stage is unfrozen. Regularization losses are added in training while any stage is unfrozen.

    A network may take images, strings `[batch]`, or, with a `tokenizer`, what that makes of texts.
    Of an encoder's outputs, `pooled_output` are the features if no other is named; of
    `sequence_output` the tokens of the text are averaged, not the padding.

    Interface of the SavedModel: https://www.tensorflow.org/hub/reusable_saved_models,
    https://www.tensorflow.org/hub/common_signatures/images,
    https://www.tensorflow.org/hub/common_signatures/text and
    https://www.tensorflow.org/hub/common_saved_model_apis/text.

    Args:
        folder: The folder of the SavedModel; not needed any more once the layer is made.
        source: What was asked for, such as a handle; the folder if empty.
        output: Name of the output to take where there are several.
        image_size: Height and width, where the SavedModel leaves them open.
        value_range: Values of black and of white; 0 to 1 if `None`.
        pattern: Regular expressions of the stages, between semicolons; found if empty.
        bn: Where batch normalization goes by the statistics of the batch while training.
        unfrozen: Names of the stages to train; none freezes the backbone.
        tokenizer: The preprocessing of an encoder such as BERT.
        **kwargs: `name`, `dtype` and the like, as for every Keras layer.

    Raises:
        UserError: If there is no such SavedModel, or it does not take images or texts and give
            features.
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
        tokenizer: BertTokenizer | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        folder = Path(folder)
        self.source = source or str(folder)
        self.output_name = output
        self.fingerprint = fingerprint_of(folder, output)
        # In a plain object, which Keras does not track: the weights are the state of this layer,
        # and an exported model must not carry the functions of the SavedModel a second time.
        self._graph = graph = read_graph(folder, self.source)
        self.tokenizer = tokenizer
        if isinstance(graph.inputs, dict) or tokenizer is not None:
            check_no_images(self.source, image_size, value_range)
            self.contract = encoder_contract(graph.inputs, tokenizer, self.source)
            self.preprocessing = tokenizer.words if tokenizer else ""
            self.fingerprint = _with_tokens(self.fingerprint, tokenizer)
        else:
            self.contract = contract_of(graph.inputs, self.source, image_size, value_range)
        features = pick(graph.outputs, output, self.source)
        self.units = units_of(features, self.source)
        self.untrainable = graph.untrainable
        self._learned = _reached(graph, tokens=tokenizer is not None and features.shape.rank == 3)
        self.graph_weights = [
            _adopt(variable, trainable=trainable)
            for variable, trainable in zip(graph.variables, self._learned, strict=True)
        ]
        self._embedded = next((name for name in EMBEDDED if folder == resolve(name)), "")
        self._packed = "" if self._embedded else pack(folder, graph.hidden)
        self.built = True
        self.regroup(pattern, bn)
        self.unfreeze(unfrozen)

    def find_stages(self):
        """Groups the variables; see `Backbone`."""
        variables = self._graph.variables
        if self.pattern and self.untrainable:
            raise UserError(
                f"--stages is for backbones that can be trained, and {self.source!r} stays frozen: "
                f"{self.untrainable}",
                "Leave it out.",
            )
        order = _by_layer(variables_by_depth(self._graph.trace, variables), variables)
        names = [variables[i].name.split(":")[0] for i in order]
        weights = [self.graph_weights[i] for i in order]
        learned = [self._learned[i] for i in order]
        if self.pattern:
            groups = by_pattern(names, learned, self.pattern)
        elif self.tokenizer is not None:
            groups = by_transformer_block(names, learned)
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

    def features(self, inputs, training):
        """Runs the SavedModel; see `Backbone`."""
        features, _ = self.features_and_hidden(inputs, training)
        return features

    @property
    def hidden_states(self) -> tuple[str, ...]:
        """Names of what `features_and_hidden` gives of each block; none if they are not told."""
        return tuple(f"block{i}" for i in range(self._graph.blocks))

    @property
    def hidden_units(self) -> int:
        """Size of what each block returns for a token."""
        return next(iter(hidden_of(self._graph.outputs).values())).shape[-1]

    def features_and_hidden(
        self, inputs: tf.Tensor, training: bool
    ) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """Runs the SavedModel once.

        Args:
            inputs: As for `features`.
            training: As for `features`.

        Returns:
            Features, and what each block of an encoder returned, `[batch, n, units]`, by the name
            of its stage, zero for padding.
        """
        graph = self._graph
        strategy = tf.distribute.get_strategy()
        if tf.distribute.has_strategy() and strategy is not graph.strategy:
            raise RuntimeError(
                f"Backbone {self.name!r} was made under {type(graph.strategy).__name__} and "
                f"is called under {type(strategy).__name__}. "
                "Make it inside `with strategy.scope():`."
            )
        whole = bool(self.stages) and len(self.unfrozen) == len(self.stages)
        # Of an encoder nothing but dropout is another in training.
        encoder = self.tokenizer is not None and len(graph.learned) == len(graph.variables)
        goes = encoder or self.bn == "train" or (self.bn == "stage" and whole)
        as_in_training = goes and training
        extra = {}
        if graph.takes_training:
            extra["training"] = as_in_training and graph.has_training
        own = self.tokenizer
        taken = as_taken(inputs, graph.inputs.shape) if own is None else own(inputs)
        outputs = graph.function(taken, **extra)
        features = pick(outputs, self.output_name, self.source)
        if training and self.trainable:
            for loss in graph.regularization_losses:
                self.add_loss(loss())
        hidden = hidden_of(outputs)
        if self.tokenizer is not None:
            mask = taken[MASK]
            if features.shape.rank == 3:
                features = mean_of_tokens(features, mask)
            hidden = {k: x * tf.cast(mask, x.dtype)[..., None] for k, x in hidden.items()}
        return features, hidden

    def resources(self) -> list[Any]:
        """Returns what an exported model must hold, such as lookup tables."""
        own = [] if self.tokenizer is None else self.tokenizer.resources()
        return [*resources_of(self._graph.module), *own]

    def get_config(self) -> dict[str, Any]:
        """Returns the graph of the SavedModel, without its weights, beside the usual."""
        return {
            **super().get_config(),
            "output": self.output_name,
            "embedded": self._embedded,
            "saved_model": self._packed,
            "tokenizer": self.tokenizer and keras.saving.serialize_keras_object(self.tokenizer),
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
        embedded = config.pop("embedded")
        contract = contract_from(config.pop("contract"))
        if isinstance(contract, ImageContract):
            config |= {"image_size": contract.size, "value_range": contract.value_range}
        if embedded:
            layer = cls(resolve(embedded), **config)
            layer.fingerprint = fingerprint  # Some of its weights may be drawn anew.
            return layer
        check_trusted(config["source"])
        if config["tokenizer"] is not None:
            config["tokenizer"] = keras.saving.deserialize_keras_object(config["tokenizer"])
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


def _with_tokens(fingerprint: str, tokenizer: BertTokenizer | None) -> str:
    """Tells an encoder on other tokens, or on fewer, from this one."""
    told = f"{tokenizer.fingerprint} {tokenizer.sequence_length}" if tokenizer else ""
    return hashlib.sha256(f"{fingerprint} {told}".encode()).hexdigest()


def _reached(graph: SavedGraph, tokens: bool) -> list[bool]:
    """Tells of each variable whether a gradient trains it; none reaches a pooler past tokens."""
    trained = {
        id(variable) for variable in graph.learned if not (tokens and names_pooler(variable.name))
    }
    return [id(variable) in trained for variable in graph.variables]


def _by_layer(order: list[int], variables: tuple[tf.Variable, ...]) -> list[int]:
    """Keeps the variables of a layer together, at the place of the first.

    Else a branch would tear kernel and bias apart: the bias is met as deep as the kernel of the
    layer after, on a shorter way.
    """
    layers = [variables[i].name.rpartition("/")[0] or str(i) for i in order]
    first = {layer: place for place, layer in reversed(list(enumerate(layers)))}
    return [i for _, i in sorted(zip(layers, order, strict=True), key=lambda each: first[each[0]])]


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
