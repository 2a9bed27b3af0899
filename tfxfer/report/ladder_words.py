"""Is fine-tuning worth it, as a table for the screen and lines below it."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from rich.table import Table

from tfxfer.config import RunConfig
from tfxfer.data.ready import ReadyData
from tfxfer.evaluate import HEADLINE
from tfxfer.ladder import HELPS, NEGATIVE, NOTHING, Ladder, Rung
from tfxfer.report import workdir
from tfxfer.report.cost_columns import COST_CAPTION, COST_COLUMNS, cost_cells, plain_table
from tfxfer.report.data_words import counted, opening_lines
from tfxfer.transfer import ModelScores

_WORTH = {
    HELPS: "pretrained weights help",
    NOTHING: "no evidence that pretrained weights help or hurt",
    NEGATIVE: "NEGATIVE TRANSFER: random weights are the better start",
}


def start_lines(config: RunConfig, data: ReadyData, rungs: Mapping[str, str]) -> Iterator[str]:
    """Says what is about to be compared.

    Args:
        config: The settings.
        data: The data.
        rungs: What each is, in words, by name.
    """
    yield from opening_lines(config, data)
    yield f"backbone  {config.backbone}"
    for number, (name, meaning) in enumerate(rungs.items()):
        yield f"{'' if number else 'rungs':10}{name}: {meaning}"


def rung_line(name: str, validation: ModelScores) -> str:
    """Says how a rung did that has just been trained."""
    metric = HEADLINE[type(validation.evaluation)]
    return f"{name}: validation {metric} {validation.headline:.4f}"


def ladder_tables(ladder: Ladder) -> Iterator[Table]:
    """Draws what every rung is worth, and what it costs.

    Args:
        ladder: What was found.
    """
    yield _quality(ladder)
    yield _costs(ladder)


def _quality(ladder: Ladder) -> Table:
    metric = ladder.metric
    table = plain_table("rung", "validation", f"test {metric}", "NLL", "ECE", "beaten by")
    for each in ladder.rungs:
        low, high = getattr(each.test, f"{metric}_interval")
        table.add_row(
            _name(each, ladder),
            f"{getattr(each.validation, metric):.4f}",
            f"{getattr(each.test, metric):.4f} ({low:.3f}-{high:.3f})",
            "" if each.nll is None else f"{each.nll:.4f}",
            "" if each.calibration_error is None else f"{each.calibration_error:.4f}",
            ", ".join(each.beaten_by),
        )
    judged, tested = ladder.rungs[0].validation.examples, ladder.rungs[0].test.examples
    table.caption = (
        f"{counted(judged, 'validation example')} say which is beaten, "
        f"{counted(tested, 'test example')} chose nothing"
    )
    return table


def _costs(ladder: Ladder) -> Table:
    table = plain_table("rung", "training s", *COST_COLUMNS, "front")
    for each in ladder.rungs:
        front = "yes" if each.on_front else ""
        table.add_row(_name(each, ladder), f"{each.seconds:.1f}", *cost_cells(each.cost), front)
    table.caption = f"{COST_CAPTION}; training with the features or the teacher that it stands on"
    return table


def _name(rung: Rung, ladder: Ladder) -> str:
    return f"{'>' if rung.name == ladder.recommended else ' '} {rung.name}"


def ladder_lines(ladder: Ladder, path: Path) -> Iterator[str]:
    """Says which rung suffices, what pretraining is worth, and where the rest is written.

    Args:
        ladder: What was found.
        path: The workdir.
    """
    why = "the shortest training of those that none beats beyond the 95% interval on validation"
    models = []
    for each in ladder.rungs:
        if each.name == ladder.recommended:
            test = f"test {ladder.metric} {getattr(each.test, ladder.metric):.4f}"
            yield f"recommended: {each.name}, {each.meaning}: {test}; {why}"
            place = f"{workdir.RUNGS}/{each.name}/{workdir.SAVED_MODEL}/1"
            models.append((place, "the recommended model"))
    if not models:
        yield "recommended: none, since no rung is better than chance on validation"
    if found := ladder.pretraining:
        low, high = found.interval or (found.difference, found.difference)
        yield (
            f"{_WORTH[found.word]}: {found.rung} less scratch {found.difference:+.4f} test "
            f"{ladder.metric} (95% interval {low:+.4f} to {high:+.4f})"
        )
    yield from ladder.notes
    yield "one training of each, so that intervals are over examples, not over seeds"
    for name, meaning in (
        *models,
        (workdir.RUNGS, "the runs of all rungs, each with its model"),
        (workdir.PARETO, f"validation {ladder.metric} against latency"),
        (workdir.RESULTS, "all results"),
        (workdir.CONFIG, "settings and versions"),
    ):
        yield f"wrote {path / name}  ({meaning})"
