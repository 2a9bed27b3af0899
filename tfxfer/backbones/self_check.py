"""What a backbone must show before anyone trains on it."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager

import keras
import numpy as np

from tfxfer.backbones.base import Backbone
from tfxfer.backbones.contracts import ImageContract, TextContract
from tfxfer.errors import UserError, first_line

_RANGES = ((0.0, 1.0), (-1.0, 1.0), (0.0, 255.0))
_SIZE = (64, 64)  # Of noise for a network that takes any size.
_NOISE = 8
_SEED = 0
_FAR = 0.7  # Powers of ten. In the right range, four networks were off by 0.02 to 0.3.


def check_features(backbone: Backbone, images: np.ndarray) -> None:
    """Checks that features are finite, not constant, and differ between images.

    Args:
        backbone: Any.
        images: Values 0 to 255, `[batch, height, width, 1 or 3]`, or texts; at least two different
            ones.

    Raises:
        UserError: If they are not.
    """
    network, contract = getattr(backbone, "network", None), backbone.contract
    texts = isinstance(contract, TextContract)
    other = "it knows no word of these texts" if texts else "it wants another --value_range"
    advice = f"Its weights are damaged, or {other}."
    try:
        if network is not None and isinstance(contract, ImageContract) and contract.size is None:
            # Without values: TensorFlow's kernels may kill the process on maps of no pixels, or
            # read memory that nobody wrote.
            network(keras.KerasTensor((1, *images.shape[1:3], contract.channels)))
        features = np.asarray(keras.ops.convert_to_numpy(backbone(images)), np.float64)
    except Exception as error:  # The network's own code may raise anything.
        of = "texts" if texts else "images of {}x{}".format(*images.shape[1:3])
        instead = "Give a larger --image_size, if they are too small for it."
        if texts:
            instead = "Choose another one."
        if tokens := backbone.tokenizer:
            of = f"texts of {tokens.sequence_length} tokens"
            instead = "Give a smaller seq_length, if it reads fewer tokens."
        raise UserError(
            f"Backbone {backbone.source!r} fails on {of}: {first_line(error)}", instead
        ) from error
    if not np.isfinite(features).all():
        raise UserError(
            f"The features of backbone {backbone.source!r} must be finite, and "
            f"{np.mean(~np.isfinite(features)):.0%} of them are not",
            advice,
        )
    scale = np.abs(features).max()
    if scale == 0 or np.ptp(features) <= 1e-6 * scale:
        raise UserError(
            f"The features of backbone {backbone.source!r} must differ, and all are "
            f"{features.flat[0]:.3g}",
            advice,
        )
    if np.ptp(features, axis=0).max() <= 1e-6 * scale:
        raise UserError(
            f"The features of backbone {backbone.source!r} must tell "
            f"{contract.inputs}s apart, and {len(images)} different ones have the same",
            advice,
        )


def check_value_range(backbone: Backbone) -> bool:
    """Checks the value range of a backbone with what its batch normalization has seen.

    The averages of the first batch normalization tell how widely its inputs spread while the
    network was trained. Noise with the spectrum of natural images, 1 / frequency, must spread about
    as widely. If it is farther off than in another value range by a factor above 5, then the value
    range is that one. A network passes that has no batch normalization, or whose averages are as
    they were made, or that goes through the preprocessing of its family.

    Args:
        backbone: Any; left as it was.

    Returns:
        Whether the value range is known to be right, or fits: false if nothing could tell.

    Raises:
        UserError: If another value range fits.
    """
    if not isinstance(backbone.contract, ImageContract):
        return True
    if backbone.preprocessing or backbone.contract.dtype == "uint8":
        return True
    pair = _first_averages(backbone)
    if pair is None:
        return False
    low, high = backbone.contract.value_range
    noise = _noise(*(backbone.contract.size or _SIZE), backbone.contract.channels)
    with _training(backbone):
        misfits = {
            value_range: _misfit(backbone, pair, noise * np.ptp(value_range) + value_range[0])
            for value_range in {(low, high), *_RANGES}
        }
    best = min(misfits, key=lambda each: misfits[each])
    if misfits[low, high] - misfits[best] > _FAR:
        raise UserError(
            f"Backbone {backbone.source!r} is given values from {low:g} to {high:g}, with which "
            f"its first batch normalization sees {10 ** misfits[low, high]:.0f} times another "
            "spread than in its training",
            f"--value_range={best[0]:g},{best[1]:g} fits.",
        )
    return True


def _first_averages(backbone: Backbone) -> tuple[keras.Variable, keras.Variable] | None:
    """Finds mean and variance of the first batch normalization, if it was ever trained."""
    found: dict[str, dict[str, keras.Variable]] = {}
    for weight in (weight for stage in backbone.stages for weight in stage.statistics):
        scope, _, name = weight.path.rpartition("/")
        pair = found.setdefault(scope, {})
        pair[name] = weight
        if "moving_mean" in pair and "moving_variance" in pair:
            mean, variance = pair["moving_mean"], pair["moving_variance"]
            trained = np.any(mean.numpy()) or np.any(np.asarray(variance.numpy()) != 1)
            return (mean, variance) if trained else None
    return None


@contextmanager
def _training(backbone: Backbone) -> Iterator[None]:
    """Lets batch normalization move its averages, and puts everything back afterwards."""
    bn, unfrozen, weights = backbone.bn, backbone.unfrozen, backbone.get_weights()
    try:
        backbone.bn = "train"
        backbone.trainable = True
        for stage in backbone.stages:
            dataclasses.replace(stage, bn="train").train(True)
        yield
    finally:
        backbone.bn = bn
        backbone.unfreeze(unfrozen)
        backbone.set_weights(weights)


def _misfit(
    backbone: Backbone, pair: tuple[keras.Variable, keras.Variable], images: np.ndarray
) -> float:
    """Returns how many powers of ten the spread is off, in the median of the channels.

    Averages move by `s1 = m s0 + (1 - m) b` towards those of the batch, `b`. Moving them twice by
    the same batch tells `m`, and so `b`.
    """
    start = [np.asarray(weight.numpy(), np.float64) for weight in pair]
    steps = [start]
    for _ in range(2):
        backbone.features(keras.ops.convert_to_tensor(images, "float32"), True)
        steps.append([np.asarray(weight.numpy(), np.float64) for weight in pair])
    for weight, value in zip(pair, start, strict=True):
        weight.assign(value)
    (first, second) = (
        np.concatenate([after - before for before, after in zip(*pairs, strict=True)])
        for pairs in (steps[:2], steps[1:])
    )
    moved = np.abs(first) > 1e-3 * np.abs(first).max()
    if not np.any(first):
        return 0.0
    momentum = np.median(second[moved] / first[moved])
    trained = start[1]
    seen = trained + (steps[1][1] - trained) / max(1 - momentum, 1e-9)
    alive = trained > 1e-3 * np.median(trained)
    return float(abs(np.median(np.log10(np.maximum(seen[alive], 1e-12) / trained[alive]))) / 2)


def _noise(height: int, width: int, channels: int) -> np.ndarray:
    """Makes grey images from 0 to 1 whose amplitude falls as 1 / frequency.

    Field 1987, "Relations between the statistics of natural images and the response properties of
    cortical cells".
    """
    generator = np.random.default_rng(_SEED)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width))
    frequency[0, 0] = np.inf
    white = np.fft.fft2(generator.standard_normal((_NOISE, height, width)))
    images = np.fft.ifft2(white / frequency).real
    images -= images.min(axis=(1, 2), keepdims=True)
    images /= images.max(axis=(1, 2), keepdims=True)
    return np.repeat(images[..., None], channels, axis=-1).astype(np.float32)
