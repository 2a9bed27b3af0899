"""The words on the screen: a start line, the plan, a closing table."""

import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from rich.console import Console as RichConsole
from rich.table import Column, Table

from tfxfer import distribute
from tfxfer.backbones import Backbone
from tfxfer.backbones.cost import Cost
from tfxfer.cache import Entry
from tfxfer.config import RunConfig
from tfxfer.data.base import BadExample, DataInfo
from tfxfer.data.parts import Part
from tfxfer.data.ready import ReadyData
from tfxfer.evaluate import HEADLINE, AnyEvaluation, Evaluation, MultiLabelEvaluation
from tfxfer.models import FineTuner
from tfxfer.plan import Phase
from tfxfer.report import workdir
from tfxfer.report.card import card_lines, card_table
from tfxfer.report.data_words import (
    counted,
    inputs,
    label_table,
    left_out_lines,
    opening_lines,
    part_lines,
)
from tfxfer.report.phase_words import phase_lines, phase_table
from tfxfer.report.plan_table import plan_table
from tfxfer.report.result import EmbedResult, LrFindResult, Result
from tfxfer.task import REGRESSION
from tfxfer.training.averaging import Averaged

# A loss that falls by less says nothing of the rate.
_CLEAR_FALL = 0.05
# Settings of training that are said beside the plan, where they are not as usual.
_OF_IMAGES = ("augment", "views", "mix", "balance")
_OF_STEPS = (
    *("adapt", "lora_rank", "batch_size", "optimizer", "weight_decay", "l2_sp", "ema", "average"),
    *("label_smoothing", "dropout", "clip_norm", "accumulate", "precision"),
)


class Console:
    """Prints what a run does, for a person to read."""

    def __init__(self, quiet: bool = False):
        """Prints nothing if `quiet`, as of all workers but the chief."""
        self._rich = RichConsole(
            highlight=False, soft_wrap=True, markup=False, emoji=False, quiet=quiet
        )
        self._named = False

    @property
    def verbose(self) -> int:
        """How Keras is to show progress: bars on a terminal, one line an epoch elsewhere."""
        return 0 if self._rich.quiet else 1 if sys.stdout.isatty() else 2

    def lines(self, lines: Iterable[str]) -> None:
        """Prints some lines as they are."""
        for line in lines:
            self._print(line)

    def table(self, table: Table) -> None:
        """Prints a table."""
        self._rich.print(table)

    def start(
        self,
        config: RunConfig,
        data: ReadyData,
        backbone: Backbone,
        plan: Sequence[Phase] | None,
        device: str,
    ) -> None:
        """Prints what is about to run: data, backbone, plan, device."""
        self.lines(opening_lines(config, data))
        self._print(
            f"backbone  {config.backbone}, {backbone.count_params():,} parameters, "
            f"{counted(len(backbone.stages), 'stage')}, "
            f"{backbone.contract.inputs}s {backbone.contract}"
        )
        if backbone.untrainable:
            self._print(f"          stays frozen: {backbone.untrainable}")
        training = [
            f", {name} {getattr(config, name)}"
            for name in config.given(_OF_IMAGES if plan is None else _OF_IMAGES + _OF_STEPS)
        ]
        if plan is not None:
            name = config.plan if config.rule != "bit" else "rule bit"
            name += " by rule bert" if config.rule == "bert" else ""
            self._print(f"plan      {name}, {counted(len(plan), 'phase')}{''.join(training)}")
        else:
            self._print(f"head      {config.head}{''.join(training)}")
        self._print(f"device    {device}")

    def plan(
        self,
        plan: Sequence[Phase],
        model: FineTuner,
        *,
        epoch_seconds: float | None = None,
        cached: Mapping[str, str] | None = None,
    ) -> None:
        """Prints the phases as a table; see `plan_table`."""
        table = plan_table(plan, model, epoch_seconds=epoch_seconds, cached=cached)
        self._rich.print(table, soft_wrap=False)

    def inspect(
        self,
        backbone: Backbone,
        cost: Cost,
        *,
        range_checked: bool = True,
        list_weights: bool = False,
    ) -> None:
        """Prints what a backbone wants, consists of and costs."""
        self._print(f"backbone       {backbone.source}")
        self._print(f"{backbone.contract.inputs + 's':14} {backbone.contract}")
        if not range_checked:
            self._print("               (nothing in the network tells whether that range is right)")
        if backbone.preprocessing:
            self._print(f"               then {backbone.preprocessing}")
        self._print(f"features       {backbone.units}")
        self._print(f"parameters     {backbone.count_params():,}")
        self._print(
            f"cost           {cost.flops / 1e9:.4g} GFLOPs and {cost.milliseconds:.3g} ms for "
            f"{cost.of} ({distribute.kind_of_device()}, alone)"
        )
        self._print(f"fingerprint    {backbone.fingerprint}")
        if backbone.untrainable:
            self._print(f"stages         none, it stays frozen: {backbone.untrainable}")
            return
        table = Table(Column("stage", overflow="fold"))
        for column in ("parameters", "share", "weights", "statistics"):
            table.add_column(column, justify="right")
        for stage in backbone.stages:
            count = sum(weight.shape.num_elements() for weight in stage.learned)
            table.add_row(
                stage.name,
                f"{count:,}",
                f"{count / backbone.count_params():.1%}",
                str(len(stage.learned)),
                str(len(stage.statistics)),
            )
        self._rich.print(table)
        for stage in backbone.stages if list_weights else ():
            self._print(f"{stage.name}:")
            for path, weight in zip(stage.paths, stage.weights, strict=True):
                self._print(f"    {path} {tuple(weight.shape)}")

    def data(self, data: ReadyData, shown: int = 20) -> None:
        """Prints what a dataset holds, and how it is split."""
        info = data.source.info
        self._print(f"data           {info.name}")
        self._print(f"inputs         {inputs(info)}")
        self._print(f"task           {info.task}")
        sizes = ", ".join(f"{name} {count:,}" for name, count in info.examples.items())
        self._print(f"given          {sizes}")
        self._print(f"fingerprint    {data.source.fingerprint}")
        for line in part_lines(data):
            self._print(f"               {line}")
        self._rich.print(label_table(data, shown))
        if info.task.kind != REGRESSION and len(info.task.names) > shown:
            self._print(f"and {len(info.task.names) - shown} classes more")

    def extracted(self, examples: int, seconds: float) -> None:
        """Says how long it took to compute features, or to find them."""
        self._print(f"features of {examples:,} examples in {seconds:.2f} s")

    def embedding(
        self,
        info: DataInfo,
        backbone: Backbone,
        examples: Mapping[str, int],
        bad: Sequence[BadExample],
    ) -> None:
        """Prints what features are about to be written."""
        counts = ", ".join(f"{count:,} {split}" for split, count in examples.items())
        self._print("tfxfer embed")
        self._print(f"data      {info.name}, {info.task}: {counts}")
        for line in left_out_lines(bad):
            self._print(f"          {line}")
        self._print(f"backbone  {backbone.source}, {backbone.contract.inputs}s {backbone.contract}")

    def embedded(self, result: EmbedResult, path: Path) -> None:
        """Prints what features were written, and how well they tell identities apart."""
        for split, count in result.examples.items():
            self._print(f"{split}: {count:,} features of {result.units}")
        if found := result.verification:
            low, high = found.auc_interval
            rates = ", ".join(
                f"{tar:.4f} at {far:g}" if tar is not None else f"not measurable at {far:g}"
                for far, tar in found.tar_at_far.items()
            )
            self._print(
                f"verification on {found.pairs:,} pairs of {result.measured}: AUC {found.auc:.4f} "
                f"(95% interval {low:.4f} to {high:.4f}), equal error rate {found.eer:.4f}, "
                f"true accepts {rates} false accepts"
            )
        if ranked := result.retrieval:
            recall = ", ".join(f"{value:.4f} at {k}" for k, value in ranked.recall_at.items())
            self._print(
                f"retrieval of {ranked.queries:,} queries: recall {recall}, mean average "
                f"precision {ranked.mean_average_precision:.4f}"
            )
        for name, meaning in (
            (workdir.EMBEDDINGS, "features with ids and labels; projector/ for TensorBoard"),
            (f"{workdir.SAVED_MODEL}/1", "inputs to features, for TensorFlow Serving"),
            (workdir.RESULTS, "all results"),
            (workdir.CONFIG, "settings and versions"),
        ):
            self._print(f"wrote {path / name}  ({meaning})")

    def lr_found(self, result: LrFindResult, path: Path) -> None:
        """Prints the rates that a learning-rate finder suggests, and which to use."""
        curve, found = result.curve, result.curve.suggestions
        ended = "as the loss exploded" if curve.diverged else "the last planned"
        self._print(
            f"{len(curve.rates)} steps with rates from {curve.rates[0]:.1e} to "
            f"{curve.rates[-1]:.1e}, {ended}"
        )
        self._print(f"rates are those of {result.meaning}")
        table = Table(
            "rule", Column("rate", justify="right"), Column("what it is", overflow="fold")
        )
        for name, rate, meaning in (
            ("valley", found.valley, "in the middle of the longest descent"),
            ("slide", found.slide, "where the slope has become steady, from the high rates down"),
            ("steepest", found.steepest, "where the loss falls fastest"),
            ("minimum / 10", found.minimum, "a tenth of the rate with the smallest loss"),
        ):
            table.add_row(name, f"{rate:.1e}", meaning)
        self._rich.print(table)
        if curve.fall < _CLEAR_FALL:
            self._print(
                f"the loss fell by {curve.fall:.1%} only: none of these can be relied on; "
                "give more data, or a larger batch"
            )
        else:
            self._print(f"use --learning_rate={result.recommended:.1e}")
        for name, meaning in (
            (workdir.LR_CURVE, "the curve"),
            (workdir.RESULTS, "all results"),
            (workdir.CONFIG, "settings and versions"),
        ):
            self._print(f"wrote {path / name}  ({meaning})")

    def workdir(self, path: Path, goes_on: bool) -> None:
        """Prints where a run writes to, which goes on there; not of runs within it."""
        if self._named:
            return
        self._named = True
        if goes_on:
            self._print(f"going on with the unfinished run in {path}")
        else:
            self._print(f"workdir   {path}: if it is killed, --workdir={path} goes on")

    def averaged(self, averaged: Averaged | None) -> None:
        """Prints which weights validation chose to take together; `None` if it chose none."""
        if averaged is None:
            self._print("average soup: no epochs are as good as the trained weights, which stay")
            return
        if averaged.kind == "wise_ft":
            (alpha,) = averaged.chosen
            chosen = f"{alpha:g} of the trained weights, the rest of those before"
        else:
            chosen = f"the mean of {counted(len(averaged.chosen), 'epoch')}"
        self._print(
            f"average {averaged.kind}: {chosen}; validation loss {averaged.val_loss:.4f}, "
            f"the best of {len(averaged.tried)} tried"
        )

    def refit(self, part: Part) -> None:
        """Announces that the chosen epochs are trained again on all labelled examples."""
        self._print(f"training again, as long, on {part.examples} examples ({part.origin})")

    def fold(self, number: int, evaluation: AnyEvaluation) -> None:
        """Prints the score of a fold."""
        self._print(f"fold {number}: {_scores(evaluation)}")

    def cache(self, folder: Path, entries: Sequence[Entry], limit_bytes: int) -> None:
        """Prints what the cache holds, the most recently used first."""
        if entries:
            table = Table("kind", Column("what", overflow="fold"))
            for column in ("MB", "last used"):
                table.add_column(column, justify="right")
            for entry in entries:
                used = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used))
                table.add_row(entry.kind, entry.about, f"{entry.bytes / 1e6:,.1f}", used)
            self._rich.print(table)
        total = sum(entry.bytes for entry in entries)
        self._print(
            f"{counted(len(entries), 'entry', 'entries')} in {folder}, {total / 1e6:,.1f} MB of at "
            f"most {limit_bytes / 1e6:,.0f}"
        )

    def cleared(self, folder: Path, count: int, size: int) -> None:
        """Prints what was removed from the cache."""
        self._print(
            f"removed {counted(count, 'entry', 'entries')}, {size / 1e6:,.1f} MB, from {folder}"
        )

    def phase(self, phase: Phase) -> None:
        """Announces a phase."""
        self._print(f"phase {phase.name}")

    def close(self, result: Result, path: Path) -> None:
        """Prints what came of it and where everything was written."""
        written = [(workdir.RESULTS, "all results")]
        if result.phases:
            self._rich.print(phase_table(result.phases))
            self.lines(phase_lines(result.phases))
        if card := result.card:
            self._rich.print(card_table(card))
            self.lines(card_lines(card))
            written.append((workdir.CARD, "the comparison, explained"))
        if head := result.head:
            chosen = "" if head.strength is None else f", strength {head.strength:.4g} of"
            tried = f"{chosen} {len(head.sweep)} tried on validation" if chosen else ""
            self._print(f"head {head.name}{tried}")
        if result.folds:
            low, high = result.folds.interval
            self._print(
                f"{result.folds.name} over {len(result.folds.values)} folds: mean "
                f"{result.folds.mean:.4f} (95% interval {low:.4f} to {high:.4f})"
            )
        else:
            self._print(f"test {_scores(result.metrics['test'])}")
        if check := result.export:
            what = "values" if result.task == REGRESSION else "probabilities"
            self._print(
                f"exported model, loaded again: {what} within {check.max_difference:.1e} "
                f"on {check.examples} examples"
                + ("" if check.passed else f": MORE THAN {check.tolerance:g}, DO NOT SERVE IT")
            )
            written = [
                (f"{workdir.SAVED_MODEL}/1", "for TensorFlow Serving"),
                (workdir.KERAS_MODEL, "for tfxfer.load_model"),
                *written,
            ]
        took = [f"{part} {seconds:.1f} s" for part, seconds in result.timings.items()]
        self._print(f"took {', '.join(took)}")
        if result.phases:
            written.append((workdir.METRICS, "metrics of every epoch"))
        if result.phases and not result.card:
            written += [
                (workdir.CURVES, "the same as a picture"),
                (workdir.PLAN, "the phases, for --plan"),
            ]
        for name, meaning in (
            *written,
            (workdir.CONFIG, "settings and versions"),
        ):
            self._print(f"wrote {path / name}  ({meaning})")

    def _print(self, line: str) -> None:
        self._rich.print(line)


def _scores(evaluation: AnyEvaluation) -> str:
    """Says an evaluation in words, its headline first."""
    name = HEADLINE[type(evaluation)]
    low, high = getattr(evaluation, f"{name}_interval")
    words = (
        f"{name} {getattr(evaluation, name):.4f} on {evaluation.examples} examples "
        f"(95% interval {low:.4f} to {high:.4f})"
    )
    if isinstance(evaluation, Evaluation):
        return f"{words}, loss {evaluation.loss:.4f}"
    if isinstance(evaluation, MultiLabelEvaluation):
        return (
            f"{words}, mean average precision {evaluation.mean_average_precision:.4f}, "
            f"all labels right {evaluation.exact:.4f}"
        )
    return f"{words}, mean absolute error {evaluation.mae:.4g}" + (
        "" if evaluation.r2 is None else f", R2 {evaluation.r2:.4f}"
    )
