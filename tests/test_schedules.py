"""How the rate goes within a phase."""

import keras
import numpy as np
import pytest

from tfxfer.config import SCHEDULES
from tfxfer.plan import Phase
from tfxfer.training.schedules import factor


def phase(schedule="constant", warmup=0.0, milestones=()):
    return Phase("all", ("head",), 1, 1.0, schedule, warmup, milestones)


def curve(steps=100, **options) -> np.ndarray:
    return np.array([factor(phase(**options), step, steps) for step in range(steps)])


def test_golden_values():
    assert curve(4).tolist() == [1, 1, 1, 1]
    np.testing.assert_allclose(curve(4, schedule="cosine"), [1, 0.853553, 0.5, 0.146447], atol=1e-6)
    bit = curve(500, schedule="step", warmup=0.2, milestones=(0.4, 0.6, 0.8))
    np.testing.assert_allclose(
        bit[[0, 49, 99, 199, 200, 300, 400]], [0.01, 0.5, 1, 1, 0.1, 0.01, 0.001]
    )
    cycle = curve(100, schedule="one_cycle", warmup=0.25)
    np.testing.assert_allclose(cycle[[0, 25]], [1 / 25, 1.0])
    assert cycle[-1] < 1e-3


def test_cosine_is_that_of_keras():
    theirs = keras.optimizers.schedules.CosineDecay(1.0, 50)
    expected = [float(theirs(step)) for step in range(50)]
    np.testing.assert_allclose(curve(50, schedule="cosine"), expected, atol=1e-6)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.3])
@pytest.mark.parametrize("steps", [1, 2, 7, 100])
def test_every_step_learns_and_none_more_than_the_rate(schedule, warmup, steps):
    milestones = (0.5, 0.75) if schedule == "step" else ()
    found = curve(steps, schedule=schedule, warmup=warmup, milestones=milestones)
    assert (found > 0).all()
    assert (found <= 1).all()
    top = int(np.argmax(found))
    assert (np.diff(found[: top + 1]) >= 0).all(), "up"
    assert (np.diff(found[top:]) <= 0).all(), "and down"
