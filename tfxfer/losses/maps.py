"""Losses between feature maps, or features, example by example.

Maps are `[batch, height, width, channels]`. Where heights or widths differ, the larger is
average-pooled to the smaller. Where channels must be as many, project one of them before, with a
convolution of 1 by 1.
"""

import numpy as np
import tensorflow as tf

from tfxfer.losses.base import Array, direction_and_norm, flat, floats


def match_size(student: tf.Tensor, teacher: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Brings two maps to one height and width, the smaller of each, by average pooling.

    Adaptive average pooling, as torch's `adaptive_avg_pool2d`: out of `n` rows, row `i` of `m` is
    the mean of those from `floor(i n / m)` to before `ceil((i + 1) n / m)`.

    Args:
        student: Map `[batch, height, width, channels]`.
        teacher: Map `[batch, height, width, channels]`, of any height, width and channels.

    Returns:
        Both, with the same height and width.

    Raises:
        ValueError: If these are not maps of known height and width.
    """
    for each in (student, teacher):
        if each.shape.rank != 4 or None in each.shape[1:3]:
            raise ValueError(
                "Expected maps [batch, height, width, channels] of known height and width, "
                f"received {student.shape} and {teacher.shape}."
            )
    height, width = (min(student.shape[axis], teacher.shape[axis]) for axis in (1, 2))
    return _pooled(student, height, width), _pooled(teacher, height, width)


def hint(student: Array, teacher: Array) -> tf.Tensor:
    """Mean squared difference of features, or of maps brought to one size.

    The authors train the student up to the hint by it first; as a term beside others a weight of
    100 is usual.

    Romero et al. 2015, "FitNets: Hints for Thin Deep Nets", equation 3, averaged over the values.

    Args:
        student: Features `[batch, ...]`, or map `[batch, height, width, channels]`.
        teacher: The same, with as many channels.

    Returns:
        `[batch]`, at least 0.

    Raises:
        ValueError: If the channels, or the shapes of features, differ.
    """
    student, teacher = _alike(student, teacher)
    return tf.reduce_mean(flat((student - teacher) ** 2), -1)


def cosine(student: Array, teacher: Array) -> tf.Tensor:
    """One minus the cosine of features, flattened; maps are brought to one size first.

    Sanh et al. 2019, "DistilBERT, a distilled version of BERT", section 2.

    Args:
        student: Features `[batch, ...]`, or map `[batch, height, width, channels]`.
        teacher: The same, with as many channels.

    Returns:
        `[batch]`, in [0, 2]; 1 where one of the two is zero.

    Raises:
        ValueError: If the channels, or the shapes of features, differ.
    """
    student, teacher = (direction_and_norm(flat(each))[0] for each in _alike(student, teacher))
    return 1.0 - tf.reduce_sum(student * teacher, -1)


def attention_transfer(student: Array, teacher: Array) -> tf.Tensor:
    """Mean squared difference of attention, the mean of squares over channels, of norm 1.

    Channels may differ. The authors weigh it by 1000 for each pair of maps.

    Zagoruyko and Komodakis 2017, "Paying More Attention to Attention", equation 2, with squared
    differences, as in its code.

    Args:
        student: Map `[batch, height, width, channels]`.
        teacher: Map `[batch, height, width, channels]`.

    Returns:
        `[batch]`, at least 0.

    Raises:
        ValueError: If these are not maps of known height and width.
    """
    student, teacher = (
        direction_and_norm(flat(tf.reduce_mean(each**2, -1)))[0]
        for each in match_size(*floats(student, teacher))
    )
    return tf.reduce_mean((student - teacher) ** 2, -1)


def nst(student: Array, teacher: Array) -> tf.Tensor:
    """Maximum mean discrepancy of the channels' patterns of activation (Neuron Selectivity).

    `E[k(t, t)] + E[k(s, s)] - 2 E[k(s, t)]` over pairs of channels, each a vector over positions of
    norm 1, with `k` the square of the dot product. Channels may differ. The authors weigh it by 50.

    Huang and Wang 2017, "Like What You Like: Knowledge Distill via Neuron Selectivity Transfer",
    equations 5 and 7.

    Args:
        student: Map `[batch, height, width, channels]`.
        teacher: Map `[batch, height, width, channels]`.

    Returns:
        `[batch]`, at least 0 but for rounding.

    Raises:
        ValueError: If these are not maps of known height and width.
    """
    student, teacher = (_channel_directions(each) for each in match_size(*floats(student, teacher)))
    return (
        _kernel_mean(teacher, teacher)
        + _kernel_mean(student, student)
        - 2.0 * _kernel_mean(student, teacher)
    )


def hierarchical_context(student: Array, teacher: Array) -> tf.Tensor:
    """Mean squared difference of maps, and of their averages over coarser and coarser grids.

    Grids of 4, 2 and 1 rows and columns, those with fewer rows than the map, weigh 1/2, 1/4, ... of
    the map's own difference; the sum is divided by the total of the weights. The authors weigh it
    by 5, and raise that over the first 20 epochs.

    Chen et al. 2021, "Distilling Knowledge via Knowledge Review" (ReviewKD), section 3.3.

    Args:
        student: Map `[batch, height, width, channels]`.
        teacher: Map `[batch, height, width, channels]`, with as many channels.

    Returns:
        `[batch]`, at least 0.

    Raises:
        ValueError: If these are not maps of known height and width, or the channels differ.
    """
    student, teacher = match_size(*floats(student, teacher))
    difference = _alike(student, teacher)[0] - teacher  # Pooling is linear: once is enough.
    grids = [difference, *(_pooled(difference, n, n) for n in (4, 2, 1) if n < student.shape[1])]
    weights = [0.5**depth for depth in range(len(grids))]
    losses = [
        weight * tf.reduce_mean(grid**2, (1, 2, 3))
        for weight, grid in zip(weights, grids, strict=True)
    ]
    return tf.add_n(losses) / sum(weights)


def _alike(student: Array, teacher: Array) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns both in one shape; only heights and widths can be brought together."""
    student, teacher = floats(student, teacher)
    if student.shape.rank == 4 and teacher.shape.rank == 4:
        student, teacher = match_size(student, teacher)
    if not student.shape.is_compatible_with(teacher.shape):
        raise ValueError(
            f"Expected features of one shape, received {student.shape} and {teacher.shape}; "
            "project one of them."
        )
    return student, teacher


def _pooled(x: tf.Tensor, height: int, width: int) -> tf.Tensor:
    """Averages a map over a grid of cells that cover it, and overlap if they must."""
    rows, columns = x.shape[1:3]
    if (rows, columns) == (height, width):
        return x
    if rows % height == 0 and columns % width == 0:
        cell = (rows // height, columns // width)
        return tf.nn.avg_pool2d(x, cell, cell, "VALID")
    down, across = (
        tf.constant(_means(*sizes), x.dtype) for sizes in ((height, rows), (width, columns))
    )
    return tf.einsum("yh,bhwc,xw->byxc", down, x, across)


def _means(cells: int, length: int) -> np.ndarray:
    """Returns the matrix `[cells, length]` whose rows average a part of a line each."""
    at, cell = np.arange(length), np.arange(cells)[:, None]
    # Integers alone: -(-a // b) is a / b rounded up.
    inside = (at >= cell * length // cells) & (at < -(-(cell + 1) * length // cells))
    return inside / inside.sum(axis=1, keepdims=True)


def _channel_directions(x: tf.Tensor) -> tf.Tensor:
    """Returns `[batch, positions, channels]`, each channel of norm 1."""
    x = tf.reshape(x, (tf.shape(x)[0], x.shape[1] * x.shape[2], tf.shape(x)[3]))
    return direction_and_norm(x, axis=1)[0]


def _kernel_mean(one: tf.Tensor, other: tf.Tensor) -> tf.Tensor:
    return tf.reduce_mean(tf.matmul(one, other, transpose_a=True) ** 2, (1, 2))
