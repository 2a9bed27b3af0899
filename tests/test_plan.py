"""Plans of progressive unfreezing."""

import pytest

from tfxfer.plan import Phase, check_plan, gradual

STAGES = ("stem", "block1", "head")


def test_gradual_unfreezes_from_the_head_down():
    assert gradual(STAGES, epochs=4, learning_rate=0.3) == (
        Phase("head", ("head",), 4, 0.3),
        Phase("+block1", ("block1", "head"), 4, 0.3 / 10),
        Phase("+stem", ("stem", "block1", "head"), 4, 0.3 / 10),
    )


def test_gradual_passes_its_own_check():
    check_plan(gradual(STAGES, 1, 1e-3), STAGES)


def test_a_plan_may_leave_stages_alone_where_that_is_meant():
    check_plan([Phase("head", ("head",), 1, 1e-3)], STAGES, whole=False)


@pytest.mark.parametrize(
    ("phases", "says"),
    [
        ([], "at least one phase"),
        ([("all", STAGES), ("odd", ("block7",))], "Phase 'odd'.*block7"),
        ([("all", STAGES), ("twice", ("head", "head"))], "Phase 'twice'.*each stage once"),
        ([("all", STAGES), ("none", ())], "Phase 'none'"),
        ([("some", ("stem", "head"))], r"missing \['block1'\]"),
    ],
)
def test_bad_plans_are_refused_by_name(phases, says):
    with pytest.raises(ValueError, match=says):
        check_plan([Phase(name, stages, 1, 1e-3) for name, stages in phases], STAGES)
