"""What every backbone is: a Keras layer with a contract, stages and a fingerprint."""

import dataclasses
import functools
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

from tfxfer.backbones.constants import Constants
from tfxfer.backbones.contracts import IMAGE, Contract
from tfxfer.backbones.tokenizer import Tokenizer, mean_of_tokens
from tfxfer.config import BATCH_NORM

HEAD = "head"
"""The name of what stands on a backbone; no stage of a backbone has it."""

_NO_KERNELS = ("bias", "beta", "gamma", "scale")


def is_kernel(weight: keras.Variable) -> bool:
    """Whether a weight is a kernel or an embedding, neither a bias nor of a norm.

    The shape alone does not tell: `MultiHeadAttention` has biases `[heads, units]`.
    """
    name = weight.path.rpartition("/")[2]
    return len(weight.shape) > 1 and not name.endswith(_NO_KERNELS)


def _check_bn(bn: str) -> None:
    if bn not in BATCH_NORM:
        raise ValueError(f"Expected bn among {list(BATCH_NORM)}, received {bn!r}.")


@dataclass(frozen=True)
class Stage:
    """A named group of weights that is frozen or trained as one.

    Attributes:
        name: Such as `block1`.
        learned: The weights that a gradient trains.
        statistics: The weights that no gradient reaches, such as the averages of batch
            normalization.
        layers: The layers that hold them, where the network consists of Keras layers.
        bn: Where batch normalization goes by the batch.
        paths: Paths of `weights`, as `--stages` searches them.
        fixed: The weights that a gradient could train and that stay as they are even while the
            stage trains, such as the kernels beside low-rank additions.
    """

    name: str
    learned: tuple[keras.Variable, ...]
    statistics: tuple[keras.Variable, ...] = ()
    layers: tuple[keras.layers.Layer, ...] = ()
    bn: str = "stage"
    paths: tuple[str, ...] = ()
    fixed: tuple[keras.Variable, ...] = ()

    @property
    def weights(self) -> tuple[keras.Variable, ...]:
        """All weights of the stage: the learned, the fixed, the statistics."""
        return self.learned + self.fixed + self.statistics

    @property
    def held(self) -> tuple[keras.Variable, ...]:
        """The weights that stay as they are, to the bit, while the stage is frozen."""
        return self.learned + self.fixed if self.bn == "train" else self.weights

    def train(self, on: bool) -> None:
        """Makes the learned weights trainable, or freezes them.

        Each by itself: Keras skips `layer.trainable = True` where that is `True` already, even if
        single weights of the layer are frozen; and batch normalization that is not `trainable`
        runs as in inference, also where its own weights are to train. So does that whose own
        weights are fixed.
        """
        learned = {id(weight) for weight in self.learned}
        for layer in self.layers:
            batch_norm = isinstance(layer, keras.layers.BatchNormalization) and self.bn != "stage"
            learns = not self.fixed or any(id(weight) in learned for weight in layer.weights)
            layer.trainable = self.bn == "train" if batch_norm else on and learns
        for weight in self.learned:
            weight.trainable = on
        for weight in self.fixed:
            weight.trainable = False


class Backbone(keras.layers.Layer):
    """A pretrained network from images or texts to features, frozen until a stage is unfrozen.

    A subclass sets the attributes below in `__init__`, `stages` by `regroup`, and writes `features`
    and `find_stages`.

    Args:
        **kwargs: `name`, `dtype` and the like, as for every Keras layer.

    Input: images with values 0 to 255, `[batch, height, width, 1 or 3]`, of any size; or texts,
        strings `[batch]` or, where the contract has pairs, `[batch, 2]`.
    Output: features `[batch, units]`, float32. Maps `[batch, h, w, units]` and tokens
        `[batch, n, units]` are averaged, without padding where that is told.

    Attributes:
        source: What the backbone was loaded from.
        contract: What the network wants of its images or texts.
        preprocessing: What the network does to these itself, in words; empty if nothing.
        tokenizer: Makes of texts what the network takes; `None` for images, and for networks that
            take strings.
        units: Size of the feature vector.
        pattern: Regular expressions of the stages; empty if they were found.
        bn: Where batch normalization goes by the statistics of the batch while training.
        stages: Groups of weights, input side first; every weight is in exactly one. A network
            that cannot be trained has none.
        untrainable: Why the network cannot be trained; empty if it can.
        fingerprint: Hash of the graph and of the weights as loaded, pretrained or drawn.
    """

    source: str
    contract: Contract
    preprocessing: str = ""
    tokenizer: Tokenizer | None = None
    units: int
    pattern: str
    bn: str
    stages: tuple[Stage, ...]
    untrainable: str = ""
    fingerprint: str

    def __init__(self, **kwargs):
        # Inputs come in as they are, whatever the network computes in: `contract` casts them.
        super().__init__(autocast=False, **kwargs)
        # XLA has no antialiased resize, and Keras would turn it on by itself on a GPU.
        self.supports_jit = False

    def features(self, inputs: tf.Tensor, training: bool) -> tf.Tensor:
        """Runs the network.

        Args:
            inputs: As the contract has them.
            training: Whether to run as in training as far as stages and `bn` have it.

        Returns:
            Float `[batch, units]`, `[batch, n, units]` or `[batch, h, w, units]`.
        """
        raise NotImplementedError

    def resources(self) -> list[Any]:
        """Returns what an exported model must hold beside weights, such as lookup tables."""
        return []

    def regroup(self, pattern: str = "", bn: str = "freeze") -> None:
        """Groups the weights into other stages, and freezes them all.

        Args:
            pattern: Regular expressions of the stages, between semicolons, input side first;
                found if empty.
            bn: Where batch normalization goes by the statistics of the batch while training.

        Raises:
            UserError: If the pattern does not find every weight once.
            ValueError: If `bn` is none of `stage`, `freeze`, `train`.
        """
        _check_bn(bn)
        self.pattern, self.bn = pattern, bn
        self.stages = self.find_stages()
        if self.stages:
            held = [id(weight) for stage in self.stages for weight in stage.weights]
            if sorted(held) != sorted(id(weight) for weight in self.weights):
                raise RuntimeError(f"The stages of {self.source!r} must hold each weight once.")
        self.unfreeze([])

    def find_stages(self) -> tuple[Stage, ...]:
        """Groups the weights by `pattern`, or by their names; what trains now does not matter."""
        raise NotImplementedError

    def call(self, inputs, training=False):
        """Computes features; see the class for shapes."""
        training = bool(training) and (self.trainable or self.bn == "train")
        return self.vectors(self.features(self.contract.prepare(inputs), training))

    def vectors(self, features: tf.Tensor) -> tf.Tensor:
        """Makes of what `features` returns what the backbone does: `[batch, units]`, float32."""
        mask = getattr(features, "_keras_mask", None)  # How layers of Keras tell padding.
        if features.shape.rank == 3 and mask is not None:
            features = mean_of_tokens(features, mask)
        elif features.shape.rank > 2:
            features = tf.reduce_mean(features, axis=range(1, features.shape.rank - 1))
        features = tf.cast(features, tf.float32)
        return features if self.trainable else tf.stop_gradient(features)

    @functools.cached_property
    def infer(self) -> Callable[[tf.Tensor], tf.Tensor]:
        """Inputs to features as in inference, as one graph that is traced once.

        Batches of any size may go in; images of another size or dtype, and pairs after single
        texts, are traced anew.
        """

        # Of texts and pairs, one function would make a graph for inputs of no known rank.
        @functools.cache
        def of_rank(rank: int) -> Callable[[tf.Tensor], tf.Tensor]:
            return tf.function(
                lambda inputs: self(inputs, training=False), reduce_retracing=True, autograph=False
            )

        return lambda inputs: of_rank(len(inputs.shape))(inputs)

    def infer_fixed(self, version: str) -> Callable[[tf.Tensor], tf.Tensor]:
        """Gives `infer` with the weights of now as constants; see `Constants`.

        Args:
            version: What tells these weights from others; it is traced anew when that changes.
        """
        held = self.__dict__.get("_fixed")  # Not an attribute that an export would save.
        if held is None or held[0] != version:
            constants = Constants(self.weights)

            def run(inputs: tf.Tensor) -> tf.Tensor:
                with constants.used():
                    return self(inputs, training=False)

            # Batches of a dataset are of no fixed size, and texts and pairs stay apart.
            images = self.contract.inputs == IMAGE
            graph = tf.function(run, reduce_retracing=images, autograph=False)
            held = self.__dict__["_fixed"] = version, graph
        return held[1]

    def retrace(self) -> None:
        """Lets `infer` be traced anew, once the network itself is another."""
        self.__dict__.pop("infer", None)
        self.__dict__.pop("_fixed", None)

    def unfreeze(self, stages: str | Collection[str], bn: str = "") -> None:
        """Makes exactly these stages trainable and freezes the others.

        As everywhere in Keras, a model that is compiled already must be compiled again.

        Args:
            stages: One name or several; none freezes the whole backbone.
            bn: Where batch normalization goes by the statistics of the batch from now on; as
                before if empty.

        Raises:
            ValueError: If there is no stage of such a name, or the network cannot be trained, or
                `bn` is none of `stage`, `freeze`, `train`.
        """
        if bn and bn != self.bn:
            _check_bn(bn)
            self.bn = bn
            self.stages = tuple(dataclasses.replace(stage, bn=bn) for stage in self.stages)
        stages = [stages] if isinstance(stages, str) else stages
        known = [stage.name for stage in self.stages]
        if stages and not known:
            raise ValueError(
                f"Backbone {self.source!r} cannot be unfrozen: {self.untrainable}. "
                f"Expected no stages, received {list(stages)}."
            )
        if unknown := sorted(set(stages) - set(known)):
            raise ValueError(f"Expected stages among {known}, received {unknown}.")
        self.trainable = bool(stages)
        for stage in self.stages:
            stage.train(stage.name in stages)

    def freeze_below(self, stage: str) -> None:
        """Freezes every stage on the input side of `stage`, and unfreezes it and the rest.

        Args:
            stage: Name of the first stage to train.

        Raises:
            ValueError: If there is no stage of that name.
        """
        names = [s.name for s in self.stages]
        if names and stage not in names:
            raise ValueError(f"Expected a stage among {names}, received {stage!r}.")
        self.unfreeze(names[names.index(stage) :] if names else stage)

    @property
    def unfrozen(self) -> tuple[str, ...]:
        """Names of the stages that train now, input side first."""
        if not self.trainable:
            return ()
        return tuple(stage.name for stage in self.stages if any(w.trainable for w in stage.learned))

    def get_config(self) -> dict[str, Any]:
        """Returns what makes the layer again, which stages train now included."""
        return {
            **super().get_config(),
            "source": self.source,
            "contract": dataclasses.asdict(self.contract),
            "pattern": self.pattern,
            "bn": self.bn,
            "unfrozen": list(self.unfrozen),
            "fingerprint": self.fingerprint,
        }

    def compute_output_shape(self, input_shape):
        """Returns `(batch, units)`."""
        return (input_shape[0], self.units)
