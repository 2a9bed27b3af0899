"""One optimizer for all phases, with a learning rate for each stage."""

from collections.abc import Callable, Mapping
from typing import Any

import keras
import tensorflow as tf

from tfxfer.backbones.base import is_kernel
from tfxfer.models import Staged

_MOMENTUM = 0.9


class StageOptimizer(keras.optimizers.MultiOptimizer):
    """Keras' `MultiOptimizer` with one optimizer a stage, for models that train in phases.

    What is new: it is built over the weights of all stages, and applied to those that train now.
    Moments persist from phase to phase, and each stage counts the steps that it took itself, so
    that Adam corrects the bias of moments that have just begun.

    Args:
        stages: Weights by the name of their stage.
        make: Makes the optimizer of a stage from its learning rate, a function without arguments.

    Attributes:
        factor: Scalar `tf.Variable` that all rates are multiplied by.
    """

    def __init__(
        self,
        stages: Mapping[str, list[keras.Variable]],
        make: Callable[[Callable[[], tf.Tensor]], keras.optimizers.Optimizer],
    ):
        factor = tf.Variable(1.0, trainable=False, name="factor")
        rates = {
            name: tf.Variable(0.0, trainable=False, name=f"rate_{number}")
            for number, name in enumerate(stages)
        }
        optimizers = {name: make(_product(rate, factor)) for name, rate in rates.items()}
        owner = {id(weight): name for name, weights in stages.items() for weight in weights}
        super().__init__(lambda weight: optimizers[owner[id(weight)]], name="stages")
        self.factor, self._rates = factor, rates
        self.build([weight for weights in stages.values() for weight in weights])

    @property
    def rates(self) -> dict[str, float]:
        """The learning rate of each stage, before `factor`."""
        return {name: float(rate.numpy()) for name, rate in self._rates.items()}

    @rates.setter
    def rates(self, rates: Mapping[str, float]) -> None:
        for name, rate in rates.items():
            self._rates[name].assign(rate)

    def apply(self, grads, trainable_variables=None):
        """Takes a step with the weights that are given, which may be those of some stages."""
        if trainable_variables is None:
            raise ValueError("Expected the weights that the gradients are of, received None.")
        groups: dict[int, list[tuple[Any, Any]]] = {}
        for gradient, weight in zip(grads, trainable_variables, strict=True):
            stage = self._var_to_optimizer_idx[self._var_key(weight)]
            groups.setdefault(stage, []).append((gradient, weight))
        for stage, pairs in groups.items():
            # A stage that the loss does not reach has no step to take.
            if any(gradient is not None for gradient, _ in pairs):
                self._inner_optimizers[stage].apply(*map(list, zip(*pairs, strict=True)))
        self._iterations.assign_add(1)


def stage_optimizer(model: Staged, kind: str = "adam", weight_decay: float = 0.0) -> StageOptimizer:
    """Makes the optimizer of a fine-tuner, over the learned weights of all its stages.

    Args:
        model: The fine-tuner; call this in the scope of its strategy.
        kind: `adam`, or `sgd` with a momentum of 0.9.
        weight_decay: Decoupled (Loshchilov and Hutter 2019), of kernels only; see `is_kernel`.

    Raises:
        ValueError: If there is no such optimizer.
    """
    if kind not in ("adam", "sgd"):
        raise ValueError(f"Expected adam or sgd, received {kind!r}.")
    stages = {stage.name: list(stage.learned) for stage in model.stages}
    kept = [weight for weights in stages.values() for weight in weights if not is_kernel(weight)]

    def make(rate: Callable[[], tf.Tensor]) -> keras.optimizers.Optimizer:
        decay = weight_decay or None
        optimizer: keras.optimizers.Optimizer = (
            keras.optimizers.SGD(rate, momentum=_MOMENTUM, weight_decay=decay)
            if kind == "sgd"
            else keras.optimizers.Adam(rate, weight_decay=decay)
        )
        if decay:
            optimizer.exclude_from_weight_decay(var_list=kept)
        return optimizer

    return StageOptimizer(stages, make)


def _product(rate: tf.Variable, factor: tf.Variable) -> Callable[[], tf.Tensor]:
    return lambda: rate * factor
