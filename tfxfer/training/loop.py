"""The phase loop: set what trains, compile, fit, and prove that nothing else moved."""

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import keras
import numpy as np
import tensorflow as tf

from tfxfer.backbones import HEAD
from tfxfer.errors import UserError
from tfxfer.evaluate import predict
from tfxfer.models import FineTuner
from tfxfer.plan import Phase, check_plan
from tfxfer.training.objective import Objective


class Batches(Protocol):
    """What is trained on: batches `(x, y)` or `(x, y, weight)`, epoch after epoch."""

    @property
    def steps(self) -> int:
        """Batches in an epoch."""
        ...

    def epochs(self, first: int = 0) -> tf.data.Dataset:
        """Returns epoch `first` and all that come after it, without end."""
        ...


@dataclass(frozen=True)
class Data:
    """What a model is trained and validated on.

    Attributes:
        train: Training batches.
        validation: Batches `(x, y)` of validation; `None` if phases run to their last epoch.
    """

    train: Batches
    validation: tf.data.Dataset | None


@dataclass(frozen=True)
class PhaseResult:
    """What a phase did.

    Attributes:
        name: Of the phase.
        epochs: Epochs run.
        best_epoch: The epoch, from 1, whose weights were kept.
        val_loss: Validation loss of that epoch; `None` without validation, as `val_metric`.
        metric: Name of what `val_metric` is, such as `accuracy`.
        val_metric: That metric on validation, after that epoch.
        unmoved: Stages that it was to train and that did not move, as their gradients vanish.
        kept: Whether it stands; if it made the model worse, it was undone.
        seconds: Wall time, tracing included.
    """

    name: str
    epochs: int
    best_epoch: int
    val_loss: float | None
    metric: str
    val_metric: float | None
    unmoved: tuple[str, ...]
    kept: bool
    seconds: float


def train(
    model: FineTuner,
    plan: Sequence[Phase],
    data: Data,
    objective: Objective,
    *,
    features: Data | None = None,
    patience: int = 3,
    on_phase: Callable[[Phase], None] = lambda phase: None,
    callbacks: Callable[[Phase], Sequence[keras.callbacks.Callback]] = lambda phase: (),
    verbose: int = 0,
) -> tuple[PhaseResult, ...]:
    """Trains a model phase by phase with Adam and early stopping.

    One optimizer serves all phases, so its moments persist. A phase stops when the validation
    loss has not improved for `patience` epochs, and leaves the weights of its best epoch. It is
    undone if these are worse than the best phase before: if the validation losses of the same
    examples differ, in the mean, by more than the standard error of that mean. Without validation
    every phase runs to its last epoch, and stands.

    Args:
        model: A fine-tuner whose output is logits or numbers, `[batch, units]`.
        plan: The phases, in order.
        data: Images and labels; validation chooses the epoch.
        objective: What training makes small.
        features: What the frozen backbone makes of `data`: phases that train the head alone
            train it on these, and do not run the backbone.
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
    check_plan(plan, model.stage_names, whole=False)
    scope = model.distribute_strategy.scope
    model.unfreeze(model.stage_names)
    with scope():
        optimizer = keras.optimizers.Adam(plan[0].learning_rate)
        optimizer.build(model.trainable_variables)
        head = _head_alone(model) if features is not None else None
    results, done = [], 0
    best_losses = None
    for phase in plan:
        start = time.perf_counter()
        on_phase(phase)
        model.unfreeze(phase.stages)
        optimizer.learning_rate = phase.learning_rate
        trained, seen = model, data
        if features is not None and head is not None and phase.stages == (HEAD,):
            trained, seen = head, features
        with scope():
            trained.compile(optimizer=optimizer, loss=objective.loss(), metrics=objective.metrics())
        before, weights = _digests(model), model.get_weights()
        history = trained.fit(
            seen.train.epochs(done),
            steps_per_epoch=seen.train.steps,
            validation_data=seen.validation,
            epochs=phase.epochs,
            shuffle=False,  # The dataset shuffles.
            verbose=verbose,
            callbacks=[*_stopping(seen, patience), *callbacks(phase)],
        ).history
        _check_finite(phase, history)
        done += len(history["loss"])
        unmoved = _unmoved(phase, model, before)
        kept, best = True, len(history["loss"]) - 1
        if seen.validation is not None:
            best = int(np.argmin(history["val_loss"]))
            losses = objective.example_losses(*predict(trained, seen.validation))
            kept = best_losses is None or not _worse(losses, best_losses)
            if not kept:
                model.set_weights(weights)
            if best_losses is None or losses.mean() < best_losses.mean():
                best_losses = losses
        results.append(
            PhaseResult(
                name=phase.name,
                epochs=len(history["loss"]),
                best_epoch=best + 1,
                val_loss=_at(history, "val_loss", best),
                metric=objective.metric,
                val_metric=_at(history, f"val_{objective.metric}", best),
                unmoved=unmoved,
                kept=kept,
                seconds=time.perf_counter() - start,
            )
        )
    # So that what is evaluated and saved is the whole model, compiled with what it was trained by.
    if features is not None and plan[-1].stages == (HEAD,):
        with scope():
            model.compile(optimizer=optimizer, loss=objective.loss(), metrics=objective.metrics())
    return tuple(results)


def _head_alone(model: FineTuner) -> keras.Model:
    """Returns a model from features to outputs that shares the head's weights."""
    features = keras.Input((model.backbone.units,))
    return keras.Model(features, model.head(features))


def _stopping(data: Data, patience: int) -> list[keras.callbacks.Callback]:
    stopping = [keras.callbacks.TerminateOnNaN()]
    if data.validation is not None:
        stopping.insert(
            0,
            keras.callbacks.EarlyStopping("val_loss", patience=patience, restore_best_weights=True),
        )
    return stopping


def _check_finite(phase: Phase, history: dict[str, list[float]]) -> None:
    if not np.isfinite([*history["loss"], *history.get("val_loss", [])]).all():
        raise UserError(
            f"Phase {phase.name!r} must have a finite loss, and it is "
            f"{history['loss'][-1]} in epoch {len(history['loss'])}",
            f"Choose a learning rate below {phase.learning_rate:g}.",
        )


def _at(history: dict[str, list[float]], name: str, epoch: int) -> float | None:
    return float(history[name][epoch]) if name in history else None


def _worse(losses: np.ndarray, before: np.ndarray) -> bool:
    """Whether losses of the same examples grew by more than chance would have it."""
    grown = losses - before
    if len(grown) < 2:  # Chance cannot be told from one example.
        return bool(grown.mean() > 0)
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
