"""Losses that treat the target class, which labels tell, by itself."""

import tensorflow as tf

from tfxfer.losses.base import (
    Array,
    Number,
    binary_divergence,
    checked_logits,
    divergence,
    number,
    of_labelled,
)


def dkd(
    student: Array,
    teacher: Array,
    y_true: Array,
    alpha: Number = 1.0,
    beta: Number = 8.0,
    temperature: Number = 4.0,
) -> tf.Tensor:
    """Decoupled distillation, `T^2 (alpha TCKD + beta NCKD)`.

    TCKD is the divergence of "the target class or another", NCKD that among the other classes,
    whose probabilities are made to sum to 1. With two classes NCKD is 0. The authors raise the
    weight of the whole over the first 20 epochs.

    Zhao et al. 2022, "Decoupled Knowledge Distillation", equation 7.

    Args:
        student: Logits `[batch, classes]`.
        teacher: Logits `[batch, classes]`.
        y_true: Classes `[batch]`, -1 for none; or probabilities `[batch, classes]`, of which the
            most probable class counts, all 0 for none.
        alpha: Weight of TCKD.
        beta: Weight of NCKD.
        temperature: `T`, above 0.

    Returns:
        `[batch]`, in nats times `T^2`; 0 for examples without a label.

    Raises:
        ValueError: If these are not logits of the same classes, or labels of them.
    """
    student, teacher = checked_logits(student, teacher)
    target, labelled = _target_class(y_true, student)
    temperature = number(temperature, student)
    target_student, others_student = _decoupled(student / temperature, target)
    target_teacher, others_teacher = _decoupled(teacher / temperature, target)
    loss = temperature**2 * (
        number(alpha, student) * binary_divergence(target_student, target_teacher)
        + number(beta, student) * divergence(others_student, others_teacher)
    )
    return of_labelled(loss, labelled)


def nkd(
    student: Array,
    teacher: Array,
    y_true: Array,
    gamma: Number = 1.5,
    temperature: Number = 1.0,
) -> tf.Tensor:
    """Normalised distillation, of the target class and of the others by themselves.

    `-p_t(y) log p_s(y) - gamma T^2 sum over others of q_t log q_s`, with `p = softmax(z)` and `q`
    the softmax of `z / T` over the classes other than `y`. A cross-entropy: not 0 at equality.

    Yang et al. 2023, "From Knowledge Distillation to Self-Knowledge Distillation: A Unified
    Approach with Normalized Loss and Customized Soft Labels", equation 6.

    Args:
        student: Logits `[batch, classes]`.
        teacher: Logits `[batch, classes]`.
        y_true: Classes `[batch]`, -1 for none; or probabilities `[batch, classes]`, of which the
            most probable class counts, all 0 for none.
        gamma: Weight of the other classes.
        temperature: `T`, above 0, of the other classes.

    Returns:
        `[batch]`, in nats; 0 for examples without a label.

    Raises:
        ValueError: If these are not logits of the same classes, or labels of them.
    """
    student, teacher = checked_logits(student, teacher)
    target, labelled = _target_class(y_true, student)
    temperature = number(temperature, student)
    of_target = tf.where(target, tf.nn.softmax(teacher) * tf.nn.log_softmax(student), 0.0)
    _, others_student = _decoupled(student / temperature, target)
    _, others_teacher = _decoupled(teacher / temperature, target)
    of_others = tf.exp(others_teacher) * others_student
    weight = number(gamma, student) * temperature**2
    return of_labelled(-tf.reduce_sum(of_target + weight * of_others, -1), labelled)


def ofa(
    student: Array,
    teacher: Array,
    y_true: Array,
    eps: Number = 1.5,
    temperature: Number = 1.0,
) -> tf.Tensor:
    """Distillation between different architectures, the target class enhanced (OFA-KD).

    `-sum over classes of ((p_t + y)^eps - y) log p_s`, with `p = softmax(z / T)` and `y` one-hot. A
    cross-entropy: not 0 at equality. Values of `eps` from 1 to 1.5 are usual.

    Hao et al. 2023, "One-for-All: Bridge the Gap Between Heterogeneous Architectures in Knowledge
    Distillation", equation 5, in the form of its code.

    Args:
        student: Logits `[batch, classes]`.
        teacher: Logits `[batch, classes]`.
        y_true: Classes `[batch]`, -1 for none; or probabilities `[batch, classes]`, which take the
            place of the one-hot `y`, all 0 for none.
        eps: The exponent, above 0.
        temperature: `T`, above 0.

    Returns:
        `[batch]`, in nats; 0 for examples without a label.

    Raises:
        ValueError: If these are not logits of the same classes, or labels of them.
    """
    student, teacher = checked_logits(student, teacher)
    y_true, labelled = _probabilities(y_true, student)
    temperature = number(temperature, student)
    enhanced = (tf.nn.softmax(teacher / temperature) + y_true) ** number(eps, student) - y_true
    loss = -tf.reduce_sum(tf.stop_gradient(enhanced) * tf.nn.log_softmax(student / temperature), -1)
    return of_labelled(loss, labelled)


def _probabilities(y_true: Array, logits: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns labels as probabilities `[batch, classes]`, and which examples have one."""
    y_true = tf.convert_to_tensor(y_true)
    if y_true.shape.rank == 1:
        y_true = tf.one_hot(tf.cast(y_true, tf.int32), logits.shape[1])
    if not y_true.shape.is_compatible_with(logits.shape):
        raise ValueError(
            f"Expected y_true [batch] or {logits.shape}, received shape {y_true.shape}."
        )
    y_true = tf.cast(y_true, logits.dtype)
    return y_true, tf.reduce_any(y_true > 0, -1)


def _target_class(y_true: Array, logits: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns a mask `[batch, classes]` of one class an example, and which examples have one."""
    y_true, labelled = _probabilities(y_true, logits)
    return tf.one_hot(tf.argmax(y_true, -1), logits.shape[1], True, False, dtype=tf.bool), labelled


def _decoupled(logits: tf.Tensor, target: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Splits what logits say into "the target or not", and "which one, if not the target".

    Returns:
        The logit `[batch]` of the target against all others together, and log-probabilities
        `[batch, classes]` among the others, 0 at the target.
    """
    others = tf.reduce_logsumexp(tf.where(target, logits.dtype.min, logits), -1, keepdims=True)
    of_target = tf.reduce_sum(tf.where(target, logits, 0.0), -1)
    return of_target - others[:, 0], tf.where(target, 0.0, logits - others)
