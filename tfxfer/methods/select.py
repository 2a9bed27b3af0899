"""`--mode=select`: which pretrained network suits the data, measured before anything trains."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tfxfer.backbones.hub import parsed
from tfxfer.backbones.scratch import from_scratch
from tfxfer.config import RunConfig
from tfxfer.costs import ModelCost
from tfxfer.data.base import TEXT, DataSource
from tfxfer.errors import UserError
from tfxfer.evaluate import score
from tfxfer.methods.backbone import with_usual
from tfxfer.methods.data import configured_source, naming_bad_examples
from tfxfer.methods.opening import Opened, check_one_machine, config_for, opened, with_backbone
from tfxfer.methods.serving import serving_cost
from tfxfer.methods.short_tuning import short_tuning
from tfxfer.methods.tuner import check_devices, features_of, new_model, with_recipe
from tfxfer.pareto import AS_FAST, pareto_front
from tfxfer.report import workdir
from tfxfer.report.console import Console
from tfxfer.report.plots import Point, pareto
from tfxfer.report.result import SelectResult
from tfxfer.report.selection_words import selection_lines, selection_tables, start_lines
from tfxfer.selection import (
    PARAMETERS,
    Candidate,
    FineTuned,
    Round,
    Selection,
    Told,
    beats,
    correlations,
    figure,
    halving,
    ranks,
    told_by,
)
from tfxfer.spec import split_specs
from tfxfer.task import REGRESSION, SINGLE_LABEL
from tfxfer.timing import Stopwatch
from tfxfer.transfer import headline_scores

_EXAMPLES = 2000
"""Training examples that are drawn where neither `--max_examples` nor `--shots` says how many."""

_TEXTS = "words, bag, transformer"
_IMAGES = "glyphs, tiny, keras:MobileNetV2(alpha=0.35, weights=none)"
_PLANS = ("lp_ft", "full", "head")
"""Those that have one phase that is trained, so that epochs are those of the budget."""

_OF_ONE = ("value_range", "image_size", "stages")
"""Settings that a spec among several may hold, as options."""


def run(
    config: RunConfig, path: Path, console: Console, source: DataSource | None = None
) -> SelectResult | None:
    """Ranks backbones by what their features tell, and fine-tunes the best of them for a while.

    Test examples are not looked at.

    Args:
        config: The settings.
        path: The folder to write to, as `workdir.choose_workdir` returned it.
        console: Where to say what happens.
        source: The data, if not what the config names.

    Returns:
        The result, as written to `results.json`; `None` for a dry run.

    Raises:
        UserError: If dataset or a backbone cannot be used. Whatever is raised, the workdir is left
            as it was.
    """
    source = source or configured_source(config)
    names = _names(config, source)
    if config.given(("plan",)) and config.plan not in _PLANS:
        raise UserError(
            f"--plan={config.plan} has phases of its own, and --budget is of epochs",
            f"Choose {', '.join(_PLANS)}, or leave it out.",
        )
    rounds = halving(len(names), config.budget) if config.budget else ()
    given, config = config, _with_fewer(_of_each(config, source), source)
    with naming_bad_examples(config, source):
        shared = _with_fewer_judges(opened(_for_one(config, names[0]), source))
        check_one_machine(shared)
        check_devices(shared)
        for name in names[1:]:  # What cannot be used is told before anything is measured.
            with_backbone(shared, _for_one(config, name))
        console.lines(start_lines(given, shared.data, names, rounds))
        if config.dry_run:
            return None
        with workdir.run_in(path, given):
            result = _Selecting(shared, config, names, rounds, console).run()
            _draw(result.selection, path / workdir.PARETO)
            workdir.write_json(path / workdir.RESULTS, result.to_dict())
        for table in selection_tables(result.selection):
            console.table(table)
        console.lines(selection_lines(result.selection, path))
    return result


def select(source: DataSource, **settings: Any) -> SelectResult | None:
    """Does in Python what `--mode=select` does, on data that Python holds.

    Args:
        source: What `open_dataset` returned, for example of arrays.
        **settings: Those of `RunConfig`, such as `backbones="glyphs, keras:ResNet50", budget=12`.

    Returns:
        The result, as written to `results.json`; `None` with `dry_run=True`.

    Raises:
        UserError: As `run`; or if the source is none, or a setting is one of `open_dataset`.
    """
    config = config_for("select", source, settings)
    return run(config, workdir.choose_workdir(config), Console(), source)


def _names(config: RunConfig, source: DataSource) -> tuple[str, ...]:
    """Returns the backbones that are to be compared, each once."""
    usual = _TEXTS if source.info.inputs == TEXT else _IMAGES
    names = tuple(dict.fromkeys(split_specs(config.backbones or usual)))
    if len(names) < 2:
        raise UserError(
            f"--backbones must name at least two different ones, and has {config.backbones!r}",
            "Write them between commas, as in --backbones='glyphs, keras:ResNet50'.",
        )
    return names


def _of_each(config: RunConfig, source: DataSource) -> RunConfig:
    """Returns the settings as of a fine-tuning, which then has one of the backbones."""
    return with_usual(config.replace(mode="finetune", backbones="", budget=0), source.info.inputs)


def _with_fewer(config: RunConfig, source: DataSource) -> RunConfig:
    """Draws training examples where there are more than it takes to choose a backbone."""
    task, examples = source.info.task, source.info.examples
    enough = max(_EXAMPLES, 2 * task.units if task.kind == SINGLE_LABEL else 0)
    there = examples.get("train", max(examples.values()))
    if config.max_examples or config.shots or there <= enough:
        return config
    return config.replace(max_examples=enough)


def _with_fewer_judges(shared: Opened) -> Opened:
    """Draws validation examples, which every backbone is run on too, to as many as of train."""
    (splits, *_) = shared.data.splits
    part, most = splits.validation, splits.train.examples
    if part.examples <= most:
        return shared
    rows = np.random.default_rng(shared.config.seed).permutation(part.examples)[:most]
    few = part.pick(rows, f"{most} of {part.origin}")
    data = replace(shared.data, splits=(replace(splits, validation=few),))
    return replace(shared, data=data)


def _for_one(config: RunConfig, name: str) -> RunConfig:
    """Returns the settings with one of the backbones."""
    spec = parsed(name)
    own = {key: str(spec.options[key]) for key in _OF_ONE if key in spec.options}
    drawn = from_scratch(name)
    return config.replace(
        backbone=spec.without(_OF_ONE).text,
        **own,
        bn="train" if drawn else config.bn,
        views=0 if drawn else config.views,  # With that, features are new in every epoch.
        # What random weights make of inputs need not look as the check wants it.
        self_check=config.self_check and not drawn,
    )


@dataclass(frozen=True)
class _Measured:
    """What was found of one backbone before it is ranked."""

    told: Told
    cost: ModelCost
    feature_seconds: float
    score_seconds: float
    fingerprint: str


class _Selecting:
    """Ranks backbones, and fine-tunes them round by round."""

    def __init__(
        self,
        shared: Opened,
        config: RunConfig,
        names: Sequence[str],
        rounds: Sequence[Round],
        console: Console,
    ):
        self._shared, self._config, self._names = shared, config, names
        self._rounds, self._console = rounds, console
        self._higher = shared.task.kind != REGRESSION

    def run(self) -> SelectResult:
        shared, config = self._shared, self._config
        found: dict[str, _Measured] = {}
        for number, name in enumerate(self._names):
            if number:
                shared = with_backbone(shared, _for_one(config, name))
            found[name] = _measure(shared)
            self._say(name, found[name])
        candidates = self._ranked(found)
        candidates, compared, best = self._fine_tuned(candidates, found)
        tuned = [each for each in candidates if each.fine_tuned]
        reached = [getattr(each.fine_tuned[0].validation, self._metric) for each in tuned]
        train = self._shared.data.splits[0].train
        selection = Selection(
            metric=self._metric,
            examples=train.examples,
            looked_at=found[self._names[0]].told.looked_at,
            candidates=tuple(candidates),
            correlations=correlations(tuned, reached, self._higher) if len(tuned) > 1 else {},
            correlated=len(tuned) if len(tuned) > 1 else 0,
            compared=compared,
            best=best,
        )
        source = self._shared.data.source
        return SelectResult(
            selection=selection,
            task=self._shared.task.kind,
            timings=self._shared.timed.seconds,
            fingerprints={
                "data": source.fingerprint,
                **{name: each.fingerprint for name, each in found.items()},
            },
            skipped=self._shared.data.bad,
        )

    @property
    def _metric(self) -> str:
        return {SINGLE_LABEL: "accuracy", REGRESSION: "rmse"}.get(self._shared.task.kind, "f1")

    def _say(self, name: str, found: _Measured) -> None:
        told = found.told
        self._console.lines(
            [
                f"{name}: {self._metric} of kNN {told.knn.mean():.4f}, of a linear probe "
                f"{told.probe.mean():.4f}; features {found.feature_seconds:.1f} s, scores "
                f"{found.score_seconds:.1f} s"
            ]
        )

    def _ranked(self, found: dict[str, _Measured]) -> list[Candidate]:
        """Puts backbones in order by the probe."""
        probes = [each.told.probe for each in found.values()]
        front = pareto_front(
            [each.cost.latency_ms for each in found.values()],
            [probe.mean() for probe in probes],
            self._higher,
        )
        places = ranks(probes, self._higher)
        candidates = [
            Candidate(
                name=name,
                rank=rank,
                knn=figure(self._shared.task, each.told.knn),
                probe=figure(self._shared.task, each.told.probe),
                scores={**each.told.scores, PARAMETERS: float(each.cost.parameters)},
                cost=each.cost,
                on_front=on_front,
                feature_seconds=each.feature_seconds,
                score_seconds=each.score_seconds,
            )
            for (name, each), rank, on_front in zip(found.items(), places, front, strict=True)
        ]
        return sorted(candidates, key=lambda each: (each.rank, self._loss(each.probe.value)))

    def _loss(self, value: float) -> float:
        return -value if self._higher else value

    def _fine_tuned(
        self, candidates: list[Candidate], found: dict[str, _Measured]
    ) -> tuple[list[Candidate], tuple[str, ...], tuple[str, ...]]:
        """Runs the rounds.

        Returns:
            The candidates with what they reached; those of the last round; the best of these.
        """
        by_name = {each.name: each for each in candidates}
        running = [each.name for each in candidates]
        last = {name: found[name].told.probe for name in running}
        for number, each in enumerate(self._rounds, start=1):
            last = {}
            for name in running[: each.candidates]:
                try:
                    tuned, last[name] = self._fine_tune(name, number, each.epochs)
                except UserError as error:  # Such as a loss that is not finite.
                    self._console.lines([f"round {number}, {name} failed: {error}"])
                    by_name[name] = replace(by_name[name], failed=str(error))
                    continue
                of = by_name[name]
                by_name[name] = replace(of, fine_tuned=(*of.fine_tuned, tuned))
            if not last:
                raise UserError(
                    "Backbones must be fit to be fine-tuned, and none of them was",
                    "Give a smaller --learning_rate, or leave --budget out.",
                )
            running = sorted(last, key=lambda name: self._standing(by_name[name]))
        best = [
            name
            for name, examples in last.items()
            if not any(beats(other, examples, self._higher) for other in last.values())
        ]
        fastest = min(by_name[name].cost.latency_ms for name in best)
        # Times that differ by less are the same.
        slow = {name for name in best if by_name[name].cost.latency_ms > AS_FAST * fastest}
        best.sort(key=lambda name: (name in slow, self._standing(by_name[name])))
        return [by_name[each.name] for each in candidates], tuple(last), tuple(best)

    def _standing(self, candidate: Candidate) -> tuple[float, float]:
        """Returns what the better of two backbones has less of."""
        if not candidate.fine_tuned:
            return self._loss(candidate.probe.value), 0.0
        validation = candidate.fine_tuned[-1].validation
        return self._loss(getattr(validation, self._metric)), validation.loss

    def _fine_tune(self, name: str, number: int, epochs: int) -> tuple[FineTuned, np.ndarray]:
        """Fine-tunes a backbone from its pretrained weights; validation chooses the epoch."""
        watch, config = Stopwatch(), _for_one(self._config, name)
        plan = config.plan if config.given(("plan",)) else _PLANS[0]
        config = config.replace(epochs=epochs, plan=plan)
        shared = with_recipe(with_backbone(self._shared, config))
        with watch("training"), self._shared.timed("fine-tuning"):
            outputs, y = short_tuning(shared)
        evaluation = score(shared.task, outputs, y)
        seconds = watch.seconds["training"]
        self._console.lines(
            [
                f"round {number}, {name}: validation {self._metric} "
                f"{getattr(evaluation, self._metric):.4f} "
                f"after at most {epochs} epochs, {seconds:.1f} s"
            ]
        )
        tuned = FineTuned(number, epochs, evaluation, seconds)
        return tuned, headline_scores(shared.task, outputs, y)


def _measure(shared: Opened) -> _Measured:
    """Computes features once, and judges them."""
    watch, part = Stopwatch(), shared.data.splits[0].train
    with watch("features"), shared.timed("features"):
        found = features_of(shared, part)
        rows = found.positions(part)
        x, y = found.first[rows], found.y[rows]
    if not np.isfinite(x).all():
        raise UserError(
            f"Features of {shared.config.backbone!r} must be finite, and some are not",
            "Choose another backbone, or another value_range.",
        )
    with watch("scores"), shared.timed("scores"):
        told = told_by(shared.task, x, y, shared.config.seed)
    with shared.timed("costs"):
        plain = replace(shared, config=shared.config.replace(adapt="none"))
        cost = serving_cost(new_model(plain, part), part, shared.backbone.contract.size)
    seconds = watch.seconds
    return _Measured(
        told, cost, seconds["features"], seconds["scores"], shared.backbone.fingerprint
    )


def _draw(selection: Selection, path: Path) -> None:
    points = [
        Point(each.name, each.cost.latency_ms, each.probe.value, each.probe.interval, each.on_front)
        for each in selection.candidates
    ]
    pareto(points, path, f"{selection.metric} of a linear probe", "Backbones")
