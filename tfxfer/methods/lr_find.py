"""`--mode=lr_find`: a mock training of a few seconds that says which `--learning_rate` to use."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tfxfer import distribute
from tfxfer.config import RunConfig
from tfxfer.data.base import DataSource
from tfxfer.errors import UserError
from tfxfer.methods.backbone import with_usual
from tfxfer.methods.data import configured_source, naming_bad_examples
from tfxfer.methods.opening import Opened, config_for, opened
from tfxfer.methods.tuner import (
    check_devices,
    new_model,
    training_batches,
    training_objective,
    training_settings,
    with_plan,
)
from tfxfer.models import FineTuner
from tfxfer.plan import is_file, leaves_choice, make_plan, with_layer_decay
from tfxfer.report import workdir
from tfxfer.report.console import Console
from tfxfer.report.plots import lr_curve
from tfxfer.report.result import LrFindResult
from tfxfer.training.lr_finder import LrCurve, find_learning_rate

# What is of whole trainings, of which this takes a few steps; and what it is to find out.
_NOT_HEEDED = (
    "learning_rate",
    "protocol",
    "folds",
    "views",
    "epochs",
    "schedule",
    "warmup",
    "rule",
    "patience",
    "ema",
    "average",
    "boundary_cache",
)


def run(
    config: RunConfig, path: Path, console: Console, source: DataSource | None = None
) -> LrFindResult | None:
    """Finds a rate for what the last phase of the plan trains, and draws the curve.

    Args:
        config: The settings.
        path: The folder to write to, as `workdir.choose_workdir` returned it.
        console: Where to say what happens.
        source: The data, if not what the config names.

    Returns:
        The result, as written to `results.json`; `None` for a dry run.

    Raises:
        UserError: If dataset or backbone cannot be used, if a setting is not heeded here, or if
            the loss explodes at the lowest rates. Whatever is raised, the workdir is left as it
            was.
    """
    _check_settings(config)
    source = source or configured_source(config)
    config = with_plan(with_usual(config, source.info.inputs))
    with naming_bad_examples(config, source):
        shared = opened(config, source)
        check_devices(shared)
        model = new_model(shared, shared.data.splits[0].train)
        plan = make_plan(config.plan, model.stage_names, 1, config.learning_rate)
        scales = _scales(config, model.stage_names)
        device = distribute.describe(shared.strategy)
        console.start(config, shared.data, shared.backbone, plan.phases, device)
        if config.dry_run:
            return None
        with workdir.run_in(path, config):
            with shared.timed("finder"):
                curve = _curve(shared, model, scales)
            result = LrFindResult(
                curve=curve,
                recommended=curve.suggestions.valley,
                scales=scales,
                timings=shared.timed.seconds,
                fingerprints={
                    "data": source.fingerprint,
                    "backbone": shared.backbone.fingerprint,
                },
                skipped=shared.data.bad,
            )
            lr_curve(curve, path / workdir.LR_CURVE, result.meaning)
            workdir.write_json(path / workdir.RESULTS, result.to_dict())
        console.lr_found(result, path)
    return result


def lr_find(source: DataSource, **settings: Any) -> LrFindResult | None:
    """Does in Python what `--mode=lr_find` does, on data that Python holds.

    Args:
        source: What `open_dataset` returned, for example of arrays.
        **settings: Those of `RunConfig`, such as `backbone="glyphs", batch_size=64`.

    Returns:
        The result, as written to `results.json`; `None` with `dry_run=True`.

    Raises:
        UserError: As `run`; or if the source is none, or a setting is one of `open_dataset`.
    """
    config = config_for("lr_find", source, settings)
    return run(config, workdir.choose_workdir(config), Console(), source)


def _check_settings(config: RunConfig) -> None:
    for name in config.given(_NOT_HEEDED):
        raise UserError(
            f"--{name} is of a whole training, and --mode=lr_find takes a few steps to find "
            "the rate of one",
            "Leave it out.",
        )
    if leaves_choice(config.plan):
        raise UserError(
            f"--plan={config.plan} chooses stages as it trains, and --mode=lr_find must know them",
            "Name them, as in surgical(stages=block1).",
        )


def _scales(config: RunConfig, stages: Sequence[str]) -> dict[str, float]:
    """Returns what the plan makes of a learning rate of 1 in its last phase, by stage."""
    plan = make_plan(config.plan, stages, 1, 1.0)
    if is_file(config.plan):
        raise UserError(
            f"--plan={config.plan} says its rates itself, and --mode=lr_find looks for that of "
            "--learning_rate",
            "Name a plan, such as gradual.",
        )
    *_, last = with_layer_decay(plan.phases, stages, config.layer_decay)
    if last.solved:
        raise UserError(
            f"--plan={config.plan} solves the head and trains nothing, so that no rate matters",
            "Choose another plan, such as --plan=full.",
        )
    return dict(zip(last.stages, last.rates, strict=True))


def _curve(shared: Opened, model: FineTuner, scales: dict[str, float]) -> LrCurve:
    train = shared.data.splits[0].train
    return find_learning_rate(
        model,
        training_batches(shared, train),
        training_objective(shared, train),
        scales=scales,
        settings=training_settings(shared.config),
    )
