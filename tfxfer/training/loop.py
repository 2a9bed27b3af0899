"""The phase loop: set what trains, compile, fit, and prove that nothing else moved."""

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import keras
import numpy as np
import tensorflow as tf

from tfxfer.errors import UserError
from tfxfer.models import FineTuner
from tfxfer.plan import Phase, check_plan


@dataclass(frozen=True)
class PhaseResult:
    """What a phase did.

    Attributes:
        name: Of the phase.
        epochs: Epochs run.
        best_epoch: The epoch, from 1, whose weights were kept.
        val_loss: Validation loss of that epoch.
        val_accuracy: Validation accuracy of that epoch, in [0, 1].
        seconds: Wall time, tracing included.
    """

    name: str
    epochs: int
    best_epoch: int
    val_loss: float
    val_accuracy: float
    seconds: float


def train(
    model: FineTuner,
    plan: Sequence[Phase],
    train_data: tf.data.Dataset,
    validation_data: tf.data.Dataset,
    *,
    patience: int = 3,
    on_phase: Callable[[Phase], None] = lambda phase: None,
    callbacks: Callable[[Phase], Sequence[keras.callbacks.Callback]] = lambda phase: (),
    verbose: int = 0,
) -> tuple[PhaseResult, ...]:
    """Trains a classifier phase by phase with Adam and early stopping.

    One optimizer serves all phases, so its moments persist. A phase stops when the validation
    loss has not improved for `patience` epochs, and leaves the weights of its best epoch.

    Args:
        model: A fine-tuner whose output is logits `[batch, classes]`.
        plan: The phases, in order.
        train_data: Batches `(images, labels)`, labels int `[batch]`.
        validation_data: As `train_data`; chooses the epoch.
        patience: Epochs without improvement before a phase stops, at least 1.
        on_phase: Called as a phase begins.
        callbacks: Gives further Keras callbacks for a phase.
        verbose: Keras' own: 0 silent, 1 progress bars, 2 one line an epoch.

    Returns:
        What each phase did.

    Raises:
        ValueError: If the plan does not fit the model's stages.
        UserError: If training diverges.
        RuntimeError: If a phase moved a frozen weight, or left a stage that it trains unmoved.
    """
    check_plan(plan, model.stage_names)
    optimizer = keras.optimizers.Adam(plan[0].learning_rate)
    model.unfreeze(model.stage_names)
    optimizer.build(model.trainable_variables)
    results = []
    for phase in plan:
        start = time.perf_counter()
        on_phase(phase)
        model.unfreeze(phase.stages)
        optimizer.learning_rate = phase.learning_rate
        model.compile(
            optimizer=optimizer,
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
        )
        before = _digests(model)
        history = model.fit(
            train_data,
            validation_data=validation_data,
            epochs=phase.epochs,
            shuffle=False,  # The dataset shuffles.
            verbose=verbose,
            callbacks=[
                keras.callbacks.EarlyStopping(
                    "val_loss", patience=patience, restore_best_weights=True
                ),
                keras.callbacks.TerminateOnNaN(),
                *callbacks(phase),
            ],
        ).history
        if not np.isfinite([*history["loss"], *history["val_loss"]]).all():
            raise UserError(
                f"Phase {phase.name!r} must have a finite loss, and it is "
                f"{history['loss'][-1]} in epoch {len(history['loss'])}",
                f"Choose a learning rate below {phase.learning_rate:g}.",
            )
        _check_moved(phase, model, before)
        best = int(np.argmin(history["val_loss"]))
        results.append(
            PhaseResult(
                name=phase.name,
                epochs=len(history["val_loss"]),
                best_epoch=best + 1,
                val_loss=float(history["val_loss"][best]),
                val_accuracy=float(history["val_accuracy"][best]),
                seconds=time.perf_counter() - start,
            )
        )
    return tuple(results)


def _digests(model: FineTuner) -> dict[str, list[bytes]]:
    """Hashes each weight, by stage: what a phase moved shows without a copy of the model."""
    return {
        stage.name: [
            hashlib.blake2b(np.asarray(weight.numpy()).tobytes(), digest_size=16).digest()
            for weight in stage.weights
        ]
        for stage in model.stages
    }


def _check_moved(phase: Phase, model: FineTuner, before: dict[str, list[bytes]]) -> None:
    """Compares weights with what the phase declared to train, bit by bit."""
    after = _digests(model)
    for stage in model.stages:
        pairs = zip(stage.weights, before[stage.name], after[stage.name], strict=True)
        moved = [weight for weight, old, new in pairs if old != new]
        if stage.name not in phase.stages and moved:
            raise RuntimeError(
                f"Phase {phase.name!r} freezes stage {stage.name!r}, and {moved[0].path} moved."
            )
        if stage.name in phase.stages and not any(weight.trainable for weight in moved):
            raise RuntimeError(
                f"Phase {phase.name!r} trains stage {stage.name!r} at rate "
                f"{phase.learning_rate:g}, and none of its weights moved."
            )
