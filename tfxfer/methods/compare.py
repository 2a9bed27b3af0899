"""`--mode=compare`: is fine-tuning worth it? All ways to use a backbone, each a run of its own."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tfxfer.backbones.hub import parsed
from tfxfer.backbones.scratch import from_scratch
from tfxfer.config import RunConfig
from tfxfer.costs import ModelCost
from tfxfer.data.base import DataSource
from tfxfer.errors import UserError
from tfxfer.evaluate import HEADLINE
from tfxfer.ladder import Ladder, Rung, beaten, pretraining, sufficient
from tfxfer.methods import distill, extract, finetune
from tfxfer.methods.backbone import with_usual
from tfxfer.methods.data import configured_source, naming_bad_examples
from tfxfer.methods.opening import Opened, check_one_machine, config_for, opened
from tfxfer.methods.preflight import better_than_chance
from tfxfer.methods.serving import serving_cost
from tfxfer.models import load_model
from tfxfer.pareto import pareto_front
from tfxfer.report import workdir
from tfxfer.report.console import Console
from tfxfer.report.ladder_words import ladder_lines, ladder_tables, rung_line, start_lines
from tfxfer.report.plots import Point, pareto
from tfxfer.report.predictions import Predictions, read_predictions
from tfxfer.report.result import CompareResult, ExportCheck
from tfxfer.task import REGRESSION
from tfxfer.transfer import ModelScores, headline_scores, model_scores

KNN, PROBE, LP_FT, GRADUAL, SCRATCH, DISTILLED = (
    "knn",
    "probe",
    "lp_ft",
    "gradual",
    "scratch",
    "distilled",
)
_MEANINGS = {
    KNN: "frozen features, the nearest training examples vote",
    PROBE: "frozen features, a linear head",
    LP_FT: "the same head, then everything fine-tuned",
    GRADUAL: "fine-tuned stage by stage",
    SCRATCH: "the same network from random weights",
    DISTILLED: "a small student of the best fine-tuned one",
}
# What a rung takes of the settings; how a rung trains is its own.
_OF_DATA = (
    *("dataset", "task", "data_dir", "download", "tfds_manual_dir", "shots", "max_examples"),
    *("group_column", "scan", "drop_leaks", "skip_bad", "cache_dir", "cache_gb", "seed"),
    *("batch_size", "deterministic", "debug", "strategy", "num_logical_devices", "sync_bn"),
)
_OF_BACKBONE = ("backbone", "image_size", "value_range", "stages", "self_check", "precision")
_OF_TRAINING = (
    *("epochs", "learning_rate", "balance", "augment", "views", "mix", "label_smoothing"),
    *("dropout", "clip_norm", "weight_decay", "optimizer", "accumulate", "jit"),
    *("checkpoint_seconds",),
)
_OF_FINE_TUNING = ("bn", "layer_decay", "patience", "l2_sp", "ema", "boundary_cache")
_OF_STUDENT = ("student", "loss", "alpha")
_TRAINING = ("features", "head", "training", "preflight", "distillation")  # Parts of `timings`.
_SCRATCH_EPOCHS = 30  # As students from random weights have.


def run(
    config: RunConfig, path: Path, console: Console, source: DataSource | None = None
) -> CompareResult | None:
    """Trains every rung, or goes on where a killed run was, and says which one suffices.

    Args:
        config: The settings.
        path: The folder to write to, as `workdir.choose_workdir` returned it. Each rung is a run
            in a folder of its own below `rungs`, with its model.
        console: Where to say what happens.
        source: The data, if not what the config names.

    Returns:
        The result, as written to `results.json`; `None` for a dry run.

    Raises:
        UserError: If dataset or backbone cannot be used. Whatever is raised, the workdir is left
            as it was, unless there is something to go on from.
    """
    source = source or configured_source(config)
    given, config = config, with_usual(config, source.info.inputs)
    with naming_bad_examples(config, source):
        shared = opened(config, source)
        check_one_machine(shared)
        names = _names(shared)
        console.lines(start_lines(config, shared.data, {name: _MEANINGS[name] for name in names}))
        if config.dry_run:
            return None
        if workdir.goes_on(path, given):
            console.goes_on(path)
        with workdir.run_in(path, given, {"backbone": shared.backbone.fingerprint}):
            found = _run_all(shared, names, path / workdir.RUNGS, console)
            result = CompareResult(
                ladder=_ladder(shared, found),
                task=shared.task.kind,
                label_names=shared.task.names,
                passed=all(each.passed for each in found.values()),
                fingerprints={
                    "data": source.fingerprint,
                    "backbone": shared.backbone.fingerprint,
                },
                skipped=shared.data.bad,
            )
            _draw(result.ladder, path / workdir.PARETO)
            workdir.write_json(path / workdir.RESULTS, result.to_dict())
        for table in ladder_tables(result.ladder):
            console.table(table)
        console.lines(ladder_lines(result.ladder, path))
    return result


def compare(source: DataSource, **settings: Any) -> CompareResult | None:
    """Does in Python what `--mode=compare` does, on data that Python holds.

    Args:
        source: What `open_dataset` returned, for example of arrays.
        **settings: Those of `RunConfig`, such as `backbone="glyphs", workdir="runs/1"`.

    Returns:
        The result, as written to `results.json`; `None` with `dry_run=True`.

    Raises:
        UserError: As `run`; or if the source is none, or a setting is one of `open_dataset`.
    """
    config = config_for("compare", source, settings)
    return run(config, workdir.choose_workdir(config), Console(), source)


def _names(shared: Opened) -> tuple[str, ...]:
    """Returns the rungs that there are for a backbone."""
    if shared.backbone.untrainable:
        return KNN, PROBE
    if from_scratch(shared.config.backbone):
        raise UserError(
            f"--mode=compare asks what pretrained weights are worth, and "
            f"{shared.config.backbone!r} has none",
            "Name a pretrained --backbone.",
        )
    return tuple(_MEANINGS)


def _settings(config: RunConfig, name: str, teacher: str) -> RunConfig:
    """Returns the settings of the run that a rung is."""

    def own(*groups: tuple[str, ...]) -> dict[str, Any]:
        return {each: getattr(config, each) for group in groups for each in group}

    if name in (KNN, PROBE):
        head = "knn" if name == KNN else "auto"
        return RunConfig(mode="extract", head=head, **own(_OF_DATA, _OF_BACKBONE))
    if name == SCRATCH:
        spec = parsed(config.backbone)
        own_of = own(_OF_DATA, _OF_BACKBONE, _OF_TRAINING)
        own_of |= {
            "backbone": spec.having("random", "all").text,
            # What random weights make of inputs need not look as the check wants it.
            "self_check": False,
            "epochs": config.epochs or _SCRATCH_EPOCHS,
            # A tenth of the rate is for weights that know something already.
            "learning_rate": 10 * config.learning_rate,
        }
        how = {"plan": "full", "bn": "train", "schedule": "cosine", "warmup": 0.05, "patience": 0}
        return RunConfig(mode="finetune", rule="none", **how, **own_of)
    if name == DISTILLED:
        taken = own(_OF_DATA, _OF_TRAINING, _OF_STUDENT, ("image_size",))
        return RunConfig(mode="distill", teacher=teacher, seeds=1, **taken)
    plan = {"plan": name}
    return RunConfig(
        mode="finetune", **plan, **own(_OF_DATA, _OF_BACKBONE, _OF_TRAINING, _OF_FINE_TUNING)
    )


@dataclass(frozen=True)
class _Found:
    """What the run of a rung left.

    Attributes:
        folder: Its workdir.
        told: What its model said, by part.
        seconds: Wall time of its training.
        passed: Whether its exported model answers as the trained one does.
    """

    folder: Path
    told: Mapping[str, Predictions]
    seconds: float
    passed: bool


def _run_all(
    shared: Opened, names: tuple[str, ...], folder: Path, console: Console
) -> dict[str, _Found]:
    """Runs the rungs that are not done yet, one after the other."""
    runs: dict[str, Callable[..., Any]] = {DISTILLED: distill.run, KNN: extract.run}
    runs[PROBE] = extract.run
    found: dict[str, _Found] = {}
    for name in names:
        own, teacher = folder / name, ""
        if name == DISTILLED:
            teacher = _best(shared, found, (LP_FT, GRADUAL))
            # It was written by this run, of a backbone that the user has named.
            place = str(found[teacher].folder).replace('"', "")
            config = _settings(shared.config, name, f"{place}(safe_mode=false)")
        else:
            config = _settings(shared.config, name, "")
        if not (own / workdir.RESULTS).is_file():
            console.lines([f"{name}: {_MEANINGS[name]}"])
            config = config.replace(workdir=str(own))
            runs.get(name, finetune.run)(config, own, Console(quiet=True), shared.data.source)
        before = 0.0
        if name == DISTILLED:
            before = found[teacher].seconds
        elif name in (PROBE, LP_FT, GRADUAL):  # They stand on features that the first computed.
            before = _results(folder / KNN)["timings"]["features"]
        found[name] = _read(own, before)
        console.lines([rung_line(name, _scores(shared, found[name], "validation"))])
    return found


def _results(folder: Path) -> dict[str, Any]:
    return json.loads((folder / workdir.RESULTS).read_text(encoding="utf-8"))


def _read(folder: Path, before: float) -> _Found:
    """Reads what a run left; `before` are seconds of others that it stands on."""
    results = _results(folder)
    seconds = sum(results["timings"].get(part, 0.0) for part in _TRAINING)
    told = read_predictions(folder / workdir.PREDICTIONS)
    return _Found(folder, told, before + seconds, ExportCheck(**results["export"]).passed)


def _scores(shared: Opened, found: _Found, part: str) -> ModelScores:
    told = found.told[part]
    return model_scores(shared.task, told.outputs, told.y)


def _best(shared: Opened, found: Mapping[str, _Found], names: tuple[str, ...]) -> str:
    """Returns the rung with the least validation loss."""
    return min(names, key=lambda name: _scores(shared, found[name], "validation").evaluation.loss)


def _examples(shared: Opened, found: Mapping[str, _Found], part: str) -> dict[str, np.ndarray]:
    """Returns what each example adds to the headline figure of each rung."""
    return {
        name: headline_scores(shared.task, each.told[part].outputs, each.told[part].y)
        for name, each in found.items()
    }


def _ladder(shared: Opened, found: Mapping[str, _Found]) -> Ladder:
    higher = shared.task.kind != REGRESSION
    validation, test = (_examples(shared, found, part) for part in ("validation", "test"))
    beaten_by = beaten(validation, higher)
    costs = {name: _cost(shared, each.folder) for name, each in found.items()}
    front = pareto_front(
        [costs[name].latency_ms for name in found],
        [validation[name].mean() for name in found],
        higher,
    )
    rungs = []
    for (name, each), on_front in zip(found.items(), front, strict=True):
        scores = _scores(shared, each, "test")
        rungs.append(
            Rung(
                name=name,
                meaning=_MEANINGS[name],
                validation=_scores(shared, each, "validation").evaluation,
                test=scores.evaluation,
                nll=scores.nll,
                calibration_error=scores.calibration_error,
                seconds=each.seconds,
                cost=costs[name],
                on_front=on_front,
                beaten_by=beaten_by[name],
            )
        )
    worth = None
    if SCRATCH in found:
        best = _best(shared, found, (LP_FT, GRADUAL))
        worth = pretraining(best, test[best], test[SCRATCH], higher)
    return Ladder(
        metric=HEADLINE[type(rungs[0].test)],
        rungs=tuple(rungs),
        recommended=sufficient({name: each.seconds for name, each in found.items()}, beaten_by),
        pretraining=worth,
        notes=_notes(shared, found),
    )


def _notes(shared: Opened, found: Mapping[str, _Found]) -> tuple[str, ...]:
    told = [each.told["validation"] for each in found.values()]
    if any(better_than_chance(each.outputs, each.y, shared.task) for each in told):
        return ()
    return ("no rung is better than chance on validation, so that none can be recommended",)


def _cost(shared: Opened, folder: Path) -> ModelCost:
    model = load_model(folder / workdir.KERAS_MODEL, compile=False, safe_mode=False)
    test = shared.data.splits[0].test
    size = getattr(model, "backbone", shared.backbone).contract.size
    return serving_cost(model, test, size)


def _draw(ladder: Ladder, path: Path) -> None:
    points = [
        Point(
            each.name,
            each.cost.latency_ms,
            getattr(each.validation, ladder.metric),
            getattr(each.validation, f"{ladder.metric}_interval"),
            each.on_front,
        )
        for each in ladder.rungs
    ]
    pareto(points, path, f"validation {ladder.metric}", "Ways to use the backbone")
