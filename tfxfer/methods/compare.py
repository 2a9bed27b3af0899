"""`--mode=compare`: is fine-tuning worth it? All ways to use a backbone, each a run of its own."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tfxfer.backbones.hub import parsed
from tfxfer.backbones.scratch import from_scratch
from tfxfer.config import RunConfig
from tfxfer.costs import ModelCost
from tfxfer.data.base import DataSource
from tfxfer.errors import CheckpointError, UserError
from tfxfer.evaluate import HEADLINE
from tfxfer.ladder import Ladder, Rung, beaten, pretraining, sufficient
from tfxfer.methods import distill, extract, finetune
from tfxfer.methods.backbone import with_usual
from tfxfer.methods.compared import ALONE
from tfxfer.methods.data import configured_source, naming_bad_examples
from tfxfer.methods.losses import losses_for
from tfxfer.methods.opening import Opened, check_one_machine, config_for, opened
from tfxfer.methods.preflight import better_than_chance
from tfxfer.methods.serving import serving_cost
from tfxfer.methods.students import new_student
from tfxfer.methods.tuner import check_devices
from tfxfer.models import load_model
from tfxfer.pareto import pareto_front
from tfxfer.report import workdir
from tfxfer.report.console import Console
from tfxfer.report.ladder_words import ladder_lines, ladder_tables, rung_line, start_lines
from tfxfer.report.plots import Point, pareto
from tfxfer.report.predictions import Predictions, read_predictions
from tfxfer.report.result import CompareResult, ExportCheck
from tfxfer.task import REGRESSION
from tfxfer.transfer import ModelScores, headline_scores, headline_unit, model_scores

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
    *("checkpoint_seconds", "ema"),
)
_OF_FINE_TUNING = ("bn", "layer_decay", "patience", "l2_sp", "boundary_cache")
_OF_STUDENT = ("student", "loss", "alpha")
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
        names = _names(shared)
        _check(shared, names)
        console.lines(start_lines(config, shared.data, {name: _MEANINGS[name] for name in names}))
        if config.dry_run:
            return None
        console.workdir(path, workdir.goes_on(path, given))
        with workdir.run_in(path, given):
            running = _Running(shared, path / workdir.RUNGS, console)
            running.run(names)
            found = running.found
            result = CompareResult(
                ladder=_ladder(shared, found, running.left_out),
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


def _settings(shared: Opened, name: str, teacher: str) -> RunConfig:
    """Returns the settings of the run that a rung is."""
    config = shared.config

    def own(*groups: tuple[str, ...]) -> dict[str, Any]:
        return {each: getattr(config, each) for group in groups for each in group}

    if name in (KNN, PROBE):
        head = "knn" if name == KNN else "auto"
        return RunConfig(mode="extract", head=head, **own(_OF_DATA, _OF_BACKBONE))
    if name == SCRATCH:
        phases = len(shared.backbone.stages) + 1
        changes = {
            "backbone": parsed(config.backbone).having("random", "all").text,
            # What random weights make of inputs need not look as the check wants it.
            "self_check": False,
            # As many as stage by stage may take in all.
            "epochs": phases * config.epochs or _SCRATCH_EPOCHS,
            # A tenth of the rate is for weights that know something already.
            "learning_rate": 10 * config.learning_rate,
            "views": 0,  # As batch normalization trains, features are new in every epoch.
        }
        how = {"plan": "full", "bn": "train", "schedule": "cosine", "warmup": 0.05, "patience": 0}
        taken = own(_OF_DATA, _OF_BACKBONE, _OF_TRAINING) | changes
        return RunConfig(mode="finetune", rule="none", **how, **taken)
    if name == DISTILLED:
        taken = own(_OF_DATA, _OF_TRAINING, _OF_STUDENT, ("image_size", "precision"))
        return RunConfig(mode="distill", teacher=teacher, seeds=1, **taken)
    groups = _OF_DATA, _OF_BACKBONE, _OF_TRAINING, _OF_FINE_TUNING
    return RunConfig(mode="finetune", plan=name, **own(*groups))


def _check(shared: Opened, names: tuple[str, ...]) -> None:
    """Finds what is wrong with the settings of the last rungs before the first one trains."""
    check_one_machine(shared)
    check_devices(shared)
    for name in names:
        settings = _settings(shared, name, "a run")
        if name == DISTILLED:
            losses_for(settings.loss, shared.task, shared.data.splits[0].train.labels)
            student = with_usual(settings.replace(teacher=""), shared.data.source.info.inputs)
            new_student(shared, student.student, settings.seed)


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


class _Running:
    """Runs the rungs that are not done yet, one after the other."""

    def __init__(self, shared: Opened, folder: Path, console: Console):
        self._shared, self._folder, self._console = shared, folder, console
        self.found: dict[str, _Found] = {}
        self.left_out: list[str] = []

    def run(self, names: tuple[str, ...]) -> None:
        anew = False  # Once one is run anew, a student has another teacher.
        for name in names:
            own, teacher = self._folder / name, ""
            if name == DISTILLED:
                teacher = _best(self._shared, self.found, (LP_FT, GRADUAL))
            if (anew and name == DISTILLED) or not self._is_done(name, own):
                anew = True
                if not self._run_one(name, own, teacher):
                    continue
            self.found[name] = self._read(name, own, teacher)
            scores = _scores(self._shared, self.found[name], "validation")
            self._console.lines([rung_line(name, scores)])

    def _run_one(self, name: str, own: Path, teacher: str) -> bool:
        """Runs one; says whether it could be run, as the first ones must."""
        self._console.lines([f"{name}: {_MEANINGS[name]}"])
        # The teacher was written by this run, of a backbone that the user has named.
        place = f"{self._folder / teacher}(safe_mode=false)" if teacher else ""
        config = _settings(self._shared, name, place)
        # What was left by a process that was killed, or of other data, is replaced; but training
        # goes on where that can be.
        config = config.replace(workdir=str(own), overwrite=True)
        method = {KNN: extract, PROBE: extract, DISTILLED: distill}.get(name, finetune)
        try:
            method.run(config, own, Console(quiet=True), self._shared.data.source)
        except UserError as error:
            if name not in (SCRATCH, DISTILLED) or isinstance(error, CheckpointError):
                raise
            shutil.rmtree(own, ignore_errors=True)
            self.left_out.append(f"{name} is left out: {error}")
            self._console.lines(self.left_out[-1:])
            return False
        return True

    def _is_done(self, name: str, own: Path) -> bool:
        """Whether a finished run is there, of these data and this backbone."""
        if not (own / workdir.RESULTS).is_file():
            return False
        of = _results(own)["fingerprints"]
        same = name in (SCRATCH, DISTILLED) or of["backbone"] == self._shared.backbone.fingerprint
        return same and of["data"] == self._shared.data.source.fingerprint

    def _read(self, name: str, own: Path, teacher: str) -> _Found:
        results = _results(own)
        seconds = results["timings"].get("features", 0.0) + results["timings"].get("head", 0.0)
        # Those of phases, which count what a process that was killed has taken.
        seconds += sum(
            each["seconds"] for each in results["phases"] if not each["name"].endswith(ALONE)
        )
        if name == DISTILLED:
            seconds += self.found[teacher].seconds
        elif name not in (KNN, SCRATCH) and self._shared.config.mix == "none":
            # They stand on features that the first has computed.
            seconds += _results(self._folder / KNN)["timings"]["features"]
        told = read_predictions(own / workdir.PREDICTIONS)
        return _Found(own, told, seconds, ExportCheck(**results["export"]).passed)


def _results(folder: Path) -> dict[str, Any]:
    return json.loads((folder / workdir.RESULTS).read_text(encoding="utf-8"))


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


def _ladder(shared: Opened, found: Mapping[str, _Found], left_out: Sequence[str]) -> Ladder:
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
        worth = pretraining(best, test[best], test[SCRATCH], higher, headline_unit(shared.task))
    return Ladder(
        metric=HEADLINE[type(rungs[0].test)],
        rungs=tuple(rungs),
        recommended=_recommended(shared, found, beaten_by),
        pretraining=worth,
        notes=tuple(left_out),
    )


def _recommended(
    shared: Opened, found: Mapping[str, _Found], beaten_by: Mapping[str, tuple[str, ...]]
) -> str:
    """Names the rung that suffices; empty where none is better than chance."""
    told = [each.told["validation"] for each in found.values()]
    if not any(better_than_chance(each.outputs, each.y, shared.task) for each in told):
        return ""
    return sufficient({name: each.seconds for name, each in found.items()}, beaten_by)


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
