"""The transfer card on the screen and as a page."""

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from tests.test_transfer import draw, task_of
from tfxfer.costs import ModelCost
from tfxfer.report.card import card_lines, card_markdown, card_notes, card_table, verdict_words
from tfxfer.task import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from tfxfer.transfer import (
    NO_EVIDENCE,
    Arm,
    TransferCard,
    Verdict,
    headline_scores,
    model_scores,
    student_scores,
    verdict,
)

HEADLINES = {SINGLE_LABEL: "accuracy", MULTI_LABEL: "f1", REGRESSION: "rmse"}


def card(kind=SINGLE_LABEL, seeds=3, noise=(0.1, 0.3, 1.0), notes=()) -> TransferCard:
    """A card of models that err as much as `noise` says: teacher, distilled, labels alone."""
    task = task_of(kind)
    taught, y = draw(kind, noise=noise[0])

    def arm(name: str, noise: float) -> tuple[Arm, np.ndarray]:
        outputs = [draw(kind, seed=seed, noise=noise)[0] for seed in range(1, seeds + 1)]
        scores = tuple(student_scores(task, each, taught, y) for each in outputs)
        examples = np.mean([headline_scores(task, each, y) for each in outputs], axis=0)
        return Arm(name, scores, scores, 1200, 3.21), examples

    (distilled, ours), (alone, theirs) = arm("distilled", noise[1]), arm("labels alone", noise[2])
    figures = [[each.headline for each in arm.best] for arm in (distilled, alone)]
    found = verdict(figures[0], figures[1], ours, theirs, kind != REGRESSION)
    costs = {
        "teacher": ModelCost(78_042, 312_168, 24_500_000, 1.234, 402_168, 5_000_000),
        "student": ModelCost(7_210, 28_840, 1_200_000, 0.617, 98_840, None),
    }
    return TransferCard(model_scores(task, taught, y), distilled, alone, found, found, costs, notes)


def drawn(card: TransferCard, width: int = 100) -> list[str]:
    console = Console(width=width, highlight=False, markup=False)
    with console.capture() as capture:
        console.print(card_table(card))
    return [line.rstrip() for line in capture.get().splitlines() if line.strip()]


def test_a_row_for_each_model():
    made: Any = card()
    names, rule, teacher, distilled, alone, *_ = drawn(made)
    assert names.split() == ["accuracy", "last", "epoch", "NLL", "ECE", "agreement", "KL"]
    assert set(rule.strip()) == {"─"}
    low, high = made.teacher.evaluation.accuracy_interval
    assert f"{made.teacher.headline:.4f} ({low:.4f} to {high:.4f})" in teacher
    for row, arm in ((distilled, made.distilled), (alone, made.alone)):
        assert row.strip().startswith(arm.name)
        figures = [each.headline for each in arm.best]
        for value in (
            np.mean(figures),
            np.mean([each.nll for each in arm.best]),
            np.mean([each.calibration_error for each in arm.best]),
            np.mean([each.agreement for each in arm.best]),
            np.mean([each.divergence for each in arm.best]),
        ):
            assert f"{value:.4f}" in row
        wilson = np.mean([each.evaluation.accuracy_interval for each in arm.best], axis=0)
        # Student's t for three values has a quantile of 4.303.
        half = 4.3027 * np.std(figures, ddof=1) / np.sqrt(3)
        seeds = np.mean(figures) - half, min(np.mean(figures) + half, 1)
        low, high = max((seeds, wilson), key=np.ptp)
        assert f"{np.mean(figures):.4f} ({low:.4f} to {high:.4f})" in row


def figures(made: TransferCard, *accuracies: float) -> TransferCard:
    """The card with other accuracies of the distilled students."""
    first: Any = made.distilled.best[0]
    scores = tuple(
        replace(first, evaluation=replace(first.evaluation, accuracy=each)) for each in accuracies
    )
    return replace(made, distilled=replace(made.distilled, best=scores))


def test_an_interval_is_the_wider_one_and_within_bounds():
    made: Any = card(seeds=2)
    low, high = made.distilled.best[0].evaluation.accuracy_interval
    # Seeds that come out the same do not make it certain.
    assert f"0.9000 ({low:.4f} to {high:.4f})" in drawn(figures(made, 0.9, 0.9))[3]
    assert "0.9000 (0.2647 to 1.0000)" in drawn(figures(made, 0.85, 0.95))[3]
    sure = replace(made.teacher.evaluation, accuracy=0.5, accuracy_interval=(0.5, 0.5))
    teacher = drawn(replace(made, teacher=replace(made.teacher, evaluation=sure)))[2]
    assert "0.5000" in teacher
    assert "to" not in teacher


def test_a_difference_of_shares_stays_within_bounds():
    found = Verdict(NO_EVIDENCE, 0.4, (-3.0, 3.8), "seeds", 2)
    assert "-1.0000 to +1.0000" in verdict_words(found, "accuracy")
    assert "-3 to +3.8" in verdict_words(found, "rmse")


def test_lines_say_costs_and_verdict():
    lines = list(card_lines(card(notes=("ten labels a class",))))
    text = "\n".join(lines)
    assert "distilled 1,200 steps in 3.2 s, labels alone 1,200 steps" in lines[0]
    assert "means of 3 seeds" in lines[0]
    assert "teacher 78,042 parameters in 0.3122 MB, 24.5 MFLOPs and 1.23 ms" in lines[1]
    assert "student 7,210 parameters" in lines[2]
    assert "9.2% of the size, 4.9% of the FLOPs, 50.0% of the time" in lines[3]
    assert re.search(
        r"^verdict   HELPED: accuracy \+0\.\d{4} "
        r"\(95% interval \+0\.\d{4} to \+0\.\d{4}, over 200 examples\)$",
        text,
        re.MULTILINE,
    )
    assert lines[-1] == "note      ten labels a class"


@pytest.mark.parametrize("kind", HEADLINES)
@pytest.mark.parametrize("seeds", [1, 2])
def test_every_task_with_one_seed_or_more(kind, seeds):
    made = card(kind, seeds)
    names, *_ = drawn(made)
    page = card_markdown(made)
    assert HEADLINES[kind] in names
    for column in ("NLL", "ECE", "agreement", "KL"):
        assert (column in names) == (kind != REGRESSION)
        assert (f"**{column}**" in page) == (kind != REGRESSION)
    assert ("MSE to teacher" in names) == (kind == REGRESSION)
    over = f"over {made.verdict.count} {made.verdict.by}"
    assert ("another seed may come out otherwise" in page) == (seeds == 1)
    assert ("which is wider than that over" in page) == (seeds == 2)
    for text in ("\n".join(card_lines(made)), page):
        assert over in text
        assert ("ne seed says nothing of others" in text) == (seeds == 1)
        assert "nan" not in text
        assert "None" not in text


@pytest.mark.parametrize("kind", HEADLINES)
@pytest.mark.parametrize("seeds", [1, 3])
def test_it_fits_the_screen(kind, seeds):
    for line in drawn(card(kind, seeds)):
        assert len(line) <= 100
        assert "…" not in line


@pytest.mark.parametrize("kind", HEADLINES)
def test_a_teacher_that_is_no_better_is_said(kind):
    behind = "the teacher ("
    assert behind not in "\n".join(card_lines(card(kind)))
    worse = card(kind, noise=(2.0, 1.5, 0.2))
    assert "HURT" in "\n".join(card_lines(worse))
    assert behind in "\n".join(card_lines(worse))
    assert behind.capitalize() in card_markdown(worse)


def test_notes_say_what_bounds_the_verdict():
    calm = replace(card(), notes=("its own",))
    assert card_notes(replace(calm, verdict=replace(calm.verdict, word=NO_EVIDENCE))) == (
        "its own",
    )
    arms = {
        "distilled": replace(calm.distilled, unfinished=3),
        "alone": replace(calm.alone, unfinished=1, at_chance=True),
    }
    chance, short = card_notes(replace(calm, **arms))[:2]
    assert chance == "no better than chance on the test examples: students of labels alone"
    assert "best on validation for 3 of 3 distilled, 1 of 3 labels alone; more" in short
    some = replace(calm, distilled=replace(calm.distilled, unfinished=2))
    assert "too short" not in "\n".join(card_notes(some))


def test_notes_say_that_a_student_is_larger():
    made = card()
    swapped: Any = {"teacher": made.costs["student"], "student": made.costs["teacher"]}
    note = "the student is larger than the teacher: 78,042 parameters, not 7,210"
    assert note in card_notes(replace(made, costs=swapped))
    assert note not in card_notes(made)
    free = {**swapped, "teacher": ModelCost(0, 0, 0, 1.0, 0, 0)}
    assert "larger" not in "\n".join(card_notes(replace(made, costs=free)))


def test_notes_say_that_probabilities_became_worse():
    made: Any = card()
    bad = tuple(replace(each, nll=9.0, calibration_error=0.0) for each in made.distilled.best)
    worse = replace(made, distilled=replace(made.distilled, best=bad))
    alone = np.mean([each.nll for each in made.alone.best])
    note = f"probabilities are worse than of labels alone: NLL 9.0000, not {alone:.4f}"
    assert card_notes(worse)[-1] == f"accuracy is better, and {note}"
    unclear = replace(worse, verdict=replace(made.verdict, word=NO_EVIDENCE))
    assert "probabilities" not in "\n".join(card_notes(unclear))
    assert "probabilities" not in "\n".join(card_notes(card(REGRESSION)))


def test_a_lower_rmse_helped():
    found = card(REGRESSION).verdict
    assert verdict_words(found, "rmse").startswith("HELPED: rmse -0.")


def test_numbers_with_units_keep_their_digits():
    found = Verdict("HURT", 12345.678, (1.5e-5, 24691.0), "seeds", 2)
    assert verdict_words(found, "rmse") == (
        "HURT: rmse +1.235e+04 (95% interval +1.5e-05 to +2.469e+04, over 2 seeds)"
    )


def test_one_example_has_no_interval():
    found = Verdict(NO_EVIDENCE, 1.0, None, "examples", 1)
    assert verdict_words(found, "f1") == "NO EVIDENCE: f1 +1.0000 (no interval, over 1 example)"


def test_the_page_holds_what_the_screen_does():
    made = card(notes=("ten labels a class.",))
    page = card_markdown(made)
    assert page.startswith("# Transfer card\n\n**HELPED: accuracy +")
    tables = [line for line in page.splitlines() if line.startswith("|")]
    assert len(tables) == 5 + 4
    assert {line.count("|") for line in tables[:5]} == {8}
    assert {line.count("|") for line in tables[5:]} == {6}
    assert "- Ten labels a class.\n" in page
    assert "over test examples; of students over seeds, if that is wider." in page
    for line in drawn(made)[2:]:
        for number in re.findall(r"\d\.\d{4}", line):
            assert number in page


def test_a_student_of_a_free_teacher():
    made = card()
    free = replace(made, costs={**made.costs, "teacher": ModelCost(0, 0, 0, 1.0, 0, 0)})
    assert "the student against the teacher: 61.7% of the time" in "\n".join(card_lines(free))
