"""Losses between the outputs of two networks: logits of classes, or numbers.

Logits are `[batch, classes]`, unscaled log-probabilities before any softmax; every loss goes
through log-softmax, so that no gap between logits is too large. A logit of the teacher may be
minus infinity, for a class that it does not know, where only its probabilities count: in `kd`,
`hard_label`, `dkd`, `nkd`, `ofa` and `binary_kd`.
"""

import tensorflow as tf

from tfxfer.losses.base import (
    Array,
    Number,
    binary_divergence,
    centred,
    checked_logits,
    checked_outputs,
    direction_and_norm,
    divergence,
    number,
    of_labelled,
)


def kd(student: Array, teacher: Array, temperature: Number = 4.0) -> tf.Tensor:
    """Kullback-Leibler divergence of softened probabilities, `T^2 KL(p_t || p_s)`.

    With `p = softmax(z / T)`. The factor `T^2` keeps the size of the gradient. Others average over
    the classes, too (TinyBERT, DeiT, `reduction="mean"` of torch), or leave `T^2` out (TinyBERT):
    give a weight for that.

    Hinton et al. 2015, "Distilling the Knowledge in a Neural Network", section 2.

    Args:
        student: Logits `[batch, classes]`.
        teacher: Logits `[batch, classes]`.
        temperature: `T`, above 0.

    Returns:
        `[batch]`, at least 0, in nats times `T^2`.

    Raises:
        ValueError: If these are not logits of the same classes.
    """
    student, teacher = checked_logits(student, teacher)
    temperature = number(temperature, student)
    return temperature**2 * divergence(
        tf.nn.log_softmax(student / temperature), tf.nn.log_softmax(teacher / temperature)
    )


def hard_label(student: Array, teacher: Array) -> tf.Tensor:
    """Cross-entropy against the class that the teacher finds most probable.

    Touvron et al. 2021, "Training data-efficient image transformers & distillation through
    attention" (DeiT), section 4.

    Args:
        student: Logits `[batch, classes]`.
        teacher: Logits `[batch, classes]`.

    Returns:
        `[batch]`, in nats.

    Raises:
        ValueError: If these are not logits of the same classes.
    """
    student, teacher = checked_logits(student, teacher)
    return tf.nn.sparse_softmax_cross_entropy_with_logits(tf.argmax(teacher, axis=-1), student)


def logit_mse(student: Array, teacher: Array) -> tf.Tensor:
    """Mean squared difference of the outputs, for regression too.

    Ba and Caruana 2014, "Do Deep Nets Really Need to be Deep?", equation 1, averaged over outputs.

    Args:
        student: Logits or numbers `[batch, outputs]`.
        teacher: Logits or numbers `[batch, outputs]`.

    Returns:
        `[batch]`.

    Raises:
        ValueError: If the shapes differ.
    """
    student, teacher = checked_outputs(student, teacher)
    return tf.reduce_mean((student - teacher) ** 2, -1)


def dist(
    student: Array,
    teacher: Array,
    beta: Number = 1.0,
    gamma: Number = 1.0,
    temperature: Number = 1.0,
) -> tf.Tensor:
    """One minus the correlation with the teacher, within examples and within classes (DIST).

    `T^2 (beta (1 - mean over rows of r) + gamma (1 - mean over columns of r))`, `r` the Pearson
    correlation of softened probabilities, 0 where one of the two has no variance. The second part
    is defined over the batch: each example gets what its row adds, so that the mean is right.

    Huang et al. 2022, "Knowledge Distillation from A Stronger Teacher", equations 8 to 10.

    Args:
        student: Logits `[batch, classes]`.
        teacher: Logits `[batch, classes]`.
        beta: Weight of the correlation over the classes of an example.
        gamma: Weight of the correlation over the examples of a class.
        temperature: `T`, above 0.

    Returns:
        `[batch]`.

    Raises:
        ValueError: If these are not logits of the same classes.
    """
    student, teacher = checked_logits(student, teacher)
    temperature = number(temperature, student)
    student, teacher = tf.nn.softmax(student / temperature), tf.nn.softmax(teacher / temperature)
    rows = 1.0 - tf.reduce_sum(_correlation(student, teacher, axis=1), 1)
    examples = tf.cast(tf.shape(student)[0], student.dtype)
    columns = 1.0 - examples * tf.reduce_mean(_correlation(student, teacher, axis=0), 1)
    return temperature**2 * (number(beta, student) * rows + number(gamma, student) * columns)


def logit_standardised_kd(student: Array, teacher: Array, temperature: Number = 2.0) -> tf.Tensor:
    """`kd` of logits that have mean 0 and standard deviation 1 in every example.

    `z <- (z - mean) / (1e-7 + std)`, with `classes - 1` in the variance. The authors weigh it by 9.
    Logits that are all the same have no direction to take, and get no gradient.

    Sun et al. 2024, "Logit Standardization in Knowledge Distillation", algorithm 1.

    Args:
        student: Logits `[batch, classes]`.
        teacher: Logits `[batch, classes]`.
        temperature: `T`, above 0.

    Returns:
        `[batch]`, at least 0, in nats times `T^2`.

    Raises:
        ValueError: If these are not logits of the same classes.
    """
    student, teacher = checked_logits(student, teacher)
    return kd(_standardised(student), _standardised(teacher), temperature)


def binary_kd(student: Array, teacher: Array) -> tf.Tensor:
    """Binary cross-entropy of each class against the teacher's softmax, the mean over classes.

    For a student that tells each class by a sigmoid, from a teacher of one class an example. Not 0
    at equality. Between networks of several labels an example it is `multi_label_kd`.

    Beyer et al. 2020, "Are we done with ImageNet?", section 6 (the sigmoid loss).

    Args:
        student: Logits `[batch, classes]`, of sigmoids.
        teacher: Logits `[batch, classes]`, of a softmax.

    Returns:
        `[batch]`, in nats.

    Raises:
        ValueError: If these are not logits of the same classes.
    """
    student, teacher = checked_logits(student, teacher)
    return tf.reduce_mean(
        tf.nn.sigmoid_cross_entropy_with_logits(tf.nn.softmax(teacher), student), -1
    )


def multi_label_kd(student: Array, teacher: Array, temperature: Number = 1.0) -> tf.Tensor:
    """Divergence of each label's softened probability, `T^2 mean over labels of KL(p_t || p_s)`.

    With `p = sigmoid(z / T)`: `kd` for several labels an example.

    Yang et al. 2023, "Multi-Label Knowledge Distillation", equation 2, as a divergence.

    Args:
        student: Logits `[batch, labels]`.
        teacher: Logits `[batch, labels]`.
        temperature: `T`, above 0.

    Returns:
        `[batch]`, at least 0, in nats times `T^2`.

    Raises:
        ValueError: If the shapes differ.
    """
    student, teacher = checked_outputs(student, teacher)
    temperature = number(temperature, student)
    return temperature**2 * tf.reduce_mean(
        binary_divergence(student / temperature, teacher / temperature), -1
    )


def bounded_regression(
    student: Array, teacher: Array, y_true: Array, margin: Number = 0.0
) -> tf.Tensor:
    """Squared error of the student, where it is not yet better than the teacher by a margin.

    `e_s` if `e_s + margin > e_t`, else 0, where `e` is the mean over targets of the squared error.
    A teacher that is wrong is then no harm: it only says where to stop.

    Chen et al. 2017, "Learning Efficient Object Detection Models with Knowledge Distillation",
    equation 5, averaged over targets.

    Args:
        student: Numbers `[batch, targets]`.
        teacher: Numbers `[batch, targets]`.
        y_true: Numbers `[batch, targets]`; NaN for examples without a label.
        margin: In squared units of the targets, at least 0.

    Returns:
        `[batch]`, in squared units of the targets; 0 for examples without a label.

    Raises:
        ValueError: If the shapes differ.
    """
    student, teacher = checked_outputs(student, teacher)
    y_true = tf.cast(y_true, student.dtype)
    if not y_true.shape.is_compatible_with(student.shape):
        raise ValueError(f"Expected y_true {student.shape}, received {y_true.shape}.")
    labelled = ~tf.reduce_any(tf.math.is_nan(y_true), -1)
    y_true = tf.where(labelled[:, None], y_true, 0.0)
    of_student = tf.reduce_mean((student - y_true) ** 2, -1)
    of_teacher = tf.reduce_mean((teacher - y_true) ** 2, -1)
    worse = of_student + number(margin, student) > of_teacher
    return of_labelled(of_student, labelled & worse)


def _correlation(student: tf.Tensor, teacher: tf.Tensor, axis: int) -> tf.Tensor:
    """Returns the terms whose sums along an axis are Pearson's correlations, 1e-8 added below."""
    (student, spread), (teacher, teacher_spread) = (
        direction_and_norm(centred(each, axis), axis) for each in (student, teacher)
    )
    spread = spread * teacher_spread
    return student * teacher * (spread / (spread + 1e-8))


def _standardised(logits: tf.Tensor) -> tf.Tensor:
    direction, norm = direction_and_norm(centred(logits, -1))
    classes = tf.cast(tf.shape(logits)[-1], logits.dtype)
    return direction * (norm / (1e-7 + norm / tf.sqrt(classes - 1.0)))
