"""The table of a plan."""

import pytest
from rich.console import Console

from tfxfer.plan import Phase, fastai, full, gradual, head, lp_ft
from tfxfer.report.plan_table import plan_table, relative_cost, span
from tfxfer.training.forward_time import forward_seconds

STAGES = ("stem", "block1", "block2", "block3", "head")


def drawn(plan, model, width=100, **options) -> list[str]:
    console = Console(width=width, highlight=False)
    with console.capture() as capture:
        console.print(plan_table(plan, model, **options))
    return [line.rstrip() for line in capture.get().splitlines() if line.strip()]


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("  ") if cell.strip()]


def test_a_row_for_each_phase(model):
    lines = drawn(gradual(model.stage_names, 8, 3e-3), model)
    names, _, *rows = map(cells, lines)
    assert names == ["phase", "trains", "weights", "share", "rate", "epochs"]
    # Of 4 + 8 filters of 3x3, their batch normalization, and 8x3 + 3 of the head.
    total = (27 * 4 + 4 + 16) + (36 * 8 + 8 + 32) + 27
    assert rows[:3] == [
        ["head", "head", "2", f"{27 / total:.1%}", "0.003", "<= 8"],
        ["+block2", "block2 to head", "6", f"{(27 + 312) / total:.1%}", "0.0003", "<= 8"],
        ["+block1", "block1 to head", "10", f"{(total - 24) / total:.1%}", "0.0003", "<= 8"],
    ]
    below = " ".join(lines[5:])
    assert below == "patience 3, schedule constant, batch norm stage throughout"


def test_what_differs_between_phases_has_columns(model):
    names = model.stage_names
    phases = (
        *head(names, 5, 1e-3),
        Phase("all", names, 0, 1e-3, "step", 0.1, (0.4, 0.8), patience=0, bn="freeze", steps=500),
    )
    header, _, first, *rest = drawn(phases, model)
    assert cells(header)[-3:] == ["patience", "schedule", "batch norm"]
    assert cells(first)[-4:] == ["<= 5", "3", "constant", "stage"]
    for said in ("500 steps", "freeze", "step, rises", "10%", "tenth at", "40%, 80%"):
        assert said in " ".join(rest)


def test_rates_are_a_range_and_a_solved_head_has_none(model):
    header, _, *rows = drawn(fastai(model.stage_names, 8, 2e-3), model)
    assert [cells(row)[4:6] for row in rows[:2]] == [["0.002", "1"], ["1e-05 to 0.001", "8"]]
    assert "patience" not in header, "nothing stops early"
    solved = drawn(lp_ft(model.stage_names, 8, 1e-3), model)[2]
    assert cells(solved)[3:] == [f"{27 / 483:.1%}", "solved"]


@pytest.mark.parametrize("width", [80, 100])
def test_it_fits_the_screen_whatever_the_names(backbone, model, width):
    plan = (*gradual(model.stage_names, 8, 3e-3), *full(model.stage_names, 8, 3e-3))
    plan = [
        Phase(f"{'block_13..block_14' * 3}{i}", phase.stages, phase.epochs, phase.learning_rate)
        for i, phase in enumerate(plan)
    ]
    for line in drawn(plan, model, width, epoch_seconds=123.4, cached={plan[0].name: "features"}):
        assert len(line) <= width
        assert "…" not in line


def test_costs_follow_what_runs():
    costs = [relative_cost(phase, STAGES) for phase in gradual(STAGES, 1, 1e-3)]
    assert costs == [1.0, 1.5, 2.0, 2.5, 3.0]
    kept = [relative_cost(phase, STAGES, cached=True) for phase in gradual(STAGES, 1, 1e-3)]
    assert kept == [0.0, 0.75, 1.5, 2.25, 3.0]
    alone = Phase("head", ("head",), 1, 1e-3)
    assert relative_cost(alone, ("head",)) == 1.0
    assert relative_cost(alone, ("head",), cached=True) == 0.0


def test_seconds_and_their_shortcuts_are_shown(model):
    plan = gradual(model.stage_names, 8, 3e-3)
    options = {"epoch_seconds": 60.0, "cached": {"head": "features", "+block2": "block2"}}
    names, _, *rows = map(cells, drawn(plan, model, **options))
    assert names[-1] == "s/epoch"
    assert [row[-1] for row in rows[:3]] == ["< 0.1", "90", "180"]
    assert [row[1] for row in rows[:2]] == ["head (from features)", "block2 to head (from block2)"]


def test_spans_name_runs_of_neighbours():
    assert span(STAGES, STAGES) == "stem to head"
    assert span(("head",), STAGES) == "head"
    assert span(("stem", "block2", "block3", "head"), STAGES) == "stem, block2 to head"


def test_time_is_measured(backbone):
    assert 0 < forward_seconds(backbone, 4) < 1
