"""The learning-rate finder: its rules, and that it leaves no trace."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.conftest import values
from tfxfer.backbones import load_backbone
from tfxfer.errors import UserError
from tfxfer.models import FineTuner
from tfxfer.task import SINGLE_LABEL, Task
from tfxfer.training.loop import Settings
from tfxfer.training.lr_finder import (
    curve,
    exponential_rates,
    find_learning_rate,
    minimum,
    slide,
    smoothed,
    steepest,
    until_exploded,
    valley,
)
from tfxfer.training.objective import objective

RATES = np.geomspace(1e-7, 10, 100)
EXPONENTS = np.log10(RATES)
# Flat, then a slope that is steepest at 10**-2.5, then an explosion.
USUAL = 2.3 - 1.8 / (1 + np.exp(-3 * (EXPONENTS + 2.5))) + np.exp(4 * (EXPONENTS + 0.2))
NOISY = USUAL + 0.05 * np.sin(np.arange(100) ** 2)


@pytest.mark.parametrize(
    ("losses", "places"),
    [(USUAL, (35, 55, 72, 49)), (NOISY, (52, 61, 70, 12))],
    ids=["usual", "noisy"],
)
def test_rules_answer_as_those_of_fastai(losses, places):
    low, steep, least, steady = places
    assert valley(RATES, losses) == RATES[low]
    assert steepest(RATES, losses) == RATES[steep]
    assert minimum(RATES, losses) == RATES[least] / 10
    assert slide(RATES, losses) == RATES[steady]


def test_rules_know_where_a_curve_was_made_to_fall():
    middle = 10.0**-3
    fall = -np.tanh(2 * (EXPONENTS + 3))
    assert steepest(RATES, fall) == pytest.approx(middle, rel=0.2)
    valley_shape = (EXPONENTS + 2) ** 2
    assert minimum(RATES, valley_shape) == pytest.approx(10.0**-3, rel=0.2)
    # Falls from 1e-7 to 1e-2, the middle of which is 10**-4.5.
    assert valley(RATES, valley_shape) == pytest.approx(10.0**-4.5, rel=0.3)
    # Flat up to 1e-3, then ever steeper.
    bent = np.maximum(0.0, EXPONENTS + 3) ** 2
    assert 10.0**-4.3 < slide(RATES, bent) <= middle


def test_a_loss_that_never_falls_speaks_for_the_lowest_rate():
    rising = np.linspace(1, 2, 100)
    assert valley(RATES, rising) == RATES[0]
    assert valley(RATES, np.ones(100)) == RATES[0]
    assert slide(RATES, np.ones(100)) == RATES[-16], "one window from the top, as slopes agree"


def test_rates_rise_evenly_on_a_logarithmic_scale():
    rates = exponential_rates()
    assert len(rates) == 100
    assert (rates[0], rates[-1]) == pytest.approx((1e-7, 10))
    np.testing.assert_allclose(np.diff(np.log(rates)), np.log(1e8) / 99)


def test_moving_average_is_unbiased():
    np.testing.assert_allclose(smoothed([3.0] * 50), 3)
    losses = [2.0, 1.0, 4.0]
    expected = [2.0, (0.98 * 2 + 1) / 1.98, (0.98**2 * 2 + 0.98 + 4) / (0.98**2 + 1.98)]
    np.testing.assert_allclose(smoothed(losses), expected)


def test_it_stops_at_an_explosion():
    asked = []

    def losses(values):
        for value in values:
            asked.append(value)
            yield value

    assert until_exploded(losses([1.0, 2.0, np.nan, 3.0])) == (1, 2)
    assert until_exploded(losses([1.0, 2.0, np.inf])) == (1, 2)
    assert until_exploded(losses([1.0, 2.0, 3.0])) == (1, 2, 3)
    asked.clear()
    # Of two, the average is (0.98 + loss) / 1.98.
    assert until_exploded(losses([1.0, 6.9, 0.0])) == (1, 6.9, 0)
    assert until_exploded(losses([1.0, 7.1, 0.0])) == (1, 7.1)
    assert asked == [1, 6.9, 0, 1, 7.1]


def test_rules_see_neither_start_nor_end():
    losses = np.full(100, 2.0)
    losses[30:60] = np.linspace(2, 1, 30)
    losses[60:] = 1
    calm = curve(RATES, losses)
    wild = losses.copy()
    wild[-5:] = 0.0
    found = curve(RATES, wild).suggestions
    assert found == calm.suggestions
    assert RATES[10] <= min(found.valley, found.steepest)
    assert not calm.diverged
    assert curve(RATES, losses[:70]).diverged
    assert 0 < calm.fall < 0.5


def test_too_short_a_curve_is_a_mistake():
    with pytest.raises(UserError, match=r"explodes at a rate of 2\.2e-05"):
        curve(RATES, [1.0] * 30)
    with pytest.raises(UserError, match=r"explodes at a rate of 1\.0e-07"):
        curve(RATES, [])
    assert len(curve(RATES, [1.0] * 31).rates) == 31


class Batches:
    """Three batches an epoch, the last of another size, without end."""

    def __init__(self, images, labels):
        self.steps = 3
        self._data = tf.data.Dataset.from_tensor_slices((images[:20], labels[:20])).batch(8)

    def epochs(self, first=0):
        assert first == 0
        return self._data.repeat()


ABC = objective(Task(SINGLE_LABEL, ("a", "b", "c")), np.arange(3))


@pytest.fixture
def data(images, labels):
    return Batches(images, labels)


@pytest.fixture
def model(backbone):
    """One that draws random numbers too."""
    head = keras.Sequential([keras.layers.Dropout(0.3), keras.layers.Dense(3)])
    return FineTuner(backbone, head)


def test_everything_is_as_before(model, data):
    model.unfreeze(["block2"])
    model.compile("adam", ABC.loss())
    before = values(model.variables)
    found = find_learning_rate(model, data, ABC)
    assert min(found.losses) < found.losses[0], "or nothing was trained"
    assert values(model.variables) == before
    assert model.backbone.unfrozen == ("block2",)
    assert not model.head.trainable_weights
    with pytest.raises(ValueError, match="compile"):
        model.fit(data.epochs(), steps_per_epoch=1, verbose=0)


def test_the_same_model_gives_the_same_curve(model, data):
    # Not the whole of it: a SavedModel hides the state of the dropout in it.
    scales = {"block2": 1.0, "head": 1.0}
    first = find_learning_rate(model, data, ABC, scales=scales)
    assert find_learning_rate(model, data, ABC, scales=scales) == first


def test_a_failure_restores_too(model, images, labels):
    class Broken(Batches):
        def epochs(self, first=0):
            more = tf.data.experimental.assert_cardinality(9)
            return super().epochs(first).take(4).apply(more)

    before = values(model.variables)
    with pytest.raises(tf.errors.FailedPreconditionError, match="only 4"):
        find_learning_rate(model, Broken(images, labels), ABC)
    assert values(model.variables) == before


def test_losses_are_those_of_single_batches(backbone, data):
    model = FineTuner(backbone, keras.layers.Dense(3))
    rates = np.geomspace(1e-14, 1e-12, 40)
    found = find_learning_rate(model, data, ABC, scales={"head": 1.0}, rates=rates)
    batches = list(data.epochs().take(40).as_numpy_iterator())
    expected = [ABC.example_losses(model.predict_on_batch(x), y).mean() for x, y in batches]
    np.testing.assert_allclose(found.losses, expected, rtol=1e-5)
    assert found.rates == tuple(rates)


def test_rates_are_those_of_the_stages_over_their_scales(backbone, data):
    model = FineTuner(backbone, keras.layers.Dense(3))
    ones, twos = (
        find_learning_rate(
            model,
            data,
            ABC,
            scales={"block2": 0.5 * scale, "head": scale},
            rates=np.geomspace(1e-5, 1e-1, 40) / scale,
        )
        for scale in (1.0, 2.0)
    )
    np.testing.assert_allclose(ones.losses, twos.losses, rtol=1e-4)
    others = find_learning_rate(
        model, data, ABC, scales={"head": 1.0}, rates=np.geomspace(1e-5, 1e-1, 40)
    )
    assert not np.allclose(ones.losses, others.losses, rtol=1e-2)


@pytest.mark.parametrize(
    "settings",
    [
        Settings(optimizer="sgd"),
        Settings(weight_decay=3.0),
        Settings(l2_sp=10.0),
        Settings(optimizer="sgd", clip_norm=1e-6),
    ],
    ids=str,
)
def test_settings_are_heeded(backbone, data, settings):
    model = FineTuner(backbone, keras.layers.Dense(3))
    usual = Settings(optimizer=settings.optimizer) if settings.clip_norm else Settings()
    changed, before = (
        find_learning_rate(model, data, ABC, scales={"head": 1.0}, settings=each)
        for each in (settings, usual)
    )
    shared = min(len(changed.losses), len(before.losses))
    assert not np.allclose(changed.losses[:shared], before.losses[:shared], rtol=1e-3)


def test_parts_of_batches_give_the_same_curve(backbone, data):
    model = FineTuner(backbone, keras.layers.Dense(3))
    whole, parts = (
        find_learning_rate(
            model, data, ABC, scales={"head": 1.0}, settings=Settings(accumulate=count)
        )
        for count in (1, 2)
    )
    np.testing.assert_allclose(parts.losses[:60], whole.losses[:60], rtol=1e-3)


def test_a_step_is_traced_once(model, data, monkeypatch):
    traced = []
    step = model.train_step
    monkeypatch.setattr(model, "train_step", lambda batch: traced.append(batch) or step(batch))
    find_learning_rate(model, data, ABC)
    assert len(traced) == 1


def test_two_devices_find_the_same(hub_folder, mirrored, images, labels):
    def found(strategy):
        with strategy.scope():
            keras.utils.set_random_seed(1)
            model = FineTuner(load_backbone(str(hub_folder)), keras.layers.Dense(3))
        before = values(model.variables)
        result = find_learning_rate(model, Batches(images, labels), ABC, scales={"head": 1.0})
        assert values(model.variables) == before
        return result

    one, two = found(tf.distribute.get_strategy()), found(mirrored)
    np.testing.assert_allclose(two.losses[:60], one.losses[:60], rtol=1e-4)


def test_an_explosion_at_once_is_told_and_restored(model, data):
    before = values(model.variables)
    wild = np.geomspace(1e20, 1e30, 100)
    with pytest.raises(UserError, match="smaller rates"):
        find_learning_rate(model, data, ABC, rates=wild, settings=Settings(optimizer="sgd"))
    assert values(model.variables) == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scales": {}}, "one a stage"),
        ({"scales": {"head": 0.0}}, "above 0"),
        ({"scales": {"nowhere": 1.0}}, "Expected stages"),
        ({"rates": [1.0, 0.5]}, "ascending"),
        ({"rates": [0.0, 0.5]}, "above 0"),
        ({"rates": []}, "ascending"),
    ],
)
def test_mistakes(model, data, changes, message):
    with pytest.raises(ValueError, match=message):
        find_learning_rate(model, data, ABC, **changes)
