"""Which rung suffices, and whether pretrained weights help."""

import numpy as np
import pytest

from tfxfer.ladder import HELPS, NEGATIVE, NOTHING, beaten, pretraining, sufficient

RNG = np.random.default_rng(0)
GOOD = (RNG.random(300) < 0.95).astype(float)
POOR = GOOD * (RNG.random(300) < 0.7)
LIKE = GOOD.copy()
LIKE[:2] = 1 - LIKE[:2]


def test_the_cheapest_that_is_not_beaten_is_recommended():
    by = beaten({"knn": POOR, "probe": LIKE, "gradual": GOOD}, higher_is_better=True)
    assert by == {"knn": ("probe", "gradual"), "probe": (), "gradual": ()}
    assert sufficient({"knn": 1.0, "probe": 2.0, "gradual": 90.0}, by) == "probe"
    assert sufficient({"knn": 1.0, "probe": 99.0, "gradual": 90.0}, by) == "gradual"


def test_of_errors_less_is_better():
    by = beaten({"knn": POOR, "probe": GOOD}, higher_is_better=False)
    assert by == {"knn": (), "probe": ("knn",)}


def test_where_each_is_beaten_the_least_beaten_is_recommended():
    by = {"a": ("b",), "b": ("c",), "c": ("a", "b")}
    assert sufficient({"a": 2.0, "b": 1.0, "c": 0.0}, by) == "b"


@pytest.mark.parametrize(
    ("pretrained", "scratch", "word"),
    [(GOOD, POOR, HELPS), (GOOD, LIKE, NOTHING), (POOR, GOOD, NEGATIVE)],
)
def test_negative_transfer_is_named(pretrained, scratch, word):
    found = pretraining("gradual", pretrained, scratch, higher_is_better=True)
    assert found.word == word
    assert found.difference == pytest.approx(pretrained.mean() - scratch.mean())
    assert found.interval is not None
    low, high = found.interval
    assert low <= found.difference <= high
    other = pretraining("gradual", pretrained, scratch, higher_is_better=False).word
    assert other == {HELPS: NEGATIVE, NEGATIVE: HELPS}.get(word, word)
