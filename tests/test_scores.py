"""Transferability scores: golden values, definitions, properties, extremes."""

import subprocess
import sys

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import softmax
from scipy.stats import multivariate_normal, spearmanr
from sklearn.covariance import LedoitWolf
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from sklearn.metrics import mutual_info_score, r2_score

from tfxfer import scores
from tfxfer.scores.neighbours import knn_predictions
from tfxfer.scores.probe import linear_probe_predictions

DIGITS, DIGIT = load_digits(return_X_y=True)
PROJECTION = np.random.default_rng(5).standard_normal((64, 12))
SOURCE = softmax(DIGITS @ PROJECTION / np.sqrt(64) / np.abs(DIGITS).mean(), axis=1)
# What the authors' code returns for the 1797 digits, in float64.
GOLDEN = [
    ("logme", (DIGITS, DIGIT), {}, 0.2702775953610096),
    ("logme", (DIGITS, DIGIT.astype(float)), {"regression": True}, -2.0982596322866707),
    ("h_score", (DIGITS, DIGIT), {}, 5.917909336695526),
    ("regularized_h_score", (DIGITS, DIGIT), {}, 5.851432997953625),
    ("leep", (SOURCE, DIGIT), {}, -2.1426152087916135),
    ("nce", (SOURCE.argmax(axis=1), DIGIT), {}, -1.883793827011788),
    ("transrate", (DIGITS, DIGIT), {}, 50.279312261335235),
]

OF_FEATURES = [name for name in scores.__all__ if name not in ("leep", "nce")]
OF_NUMBERS = ["knn", "linear_probe", "logme"]
CLASSES = 4
RNG = np.random.default_rng(0)
Y = np.arange(48) % CLASSES
MEANS, NOISE = RNG.standard_normal((CLASSES, 6)), RNG.standard_normal((48, 6))
NUMBERS = NOISE[:, :2] @ [[1.0, 0.5], [0.5, -1.0]]


def features(apart: float = 2.0) -> np.ndarray:
    return NOISE + apart * MEANS[Y]


def wide(apart: float = 2.0) -> np.ndarray:
    """More features than examples."""
    return np.concatenate([features(apart), np.random.default_rng(1).normal(size=(48, 60))], 1)


def one_hot(y: np.ndarray) -> np.ndarray:
    return np.eye(y.max() + 1)[y]


def score(name: str, x: np.ndarray, y: np.ndarray = Y, **options) -> float:
    value = getattr(scores, name)(x, y, **options)
    assert isinstance(value, float)
    assert np.isfinite(value)
    return value


@pytest.mark.parametrize(("name", "given", "options", "value"), GOLDEN)
def test_golden_values(name, given, options, value):
    assert getattr(scores, name)(*given, **options) == pytest.approx(value, rel=1e-9)


@pytest.mark.parametrize("name", ["knn", "linear_probe"])
def test_what_is_said_of_each_example(name):
    predictions = {"knn": knn_predictions, "linear_probe": linear_probe_predictions}[name]
    told = predictions(DIGITS, 3 * DIGIT - 5)  # Classes are told by their own numbers.
    assert np.mean(told == 3 * DIGIT - 5) == getattr(scores, name)(DIGITS, DIGIT)
    numbers = np.stack([DIGIT + 100.0, -2.0 * DIGIT], axis=1)
    told = predictions(DIGITS, numbers, regression=True)
    r2 = getattr(scores, name)(DIGITS, numbers, regression=True)
    assert r2_score(numbers, told) == pytest.approx(r2)
    assert told.mean(axis=0) == pytest.approx(numbers.mean(axis=0), rel=0.02)


def test_they_import_neither_tensorflow_nor_keras():
    code = "import sys, tfxfer.scores; sys.exit(bool({'tensorflow', 'keras'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("x", [features(), wide(), np.repeat(features(), 2, axis=1)])
def test_logme_is_the_maximum_of_the_evidence(x):
    t = 1.0 * (Y == 1)

    def minus_evidence(logs: np.ndarray) -> float:
        a, b = np.exp(logs)
        return -multivariate_normal.logpdf(t, cov=x @ x.T / a + np.eye(48) / b) / 48

    most = -minimize(minus_evidence, [0, 0], method="Nelder-Mead", options={"xatol": 1e-6}).fun
    assert score("logme", x, t, regression=True) == pytest.approx(most, abs=1e-3)


def test_logme_of_columns_is_the_mean():
    each = [score("logme", features(), column, regression=True) for column in one_hot(Y).T]
    assert score("logme", features()) == pytest.approx(np.mean(each))
    assert score("logme", features(), one_hot(Y), regression=True) == pytest.approx(np.mean(each))
    # Features that have nothing in common with the column.
    nothing = score("logme", one_hot(Y)[:, :1], 1.0 * (Y == 1), regression=True)
    assert nothing == pytest.approx((np.log(CLASSES / (2 * np.pi)) - 1) / 2)


@pytest.mark.parametrize("x", [features(), wide()])
def test_h_scores_are_those_of_covariances(x):
    means = np.stack([x[c == Y].mean(axis=0) for c in range(CLASSES)])[Y]
    between = np.cov(means.T)
    plain = np.trace(np.linalg.pinv(np.cov(x.T), rcond=1e-12) @ between)
    assert score("h_score", x) == pytest.approx(plain)
    shrunk = LedoitWolf().fit(x)
    regularized = np.trace(np.linalg.inv(shrunk.covariance_) @ between) * (1 - shrunk.shrinkage_)
    assert score("regularized_h_score", x) == pytest.approx(regularized)


@pytest.mark.parametrize("x", [features(), wide()])
def test_transrate_is_that_of_determinants(x):
    def rate(f: np.ndarray) -> float:
        return np.linalg.slogdet(np.eye(f.shape[1]) + f.T @ f / (len(f) * 0.01))[1] / 2

    x = x - x.mean(axis=0)
    expected = rate(x) - np.mean([rate(x[c == Y]) for c in range(CLASSES)])
    assert score("transrate", x + 3, eps=0.01) == pytest.approx(expected)


@pytest.mark.parametrize("components", [3, 64])
def test_gbc_is_the_overlap_of_densities(components):
    x = features(0.5)
    z = PCA(min(components, 6)).fit_transform(x)
    p = z.shape[1]
    means = [z[c == Y].mean(axis=0) for c in range(CLASSES)]
    variances = [z[c == Y].var(axis=0).mean() for c in range(CLASSES)]
    expected = 0.0
    for i in range(CLASSES):
        for j in set(range(CLASSES)) - {i}:
            v, w = variances[i], variances[j]
            distance = np.sum((means[i] - means[j]) ** 2) / (4 * (v + w))
            distance += np.log(((v + w) / 2) ** p / np.sqrt(v**p * w**p)) / 2
            expected -= np.exp(-distance)
    assert score("gbc", x, components=components) == pytest.approx(expected)


@pytest.mark.parametrize("components", [4, 32])
def test_parc_is_the_rank_correlation_of_pairs(components):
    x = wide()
    z = PCA(components, svd_solver="full").fit_transform(x)
    pairs = np.triu_indices(48, 1)
    found, told = 1 - np.corrcoef(z / z.std(axis=0)), 1 - np.corrcoef(one_hot(Y))
    expected = np.asarray(spearmanr(found[pairs].round(10), told[pairs].round(10)))[0]
    assert score("parc", x, components=components) == pytest.approx(100 * expected)


def test_parc_draws_from_many():
    x, y = DIGITS[:600], DIGIT[:600]
    whole = score("parc", x, y)
    draws = [score("parc", x, y, max_examples=300, seed=seed) for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]
    assert draws == pytest.approx([whole] * 3, rel=0.2)
    assert score("parc", features(), 1 * (np.arange(48) == 7), max_examples=2) == 0


def test_leep_is_the_likelihood_of_what_the_source_tells():
    theta = softmax(features()[:, :3], axis=1)
    # One class that nothing is taken for.
    theta = np.concatenate([theta, np.zeros((48, 1))], axis=1)
    joint = np.array([[theta[y == Y, z].sum() / 48 for z in range(3)] for y in range(CLASSES)])
    told = [
        sum(joint[y, z] / joint[:, z].sum() * row[z] for z in range(3))
        for y, row in zip(Y, theta, strict=True)
    ]
    assert score("leep", theta) == pytest.approx(np.mean(np.log(told)))
    assert score("leep", 0.995 * theta) == pytest.approx(np.mean(np.log(told)))


def test_nce_is_what_is_left_of_the_entropy():
    z = np.where(RNG.random(48) < 0.5, Y, 7) - 1
    assert score("nce", z) == pytest.approx(mutual_info_score(z, Y) - np.log(CLASSES))


def test_leep_and_nce_go_from_the_entropy_to_nothing():
    for source, expected in ((Y, 0), (np.zeros(48, int), -np.log(CLASSES))):
        assert score("nce", source) == pytest.approx(expected, abs=1e-12)
        assert score("leep", one_hot(source)) == pytest.approx(expected, abs=1e-12)
    mixed = np.where(np.arange(48) < 30, Y, 0)
    told = 0.9 * one_hot(mixed) + 0.1 / CLASSES
    assert -np.log(CLASSES) < score("leep", told) < score("nce", mixed) < 0


def test_nleep_finds_groups():
    apart = 20 * one_hot(Y) + 0.1 * NOISE[:, :4]
    assert score("nleep", apart) == pytest.approx(0, abs=1e-6)
    assert score("nleep", features(), components_per_class=1) < -0.1
    assert score("nleep", features(), energy=1.0) != score("nleep", features(), energy=0.5)


@pytest.mark.parametrize("k", [1, 5, 100])
@pytest.mark.parametrize("regression", [False, True])
def test_knn_asks_the_nearest_others(k, regression, monkeypatch):
    monkeypatch.setattr("tfxfer.scores.neighbours._BLOCK", 500)  # Ten examples at a time.
    x = features(0.7)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    targets, told = NUMBERS if regression else one_hot(Y), []
    for i in range(48):
        others = np.delete(np.arange(48), i)
        similar = unit[others] @ unit[i]
        near = np.argsort(-similar)[:k]
        told.append(softmax(similar[near] / 0.07) @ targets[others[near]])
    expected = r2_score(NUMBERS, told) if regression else np.mean(np.argmax(told, axis=1) == Y)
    found = score("knn", x, NUMBERS if regression else Y, regression=regression, k=k)
    assert found == pytest.approx(expected)


@pytest.mark.parametrize("x", [features(0.7), wide(0.7)])
@pytest.mark.parametrize("regression", [False, True])
def test_linear_probe_leaves_each_example_out(x, regression):
    z = (x - x.mean(axis=0)) / x.std(axis=0)
    targets, told = NUMBERS if regression else 2 * one_hot(Y) - 1, []
    for i in range(48):
        fit = Ridge(alpha=20).fit(np.delete(z, i, 0), np.delete(targets, i, 0))
        told.append(fit.predict(z[i : i + 1])[0])
    expected = r2_score(NUMBERS, told) if regression else np.mean(np.argmax(told, axis=1) == Y)
    found = score("linear_probe", x, NUMBERS if regression else Y, regression=regression, l2=20)
    assert found == pytest.approx(expected)


@pytest.mark.parametrize("x", [features(), wide()])
def test_linear_probe_chooses_about_the_best_penalty(x):
    tried = [
        score("linear_probe", x, NUMBERS, regression=True, l2=2.0**power)
        for power in range(-10, 25, 4)
    ]
    assert score("linear_probe", x, NUMBERS, regression=True) > max(tried) - 0.05


@pytest.mark.parametrize("name", OF_FEATURES)
@pytest.mark.parametrize("draw", [features, wide, lambda: one_hot(Y)])
def test_the_order_of_examples_and_names_of_classes_do_not_matter(name, draw):
    order = np.random.default_rng(2).permutation(48)
    value = score(name, draw())
    assert score(name, draw()[order], Y[order]) == pytest.approx(value, rel=1e-9)
    assert score(name, draw(), np.array([7, -3, 900, 8])[Y]) == pytest.approx(value, rel=1e-9)


@pytest.mark.parametrize("name", OF_FEATURES)
def test_more_information_scores_higher(name):
    values = [score(name, features(apart)) for apart in (0.0, 1.0, 4.0)]
    assert values[0] < values[1] < values[2]
    assert score(name, features(4.0), Y[np.random.default_rng(3).permutation(48)]) < values[2]


@pytest.mark.parametrize("name", OF_NUMBERS)
def test_more_information_of_numbers_scores_higher(name):
    other = np.random.default_rng(4).standard_normal((48, 6))
    values = [
        score(name, share * NOISE + (1 - share) * other, NUMBERS, regression=True)
        for share in (0.0, 0.5, 1.0)
    ]
    assert values[0] < values[1] < values[2]
    assert score(name, NOISE, NUMBERS[:, 0], regression=True) == pytest.approx(
        score(name, NOISE, NUMBERS[:, :1], regression=True)
    )


def test_random_features_tell_nothing():
    x, y = RNG.standard_normal((400, 8)), np.arange(400) % 4
    assert score("h_score", x, y) < 0.15
    assert score("regularized_h_score", x, y) < 0.15
    assert abs(score("transrate", x, y)) < 0.15
    assert abs(score("parc", x, y)) < 1
    assert score("gbc", x, y) < -11
    assert score("knn", x, y) < 0.35
    assert score("linear_probe", x, y) < 0.35


@pytest.mark.parametrize("name", OF_FEATURES)
@pytest.mark.parametrize(
    "x",
    [
        np.zeros((48, 3)),
        np.eye(48)[:, :2],
        np.repeat(NOISE[:12] - NOISE[:12].mean(axis=0), CLASSES, axis=0),  # All classes alike.
        np.full((48, 6), 1e6 + 0.1),
        NOISE[:, :1],
        np.repeat(features(), 3, axis=1),
        np.repeat(features()[:CLASSES], 12, axis=0),
        one_hot(Y),
        np.concatenate([one_hot(Y), wide()], axis=1),
        features() * 1e38,
        features() * 1e-38,
        features() + 1e6,
        1e3 * one_hot(Y) + 1e-3 * NOISE[:, :4],
    ],
)
def test_extremes_are_finite(name, x):
    score(name, x)
    score(name, x, 1 * (np.arange(48) == 5))
    score(name, x, np.arange(48))
    score(name, x[:2], np.array([0, 1]))
    if name == "linear_probe":
        score(name, x, l2=5e-324)
    if name in OF_NUMBERS:
        score(name, x, 1e6 * NUMBERS + 1e9, regression=True)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("h_score", 0),
        ("regularized_h_score", 0),
        ("transrate", 0),
        ("gbc", -CLASSES * (CLASSES - 1)),
        ("parc", 0),
        ("nleep", -np.log(CLASSES)),
    ],
)
def test_constant_features_tell_nothing(name, value):
    assert score(name, np.full((48, 6), 0.1)) == pytest.approx(value)


@pytest.mark.parametrize("name", ["h_score", "regularized_h_score", "linear_probe", "nleep"])
def test_scale_and_place_of_features_do_not_matter(name):
    value = score(name, features())
    assert score(name, 1e30 * features()) == pytest.approx(value)
    assert score(name, features() - 1e3) == pytest.approx(value)


# They change the mean variance, toward which the regularised H-score shrinks.
@pytest.mark.parametrize("name", ["h_score", "linear_probe", "transrate", "gbc", "parc", "nleep"])
def test_constant_features_change_nothing(name):
    more = np.append(features(), np.full((48, 2), 0.1), axis=1)
    assert score(name, more) == pytest.approx(score(name, features()))


def test_ranges_reach_their_ends():
    apart = 1e3 * one_hot(Y) + 1e-3 * NOISE[:, :4]
    assert score("h_score", apart) == pytest.approx(CLASSES - 1)
    assert score("knn", apart) == score("linear_probe", apart) == 1
    assert [score("gbc", apart), score("nleep", apart)] == pytest.approx([0, 0], abs=1e-12)


@pytest.mark.parametrize("name", OF_FEATURES)
def test_float32_is_computed_in_float64(name):
    single = features().astype(np.float32)
    assert score(name, single) == score(name, single.astype(np.float64))


@pytest.mark.parametrize("name", [name for name in scores.__all__ if name != "nce"])
@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (np.ones(48), Y, r"Expected features \[n, d\].*, received \(48,\)"),
        (np.ones((48, 0)), Y, r"received \(48, 0\)"),
        (np.ones((1, 3)), Y[:1], r"n > 1 examples, received \(1, 3\)"),
        (np.ones((48, 3, 3)), Y, r"received \(48, 3, 3\)"),
        (np.full((48, 3), np.nan), Y, "Expected finite features.*received nan"),
        (np.full((48, 3), -np.inf), Y, "Expected finite features.*received inf"),
        (np.ones((48, 3)), Y[1:], "Expected labels of 48 examples, received those of 47"),
        (np.ones((48, 3)), one_hot(Y), "Expected classes.*float64"),
        (np.ones((48, 3)), Y[:, None], r"Expected classes, int \[n\], received int64 \(48, 1\)"),
        (np.ones((48, 3)), 0 * Y, "Expected at least 2 classes, received 1"),
    ],
)
def test_what_is_no_features_or_classes(name, x, y, message):
    with pytest.raises(ValueError, match=message):
        getattr(scores, name)(x, y)


@pytest.mark.parametrize("name", OF_NUMBERS)
@pytest.mark.parametrize(
    ("y", "message"),
    [
        (np.ones((48, 2)), "Expected targets that differ"),
        (np.full(48, np.inf), "Expected finite targets"),
        (np.ones((48, 2, 2)), r"Expected numbers.*received \(48, 2, 2\)"),
        (NUMBERS[1:], "Expected labels of 48 examples"),
    ],
)
def test_what_is_no_numbers(name, y, message):
    with pytest.raises(ValueError, match=message):
        getattr(scores, name)(features(), y, regression=True)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("knn", {"k": 0}, "Expected k of at least 1, received 0"),
        ("linear_probe", {"l2": 0.0}, "Expected an l2 above 0"),
        ("transrate", {"eps": 0.0}, "Expected an eps above 0"),
        ("gbc", {"components": 0}, "Expected at least 1 component"),
        ("parc", {"components": 0}, "Expected at least 1 component"),
        ("parc", {"max_examples": 1}, "Expected max_examples of at least 2"),
        ("nleep", {"energy": 1.5}, r"Expected an energy in \(0, 1\]"),
        ("nleep", {"components_per_class": 0}, "Expected at least 1 component per class"),
    ],
)
def test_options_out_of_range(name, options, message):
    with pytest.raises(ValueError, match=message):
        getattr(scores, name)(features(), Y, **options)


def test_what_is_no_source():
    with pytest.raises(ValueError, match="Expected probabilities of at least 0, received -0"):
        scores.leep(np.tile([1.5, -0.5], (48, 1)), Y)
    with pytest.raises(ValueError, match="that add up to 1, received a sum of 1"):
        scores.leep(np.tile([0.8, 0.8], (48, 1)), Y)
    with pytest.raises(ValueError, match="Expected classes"):
        scores.nce(Y / 2, Y)
    with pytest.raises(ValueError, match="Expected 48 source labels, received 47"):
        scores.nce(Y[1:], Y)
    with pytest.raises(ValueError, match="Expected at least 2 classes"):
        scores.nce(Y, 0 * Y)
