"""After training: weights between pretrained and trained ones, or the mean of several epochs'."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np

from tfxfer.training.checkpoints import read_weights

ALPHAS = tuple(step / 10 for step in range(11))
"""The shares of the trained weights that the paper of WiSE-FT tries."""


@dataclass(frozen=True)
class Averaged:
    """What averaging weights tried and chose.

    Attributes:
        kind: `wise_ft` or `soup`.
        tried: What was validated, in that order, and its validation loss: the share of the trained
            weights, or the names of the candidates, such as `a` and `a + b`; `None` where the loss
            was not finite.
        chosen: The share, or the names of the candidates that went in, the best first.
        val_loss: Validation loss of what was chosen.
    """

    kind: str
    tried: tuple[tuple[float | str, float | None], ...]
    chosen: tuple[float | str, ...]
    val_loss: float


def wise_ft(
    model: keras.Model,
    start: Sequence[np.ndarray],
    trained: Sequence[np.ndarray],
    loss_of: Callable[[keras.Model], float],
    alphas: Sequence[float] = ALPHAS,
) -> Averaged:
    """Takes the best weights on the line from those before training to those after it.

    Wortsman et al. 2022, "Robust fine-tuning of zero-shot models", equation 1: every weight is
    `(1 - alpha) * start + alpha * trained`, averages of batch normalization too. Integer weights,
    such as counters, are those of `trained`.

    The line is of use only where its start says something: with a head drawn at random there, the
    best alpha is near 1. Where a phase trains the head alone, `start` is what it left.

    Args:
        model: The model; it ends with the weights that were chosen. Low-rank additions must be
            merged first, since a product is not linear in its factors.
        start: The weights at alpha 0, as `model.get_weights()` gives them.
        trained: The weights at alpha 1.
        loss_of: Mean validation loss of the model as it is; a loss that is not finite never wins.
        alphas: Shares of the trained weights, in [0, 1]; of equally good ones the largest wins.

    Returns:
        What was tried and chosen.

    Raises:
        ValueError: If an alpha is out of range or there is none, if the weights do not fit each
            other, or if no loss is finite.
    """
    if not alphas or not all(0 <= alpha <= 1 for alpha in alphas):
        raise ValueError(f"Expected alphas in [0, 1], received {list(alphas)}.")
    if [each.shape for each in start] != [each.shape for each in trained]:
        raise ValueError("Expected start and trained weights of the same shapes, in one order.")
    losses: dict[float, float] = {}
    for alpha in alphas:
        model.set_weights(_between(start, trained, alpha))
        losses[alpha] = float(loss_of(model))
    # What was tried last is not what was best.
    loss, negative = min((_rank(loss), -alpha) for alpha, loss in losses.items())
    _check_finite(loss)
    model.set_weights(_between(start, trained, -negative))
    return Averaged("wise_ft", _finite(losses.items()), (-negative,), loss)


def greedy_soup(
    model: keras.Model,
    candidates: Sequence[Path | Sequence[np.ndarray]],
    loss_of: Callable[[keras.Model], float],
    read: Callable[[Path], Sequence[np.ndarray]] = read_weights,
) -> Averaged:
    """Averages the weights of those candidates that do not make the mean worse.

    Wortsman et al. 2022, "Model soups: averaging weights of multiple fine-tuned models improves
    accuracy without increasing inference time", recipe 1, with the loss in the place of the
    accuracy: the best candidate first, then each of the others, in the order of their losses,
    stays if the mean with it is not worse. So the result is never worse than the best candidate.
    Integer weights are those of the best candidate.

    At most two candidates are in memory at once, in double precision.

    Args:
        model: The model; it ends with the mean. Low-rank additions must be merged first.
        candidates: Files that `Checkpoints.write_weights` wrote, or arrays as `model.get_weights()`
            gives them; at least one. Of equally good ones the earlier goes first.
        loss_of: Mean validation loss of the model as it is; a loss that is not finite leaves a
            candidate out.
        read: From a file to what `model.get_weights()` gives.

    Returns:
        What was tried and chosen; files by their names without the suffix, arrays by their
        numbers, from 1.

    Raises:
        ValueError: If there is no candidate, or none with a finite loss.
    """
    if not candidates:
        raise ValueError("Expected at least one candidate, received none.")

    def arrays(candidate: Path | Sequence[np.ndarray]) -> list[np.ndarray]:
        return list(read(candidate) if isinstance(candidate, Path) else candidate)

    names = [_name(candidate, i) for i, candidate in enumerate(candidates, start=1)]
    tried: list[tuple[float | str, float]] = []
    for name, candidate in zip(names, candidates, strict=True):
        model.set_weights(arrays(candidate))
        tried.append((name, float(loss_of(model))))
    losses = [_rank(loss) for _, loss in tried]
    first, *others = sorted(range(len(candidates)), key=losses.__getitem__)
    _check_finite(losses[first])
    best = arrays(candidates[first])
    total = [each.astype(np.float64) for each in best]
    chosen, least = [names[first]], losses[first]
    for i in (i for i in others if np.isfinite(losses[i])):
        summed = [have + more for have, more in zip(total, arrays(candidates[i]), strict=True)]
        model.set_weights(_mean(summed, len(chosen) + 1, best))
        loss = float(loss_of(model))
        tried.append((" + ".join([*chosen, names[i]]), loss))
        if loss <= least:
            total, least = summed, loss
            chosen.append(names[i])
    model.set_weights(_mean(total, len(chosen), best))
    return Averaged("soup", _finite(tried), tuple(chosen), least)


def _between(
    start: Sequence[np.ndarray], trained: Sequence[np.ndarray], alpha: float
) -> list[np.ndarray]:
    if alpha == 1:
        return list(trained)
    return [
        ((1 - alpha) * before.astype(np.float64) + alpha * after.astype(np.float64)).astype(
            after.dtype
        )
        if _is_float(after)
        else after
        for before, after in zip(start, trained, strict=True)
    ]


def _mean(total: list[np.ndarray], count: int, like: list[np.ndarray]) -> list[np.ndarray]:
    return [
        (each / count).astype(one.dtype) if _is_float(one) else one
        for each, one in zip(total, like, strict=True)
    ]


def _is_float(values: np.ndarray) -> bool:
    return "float" in values.dtype.name  # NumPy itself does not know bfloat16 for one.


def _name(candidate: Path | Sequence[np.ndarray], number: int) -> str:
    return candidate.stem if isinstance(candidate, Path) else str(number)


def _finite(
    tried: Iterable[tuple[float | str, float]],
) -> tuple[tuple[float | str, float | None], ...]:
    return tuple((name, loss if np.isfinite(loss) else None) for name, loss in tried)


def _rank(loss: float) -> float:
    return loss if np.isfinite(loss) else np.inf


def _check_finite(loss: float) -> None:
    if not np.isfinite(loss):
        raise ValueError("Expected a finite validation loss of some weights, received none.")
