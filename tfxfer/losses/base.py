"""What the losses share: number types, checks, divergences, vectors that may be zero."""

import keras
import tensorflow as tf

Array = tf.Tensor
"""A tensor, or a NumPy array."""

Number = float | tf.Tensor | tf.Variable | keras.Variable
"""An option of a loss: a Python number, or a scalar tensor or variable that a schedule moves."""


def floats(student: Array, teacher: Array) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns both in the number type that losses are computed in, the teacher as a constant.

    Args:
        student: `[batch, ...]`, of any float type.
        teacher: `[batch, ...]`, of any float type.

    Returns:
        Both in float64 if `student` is, in float32 otherwise.

    Raises:
        ValueError: If they are not of a float type, or of different numbers of examples.
    """
    student, teacher = tf.convert_to_tensor(student), tf.convert_to_tensor(teacher)
    if not (student.dtype.is_floating and teacher.dtype.is_floating):
        raise ValueError(
            f"Expected floats, received {student.dtype.name} and {teacher.dtype.name}."
        )
    if not student.shape[:1].is_compatible_with(teacher.shape[:1]):
        raise ValueError(
            f"Expected as many examples of both, received {student.shape} and {teacher.shape}."
        )
    dtype = tf.float64 if student.dtype == tf.float64 else tf.float32
    return tf.cast(student, dtype), tf.stop_gradient(tf.cast(teacher, dtype))


def number(value: Number, like: tf.Tensor) -> tf.Tensor:
    """Returns an option as a scalar of the number type of `like`."""
    return keras.ops.convert_to_tensor(value, like.dtype.name)


def flat(x: tf.Tensor) -> tf.Tensor:
    """Returns `[batch, ...]` as `[batch, values]`."""
    return tf.reshape(x, (tf.shape(x)[0], -1))


def centred(x: tf.Tensor, axis: int) -> tf.Tensor:
    """Returns `x` less its mean along an axis: exactly 0 where all values are the same."""
    # The mean of equal values may be off by rounding; that of zeros is not.
    x = x - tf.stop_gradient(tf.gather(x, [0], axis=axis))
    return x - tf.reduce_mean(x, axis, keepdims=True)


def direction_and_norm(x: tf.Tensor, axis: int = -1) -> tuple[tf.Tensor, tf.Tensor]:
    """Splits vectors into unit vectors and Euclidean norms, `x = direction * norm`.

    A vector of zeros has a direction of zeros, and no gradient, where the root alone would give
    NaN. Neither large nor small values overflow when they are squared.

    Args:
        x: Of any shape.
        axis: The one that vectors lie along.

    Returns:
        Directions, of the shape of `x`, and norms, where `axis` has length 1.
    """
    largest = tf.stop_gradient(tf.reduce_max(tf.abs(x), axis, keepdims=True))
    scaled = tf.math.divide_no_nan(x, largest)
    # At least 1, that of the largest value, but where all are zero.
    norm = tf.sqrt(tf.maximum(tf.reduce_sum(scaled**2, axis, keepdims=True), 1.0))
    return scaled / norm, largest * norm


def checked_outputs(student: Array, teacher: Array) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns what `floats` does, of outputs of one shape `[batch, units]` alone."""
    student, teacher = floats(student, teacher)
    if student.shape.rank != 2 or not student.shape.is_compatible_with(teacher.shape):
        raise ValueError(
            "Expected outputs of one shape [batch, units], "
            f"received {student.shape} and {teacher.shape}."
        )
    return student, teacher


def checked_logits(student: Array, teacher: Array) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns what `floats` does, of logits of the same two or more classes alone."""
    student, teacher = checked_outputs(student, teacher)
    if student.shape[1] == 1:
        raise ValueError("Expected logits of at least 2 classes, received 1.")
    return student, teacher


def of_labelled(loss: tf.Tensor, labelled: tf.Tensor) -> tf.Tensor:
    """Returns losses `[batch]`, 0 for examples without a label."""
    return tf.where(labelled, loss, 0.0)


def divergence(log_student: tf.Tensor, log_teacher: tf.Tensor) -> tf.Tensor:
    """Kullback-Leibler divergence along the last axis; what the teacher rules out adds nothing."""
    return tf.reduce_sum(
        tf.math.multiply_no_nan(log_teacher - log_student, tf.exp(log_teacher)), -1
    )


def binary_divergence(student: tf.Tensor, teacher: tf.Tensor) -> tf.Tensor:
    """Kullback-Leibler divergence of two sigmoids, from their logits."""
    return tf.add_n(
        [
            tf.math.multiply_no_nan(
                tf.math.log_sigmoid(sign * teacher) - tf.math.log_sigmoid(sign * student),
                tf.sigmoid(sign * teacher),
            )
            for sign in (1.0, -1.0)
        ]
    )
