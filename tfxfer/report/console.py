"""The words on the screen: a start line, the plan, a closing table."""

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console as RichConsole
from rich.table import Column, Table

from tfxfer import distribute
from tfxfer.backbones import Backbone
from tfxfer.backbones.cost import Cost
from tfxfer.config import RunConfig
from tfxfer.data import DataInfo, Splits
from tfxfer.models import FineTuner
from tfxfer.plan import Phase
from tfxfer.report import workdir
from tfxfer.report.result import Result


class Console:
    """Prints what a run does, for a person to read."""

    def __init__(self):
        self._rich = RichConsole(highlight=False, soft_wrap=True)

    @property
    def verbose(self) -> int:
        """How Keras is to show progress: bars on a terminal, one line an epoch elsewhere."""
        return 1 if sys.stdout.isatty() else 2

    def start(
        self,
        config: RunConfig,
        data: DataInfo,
        splits: Splits,
        backbone: Backbone,
        plan: Sequence[Phase],
        device: str,
    ) -> None:
        """Prints what is about to run: data, backbone, plan, device."""
        self._print(f"tfxfer {config.mode}, seed {config.seed}")
        self._print(
            f"data      {data.name}, {len(data.label_names)} classes: "
            f"{splits.train.examples} train ({splits.train.origin}), "
            f"{splits.validation.examples} validation ({splits.validation.origin}), "
            f"{splits.test.examples} test ({splits.test.origin})"
        )
        self._print(
            f"backbone  {config.backbone}, {backbone.count_params():,} parameters, "
            f"{_count(len(backbone.stages), 'stage')}, images {backbone.contract}"
        )
        if backbone.untrainable:
            self._print(f"          stays frozen: {backbone.untrainable}")
        self._print(
            f"plan      gradual unfreezing, {len(plan)} phases of at most "
            f"{max(phase.epochs for phase in plan)} epochs"
        )
        self._print(f"device    {device}")

    def plan(self, plan: Sequence[Phase], model: FineTuner) -> None:
        """Prints the phases as a table."""
        table = Table(Column("phase", overflow="fold"), Column("trains", overflow="fold"))
        for column in ("parameters", "share", "epochs", "rate"):
            table.add_column(column, justify="right")
        learned = {
            stage.name: sum(weight.shape.num_elements() for weight in stage.learned)
            for stage in model.stages
        }
        for phase in plan:
            trained = sum(learned[name] for name in phase.stages)
            table.add_row(
                phase.name,
                _span(phase.stages, model.stage_names),
                f"{trained:,}",
                f"{trained / model.count_params():.1%}",
                f"<= {phase.epochs}",
                f"{phase.learning_rate:.2g}",
            )
        self._rich.print(table)

    def inspect(self, backbone: Backbone, cost: Cost, *, list_weights: bool = False) -> None:
        """Prints what a backbone wants, consists of and costs."""
        self._print(f"backbone       {backbone.source}")
        self._print(f"images         {backbone.contract}")
        if backbone.preprocessing:
            self._print(f"               then {backbone.preprocessing}")
        self._print(f"features       {backbone.units}")
        self._print(f"parameters     {backbone.count_params():,}")
        self._print(
            f"cost           {cost.flops / 1e9:.4g} GFLOPs and {cost.milliseconds:.3g} ms for an "
            f"image of {cost.size[0]}x{cost.size[1]} ({'GPU' if _has_gpu() else 'CPU'}, alone)"
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
            for weight in stage.weights:
                self._print(f"    {weight.path} {tuple(weight.shape)}")

    def phase(self, phase: Phase) -> None:
        """Announces a phase."""
        self._print(f"phase {phase.name}")

    def close(self, result: Result, path: Path) -> None:
        """Prints what came of it and where everything was written."""
        table = Table(Column("phase", overflow="fold"))
        for column in ("epochs", "best", "val loss", "val accuracy", "kept", "seconds"):
            table.add_column(column, justify="right")
        for phase in result.phases:
            table.add_row(
                phase.name,
                str(phase.epochs),
                str(phase.best_epoch),
                f"{phase.val_loss:.4f}",
                f"{phase.val_accuracy:.4f}",
                "yes" if phase.kept else "undone",
                f"{phase.seconds:.1f}",
            )
        self._rich.print(table)
        for phase in result.phases:
            if phase.unmoved:
                self._print(
                    f"phase {phase.name}: {', '.join(phase.unmoved)} did not move: no gradient "
                    "reaches there; is the backbone trained?"
                )
        test = result.metrics["test"]
        low, high = test.accuracy_interval
        self._print(
            f"test accuracy {test.accuracy:.4f} on {test.examples} examples "
            f"(95% interval {low:.4f} to {high:.4f}), loss {test.loss:.4f}"
        )
        check = result.export
        self._print(
            f"exported model, loaded again: probabilities within {check.max_difference:.1e} "
            f"on {check.examples} examples"
            + ("" if check.passed else f": MORE THAN {check.tolerance:g}, DO NOT SERVE IT")
        )
        self._print(f"training took {result.timings['training']:.1f} s")
        for name, meaning in (
            (f"{workdir.SAVED_MODEL}/1", "for TensorFlow Serving"),
            (workdir.KERAS_MODEL, "for tfxfer.load_model"),
            (workdir.RESULTS, "all results"),
            (workdir.METRICS, "metrics of every epoch"),
            (workdir.CONFIG, "settings and versions"),
        ):
            self._print(f"wrote {path / name}  ({meaning})")

    def _print(self, line: str) -> None:
        self._rich.print(line, markup=False)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _has_gpu() -> bool:
    return distribute.describe(distribute.pick_strategy()).endswith("GPU")


def _span(stages: Sequence[str], names: Sequence[str]) -> str:
    """Names stages as `block4 to head` if they are neighbours, else one by one."""
    start = names.index(stages[0])
    neighbours = tuple(names[start : start + len(stages)]) == tuple(stages)
    return f"{stages[0]} to {stages[-1]}" if len(stages) > 1 and neighbours else " ".join(stages)
