"""The phase loop: set what trains, compile, fit, and prove that nothing else moved."""

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import keras
import numpy as np
import tensorflow as tf

from tfxfer.errors import UserError
from tfxfer.evaluate import example_losses, predict
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
        unmoved: Stages that it was to train and that did not move, as their gradients vanish.
        kept: Whether it stands; if it made the model worse, it was undone.
        seconds: Wall time, tracing included.
    """

    name: str
    epochs: int
    best_epoch: int
    val_loss: float
    val_accuracy: float
    unmoved: tuple[str, ...]
    kept: bool
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
    loss has not improved for `patience` epochs, and leaves the weights of its best epoch. It is
    undone if these are worse than the best phase before: if the validation losses of the same
    examples differ, in the mean, by more than the standard error of that mean.

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
        UserError: If training diverges, or a phase moves nothing at all.
        RuntimeError: If a phase moved a frozen weight.
    """
    check_plan(plan, model.stage_names)
    scope = model.distribute_strategy.scope
    model.unfreeze(model.stage_names)
    with scope():
        optimizer = keras.optimizers.Adam(plan[0].learning_rate)
        optimizer.build(model.trainable_variables)
    results = []
    best_losses = None
    for phase in plan:
        start = time.perf_counter()
        on_phase(phase)
        model.unfreeze(phase.stages)
        optimizer.learning_rate = phase.learning_rate
        with scope():
            model.compile(
                optimizer=optimizer,
                loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
                metrics=["accuracy"],
            )
        before, weights = _digests(model), model.get_weights()
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
        unmoved = _unmoved(phase, model, before)
        best = int(np.argmin(history["val_loss"]))
        losses = example_losses(*predict(model, validation_data))
        kept = best_losses is None or not _worse(losses, best_losses)
        if not kept:
            model.set_weights(weights)
        if best_losses is None or losses.mean() < best_losses.mean():
            best_losses = losses
        results.append(
            PhaseResult(
                name=phase.name,
                epochs=len(history["val_loss"]),
                best_epoch=best + 1,
                val_loss=float(history["val_loss"][best]),
                val_accuracy=float(history["val_accuracy"][best]),
                unmoved=unmoved,
                kept=kept,
                seconds=time.perf_counter() - start,
            )
        )
    return tuple(results)


def _worse(losses: np.ndarray, before: np.ndarray) -> bool:
    """Whether losses of the same examples grew by more than chance would have it."""
    grown = losses - before
    return bool(grown.mean() > grown.std(ddof=1) / np.sqrt(len(grown)))


def _digests(model: FineTuner) -> dict[str, list[bytes]]:
    """Hashes each weight, by stage: what a phase moved shows without a copy of the model."""
    return {
        stage.name: [
            hashlib.blake2b(np.asarray(weight.numpy()).tobytes(), digest_size=16).digest()
            for weight in stage.weights
        ]
        for stage in model.stages
    }


def _unmoved(phase: Phase, model: FineTuner, before: dict[str, list[bytes]]) -> tuple[str, ...]:
    """Compares weights with what the phase declared to train, bit by bit."""
    after = _digests(model)
    unmoved = []
    for stage in model.stages:
        pairs = zip(stage.weights, before[stage.name], after[stage.name], strict=True)
        moved = [weight for weight, old, new in pairs if old != new]
        held = {id(weight) for weight in stage.held}
        if stage.name not in phase.stages and (broken := [w for w in moved if id(w) in held]):
            raise RuntimeError(
                f"Phase {phase.name!r} freezes stage {stage.name!r}, and {broken[0].path} moved."
            )
        if stage.name in phase.stages and not any(weight.trainable for weight in moved):
            unmoved.append(stage.name)
    if set(unmoved) == set(phase.stages):
        raise UserError(
            f"Phase {phase.name!r} trains at rate {phase.learning_rate:g}, and no weight moved",
            "Choose a larger learning rate.",
        )
    return tuple(unmoved)
