"""Losses between the relations of examples to each other, whose features may differ in size.

Features are `[batch, ...]`, flattened. Each loss is defined over the batch; each example gets what
its row of the relations adds, so that the mean over the batch is the loss.
"""

import tensorflow as tf

from tfxfer.losses.base import Array, direction_and_norm, flat, floats


def rkd_distance(student: Array, teacher: Array) -> tf.Tensor:
    """Difference of the distances between examples, each over the mean distance in its batch.

    The smooth L1 loss (Huber's, of delta 1) of pairwise Euclidean distances, the mean over all
    pairs. Takes memory for `batch^2` differences of features. The authors weigh it by 25.

    Park et al. 2019, "Relational Knowledge Distillation", equations 4 to 6, in the form of its
    code: squared distances are at least 1e-12.

    Args:
        student: Features `[batch, ...]`.
        teacher: Features `[batch, ...]`.

    Returns:
        `[batch]`, at least 0; 0 for a batch of 1.

    Raises:
        ValueError: If these are not features of the same examples.
    """
    student, teacher = _features(student, teacher)
    return tf.reduce_mean(_smooth_l1(_distances(student) - _distances(teacher)), 1)


def rkd_angle(student: Array, teacher: Array) -> tf.Tensor:
    """Difference of the cosines of the angles that three examples form.

    The smooth L1 loss (Huber's, of delta 1), the mean over all triples; each example gets those
    that it is the vertex of. Takes memory for `batch^2` differences of features, and for `batch^3`
    angles. The authors weigh it by 50.

    Park et al. 2019, "Relational Knowledge Distillation", equations 7 and 8.

    Args:
        student: Features `[batch, ...]`.
        teacher: Features `[batch, ...]`.

    Returns:
        `[batch]`, at least 0; 0 for a batch of 1 or 2.

    Raises:
        ValueError: If these are not features of the same examples.
    """
    student, teacher = _features(student, teacher)
    return tf.reduce_mean(_smooth_l1(_cosines(student) - _cosines(teacher)), (1, 2))


def similarity_preserving(student: Array, teacher: Array) -> tf.Tensor:
    """Squared difference of the similarities of examples, the dot products of their features.

    `|G_s - G_t|^2 / batch^2`, `G` the rows of `F F'`, each of Euclidean norm 1. The authors weigh
    it by 3000.

    Tung and Mori 2019, "Similarity-Preserving Knowledge Distillation", equations 1 to 4.

    Args:
        student: Features `[batch, ...]`.
        teacher: Features `[batch, ...]`.

    Returns:
        `[batch]`, at least 0.

    Raises:
        ValueError: If these are not features of the same examples.
    """
    student, teacher = _features(student, teacher)
    return tf.reduce_mean((_similarities(student) - _similarities(teacher)) ** 2, 1)


def pkt(student: Array, teacher: Array) -> tf.Tensor:
    """Divergence of the probabilities that examples choose each other as neighbours.

    The mean over `batch^2` of `p_t log(p_t / p_s)`, `p` the rows of `(cosine + 1) / 2`, each with
    the sum 1; 1e-7 is added to norms and to probabilities. The authors weigh it by 30000.

    Passalis and Tefas 2018, "Learning Deep Representations with Probabilistic Knowledge Transfer",
    equations 4 to 7, in the form of its code.

    Args:
        student: Features `[batch, ...]`.
        teacher: Features `[batch, ...]`.

    Returns:
        `[batch]`, at least 0 but for what was added.

    Raises:
        ValueError: If these are not features of the same examples.
    """
    student, teacher = (_neighbours(each) for each in _features(student, teacher))
    more = teacher - student
    # Taking away `more`, whose sum is 0, changes no sum, and spares it from cancelling.
    return tf.reduce_mean(teacher * tf.math.log1p(more / (student + 1e-7)) - more, 1)


def _features(student: Array, teacher: Array) -> tuple[tf.Tensor, tf.Tensor]:
    student, teacher = floats(student, teacher)
    if student.shape.rank < 2 or teacher.shape.rank < 2:
        raise ValueError(
            f"Expected features [batch, ...], received {student.shape} and {teacher.shape}."
        )
    return flat(student), flat(teacher)


def _smooth_l1(difference: tf.Tensor) -> tf.Tensor:
    size = tf.abs(difference)
    return tf.where(size < 1.0, 0.5 * difference**2, size - 0.5)


def _differences(features: tf.Tensor) -> tf.Tensor:
    """Returns `[batch, batch, values]`, at `[i, j]` example j less example i.

    The expansion of the square into dot products takes less memory, and cancels: in the reduced
    precision of matrix products on GPUs little of a distance would be left.
    """
    return features[None, :] - features[:, None]


def _distances(features: tf.Tensor) -> tf.Tensor:
    """Returns distances `[batch, batch]`, whose mean off the diagonal is 1."""
    squares = tf.reduce_sum(_differences(features) ** 2, -1)
    distances = tf.sqrt(tf.maximum(squares, 1e-12))  # No gradient at 0, where it is not finite.
    distances = tf.linalg.set_diag(distances, tf.zeros_like(distances[0]))
    examples = tf.cast(tf.shape(features)[0], features.dtype)
    pairs = tf.maximum(examples * (examples - 1.0), 1.0)
    mean = tf.reduce_sum(distances) / pairs
    return distances / tf.maximum(mean, 1e-7)  # 0 for one example, and above 1e-6 for more.


def _cosines(features: tf.Tensor) -> tf.Tensor:
    """Returns cosines `[batch, batch, batch]`, at `[i, j, k]` of the angle at i to j and k."""
    directions, _ = direction_and_norm(_differences(features))
    return tf.matmul(directions, directions, transpose_b=True)


def _similarities(features: tf.Tensor) -> tf.Tensor:
    return direction_and_norm(tf.matmul(features, features, transpose_b=True))[0]


def _neighbours(features: tf.Tensor) -> tf.Tensor:
    """Returns probabilities `[batch, batch]`, the rows of which have the sum 1."""
    direction, norm = direction_and_norm(features)
    features = direction * (norm / (norm + 1e-7))
    # Rounding may make a cosine less than -1.
    shares = tf.nn.relu((tf.matmul(features, features, transpose_b=True) + 1.0) / 2.0)
    return shares / tf.reduce_sum(shares, 1, keepdims=True)
