"""The transfer card: what distillation was worth, for the screen and as a page of Markdown."""

from collections.abc import Iterator, Sequence

import numpy as np
from rich import box
from rich.table import Table

from tfxfer.costs import ModelCost
from tfxfer.evaluate import HEADLINE
from tfxfer.intervals import mean_interval
from tfxfer.report.data_words import counted
from tfxfer.transfer import (
    HELPED,
    HURT,
    NO_EVIDENCE,
    Arm,
    ModelScores,
    TransferCard,
    Verdict,
)

_RMSE = "rmse"
_MEANINGS = {
    "accuracy": "share of right answers on the test examples",
    "f1": "harmonic mean of precision and recall over all labels of the test examples",
    "rmse": "root of the mean squared error on the test examples, in the units of the target",
    "last epoch": "the same figure where training ended; all others are of the epoch that was "
    "best on validation",
    "NLL": "mean negative log-likelihood of what is true, in nats; lower is better",
    "ECE": "expected calibration error: how far confidence is from the share of right answers, "
    "in 15 bins; 0 is best",
    "agreement": "share of the test examples on which the student decides as the teacher does",
    "KL": "mean divergence of the student's probabilities from the teacher's, in nats; 0 if equal",
    "MSE to teacher": "mean squared difference of the student's numbers from the teacher's",
}
_OUTCOMES = {
    HELPED: "distillation made this student better",
    NO_EVIDENCE: "nothing is shown either way",
    HURT: "distillation made this student worse",
}


def card_table(card: TransferCard) -> Table:
    """Draws teacher and students, for a console of 100 columns.

    Args:
        card: The card.

    Returns:
        The table: a row for the teacher, the distilled student and that of labels alone.
    """
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    names, *rows = _rows(card)
    table.add_column(names[0], overflow="fold")
    for name in names[1:]:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*row)
    table.caption, table.caption_justify = _intervals(card), "left"
    return table


def card_lines(card: TransferCard) -> Iterator[str]:
    """Says what stands below the table: training, costs, verdicts and notes, a line each."""
    yield f"trained   {_trained(card)}"
    for number, name in enumerate(card.costs):
        yield f"{'' if number else 'costs':<10}{name} {_cost(card.costs[name])}"
    yield f"          {_saved(card)}"
    yield f"verdict   {verdict_words(card.verdict, _headline(card))}"
    yield f"          last epoch {verdict_words(card.verdict_last, _headline(card))}"
    for note in card_notes(card):
        yield f"note      {note}"


def card_markdown(card: TransferCard) -> str:
    """Writes the card as a page of Markdown, with a line on each figure.

    Args:
        card: The card.

    Returns:
        The page.
    """
    rows = _rows(card)
    costs = [
        ("", "parameters", "MB", "MFLOPs an example", "ms an example"),
        *((name, *_cost_cells(cost)) for name, cost in card.costs.items()),
    ]
    parts = [
        "# Transfer card",
        f"**{verdict_words(card.verdict, _headline(card))}**",
        f"At the last epoch: {verdict_words(card.verdict_last, _headline(card))}.",
        _markdown_table(rows),
        f"Trained: {_trained(card)}.",
        "## Costs",
        _markdown_table(costs),
        f"{_sentence(_saved(card))}.",
        "## What the figures say",
        "\n".join(f"- **{name}**: {_MEANINGS[name]}." for name in rows[0][1:]),
        f"{_sentence(_intervals(card))}.",
        _verdict_meaning(card),
        "Size is that of the weights in memory. A multiplication with its addition counts as two "
        "FLOPs. Time is the median of single images on this machine.",
    ]
    if notes := card_notes(card):
        parts += ["## Notes", "\n".join(f"- {_sentence(note)}." for note in notes)]
    return "\n\n".join(parts) + "\n"


def card_notes(card: TransferCard) -> tuple[str, ...]:
    """Says what a reader of the verdict must know beside it, a line each.

    Args:
        card: The card, with costs.

    Returns:
        What its figures show, and then its own notes.
    """
    return (*_limits(card), *_surprises(card), *card.notes)


def verdict_words(verdict: Verdict, figure: str) -> str:
    """Says a verdict, such as `HELPED: accuracy +0.0420 (95% interval ..., over 5 seeds)`.

    Args:
        verdict: The verdict.
        figure: Name of what was compared.
    """
    over = f"over {counted(verdict.count, verdict.by.removesuffix('s'))}"
    interval = "no interval"
    if verdict.interval:
        bound = np.inf if figure == _RMSE else 1.0  # Student's t knows no bounds.
        low, high = (_number(end, figure, "+") for end in np.clip(verdict.interval, -bound, bound))
        interval = f"95% interval {low} to {high}"
    difference = _number(verdict.difference, figure, "+")
    return f"{verdict.word}: {figure} {difference} ({interval}, {over})"


def _rows(card: TransferCard) -> list[tuple[str, ...]]:
    """Returns the cells of the table, the names of the columns first; empty columns left out."""
    figure = _headline(card)
    names = (
        "",
        figure,
        "last epoch",
        "NLL",
        "ECE",
        "agreement",
        "MSE to teacher" if figure == _RMSE else "KL",
    )
    teacher = (
        "teacher",
        _spread([card.teacher]),
        "",
        _mean([card.teacher.nll], figure),
        _mean([card.teacher.calibration_error], figure),
        "",
        "",
    )
    students = (_student(arm, figure) for arm in (card.distilled, card.alone))
    columns = zip(names, teacher, *students, strict=True)
    kept = [column for column in columns if column[0] == "" or any(column[1:])]
    return list(zip(*kept, strict=True))


def _student(arm: Arm, figure: str) -> tuple[str, ...]:
    return (
        arm.name,
        _spread(arm.best),
        _mean([each.headline for each in arm.last], figure),
        _mean([each.nll for each in arm.best], figure),
        _mean([each.calibration_error for each in arm.best], figure),
        _mean([each.agreement for each in arm.best], figure),
        _mean([each.divergence for each in arm.best], figure),
    )


def _headline(card: TransferCard) -> str:
    return HEADLINE[type(card.teacher.evaluation)]


def _spread(scores: Sequence[ModelScores]) -> str:
    """Says the mean headline figure with the wider 95% interval, over examples or over seeds."""
    figure = HEADLINE[type(scores[0].evaluation)]
    figures = [each.headline for each in scores]
    ends = [getattr(each.evaluation, f"{figure}_interval") for each in scores]
    interval = np.mean(ends, axis=0)
    over_seeds = mean_interval(figures)
    if over_seeds and np.ptp(over_seeds) > np.ptp(interval):
        interval = np.clip(over_seeds, 0, np.inf if figure == _RMSE else 1)
    low, high = (_number(end, figure) for end in interval)
    around = f" ({low} to {high})" if low != high else ""  # One point would look certain.
    return f"{_mean(figures, figure)}{around}"


def _intervals(card: TransferCard) -> str:
    students = "; of students over seeds, if that is wider" if card.distilled.best[1:] else ""
    return f"95% intervals (low to high) over test examples{students}"


def _mean(values: Sequence[float | None], figure: str) -> str:
    """Says the mean over seeds; nothing if there is none."""
    known = [value for value in values if value is not None]
    return _number(float(np.mean(known)), figure) if known else ""


def _number(value: float, figure: str, sign: str = "") -> str:
    """Says a share to four decimals, and what has units, as beside an rmse, to four digits."""
    return format(value, f"{sign}.4g" if figure == _RMSE else f"{sign}.4f")


def _trained(card: TransferCard) -> str:
    arms = (card.distilled, card.alone)
    each = [f"{arm.name} {arm.steps:,} steps in {arm.seconds:.1f} s" for arm in arms]
    seeds = len(card.distilled.best)
    return ", ".join(each) + (f"; means of {seeds} seeds" if seeds > 1 else "")


def _cost_cells(cost: ModelCost) -> tuple[str, ...]:
    return (
        f"{cost.parameters:,}",
        f"{cost.bytes / 1e6:.4g}",
        f"{cost.flops / 1e6:.4g}",
        f"{cost.latency_ms:.3g}",
    )


def _cost(cost: ModelCost) -> str:
    parameters, megabytes, operations, milliseconds = _cost_cells(cost)
    return (
        f"{parameters} parameters in {megabytes} MB, {operations} MFLOPs and {milliseconds} ms "
        "for an example"
    )


def _saved(card: TransferCard) -> str:
    """Says what part of the teacher's costs the student has."""
    teacher, student = card.costs["teacher"], card.costs["student"]
    shares = [
        f"{part / whole:.1%} of the {name}"
        for name, part, whole in (
            ("size", student.bytes, teacher.bytes),
            ("FLOPs", student.flops, teacher.flops),
            ("time", student.latency_ms, teacher.latency_ms),
        )
        if whole
    ]
    return f"the student against the teacher: {', '.join(shares)}"


def _limits(card: TransferCard) -> Iterator[str]:
    """Says why the verdict may not hold elsewhere."""
    arms, seeds = (card.distilled, card.alone), len(card.distilled.best)
    if seeds == 1:
        yield "one seed says nothing of others, with which the verdict may be another; see --seeds"
    if chance := [arm.name for arm in arms if arm.at_chance]:
        yield f"no better than chance on the test examples: students of {' and of '.join(chance)}"
    if any(arm.unfinished == seeds for arm in arms):
        counts = ", ".join(f"{arm.unfinished} of {seeds} {arm.name}" for arm in arms)
        yield (
            "training may have been too short: the last epoch was the best on validation for "
            f"{counts}; more --epochs may change the verdict"
        )


def _surprises(card: TransferCard) -> Iterator[str]:
    """Says what one would not expect of a teacher and its student."""
    figure = _headline(card)
    teacher, student = card.costs["teacher"].parameters, card.costs["student"].parameters
    if student > teacher > 0:
        yield f"the student is larger than the teacher: {student:,} parameters, not {teacher:,}"
    alone = float(np.mean([each.headline for each in card.alone.best]))
    ahead = card.teacher.headline - alone
    if (ahead >= 0) if figure == _RMSE else (ahead <= 0):
        yield (
            f"the teacher ({figure} {_number(card.teacher.headline, figure)}) is no better than "
            f"the student of labels alone ({_number(alone, figure)})"
        )
    if card.verdict.word == HELPED and (worse := _worse_probabilities(card)):
        yield f"{figure} is better, and probabilities are worse than of labels alone: {worse}"


def _worse_probabilities(card: TransferCard) -> str:
    """Says which measures of probabilities got worse, such as `NLL 0.5, not 0.4`."""
    worse = []
    for name, field in (("NLL", "nll"), ("ECE", "calibration_error")):
        distilled, alone = (
            [getattr(each, field) for each in arm.best] for arm in (card.distilled, card.alone)
        )
        if None not in distilled and np.mean(distilled) > np.mean(alone):
            worse.append(f"{name} {np.mean(distilled):.4f}, not {np.mean(alone):.4f}")
    return ", ".join(worse)


def _verdict_meaning(card: TransferCard) -> str:
    """Says how the verdict came about."""
    seeds = "of the differences between students of the same seed"
    examples = "of the differences on the same test examples"
    paired = f"{examples}; another seed may come out otherwise"
    if card.distilled.best[1:]:
        by_seeds = card.verdict.by == "seeds"
        wide, other = (seeds, "test examples") if by_seeds else (examples, "seeds")
        paired = f"{wide}, which is wider than that over {other}"
    word = card.verdict.word
    return f"The verdict goes by the 95% interval {paired}. {word}: {_OUTCOMES[word]}."


def _sentence(words: str) -> str:
    return words[:1].upper() + words[1:].rstrip(".")


def _markdown_table(rows: Sequence[Sequence[str]]) -> str:
    names, *rest = rows
    rule = ["---", *["---:"] * (len(names) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (names, rule, *rest))
