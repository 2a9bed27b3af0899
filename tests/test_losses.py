"""Distillation losses: golden values, extremes, properties."""

import inspect
from functools import partial

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfxfer import losses
from tfxfer.losses import Term


def nhwc(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1))


RNG = np.random.default_rng(0)
STUDENT, TEACHER = 2 * RNG.standard_normal((8, 10)), 4 * RNG.standard_normal((8, 10))
Y = RNG.integers(0, 10, 8)
FEATURES = RNG.standard_normal((8, 16)), RNG.standard_normal((8, 32))
WIDE, NARROW, SAME = (
    nhwc(RNG.standard_normal(shape)) for shape in ((8, 6, 8, 8), (8, 12, 4, 4), (8, 12, 4, 4))
)

LOGITS, MAPS, EQUAL_MAPS = (STUDENT, TEACHER), (WIDE, NARROW), (SAME, NARROW)
# What the authors' code returns for these draws, in float64.
GOLDEN = [
    ("kd", LOGITS, {"temperature": 1}, 2.9163023205281853),
    ("kd", LOGITS, {"temperature": 2}, 4.522133362652231),
    ("kd", LOGITS, {}, 6.109340210526894),
    ("hard_label", LOGITS, {}, 4.081315577414934),
    ("logit_mse", LOGITS, {}, 19.6902818209269),
    ("dkd", LOGITS, {"y_true": Y}, 41.268614867139675),
    ("dkd", LOGITS, {"y_true": Y, "beta": 0}, 1.6493398458909498),
    ("dkd", LOGITS, {"y_true": Y, "alpha": 0, "beta": 1}, 4.952409377656091),
    ("logit_standardised_kd", LOGITS, {}, 0.8082744018671851),
    ("dist", LOGITS, {}, 1.6241852697283126),
    ("dist", LOGITS, {"temperature": 4}, 28.833390787650305),
    ("nkd", LOGITS, {"y_true": Y}, 5.978796420813351),
    ("ofa", LOGITS, {"y_true": Y, "eps": 1.5}, 3.9994477966968467),
    ("binary_kd", LOGITS, {}, 1.2007611714428257),
    ("rkd_distance", FEATURES, {}, 0.01385642986478117),
    ("rkd_angle", FEATURES, {}, 0.014485169435384162),
    ("attention_transfer", MAPS, {}, 0.021431537698025572),
    ("similarity_preserving", MAPS, {}, 0.0072785059305378605),
    ("similarity_preserving", FEATURES, {}, 0.05703530180100455),
    ("nst", MAPS, {}, 0.24031373009432105),
    ("pkt", FEATURES, {}, 0.0037863080732207345),
    ("hierarchical_context", EQUAL_MAPS, {}, 1.246253043301687),
    ("hint", EQUAL_MAPS, {}, 1.9129508688543222),
    ("cosine", EQUAL_MAPS, {}, 0.9661770478814986),
]

NAMES = [name for name in losses.__all__ if name not in ("Term", "parse_losses")]
OF_FEATURES = [name for name in NAMES if Term(name).of_features]
OF_LOGITS = [n for n in NAMES if n not in (*OF_FEATURES, "logit_mse", "bounded_regression")]
OF_MAPS = ["attention_transfer", "nst", "hierarchical_context"]
LABELLED = ["dkd", "nkd", "ofa"]
# A cross-entropy has its least value, not 0, at equality.
DIVERGENCES = [n for n in NAMES if n not in ("hard_label", "nkd", "ofa", "binary_kd")]


def loss_of(name: str, classes: int = 10, y=None):
    """Returns the loss with labels, if it needs some, that fit the batch."""
    function = getattr(losses, name)
    if name == "bounded_regression":
        return lambda s, t: function(s, t, y_true=tf.cast(t, s.dtype))
    if name in LABELLED:
        return lambda s, t: function(s, t, y_true=(Y % classes)[: len(s)] if y is None else y)
    return function


def inputs(name: str, dtype="float64", batch: int = 8) -> tuple[tf.Tensor, tf.Tensor]:
    if name not in OF_FEATURES:
        pair = LOGITS
    elif name in OF_MAPS:
        pair = MAPS if name != "hierarchical_context" else EQUAL_MAPS
    else:
        pair = EQUAL_MAPS if name in ("hint", "cosine") else FEATURES
    student, teacher = (tf.constant(each[:batch], dtype) for each in pair)
    return student, teacher


def with_gradient(function, student, teacher) -> tuple[np.ndarray, np.ndarray]:
    student = tf.convert_to_tensor(student)
    with tf.GradientTape() as tape:
        tape.watch(student)
        loss = function(student, teacher)
    return loss.numpy(), tape.gradient(loss, student).numpy()


def assert_finite(function, student, teacher) -> np.ndarray:
    loss, gradient = with_gradient(function, student, teacher)
    assert loss.shape == (len(student),)
    assert np.isfinite(loss).all(), loss
    assert np.isfinite(gradient.astype(np.float64)).all()
    return loss


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-9), ("float32", 1e-5)])
@pytest.mark.parametrize(("name", "pair", "options", "value"), GOLDEN)
def test_golden_values(name, pair, options, value, dtype, tolerance):
    loss = getattr(losses, name)(*(each.astype(dtype) for each in pair), **options)
    assert loss.dtype == dtype
    assert loss.shape == (8,)
    assert float(tf.reduce_mean(loss)) == pytest.approx(value, rel=tolerance)


def test_golden_values_cover_every_loss_but_two():
    assert set(NAMES) - {name for name, *_ in GOLDEN} == {"multi_label_kd", "bounded_regression"}


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_is_computed_in_float32(name):
    for dtype in ("float16", "bfloat16"):
        student, teacher = inputs(name, dtype)
        loss, gradient = with_gradient(loss_of(name), student, teacher)
        exact = loss_of(name)(tf.cast(student, "float64"), tf.cast(teacher, "float64"))
        assert loss.dtype == np.float32
        assert gradient.dtype == tf.as_dtype(dtype).as_numpy_dtype
        np.testing.assert_allclose(loss, exact, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_zero_at_equality_and_more_elsewhere(name):
    student, teacher = inputs(name)
    function = partial(losses.dist, temperature=4) if name == "dist" else loss_of(name)
    # For the batch, not for each of its examples: DIST adds up classes. 1e-8 is added below, there.
    at_equality = np.mean(function(teacher, teacher))
    assert at_equality == pytest.approx(0, abs=1e-4 if name == "dist" else 1e-12)
    assert np.mean(function(student, teacher)) > 1e-3


@pytest.mark.parametrize(
    "name", ["kd", "dkd", "logit_standardised_kd", "multi_label_kd", "binary_kd", "ofa"]
)
def test_least_where_the_student_says_what_the_teacher_says(name):
    function = partial(losses.ofa, y_true=Y, eps=1.0) if name == "ofa" else loss_of(name)
    p = tf.nn.softmax(TEACHER)
    same = tf.math.log(p / (1 - p)) if name == "binary_kd" else TEACHER
    _, gradient = with_gradient(function, same, TEACHER)
    np.testing.assert_allclose(gradient, 0, atol=1e-9)


@pytest.mark.parametrize("name", [n for n in OF_LOGITS if n not in ("binary_kd", "multi_label_kd")])
def test_adding_a_number_to_logits_changes_nothing(name):
    shift = np.linspace(-50, 50, 8)[:, None]
    loss = loss_of(name)(STUDENT, TEACHER)
    np.testing.assert_allclose(loss_of(name)(STUDENT + shift, TEACHER - 2 * shift), loss, rtol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_the_teacher_gets_no_gradient(name):
    student, teacher = inputs(name)
    function = getattr(losses, name)
    y_true = {"y_true": TEACHER} if name == "bounded_regression" else {}
    y_true = {"y_true": Y} if name in LABELLED else y_true
    with tf.GradientTape() as tape:
        tape.watch([student, teacher])
        loss = function(student, teacher, **y_true)
    to_student, to_teacher = tape.gradient(loss, [student, teacher])
    assert to_teacher is None
    assert np.abs(to_student).max() > 0


@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_examples_does_not_matter(name):
    student, teacher = inputs(name)
    order = np.random.default_rng(1).permutation(8)
    loss = loss_of(name)(student, teacher)
    moved = loss_of(name, y=Y[order])(tf.gather(student, order), tf.gather(teacher, order))
    np.testing.assert_allclose(moved, tf.gather(loss, order), rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("name", NAMES)
def test_gradient_is_that_of_the_values(name):
    student, teacher = inputs(name)
    away = tf.constant(np.random.default_rng(2).standard_normal(student.shape) * 1e-5)
    function = loss_of(name)
    if name == "bounded_regression":
        function = partial(losses.bounded_regression, y_true=-teacher, margin=1e3)
    _, gradient = with_gradient(function, student, teacher)
    up, down = (np.sum(function(student + sign * away, teacher)) for sign in (1, -1))
    assert np.sum(gradient * away) == pytest.approx((up - down) / 2, rel=1e-5)


EXTREMES = {
    "gap": (np.eye(4) * 1000, np.roll(np.eye(4), 1, axis=0) * 1000),
    "half gap": (np.eye(4) * 500 - 500, -np.eye(4) * 500 + 500),
    "constant student": (np.full((4, 4), 3.7), np.eye(4)),
    "constant teacher": (np.eye(4), np.full((4, 4), -2.3)),
    "constant both": (np.zeros((4, 4)), np.zeros((4, 4))),
    "same examples": (np.ones((4, 4)) * [1, 2, 3, 4], np.ones((4, 4)) * [4, 1, 2, 3]),
    "same students": (np.ones((4, 4)) * [1, 2, 3, 4], np.eye(4)),
    "one example": (np.array([[1.0, 2.0, 3.0, 4.0]]), np.array([[4.0, 1.0, 2.0, 3.0]])),
    "two classes": (np.array([[900.0, -100.0], [0, 1]]), np.array([[0.0, 1.0], [700, -300]])),
    "two classes, agreed": (np.array([[900.0, -100.0]]), np.array([[900.0, -100.0]])),
}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("case", EXTREMES)
def test_finite_at_extremes(case, dtype):
    student, teacher = (tf.constant(each, dtype) for each in EXTREMES[case])
    for name in NAMES:
        if name not in OF_MAPS:
            assert_finite(loss_of(name, student.shape[1]), student, teacher)
            continue
        maps = (
            each[:, :, None, None] * tf.ones((1, 1, 4, 2), dtype) for each in (student, teacher)
        )
        assert_finite(loss_of(name), *maps)


@pytest.mark.parametrize("name", OF_FEATURES)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_features_of_zeros(name, dtype):
    student, teacher = inputs(name, dtype)
    zeros = tf.zeros_like(student)
    for pair in ((zeros, teacher), (student, tf.zeros_like(teacher)), (zeros, zeros * 0)):
        assert_finite(loss_of(name), *pair)


@pytest.mark.parametrize("size", [1e-12, 1e12])
@pytest.mark.parametrize("name", ["cosine", "rkd_angle"])
def test_the_length_of_features_does_not_matter(name, size):
    student, teacher = inputs(name, "float32")
    loss, gradient = with_gradient(loss_of(name), size * student, teacher)
    np.testing.assert_allclose(loss, loss_of(name)(student, teacher), rtol=1e-4)
    assert np.isfinite(gradient).all()


def test_true_values_of_gaps_that_probabilities_cannot_hold():
    student, teacher = np.array([[[0, 400, 0]], [[400, 0, 0]]], np.float32)
    assert losses.kd(student, teacher, temperature=1).numpy() == pytest.approx(400)
    assert losses.hard_label(student, teacher).numpy() == pytest.approx(400)
    # Label by label: log 2, 200 - log 2, 0.
    assert losses.multi_label_kd(student, teacher).numpy() == pytest.approx(200 / 3)
    # Among the others, the student is sure of class 1, and the teacher of none.
    assert losses.dkd(student, teacher, y_true=[0], alpha=0, beta=1, temperature=1).numpy() == (
        pytest.approx(200 - np.log(2), rel=1e-6)
    )


def test_classes_that_the_teacher_does_not_know():
    student = np.array([[1, 2, 3, 4], [4, 3, 2, 1]], np.float32)
    teacher = np.array([[2, 0, 1, -np.inf], [-np.inf, 1, 2, 3]], np.float32)
    for name in ("kd", "hard_label", "nkd", "ofa", "binary_kd", "dkd"):
        assert_finite(loss_of(name, y=[0, 0]), student, teacher)
    p = np.exp([2, 0, 1]) / np.exp([2, 0, 1]).sum()
    q = np.exp([1, 2, 3]) / np.exp([1, 2, 3, 4]).sum()
    loss = losses.kd(student, teacher, temperature=1)
    assert float(loss[0]) == pytest.approx((p * np.log(p / q)).sum(), rel=1e-5)


def test_two_classes_have_no_others_to_compare():
    np.testing.assert_array_equal(
        losses.dkd(STUDENT[:, :2], TEACHER[:, :2], y_true=Y % 2, alpha=0), 0
    )


@pytest.mark.parametrize("name", LABELLED)
def test_labels_as_probabilities(name):
    function = getattr(losses, name)
    expected = function(STUDENT, TEACHER, y_true=Y)
    one_hot = np.eye(10, dtype=np.float32)[Y]
    np.testing.assert_allclose(function(STUDENT, TEACHER, y_true=one_hot), expected, rtol=1e-12)
    mixed = 0.75 * one_hot + 0.25 * one_hot[::-1]
    loss = function(STUDENT, TEACHER, y_true=mixed)
    if name == "ofa":
        assert np.abs(loss - expected).max() > 1e-2
    else:
        np.testing.assert_allclose(loss, expected, rtol=1e-12)


@pytest.mark.parametrize("name", LABELLED)
def test_no_loss_without_a_label(name):
    function = getattr(losses, name)
    some = np.where(np.arange(8) % 2, Y, -1)
    one_hot = np.where(some[:, None] == np.arange(10), 1.0, 0.0)
    expected = np.where(np.arange(8) % 2, function(STUDENT, TEACHER, y_true=Y), 0.0)
    for y_true in (some, one_hot):
        loss, gradient = with_gradient(partial(function, y_true=y_true), STUDENT, TEACHER)
        np.testing.assert_allclose(loss, expected, rtol=1e-12)
        np.testing.assert_array_equal(gradient[::2], 0)
        assert np.abs(gradient[1::2]).min() > 0


def test_regression_stops_where_the_student_is_better():
    y_true = np.array([[0.0, 0.0], [0.0, 0.0], [0.0, 0.0], [np.nan, 0.0]])
    teacher = np.array([[2.0, 2.0], [2.0, 2.0], [0.0, 0.0], [1.0, 1.0]])
    student = np.array([[1.0, 1.0], [3.0, 3.0], [1.0, 1.0], [9.0, 9.0]])
    for margin, expected in ((0.0, [0, 9, 1, 0]), (2.9, [0, 9, 1, 0]), (3.1, [1, 9, 1, 0])):
        function = partial(losses.bounded_regression, y_true=y_true, margin=margin)
        loss, gradient = with_gradient(function, student, teacher)
        np.testing.assert_allclose(loss, expected)
        np.testing.assert_allclose(gradient, student * (np.array(expected) > 0)[:, None])


def test_several_labels_are_two_classes_each():
    pairs = [np.stack([each, np.zeros_like(each)], -1) for each in (STUDENT, TEACHER)]
    of_labels = [losses.kd(pairs[0][:, i], pairs[1][:, i], temperature=3) for i in range(10)]
    np.testing.assert_allclose(
        losses.multi_label_kd(STUDENT, TEACHER, temperature=3),
        np.mean(of_labels, axis=0),
        rtol=1e-12,
    )


def test_options_that_a_schedule_moves():
    temperature = keras.Variable(4.0, trainable=False)
    step = tf.function(lambda: losses.kd(STUDENT, TEACHER, temperature=temperature.value))
    before = step()
    temperature.assign(2.0)
    np.testing.assert_allclose(before, losses.kd(STUDENT, TEACHER, temperature=4), rtol=1e-12)
    np.testing.assert_allclose(step(), losses.kd(STUDENT, TEACHER, temperature=2), rtol=1e-12)
    for name in ("dkd", "dist", "nkd", "ofa", "logit_standardised_kd", "multi_label_kd"):
        defaults = inspect.signature(getattr(losses, name)).parameters.values()
        given = {each.name: each.default for each in defaults if each.default is not each.empty}
        variables = {key: tf.Variable(value) for key, value in given.items()}
        y_true = {"y_true": Y} if name in LABELLED else {}
        np.testing.assert_allclose(
            getattr(losses, name)(STUDENT, TEACHER, **y_true, **variables),
            loss_of(name)(STUDENT, TEACHER),
            rtol=1e-12,
        )


@pytest.mark.parametrize("name", NAMES)
def test_in_a_graph_with_batches_of_any_size(name):
    student, teacher = inputs(name, "float32")
    specs = [tf.TensorSpec([None, *each.shape[1:]]) for each in (student, teacher)]
    function = loss_of(name, y=tf.constant(Y[:8])) if name in LABELLED else loss_of(name)
    traced = tf.function(function, input_signature=specs)
    np.testing.assert_allclose(traced(student, teacher), function(student, teacher), rtol=1e-4)
    if name not in LABELLED:
        assert traced(student[:3], teacher[:3]).shape == (3,)


@pytest.mark.parametrize("name", ["dkd", "dist", "attention_transfer", "rkd_distance"])
def test_compiled(name):
    student, teacher = inputs(name, "float32")

    @tf.function(jit_compile=True)
    def step(student, teacher):
        with tf.GradientTape() as tape:
            tape.watch(student)
            loss = loss_of(name, y=Y)(student, teacher)
        return loss, tape.gradient(loss, student)

    for ours, theirs in zip(
        step(student, teacher), with_gradient(loss_of(name), student, teacher), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-5)


def test_distances_near_each_other_and_far_from_zero():
    near = (1000 + np.random.default_rng(5).standard_normal((8, 16))).astype(np.float32)
    centre = near.astype(np.float64)
    for name in ("rkd_distance", "rkd_angle"):
        np.testing.assert_allclose(
            loss_of(name)(near, FEATURES[0].astype(np.float32)),
            loss_of(name)(centre, FEATURES[0]),
            rtol=1e-4,
        )


@pytest.mark.parametrize(
    ("name", "pair", "message"),
    [
        ("kd", (STUDENT, TEACHER[:, :9]), "one shape"),
        ("kd", (STUDENT[:, :1], TEACHER[:, :1]), "at least 2 classes"),
        ("kd", (STUDENT, TEACHER[:4]), "as many examples"),
        ("kd", (STUDENT, TEACHER.astype(int)), "Expected floats"),
        ("logit_mse", (STUDENT[:, 0], TEACHER[:, 0]), "batch, units"),
        ("hint", (WIDE, NARROW), "project one of them"),
        ("cosine", FEATURES, "project one of them"),
        ("hierarchical_context", (WIDE, NARROW), "project one of them"),
        ("nst", FEATURES, "Expected maps"),
        ("attention_transfer", (NARROW, STUDENT), "Expected maps"),
        ("pkt", (STUDENT[:, 0], TEACHER), r"features \[batch, ...\]"),
    ],
)
def test_shapes_that_do_not_go_together(name, pair, message):
    with pytest.raises(ValueError, match=message):
        getattr(losses, name)(*pair)


def test_labels_that_do_not_fit():
    with pytest.raises(ValueError, match="y_true"):
        losses.dkd(STUDENT, TEACHER, y_true=np.zeros((8, 3)))
    with pytest.raises(ValueError, match="y_true"):
        losses.bounded_regression(STUDENT, TEACHER, y_true=np.zeros((8, 3)))
