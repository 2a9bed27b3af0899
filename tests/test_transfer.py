"""What distillation was worth, by numbers that are known."""

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
from scipy.special import expit, softmax
from scipy.stats import bootstrap, entropy, norm, ttest_rel

from tfxfer.costs import ModelCost
from tfxfer.evaluate import score
from tfxfer.intervals import mean_interval, paired_interval
from tfxfer.task import MULTI_LABEL, REGRESSION, SINGLE_LABEL, Task
from tfxfer.transfer import (
    HELPED,
    HURT,
    NO_EVIDENCE,
    Arm,
    TransferCard,
    agreement,
    divergence,
    expected_calibration_error,
    headline_scores,
    model_scores,
    student_scores,
    verdict,
)

KINDS = (SINGLE_LABEL, MULTI_LABEL, REGRESSION)


def task_of(kind: str, units: int = 3) -> Task:
    return Task(kind, tuple(map(str, range(units))))


def draw(kind: str, examples: int = 200, units: int = 3, seed: int = 0, noise: float = 1.0):
    """Outputs of a model that is somewhat right, and what is true."""
    rng = np.random.default_rng(7)  # The truth is the same for every model.
    true = rng.normal(size=(examples, units))
    y = {
        SINGLE_LABEL: true.argmax(-1),
        MULTI_LABEL: (true > 0.5).astype(np.float32),
        REGRESSION: true.astype(np.float32),
    }[kind]
    shift = 0.5 if kind == MULTI_LABEL else 0.0
    outputs = true - shift + noise * np.random.default_rng(seed).normal(size=true.shape)
    return outputs.astype(np.float32), y


# Calibration


def test_calibration_error_of_hand_made_bins():
    # Bin of 0.8: right 1 of 2, gap 0.3. Bin of 0.6: right 2 of 2, gap 0.4.
    probabilities = np.array([[0.8, 0.2], [0.2, 0.8], [0.6, 0.4], [0.4, 0.6]])
    y = np.array([0, 0, 0, 1])
    expected = 0.5 * 0.3 + 0.5 * 0.4
    assert expected_calibration_error(probabilities, y) == pytest.approx(expected, abs=1e-12)
    # In one bin gaps of both signs cancel: mean confidence 0.7, 3 of 4 right.
    assert expected_calibration_error(probabilities, y, bins=1) == pytest.approx(0.05, abs=1e-12)


def test_a_bin_holds_its_upper_edge():
    # Guo et al. 2017: bins (a, b]. At 0.5 and 0.6, two bins of 0.5 hold one decision each.
    probabilities = np.array([[0.5, 0.25, 0.25], [0.2, 0.6, 0.2]])
    found = expected_calibration_error(probabilities, np.array([0, 0]), bins=2)
    assert found == pytest.approx((0.5 + 0.6) / 2)


def test_calibrated_decisions_have_little_error_and_bold_ones_more():
    rng = np.random.default_rng(0)
    logits = 2 * rng.normal(size=(20_000, 4))
    probabilities = softmax(logits, axis=-1)
    y = np.array([rng.choice(4, p=row) for row in probabilities])
    assert expected_calibration_error(probabilities, y) < 0.02
    assert expected_calibration_error(softmax(3 * logits, axis=-1), y) > 0.1


def test_one_label_is_calibrated_as_two_classes():
    rng = np.random.default_rng(1)
    logits, y = rng.normal(size=500), rng.integers(0, 2, 500)
    two = softmax(np.stack([np.zeros(500), logits], axis=1), axis=-1)
    one = expected_calibration_error(expit(logits)[:, None], y[:, None])
    assert one == pytest.approx(expected_calibration_error(two, y), abs=1e-12)


def test_labels_are_pooled():
    rng = np.random.default_rng(2)
    probabilities, y = rng.random((50, 4)), rng.integers(0, 2, (50, 4))
    pooled = expected_calibration_error(probabilities.reshape(-1, 1), y.reshape(-1, 1))
    assert expected_calibration_error(probabilities, y) == pooled


def test_certain_and_right_is_no_error():
    assert expected_calibration_error(np.eye(3), np.arange(3)) == 0
    assert expected_calibration_error(np.eye(3), np.arange(3) - 1) == 1


@pytest.mark.parametrize(
    ("probabilities", "bins", "says"),
    [([[2.0, -1.0]], 15, "from -1 to 2"), ([[np.nan, 1]], 15, "in"), ([[0.5, 0.5]], 0, "1 bin")],
)
def test_calibration_is_of_probabilities(probabilities, bins, says):
    with pytest.raises(ValueError, match=says):
        expected_calibration_error(np.array(probabilities), np.array([0]), bins)


# Student and teacher


def test_divergence_is_scipys_entropy():
    rng = np.random.default_rng(0)
    student, teacher = 3 * rng.normal(size=(2, 20, 5))
    p, q = softmax(teacher, axis=-1), softmax(student, axis=-1)
    expected = np.mean(entropy(p, q, axis=-1))
    assert divergence(student, teacher, task_of(SINGLE_LABEL, 5)) == pytest.approx(expected)
    p, q = (np.stack([expit(x), expit(-x)]) for x in (teacher, student))
    expected = np.mean(entropy(p, q, axis=0))
    assert divergence(student, teacher, task_of(MULTI_LABEL, 5)) == pytest.approx(expected)
    expected = np.mean((student - teacher) ** 2)
    assert divergence(student, teacher, task_of(REGRESSION, 5)) == pytest.approx(expected)


@pytest.mark.parametrize("kind", KINDS)
def test_a_teacher_is_no_way_from_itself(kind):
    outputs, _ = draw(kind)
    assert divergence(outputs, outputs, task_of(kind)) == 0
    # A shift of all logits of an example changes no probability, but for rounding.
    if kind == SINGLE_LABEL:
        assert 0 <= divergence(outputs.astype(float) + 1e6, outputs, task_of(kind)) < 1e-9


@pytest.mark.parametrize("kind", [SINGLE_LABEL, MULTI_LABEL])
def test_divergence_at_gaps_of_a_thousand_is_exact(kind):
    teacher = np.array([[1000.0, -1000.0]], np.float32)
    # One class: 2,000 nats. Two labels, each sure of the opposite: 1,000 nats each.
    expected = {SINGLE_LABEL: 2000, MULTI_LABEL: 1000}[kind]
    assert divergence(-teacher, teacher, task_of(kind, 2)) == pytest.approx(expected)


def test_agreement_is_of_decisions():
    student = np.array([[1.0, 0, -1], [0, 2, -1], [1, 3, 2], [0, -1, -2]])
    teacher = np.array([[5.0, 1, -1], [0, 1, -3], [1, 2, 3], [0, -2, -1]])
    assert agreement(student, teacher, task_of(SINGLE_LABEL)) == 0.75
    # Of labels above 0, the first example alone differs.
    assert agreement(student, teacher, task_of(MULTI_LABEL)) == 0.75
    assert agreement(student, teacher, task_of(REGRESSION)) is None


@pytest.mark.parametrize("measure", [agreement, divergence])
def test_outputs_must_be_alike(measure: Any):
    with pytest.raises(ValueError, match="one shape"):
        measure(np.zeros((3, 2)), np.zeros((1, 2)), task_of(SINGLE_LABEL, 2))


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_taken_together(kind):
    task = task_of(kind)
    outputs, y = draw(kind, seed=1)
    teacher, _ = draw(kind, seed=2, noise=0.5)
    found = student_scores(task, outputs, teacher, y)
    assert found.evaluation == score(task, outputs, y)
    assert found.divergence == divergence(outputs, teacher, task)
    assert found.agreement == agreement(outputs, teacher, task)
    if kind == REGRESSION:
        assert found.nll is None
        assert found.calibration_error is None
    else:
        assert found.nll == found.evaluation.loss
        wide = outputs.astype(np.float64)
        probabilities = expit(wide) if kind == MULTI_LABEL else softmax(wide, axis=-1)
        assert found.calibration_error == expected_calibration_error(probabilities, y)


# The verdict


@pytest.mark.parametrize("kind", KINDS)
def test_headline_scores_have_the_headline_for_mean(kind):
    task = task_of(kind)
    outputs, y = draw(kind)
    found = headline_scores(task, outputs, y)
    assert found.shape == (200,)
    assert found.mean() == pytest.approx(model_scores(task, outputs, y).headline, rel=1e-6)


@pytest.mark.parametrize("kind", [MULTI_LABEL, REGRESSION])
def test_their_interval_is_that_of_a_bootstrap(kind):
    task = task_of(kind)
    one, y = draw(kind, 500, seed=1)
    other, _ = draw(kind, 500, seed=2, noise=1.3)

    def difference(rows):
        figures = [headline_scores(task, each[rows], y[rows]).mean() for each in (one, other)]
        return figures[0] - figures[1]

    found = bootstrap(
        (np.arange(500),), difference, n_resamples=500, vectorized=False, method="percentile", rng=0
    ).confidence_interval
    pairs = headline_scores(task, one, y), headline_scores(task, other, y)
    interval = mean_interval(pairs[0] - pairs[1])
    assert interval is not None
    width = found.high - found.low
    assert interval == pytest.approx((found.low, found.high), abs=0.1 * width)


def test_nothing_to_be_right_about():
    task = task_of(MULTI_LABEL)
    assert (headline_scores(task, -np.ones((4, 3)), np.zeros((4, 3))) == 0).all()
    assert (headline_scores(task_of(REGRESSION), np.ones((4, 3)), np.ones((4, 3))) == 0).all()


def test_the_interval_over_seeds_is_the_paired_t_test():
    distilled, alone = [0.95, 0.93, 0.96, 0.94, 0.95], [0.90, 0.91, 0.92, 0.88, 0.93]
    found = verdict(distilled, alone)
    expected = ttest_rel(distilled, alone).confidence_interval(0.95)
    assert found.interval == pytest.approx((expected.low, expected.high), rel=1e-12)
    assert found.difference == pytest.approx(0.038)
    assert (found.word, found.by, found.count) == (HELPED, "seeds", 5)


def test_pairs_count_and_so_does_their_order():
    # The difference is steady although the seeds are not.
    alone = np.array([0.5, 0.7, 0.9])
    better = alone + np.array([0.009, 0.010, 0.011])
    assert verdict(better, alone).word == HELPED
    assert verdict(better[::-1], alone).word == NO_EVIDENCE


@pytest.mark.parametrize(
    ("gain", "higher_is_better", "word"),
    [(0.1, True, HELPED), (-0.1, True, HURT), (0.1, False, HURT), (-0.1, False, HELPED)],
)
def test_which_side_is_better(gain, higher_is_better, word):
    alone = np.array([0.5, 0.6, 0.7])
    found = verdict(alone + gain * np.array([1, 0.9, 1.1]), alone, (), (), higher_is_better)
    assert found.word == word
    assert np.sign(found.difference) == np.sign(gain), "the sign is that of the figure"


def test_identical_differences_are_a_point():
    assert verdict([0.5, 0.75], [0.5, 0.75]).interval == (0, 0)
    assert verdict([0.5, 0.75], [0.5, 0.75]).word == NO_EVIDENCE
    found = verdict([0.75, 1.0], [0.5, 0.75])
    assert (found.word, found.interval) == (NO_EVIDENCE, (0.25, 0.25)), "by chance, for all we know"


def test_the_wider_interval_counts():
    right, wrong = np.ones(100), np.r_[np.zeros(10), np.ones(90)]
    steady = verdict([1.0, 1.0], [0.9, 0.9], right, wrong)
    assert (steady.word, steady.by, steady.count) == (HELPED, "examples", 100)
    assert steady.interval == paired_interval(right - wrong)
    unsteady = verdict([1.0, 1.0], [0.95, 0.85], right, wrong)
    assert (unsteady.word, unsteady.by, unsteady.count) == (NO_EVIDENCE, "seeds", 2)
    few = np.r_[np.zeros(2), np.ones(98)]
    assert verdict([1.0, 1.0], [0.98, 0.98], right, few).word == NO_EVIDENCE


def test_the_interval_over_examples_is_agrestis_and_mins():
    # 12 are right with one alone, 3 with the other, of 100; half a one more in each cell.
    differences = np.r_[np.ones(12), -np.ones(3), np.zeros(85)]
    found = paired_interval(differences)
    assert found is not None
    half = norm.ppf(0.975) * np.sqrt(16 - 9**2 / 102) / 102
    assert found == pytest.approx((0.09 - half, 0.09 + half), abs=0.004)
    assert paired_interval(np.ones(1)) is None
    # None differs: half a one in each of the two cells.
    found = paired_interval(np.zeros(98), unit=1)
    assert found == pytest.approx((-norm.ppf(0.975) / 100, norm.ppf(0.975) / 100), rel=0.04)
    assert paired_interval(np.zeros(98)) == (0, 0)
    # As many as all of few are no evidence, and all of many are.
    assert [verdict([1], [0], np.ones(n), np.zeros(n)).word for n in (2, 100)] == [
        NO_EVIDENCE,
        HELPED,
    ]


def test_one_seed_goes_by_examples():
    right = np.ones(100)
    wrong = np.r_[np.zeros(10), np.ones(90)]
    found = verdict([1.0], [0.9], right, wrong)
    assert (found.word, found.by, found.count) == (HELPED, "examples", 100)
    assert found.difference == pytest.approx(0.1)
    assert verdict([0.9], [1.0], wrong, right).word == HURT
    few = np.r_[np.zeros(2), np.ones(98)]
    assert verdict([1.0], [0.98], right, few).word == NO_EVIDENCE


def test_one_example_shows_nothing():
    found = verdict([1.0], [0.0], [1.0], [0.0])
    assert (found.word, found.interval) == (NO_EVIDENCE, None)


def test_where_nothing_helps_evidence_is_as_rare_as_it_says():
    rng = np.random.default_rng(0)
    draws = rng.normal(0.9, 0.01, size=(2000, 2, 3))
    words = [verdict(*pair).word for pair in draws]
    for word in (HELPED, HURT):
        assert 0.015 < words.count(word) / 2000 < 0.035


@pytest.mark.parametrize("seeds", [1, 2, 3, 5])
def test_right_and_wrong_of_few_examples_mislead_as_rarely(seeds):
    """Of two seeds, differences of accuracy are often the same, by chance."""
    rng = np.random.default_rng(0)
    chances = rng.beta(0.9, 0.1, size=(1000, 100))
    right = rng.random((2, seeds, 1000, 100)) < chances
    words = [verdict(*pair.mean(-1), *pair.mean(1)).word for pair in np.moveaxis(right, 2, 0) * 1.0]
    assert words.count(HELPED) + words.count(HURT) <= 50


@pytest.mark.parametrize(
    "given",
    [([], []), ([0.1, 0.2], [0.1]), ([0.1], [0.2]), ([0.1], [0.2], [1.0, 0.0], [1.0])],
)
def test_there_must_be_pairs(given):
    with pytest.raises(ValueError, match="of both students"):
        verdict(*given)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("examples", [1, 40])
def test_a_card_is_strict_json(kind, examples):
    task = task_of(kind)
    outputs, y = draw(kind, examples)
    scores = student_scores(task, outputs, outputs, y)
    arm = Arm("distilled", (scores,), (scores,), 10, 1.0)
    pairs = headline_scores(task, outputs, y)
    found = verdict([scores.headline], [scores.headline], pairs, pairs, kind != REGRESSION)
    costs = {name: ModelCost(10, 40, 20, 0.1, 50, None) for name in ("teacher", "student")}
    card = TransferCard(model_scores(task, outputs, y), arm, arm, found, found, costs, ("a note",))
    read = json.loads(json.dumps(dataclasses.asdict(card), allow_nan=False))
    assert read["verdict"]["word"] == NO_EVIDENCE
    assert read["distilled"]["best"][0]["divergence"] == 0
    assert read["costs"]["student"]["latency_ms"] == 0.1
