"""The phase loop: set what trains, compile, train, and prove that nothing else moved."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tfxfer.distribute import all_agree
from tfxfer.errors import TrainingError
from tfxfer.evaluate import predict
from tfxfer.models import Staged
from tfxfer.models.step import StepModel
from tfxfer.plan import Phase, check_plan
from tfxfer.training.checkpoints import Checkpoints, State
from tfxfer.training.epochs import Batches, Data, Epochs, Standing, Timer
from tfxfer.training.frozen import digests, unmoved_stages
from tfxfer.training.moving_average import MovingAverage, moving
from tfxfer.training.objective import Objective
from tfxfer.training.schedules import factor
from tfxfer.training.settings import Settings

__all__ = ["Batches", "Data", "PhaseResult", "Settings", "train"]

START, LAST, MOMENTS = "start", "last", "moments"
"""Names of the weights that training started from and of those of the last epoch, and of the state
of the optimizer at the start of a phase."""


@dataclass(frozen=True)
class PhaseResult:
    """What a phase did.

    Attributes:
        name: Of the phase.
        epochs: Epochs run.
        best_epoch: The epoch, from 1, whose weights were kept; 0 if the head was solved, or if a
            loss was not finite.
        loss: Training loss of that epoch, the mean over its steps, or of the solved head; `None` if
            there is none.
        train_metric: The metric on the training batches of that epoch, as they were learned, or of
            the solved head.
        val_loss: Validation loss of that epoch, or of the solved head; `None` without validation
            or if a loss was not finite, as `val_metric`.
        metric: Name of what `val_metric` is, such as `accuracy`.
        val_metric: That metric on validation, after that epoch.
        unmoved: Stages that it was to train and that did not move, as their gradients vanish.
        kept: Whether it stands; if it made the model worse or diverged, it was undone.
        seconds: Wall time, tracing included.
    """

    name: str
    epochs: int
    best_epoch: int
    loss: float | None
    train_metric: float | None
    val_loss: float | None
    metric: str
    val_metric: float | None
    unmoved: tuple[str, ...]
    kept: bool
    seconds: float


def train(
    model: Staged,
    plan: Sequence[Phase],
    data: Data,
    objective: Objective,
    *,
    settings: Settings | None = None,
    shortcut: Callable[[Phase], tuple[StepModel, Data] | None] = lambda phase: None,
    solve_head: Callable[[Staged], tuple[np.ndarray, np.ndarray]] | None = None,
    checkpoints: Checkpoints | None = None,
    on_phase: Callable[[Phase], None] = lambda phase: None,
    callbacks: Callable[[Phase], Sequence[keras.callbacks.Callback]] = lambda phase: (),
    verbose: int = 0,
) -> tuple[PhaseResult, ...]:
    """Trains a model phase by phase, with early stopping.

    One optimizer serves all phases, so its moments persist. A phase stops when the validation
    loss has not improved for `patience` epochs, and leaves the weights of its best epoch. It is
    undone if these are worse than the best phase before: if the validation losses of the same
    examples differ, in the mean, by more than the standard error of that mean, or if a loss is not
    finite. The next phase then starts with the weights and moments that this one found. Without
    validation every phase runs to its last epoch, and stands.

    Each replica takes its share of a batch, and runs the model's own `train_step`; with one
    device and one phase this is what Keras' `fit` does, to the bit.

    Args:
        model: A fine-tuner or a distiller whose output is logits or numbers, `[batch, units]`.
        plan: The phases, in order.
        data: Images and labels; validation chooses the epoch.
        objective: What training makes small.
        settings: How steps are taken; as usual if `None`.
        shortcut: Gives a model that shares the weights that a phase trains, and data for it, such
            as the outputs of frozen stages; the phase then trains that.
        solve_head: Solves the head for phases that ask for it; returns outputs of the model and `y`
            of the training examples.
        checkpoints: Where the state is kept, and found if the process was killed; in a temporary
            folder if `None`.
        on_phase: Called as a phase begins, or goes on.
        callbacks: Gives further Keras callbacks for a phase.
        verbose: Keras' own: 0 silent, 1 progress bars, 2 one line an epoch.

    Returns:
        What each phase did.

    Raises:
        ValueError: If the plan does not fit the model's stages.
        TrainingError: If a loss is not finite before any phase stands on validation, or if a phase
            moves nothing at all.
        RuntimeError: If a phase moved a frozen weight.
    """
    check_plan(plan, model.stage_names, whole=False)
    bn = model.backbone.bn
    with tempfile.TemporaryDirectory(prefix="tfxfer-") as folder:
        checkpoints = checkpoints or Checkpoints(Path(folder) / "run", {}, seconds=np.inf)
        if (done := checkpoints.finished()) is not None:
            model.set_weights(checkpoints.read_weights("final"))
            results = _results(done)
        else:
            training = _Training(
                model, data, objective, settings or Settings(), checkpoints, on_phase
            )
            results = training.run(plan, shortcut, solve_head, callbacks, verbose)
            checkpoints.remove_weights(MOMENTS)
            top = [name for _, name in training.state["top"]]
            checkpoints.finish(model, {"results": [asdict(each) for each in results], "top": top})
    model.unfreeze(plan[-1].stages, bn)
    # So that what is evaluated and saved is the whole model. Moments would be of no use to others,
    # and make a file three times as large.
    with model.distribute_strategy.scope():
        model.compile(
            keras.optimizers.SGD(max(plan[-1].rates)),
            loss=objective.loss(),
            metrics=objective.metrics(),
        )
    return results


class _Training:
    """The state of all phases: weights, optimizer, and the losses of the best phase."""

    def __init__(
        self,
        model: Staged,
        data: Data,
        objective: Objective,
        settings: Settings,
        checkpoints: Checkpoints,
        on_phase: Callable[[Phase], None],
    ):
        self._model, self._data, self._objective = model, data, objective
        self._settings, self._checkpoints, self._on_phase = settings, checkpoints, on_phase
        self._strategy, self._bn = model.distribute_strategy, model.backbone.bn
        found = checkpoints.state()
        self.state = found or {
            "results": [],
            "kept": START,
            "best": None,
            "epochs": 0,
            "top": [],
            "phase": None,
        }
        if not checkpoints.has_weights(START):
            checkpoints.write_weights(START, model)
        self._rates, self._optimizer = settings.make_optimizer(model)
        self._toward = settings.starts(model, checkpoints.read_weights(START))
        if found is not None:
            checkpoints.restore(self._variables())

    def run(self, plan, shortcut, solve_head, callbacks, verbose) -> tuple[PhaseResult, ...]:
        for number, phase in enumerate(plan):
            if number < len(self.state["results"]):
                continue
            self._on_phase(phase)
            self._model.unfreeze(phase.stages, phase.bn or self._bn)
            if phase.solved:
                self._solve(phase, number, solve_head, shortcut)
            else:
                self._train(phase, number, shortcut(phase), callbacks(phase), verbose)
            self._checkpoints.write(self._variables(), self.state)
        return _results(self.state)

    def _train(
        self,
        phase: Phase,
        number: int,
        shorter: tuple[StepModel, Data] | None,
        callbacks: Sequence[keras.callbacks.Callback],
        verbose: int,
    ) -> None:
        trained, data = shorter or (self._model, self._data)
        held = self.state["phase"] or {"standing": None, "digests": None, "seconds": 0.0}
        timer, standing = Timer(held["seconds"]), Standing.of(held["standing"])
        before = held["digests"] or digests(self._model)
        if self.state["phase"] is None and self.state["best"] is not None:  # It may be undone.
            moments = [each.numpy() for each in self._optimizer.variables]
            self._checkpoints.write_arrays(MOMENTS, moments)
        steps = phase.steps or phase.epochs * data.train.steps
        self._settings.compile(trained, self._optimizer, self._objective, self._toward)
        with self._strategy.scope():
            average = None
            if self._settings.ema:
                average = MovingAverage(moving(self._model), self._settings.ema)
        self._rates.rates = dict(zip(phase.stages, phase.rates, strict=True))
        set_to = 0.0

        def set_rate(step: int) -> None:
            nonlocal set_to
            wanted = factor(phase, step, steps)
            if wanted != set_to:
                self._rates.factor.assign(wanted)
                set_to = wanted

        def variables() -> dict[str, Any]:
            metrics = [variable for each in trained.metrics for variable in each.variables]
            moving = [] if average is None else [*average.averages, average.steps]
            return {**self._variables(), "metrics": metrics, "average": moving}

        def state(standing: Standing) -> State:
            running = {
                "standing": vars(standing),
                "digests": before,
                "seconds": timer.seconds,
            }
            return {**self.state, "phase": running}

        def checkpoint(standing: Standing) -> None:
            # As all workers must, since metrics are summed over them as they are read.
            if all_agree(self._strategy, self._checkpoints.due):
                self._checkpoints.write(variables(), state(standing))

        epochs = Epochs(
            model=trained,
            data=data,
            objective=self._objective,
            first=self.state["epochs"],
            steps=steps,
            patience=phase.patience,
            average=average,
            jit=self._settings.jit,
            before_step=set_rate,
            rate=lambda step: max(phase.rates) * factor(phase, step, steps),
            keep=lambda *epoch: self._keep(number, *epoch),
            checkpoint=checkpoint,
        )
        step = epochs.trace(self._strategy)
        if held["standing"] is not None:
            self._checkpoints.restore(variables())
        standing = epochs.run(step, self._strategy, standing, callbacks, verbose)
        history, best = standing.history, standing.best
        finite = np.isfinite([*history["loss"], *history.get("val_loss", [])]).all()
        if not finite and self.state["best"] is None:
            raise TrainingError(
                f"Phase {phase.name!r} must have a finite loss, and has none in epoch "
                f"{standing.epoch}",
                f"Choose a learning rate below {max(phase.rates):g}.",
            )
        unmoved: tuple[str, ...] = ()
        if finite:
            unmoved = unmoved_stages(phase, self._model, before)
            self._model.set_weights(self._checkpoints.read_weights(of_phase(number)))
        else:
            history, best = {}, -1
        self._end(
            number,
            PhaseResult(
                name=phase.name,
                epochs=standing.epoch,
                best_epoch=best + 1,
                loss=_at(history, "loss", best),
                train_metric=_at(history, self._objective.metric, best),
                val_loss=_at(history, "val_loss", best),
                metric=self._objective.metric,
                val_metric=_at(history, f"val_{self._objective.metric}", best),
                unmoved=unmoved,
                kept=bool(finite) and self._stands(number),
                seconds=timer.seconds,
            ),
        )

    def _solve(
        self,
        phase: Phase,
        number: int,
        solve_head: Callable[[Staged], tuple[np.ndarray, np.ndarray]] | None,
        shortcut: Callable[[Phase], tuple[StepModel, Data] | None],
    ) -> None:
        if solve_head is None:
            raise ValueError(
                f"Phase {phase.name!r} expected a way to solve the head, received none."
            )
        timer, before = Timer(), digests(self._model)
        outputs, y = solve_head(self._model)
        loss = float(self._objective.example_losses(outputs, y).mean())
        train_metric = self._objective.measure(outputs, y)
        unmoved = unmoved_stages(phase, self._model, before)
        losses, val_metric = None, None
        if self._data.validation is not None:
            # Only now, since solving has computed the features that it reads.
            trained, data = shortcut(phase) or (self._model, self._data)
            outputs, y = predict(trained, data.validation)
            losses = self._objective.example_losses(outputs, y)
            val_metric = self._objective.measure(outputs, y)
        self._checkpoints.write_weights(of_phase(number), self._model, losses)
        self._end(
            number,
            PhaseResult(
                name=phase.name,
                epochs=0,
                best_epoch=0,
                loss=loss,
                train_metric=train_metric,
                val_loss=None if losses is None else float(losses.mean()),
                metric=self._objective.metric,
                val_metric=val_metric,
                unmoved=unmoved,
                kept=self._stands(number),
                seconds=timer.seconds,
            ),
        )

    def _end(self, number: int, result: PhaseResult) -> None:
        """Lets a phase stand, or undoes it."""
        if result.kept:
            self.state["kept"] = of_phase(number)
        else:
            self._model.set_weights(self._checkpoints.read_weights(self.state["kept"]))
            if result.epochs:
                moments = self._checkpoints.read_weights(MOMENTS)
                for variable, value in zip(self._optimizer.variables, moments, strict=True):
                    variable.assign(value)
        losses = [each["val_loss"] for each in self.state["results"]]
        best = [loss for loss in losses if loss is not None]
        if result.val_loss is not None and result.val_loss < min(best, default=np.inf):
            self.state["best"] = of_phase(number)
        self.state["results"].append(asdict(result))
        self.state["epochs"] += result.epochs
        self.state["phase"] = None

    def _stands(self, number: int) -> bool:
        losses = self._checkpoints.read_losses(of_phase(number))
        if losses is None or self.state["best"] is None:
            return True
        best = self._checkpoints.read_losses(self.state["best"])
        assert best is not None  # It was the best on validation.
        return not _worse(losses, best)

    def _keep(self, number: int, standing: Standing, best: bool, losses: np.ndarray | None) -> None:
        """Writes the weights of an epoch, if they may be wanted again."""
        if best:
            self._checkpoints.write_weights(of_phase(number), self._model, losses)
        if self._settings.keep_last:
            self._checkpoints.write_weights(LAST, self._model)
        loss = standing.history.get("val_loss", [np.nan])[-1]
        if not (self._settings.keep_epochs and np.isfinite(loss)):
            return
        name = f"{of_phase(number)}-epoch-{standing.epoch}"
        ranked: list[Any] = sorted([*self.state["top"], [loss, name]])
        kept, dropped = ranked[: self._settings.keep_epochs], ranked[self._settings.keep_epochs :]
        if name in [each for _, each in kept]:
            self._checkpoints.write_weights(name, self._model)
        for _, each in dropped:
            self._checkpoints.remove_weights(each)
        self.state["top"] = kept

    def _variables(self) -> dict[str, Any]:
        """Returns all that a step changes, but for metrics and moving averages."""
        metrics = {id(variable) for each in self._model.metrics for variable in each.variables}
        return {
            "model": [each for each in self._model.variables if id(each) not in metrics],
            "optimizer": list(self._optimizer.variables),
        }


def of_phase(number: int) -> str:
    """Names the weights that a phase left, counted from 0."""
    return f"phase-{number + 1}"


def _results(state: State) -> tuple[PhaseResult, ...]:
    return tuple(
        PhaseResult(**{**each, "unmoved": tuple(each["unmoved"])}) for each in state["results"]
    )


def _at(history: dict[str, list[float]], name: str, epoch: int) -> float | None:
    return float(history[name][epoch]) if name in history else None


def _worse(losses: np.ndarray, before: np.ndarray) -> bool:
    """Whether losses of the same examples grew by more than chance would have it."""
    grown = losses - before
    if len(grown) < 2:  # Chance cannot be told from one example.
        return bool(grown.mean() > 0)
    return bool(grown.mean() > grown.std(ddof=1) / np.sqrt(len(grown)))
