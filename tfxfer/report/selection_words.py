"""Which backbone suits, as tables for the screen and lines below them."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.table import Table

from tfxfer.config import RunConfig
from tfxfer.data.ready import ReadyData
from tfxfer.evaluate import HEADLINE
from tfxfer.report import workdir
from tfxfer.report.cost_columns import COST_CAPTION, COST_COLUMNS, cost_cells, plain_table
from tfxfer.report.data_words import counted, opening_lines
from tfxfer.selection import KNN, PARAMETERS, PROBE, Candidate, Figure, Round, Selection

_SHORT = {
    "regularized_h_score": "reg. H",
    "h_score": "H-score",
    "logme": "LogME",
    "transrate": "TransRate",
    "gbc": "GBC",
    "parc": "PARC",
    "nleep": "NLEEP",
    "leep": "LEEP",
    "nce": "NCE",
    PARAMETERS: "parameters",
    KNN: "kNN",
    PROBE: "linear probe",
}


def start_lines(
    config: RunConfig, data: ReadyData, names: Sequence[str], rounds: Sequence[Round]
) -> Iterator[str]:
    """Says what is about to be measured.

    Args:
        config: The settings.
        data: The data.
        names: The backbones.
        rounds: Of successive halving; none without a budget.
    """
    yield from opening_lines(config, data)
    for number, name in enumerate(names):
        yield f"{'' if number else 'backbones':10}{name}"
    for number, each in enumerate(rounds, start=1):
        yield (
            f"round {number}   the best {each.candidates} are fine-tuned for "
            f"{counted(each.epochs, 'epoch')} each"
        )


def selection_tables(selection: Selection) -> Iterator[Table]:
    """Draws what backbones are worth, what they cost, and what the scores said.

    Args:
        selection: What was found.
    """
    yield _quality(selection)
    yield _costs(selection)
    yield _scores(selection)


def selection_lines(selection: Selection, path: Path) -> Iterator[str]:
    """Says which backbones are the best, and where the rest is written.

    Args:
        selection: What was found.
        path: The workdir.
    """
    tuned = any(each.fine_tuned for each in selection.candidates)
    judged = "on validation after the last round" if tuned else "by a linear probe"
    first, *others = selection.best
    names = [each.name for each in selection.candidates if not each.failed]
    if names == [first]:
        yield f"only {first} is left: others failed"
    elif len(selection.compared) == 1:
        yield f"only {first} was in the last round: a larger --budget compares it with others"
    elif others:
        yield (
            f"tie: {' and '.join(selection.best)} differ by less than the 95% interval, {judged}; "
            f"take {first}, the fastest or about as fast"
        )
    else:
        beaten = " and ".join(name for name in selection.compared if name != first)
        yield f"best: {first}, better than {beaten} beyond the 95% interval, {judged}"
    for each in selection.candidates:
        if each.failed:
            yield f"{each.name} failed in round {len(each.fine_tuned) + 1}: {each.failed}"
    if out := [name for name in names if name not in selection.compared]:
        yield f"not in the last round, by order and not by an interval: {', '.join(out)}"
    if not tuned:
        yield "nothing was fine-tuned: --budget=EPOCHS says which of these the best really are"
    yield "test examples were not looked at; intervals are over examples, not over trainings"
    for name, meaning in (
        (workdir.PARETO, f"{selection.metric} against latency"),
        (workdir.RESULTS, "all results"),
        (workdir.CONFIG, "settings and versions"),
    ):
        yield f"wrote {path / name}  ({meaning})"


def _quality(selection: Selection) -> Table:
    rounds = max(len(each.fine_tuned) + bool(each.failed) for each in selection.candidates)
    tuned = [f"round {number}" for number in range(1, rounds + 1)]
    table = plain_table("backbone", "rank", f"kNN {selection.metric}", "linear probe", *tuned)
    for each in selection.candidates:
        told = _figure(each.knn), _figure(each.probe)
        table.add_row(each.name, str(each.rank), *told, *_reached(each, rounds))
    table.caption = (
        f"of {counted(selection.examples, 'training example')}, each told from all others"
    )
    tuned = [each for candidate in selection.candidates for each in candidate.fine_tuned]
    if tuned:
        judges = counted(tuned[0].validation.examples, "validation example")
        table.caption += f"; rounds: {selection.metric} of {judges}"
    return table


def _figure(figure: Figure) -> str:
    low, high = figure.interval
    return f"{figure.value:.4f} ({low:.3f}-{high:.3f})"


def _reached(candidate: Candidate, rounds: int) -> list[str]:
    values = [getattr(e.validation, HEADLINE[type(e.validation)]) for e in candidate.fine_tuned]
    cells = [*(f"{value:.4f}" for value in values), *(["failed"] if candidate.failed else [])]
    return cells + [""] * (rounds - len(cells))


def _costs(selection: Selection) -> Table:
    table = plain_table("backbone", *COST_COLUMNS, "front")
    for each in selection.candidates:
        table.add_row(each.name, *cost_cells(each.cost), "yes" if each.on_front else "")
    table.caption = f"{COST_CAPTION}; each with a linear head"
    return table


def _scores(selection: Selection) -> Table:
    names = list(dict.fromkeys(name for each in selection.candidates for name in each.scores))
    table = plain_table("backbone", *(_SHORT[name] for name in names if name != PARAMETERS))
    for each in selection.candidates:
        shown = [each.scores.get(name) for name in names if name != PARAMETERS]
        table.add_row(each.name, *("" if value is None else f"{value:.3g}" for value in shown))
    caption = f"of {counted(selection.looked_at, 'training example')}"
    if selection.correlations:
        told = ", ".join(
            f"{_SHORT[name]} {'-' if tau is None else f'{tau:+.2f}'}"
            for name, tau in selection.correlations.items()
        )
        caption += (
            f"; weighted tau with what {selection.correlated} backbones reached in round 1: {told}"
        )
    table.caption = caption
    return table
