"""Verification and retrieval figures: scikit-learn's answers, a plain loop's, and by hand."""

import itertools
import json
from dataclasses import asdict

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.stats import bootstrap
from sklearn.datasets import load_digits
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve
from sklearn.metrics.pairwise import cosine_similarity as every_cosine

from tfxfer import verification
from tfxfer.errors import UserError
from tfxfer.verification import cosine_similarity, retrieve, sample_pairs, verify

PIXELS, CLASSES = load_digits(return_X_y=True)


@pytest.fixture(scope="module")
def digit_pairs():
    left, right, same = sample_pairs(CLASSES, 4000, seed=0)
    return cosine_similarity(PIXELS, left, right), same


def test_pairs_are_balanced_and_distinct():
    left, right, same = sample_pairs(CLASSES, 4001, seed=0)
    assert (same.sum(), (~same).sum()) == (2000, 2001)
    assert ((CLASSES[left] == CLASSES[right]) == same).all()
    assert (left != right).all()
    assert len({frozenset(pair) for pair in zip(left, right, strict=True)}) == 4001


def test_pairs_follow_from_the_seed():
    one, again, other = (sample_pairs(CLASSES, 100, seed)[0].tolist() for seed in (0, 0, 1))
    assert one == again
    assert one != other


def test_every_pair_can_be_drawn():
    identities = np.array([7, 3, 7, 5, 3, 7])
    left, right, same = sample_pairs(identities, 1000, seed=0)
    found = {frozenset(pair) for pair in zip(left, right, strict=True)}
    assert found == set(map(frozenset, itertools.combinations(range(6), 2)))
    assert len(left) == len(found)
    assert same.sum() == 4  # Of 7: 3, of 3: 1.


def test_pairs_are_drawn_evenly():
    identities = np.array([0, 0, 0, 1, 1])
    drawn = [sample_pairs(identities, 2, seed) for seed in range(2000)]
    genuine = [frozenset((left[0], right[0])) for left, right, _ in drawn]
    impostor = [frozenset((left[1], right[1])) for left, right, _ in drawn]
    for pairs, kinds in ((genuine, 4), (impostor, 6)):
        counts = [pairs.count(each) for each in set(pairs)]
        assert len(counts) == kinds
        # Within 5 standard deviations of even.
        assert np.abs(np.array(counts) - 2000 / kinds).max() < 5 * np.sqrt(2000 / kinds)


@pytest.mark.parametrize(
    ("identities", "lacking"), [([1, 2, 3], "of 3 identities have none of one"), ([1, 1], "two")]
)
def test_pairs_of_both_kinds_must_be_there(identities, lacking):
    with pytest.raises(UserError, match=lacking):
        sample_pairs(np.array(identities), 10, seed=0)


def test_fewer_than_two_pairs_are_refused():
    with pytest.raises(ValueError, match="at least 2 pairs, received 1"):
        sample_pairs(CLASSES, 1, seed=0)


def test_cosine_is_scikit_learns(monkeypatch):
    monkeypatch.setattr(verification, "_BLOCK_BYTES", 64 * 8 * 4 * 7)  # 7 pairs a block.
    left, right, _ = sample_pairs(CLASSES, 50, seed=0)
    expected = every_cosine(PIXELS)[left, right]
    np.testing.assert_allclose(cosine_similarity(PIXELS, left, right), expected, atol=1e-14)


def test_cosine_by_hand():
    features = np.array([[3, 0], [-1, 0], [1, 1], [0, 0]], np.float32)
    found = cosine_similarity(features, np.array([0, 0, 0, 0]), np.array([0, 1, 2, 3]))
    np.testing.assert_allclose(found, [1, -1, np.sqrt(0.5), 0], atol=1e-15)


def test_auc_and_eer_are_scikit_learns(digit_pairs):
    similarities, same = digit_pairs
    found = verify(similarities, same)
    assert found.auc == roc_auc_score(same, similarities)
    far, tar, _ = roc_curve(same, similarities)
    assert found.eer == pytest.approx(
        brentq(lambda rate: 1 - rate - np.interp(rate, far, tar), 0, 1), abs=1e-9
    )
    assert 0.05 < found.eer < 0.5
    assert found.pairs == 4000


def test_threshold_gives_the_equal_error_rate(digit_pairs):
    similarities, same = digit_pairs
    found = verify(similarities, same)
    accepted = similarities >= found.threshold
    assert accepted[~same].mean() == pytest.approx(found.eer, abs=1e-3)
    assert (~accepted[same]).mean() == pytest.approx(found.eer, abs=1e-3)


@pytest.mark.parametrize("rate", [0.0005, 0.01, 0.1, 1.0])
def test_true_accepts_are_the_most_of_any_threshold(digit_pairs, rate):
    similarities, same = digit_pairs
    most = max(
        (similarities[same] >= threshold).mean()
        for threshold in [*similarities, np.inf]
        if (similarities[~same] >= threshold).mean() <= rate
    )
    assert verify(similarities, same, rate).tar_at_far == {rate: most}


def test_a_rate_that_no_pair_measures_is_none():
    same = np.arange(100) < 51
    found = verify(np.linspace(1, 0, 100), same, (1 / 49, 0.02, 1e-3))
    assert found.tar_at_far == {1 / 49: 1.0, 0.02: None, 1e-3: None}


def test_figures_by_hand():
    # Of 3 x 2 comparisons 4 are right. From 0.7 on 2 of 3 are rightly accepted and none wrongly,
    # from 0.6 on 1 of 2 wrongly; between both, a third is wrong either way.
    found = verify(np.array([0.9, 0.7, 0.2, 0.6, 0.3]), np.array([1, 1, 1, 0, 0]), (0.5, 1.0))
    assert found.auc == pytest.approx(4 / 6)
    assert found.eer == pytest.approx(1 / 3)
    assert found.threshold == pytest.approx(0.7 - 0.1 * 2 / 3)
    assert found.tar_at_far == {0.5: 2 / 3, 1.0: 1.0}


def test_perfectly_separable():
    found = verify(np.array([0.9] * 20 + [0.1] * 30), np.arange(50) < 20, 0.1)
    assert (found.auc, found.eer, found.threshold) == (1, 0, 0.9)
    assert found.tar_at_far == {0.1: 1.0}
    # Clopper and Pearson: 20 of 20.
    assert found.auc_interval == pytest.approx((0.025 ** (1 / 20), 1))


def test_equal_similarities_tell_nothing():
    found = verify(np.full(50, 0.3), np.arange(50) < 20, 0.1)
    assert (found.auc, found.eer, found.threshold) == (0.5, 0.5, 0.3)
    assert found.tar_at_far == {0.1: 0.0}
    low, high = found.auc_interval
    assert 0.2 < low < 0.5 < high < 0.8


def test_one_pair_of_a_kind_says_little():
    low, high = verify(np.array([0.5, 0.9, 0.1]), np.array([1, 0, 0])).auc_interval
    assert (low, high) == (0, 1)


def test_interval_is_as_wide_as_by_bootstrap():
    rng = np.random.default_rng(0)
    genuine, impostor = rng.normal(1.5, 2, 300), rng.normal(0, 1, 200)

    def area(one, other, axis=-1):
        # The Mann-Whitney statistic.
        return (one[..., :, None] > other[..., None, :]).mean(axis=(-2, -1))

    expected = bootstrap(
        (genuine, impostor), area, n_resamples=500, batch=50, method="percentile", rng=rng
    ).confidence_interval
    found = verify(np.r_[genuine, impostor], np.arange(500) < 300).auc_interval
    np.testing.assert_allclose(found, expected, atol=0.01)


@pytest.mark.parametrize(
    ("similarities", "same", "far", "says"),
    [
        ([0.1, np.nan], [1, 0], 0.1, "finite"),
        ([0.1, 0.2], [1, 0], (0.1, 0.0), r"in \(0, 1\], received \(0.1, 0.0\)"),
        ([0.1, 0.2], [1, 1], 0.1, "received 2 and 0"),
    ],
)
def test_what_cannot_be_verified_is_refused(similarities, same, far, says):
    with pytest.raises(ValueError, match=says):
        verify(np.array(similarities), np.array(same), far)


def looped(features, identities, ks):
    """Retrieval one query and one found example at a time."""
    ranks, precisions = [], []
    for query, similar in enumerate(every_cosine(features)):
        others = np.delete(np.arange(len(features)), query)
        relevant = identities[others] == identities[query]
        if relevant.any():
            ranking = relevant[np.argsort(-similar[others])]
            ranks.append(int(np.argmax(ranking)) + 1)
            precisions.append(average_precision_score(relevant, similar[others]))
    recall = {k: float(np.mean(np.array(ranks) <= k)) for k in ks}
    return recall, float(np.mean(precisions)), len(ranks)


def test_retrieval_equals_a_plain_loop():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(200, 8)).astype(np.float32)
    identities = rng.integers(0, 90, 200)
    found = retrieve(features, identities, (1, 3, 50))
    recall, precision, queries = looped(features, identities, (1, 3, 50))
    assert found.recall_at == recall
    assert found.mean_average_precision == pytest.approx(precision, rel=1e-9)
    assert found.queries == queries < 200
    assert found.left_out == 200 - queries


def test_retrieval_of_digits_is_scikit_learns():
    features, identities = PIXELS[:600].astype(np.float32), CLASSES[:600]
    found = retrieve(features, identities)
    recall, precision, _ = looped(features, identities, (1, 5, 10))
    assert found.recall_at == recall
    assert found.mean_average_precision == pytest.approx(precision, abs=1e-5)
    assert found.recall_at[1] > 0.9


def test_blocks_change_nothing(monkeypatch):
    features, identities = PIXELS[:300].astype(np.float32), CLASSES[:300]
    whole = retrieve(features, identities)
    monkeypatch.setattr(verification, "_BLOCK_BYTES", 300 * 4 * 7)  # 7 queries a block.
    blocked = retrieve(features, identities)
    assert blocked.recall_at == whole.recall_at
    assert blocked.mean_average_precision == pytest.approx(whole.mean_average_precision, abs=1e-6)


def test_retrieval_by_hand():
    angles = np.deg2rad([0, 10, 30, 90])
    features = np.stack([np.cos(angles), np.sin(angles)], axis=1) * [[1], [5], [2], [3]]
    found = retrieve(features, np.array([0, 1, 0, 2]), (1, 2))
    # Both find the 1 first and then each other; 1 and 2 have no other.
    assert found.recall_at == {1: 0.0, 2: 1.0}
    assert found.mean_average_precision == 0.5
    assert (found.queries, found.left_out) == (2, 2)


@pytest.mark.parametrize("value", [1.0, 0.0])
def test_equal_features_are_found_by_chance(value):
    found = retrieve(np.full((40, 4), value, np.float32), np.arange(40) % 4)
    assert found.recall_at == {1: 0.0, 5: 0.0, 10: 0.0}
    assert found.mean_average_precision == pytest.approx(9 / 39)


@pytest.mark.parametrize(
    ("identities", "ks", "says"),
    [([0, 1, 2], (1,), "two examples of one identity"), ([0, 0, 1], (1, 0), "each k")],
)
def test_what_cannot_be_retrieved_is_refused(identities, ks, says):
    with pytest.raises(ValueError, match=says):
        retrieve(np.eye(3), np.array(identities), ks)


def test_features_must_be_finite():
    with pytest.raises(ValueError, match="finite features"):
        retrieve(np.array([[1.0], [np.inf]]), np.array([0, 0]))


def test_figures_are_json(digit_pairs):
    similarities, same = digit_pairs
    figures = [verify(similarities, same, (0.1, 1e-9)), retrieve(PIXELS[:50], CLASSES[:50])]
    text = json.dumps([asdict(each) for each in figures], allow_nan=False)
    assert json.loads(text)[0]["tar_at_far"]["1e-09"] is None
