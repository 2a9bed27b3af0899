"""How steps are taken, and what a model is compiled with for them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfxfer.backbones import HEAD
from tfxfer.backbones.base import is_kernel
from tfxfer.models import Staged
from tfxfer.models.step import StepModel
from tfxfer.training.objective import Objective
from tfxfer.training.optimizer import StageOptimizer, stage_optimizer

Toward = Sequence[tuple[keras.Variable, tf.Tensor | None]]


@dataclass(frozen=True)
class Settings:
    """How steps are taken, in all phases.

    Attributes:
        optimizer: `adam` or `sgd`.
        weight_decay: Decoupled, of kernels only.
        l2_sp: Strength of the pull of the backbone toward its start, and of the head toward 0.
        ema: Decay of a moving average of the weights, which is validated and kept; off if 0.
        clip_norm: Most norm of the gradient over all weights; off if 0.
        accumulate: Parts that a batch is computed in.
        loss_scaling: Whether to scale the loss so that float16 gradients do not vanish.
        jit: Whether to compile steps with XLA.
        keep_epochs: How many of the best epochs of all phases leave their weights behind.
        keep_last: Whether the last epoch does, as `LAST`.
    """

    optimizer: str = "adam"
    weight_decay: float = 0.0
    l2_sp: float = 0.0
    ema: float = 0.0
    clip_norm: float = 0.0
    accumulate: int = 1
    loss_scaling: bool = False
    jit: bool = False
    keep_epochs: int = 0
    keep_last: bool = False

    def make_optimizer(self, model: Staged) -> tuple[StageOptimizer, Any]:
        """Makes an optimizer over all stages of a model.

        Args:
            model: The fine-tuner; all its stages are unfrozen by this.

        Returns:
            What the rates are set on, and what to compile with.
        """
        model.unfreeze(model.stage_names)
        with model.distribute_strategy.scope():
            rates = stage_optimizer(model, self.optimizer, self.weight_decay)
            if not self.loss_scaling:
                return rates, rates
            scaled = keras.optimizers.LossScaleOptimizer(rates)
            scaled.build(model.trainable_variables)
        return rates, scaled

    def compile(
        self, trained: StepModel, optimizer: Any, objective: Objective, toward: Toward = ()
    ) -> None:
        """Compiles a model, or a part of one, in the scope of its strategy.

        Args:
            trained: What takes the steps.
            optimizer: What `make_optimizer` returned.
            objective: What training makes small.
            toward: What `starts` returned.
        """
        metrics = "weighted_metrics" if objective.unlabelled else "metrics"
        with trained.distribute_strategy.scope():
            trained.compile(
                optimizer,
                loss=objective.loss(),
                **{metrics: objective.metrics()},
                gradient_accumulation_steps=self.accumulate,
                global_clipnorm=self.clip_norm or None,
                l2_sp=self.l2_sp,
                toward=toward,
            )

    def starts(self, model: Staged, weights: Sequence[np.ndarray]) -> Toward:
        """Pairs each weight with what it is pulled toward; of the head, kernels toward 0.

        Args:
            model: The fine-tuner.
            weights: What it started from, as `model.get_weights()` gives them.

        Returns:
            The pairs; none if nothing is pulled.
        """
        if not self.l2_sp:
            return ()
        started = dict(zip(map(id, model.weights), weights, strict=True))
        pairs: list[tuple[keras.Variable, tf.Tensor | None]] = []
        for stage in model.stages:
            for weight in stage.learned:
                if stage.name != HEAD:
                    pairs.append((weight, tf.constant(started[id(weight)])))
                elif is_kernel(weight):
                    pairs.append((weight, None))
        return pairs
