"""BiT's rule, against the numbers of its code."""

import pytest

from tfxfer.rules import bit
from tfxfer.training.schedules import factor

STAGES = ("stem", "block1", "head")


# `get_schedule` of bit_hyperrule.py: the end of the warm-up, three milestones, the last step.
@pytest.mark.parametrize(
    ("examples", "supports"),
    [
        (1, (100, 200, 300, 400, 500)),
        (19_999, (100, 200, 300, 400, 500)),
        (20_000, (500, 3000, 6000, 9000, 10_000)),
        (499_999, (500, 3000, 6000, 9000, 10_000)),
        (500_000, (500, 6000, 12_000, 18_000, 20_000)),
    ],
)
def test_schedule_follows_the_number_of_examples(examples, supports):
    rule = bit(examples)
    *marks, steps = supports
    assert rule.steps == steps
    assert [round(share * steps) for share in (rule.warmup, *rule.milestones)] == marks
    (phase,) = rule.plan(STAGES).phases
    rates = [phase.rates[0] * factor(phase, step, steps) for step in range(steps)]
    assert rates[marks[0] // 2 - 1] == pytest.approx(0.0015)
    for number, (first, last) in enumerate(zip(marks, (*marks[1:], steps), strict=True)):
        assert rates[first] == pytest.approx(0.003 * 0.1**number)
        assert rates[last - 1] == pytest.approx(0.003 * 0.1**number)


@pytest.mark.parametrize(
    ("size", "sizes"),
    [
        ((32, 32), (160, 128)),
        ((95, 96), (160, 128)),
        ((96, 96), (512, 480)),
        ((300, 200), (512, 480)),
        (None, (512, 480)),
    ],
)
def test_resolution_follows_the_area(size, sizes):
    rule = bit(1000, size)
    assert (rule.resize, rule.crop) == sizes


def test_mixup_from_twenty_thousand_examples():
    assert bit(19_999).mixup == 0
    assert bit(20_000).mixup == 0.1


def test_few_examples_are_one_batch():
    assert [bit(n).batch_size for n in (1, 100, 512, 10**6)] == [1, 100, 512, 512]
    with pytest.raises(ValueError, match="at least 1 example"):
        bit(0)


def test_everything_trains_to_the_last_step():
    rule = bit(1000)
    plan = rule.plan(STAGES)
    plan.check(STAGES)
    (phase,) = plan.phases
    assert phase.stages == STAGES
    assert (phase.steps, phase.epochs, phase.patience) == (500, 0, 0)
    assert phase.rates == (0.003,) * 3
    assert (rule.learning_rate, rule.optimizer) == (0.003, "sgd")
