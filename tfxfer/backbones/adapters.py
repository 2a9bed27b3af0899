"""Fine-tuning few weights of a backbone: low-rank additions, or biases and norms alone."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np

from tfxfer.backbones.base import Backbone, Stage, is_kernel
from tfxfer.backbones.network import KerasBackbone
from tfxfer.config import ADAPTERS
from tfxfer.errors import UserError

_FACTORS = ("kernel", "embeddings")


def adapt(backbone: Backbone, kind: str, rank: int = 8) -> None:
    """Chooses which weights of a backbone its stages train, and freezes them all.

    *   `lora` (Hu et al. 2022, "LoRA: low-rank adaptation of large language models"): every dense,
        convolutional and embedding layer trains a product `A B` of that rank, which is added to its
        kernel; `B` starts at zero, so that the backbone says what it said before. Kernels, biases
        and norms are fixed; batch normalization runs as in inference, unless `bn` is `train`.
        Depthwise and transposed convolutions, and kernels with a constraint, stay as they are.
        `merge` adds the products to the kernels.
    *   `bitfit` (Ben Zaken et al. 2022, "BitFit"): biases and the parameters of norms train; what
        `is_kernel` is fixed.
    *   `none` changes nothing.

    The fixed weights are `fixed` of their stage. A stage that would have nothing to train goes
    with the one before it, and at the input side with the one after it. Optimizers must be built
    after this, and models compiled again. Call it in the scope of the backbone's strategy.

    Keras' own weights files hold kernels with the products added, and reading one sets both factors
    to zero, from where no gradient leads away: in the midst of training keep `get_weights()`.

    Args:
        backbone: Any that can be trained; for `lora` a Keras network.
        kind: `none`, `lora` or `bitfit`.
        rank: Rank of the products of `lora`, at least 1; they are scaled by alpha / rank = 1.

    Raises:
        UserError: If the backbone has nothing of that kind to train.
        ValueError: If there is no such kind, the rank is below 1, or the backbone has low-rank
            additions already.
    """
    if kind not in ADAPTERS:
        raise ValueError(f"Expected an adapter among {list(ADAPTERS)}, received {kind!r}.")
    if rank < 1:
        raise ValueError(f"Expected a rank of at least 1, received {rank}.")
    if kind == "none":
        return
    if not backbone.stages:
        raise UserError(
            f"--adapt={kind} trains weights of the backbone, and {backbone.source!r} stays frozen: "
            f"{backbone.untrainable}",
            "Leave it out.",
        )
    stages = _with_lora(backbone, rank) if kind == "lora" else _with_bitfit(backbone)
    backbone.stages = _joined(stages)
    backbone.retrace()
    backbone.unfreeze([])


def merge(backbone: Backbone) -> None:
    """Adds the low-rank products to the kernels, so that the plain network is left.

    What the backbone says stays the same up to rounding. Its stages are again those that
    `regroup` finds; of those that were unfrozen, the same are. A model on it must be compiled
    again before it trains or is saved with its optimizer. A backbone without low-rank additions
    is left as it is.

    Args:
        backbone: Any.
    """
    factors = [each for stage in backbone.stages for each in _factors(stage)]
    if not factors:
        return
    unfrozen = backbone.unfrozen
    for each in factors:
        each.merge()
    backbone.regroup(backbone.pattern, backbone.bn)
    backbone.retrace()
    backbone.unfreeze(unfrozen)


def merging(
    backbone: Backbone, weights: Sequence[keras.Variable]
) -> Callable[[Sequence[np.ndarray]], list[np.ndarray]]:
    """Tells how values of weights with low-rank additions become values of the weights without.

    So what a model held in the midst of training can be put into it after `merge`. This must be
    called before `merge`; what it returns may be called at any time.

    Args:
        backbone: Any.
        weights: `weights` of the backbone, or of a model on it, as they are before `merge`.

    Returns:
        From a value of each, as `model.get_weights()` gave them before `merge`, to a value of each
        that `merge` leaves, in its order. Where there is nothing to merge, it changes nothing.
    """
    place = {id(weight): i for i, weight in enumerate(weights)}
    sums = [
        (each.scale, *(place[id(weight)] for weight in (each.kernel, each.a, each.b)))
        for stage in backbone.stages
        for each in _factors(stage)
    ]
    factors = {i for _, _, a, b in sums for i in (a, b)}

    def merged(values: Sequence[np.ndarray]) -> list[np.ndarray]:
        found = list(values)
        for scale, kernel, a, b in sums:
            total = found[kernel] + scale * (found[a] @ found[b])
            found[kernel] = total.astype(found[kernel].dtype)
        return [value for i, value in enumerate(found) if i not in factors]

    return merged


def _with_lora(backbone: Backbone, rank: int) -> list[Stage]:
    if not isinstance(backbone, KerasBackbone):
        raise UserError(
            f"--adapt=lora needs a backbone of Keras layers, and {backbone.source!r} is a "
            "SavedModel",
            "Choose --adapt=bitfit, or a Keras backbone.",
        )
    if any(_factors(stage) for stage in backbone.stages):
        raise ValueError(f"Expected {backbone.source!r} without low-rank additions; merge first.")
    hosts = [[layer for layer in stage.layers if _can_add(layer)] for stage in backbone.stages]
    if not any(hosts):
        raise UserError(
            f"--adapt=lora needs dense, convolutional or embedding layers, and backbone "
            f"{backbone.source!r} has none of them",
            "Choose --adapt=bitfit.",
        )
    stages = []
    for stage, layers in zip(backbone.stages, hosts, strict=True):
        for layer in layers:
            layer.enable_lora(rank, lora_alpha=rank)
        paths = _paths(stage)
        added = {}
        for each in _factors(stage):
            folder = paths[id(each.kernel)].rpartition("/")[0]
            for matrix in (each.a, each.b):
                added[id(matrix)] = matrix
                paths[id(matrix)] = f"{folder}/{matrix.name}"
        wider = replace(stage, learned=(*stage.learned, *added.values()))
        stages.append(_trains(wider, added, paths))
    return stages


def _with_bitfit(backbone: Backbone) -> list[Stage]:
    stages = [
        _trains(stage, {id(w) for w in stage.learned if not is_kernel(w)}, _paths(stage))
        for stage in backbone.stages
    ]
    if not any(stage.learned for stage in stages):
        raise UserError(
            f"--adapt=bitfit trains biases and norms, and backbone {backbone.source!r} has none",
            "Choose --adapt=lora, or leave it out.",
        )
    return stages


def _trains(stage: Stage, learned: Collection[int], paths: Mapping[int, str]) -> Stage:
    """Fixes what a stage learns, except these weights."""
    fixed = [weight for weight in stage.learned if id(weight) not in learned]
    return _with_paths(
        replace(
            stage,
            learned=tuple(weight for weight in stage.learned if id(weight) in learned),
            fixed=(*stage.fixed, *fixed),
        ),
        paths,
    )


def _joined(stages: Iterable[Stage]) -> tuple[Stage, ...]:
    """Joins each stage that learns nothing with its neighbour."""
    joined: list[Stage] = []
    for stage in stages:
        if joined and not (joined[-1].learned and stage.learned):
            before = joined.pop()
            name = before.name if before.learned else stage.name
            both = Stage(
                name,
                learned=before.learned + stage.learned,
                statistics=before.statistics + stage.statistics,
                layers=before.layers + stage.layers,
                bn=stage.bn,
                fixed=before.fixed + stage.fixed,
            )
            stage = _with_paths(both, _paths(before) | _paths(stage))
        joined.append(stage)
    return tuple(joined)


def _paths(stage: Stage) -> dict[int, str]:
    return {id(w): path for w, path in zip(stage.weights, stage.paths, strict=True)}


def _with_paths(stage: Stage, paths: Mapping[int, str]) -> Stage:
    return replace(stage, paths=tuple(paths[id(weight)] for weight in stage.weights))


def _can_add(layer: keras.layers.Layer) -> bool:
    """Whether Keras has low-rank additions for a layer as it is."""
    if not hasattr(layer, "enable_lora") or layer.quantization_mode is not None:
        return False
    return any(
        hasattr(layer, f"_{name}") and getattr(layer, f"{name}_constraint") is None
        for name in _FACTORS
    )


def _factors(stage: Stage) -> list["_Factors"]:
    return [
        _Factors(layer, name)
        for layer in stage.layers
        for name in _FACTORS
        if getattr(layer, "lora_enabled", False) and hasattr(layer, f"_{name}")
    ]


@dataclass(frozen=True)
class _Factors:
    """The factors that Keras adds to the kernel of a layer.

    Attributes:
        layer: Any.
        name: What Keras calls the kernel.
    """

    layer: Any
    name: str

    @property
    def kernel(self) -> keras.Variable:
        return getattr(self.layer, f"_{self.name}")

    @property
    def a(self) -> keras.Variable:
        return getattr(self.layer, f"lora_{self.name}_a")

    @property
    def b(self) -> keras.Variable:
        return getattr(self.layer, f"lora_{self.name}_b")

    @property
    def scale(self) -> float:
        return self.layer.lora_alpha / self.layer.lora_rank

    def merge(self) -> None:
        # Not `layer.kernel`, which is in the precision of the computation.
        product = self.scale * keras.ops.matmul(self.a, self.b)
        self.kernel.assign(
            keras.ops.cast(keras.ops.cast(self.kernel, "float32") + product, self.kernel.dtype)
        )
        # A graph that was traced before reads the factors still.
        self.b.assign(keras.ops.zeros_like(self.b))
        self.layer.lora_enabled = False
        self.layer.lora_rank = self.layer.lora_alpha = None
        for end in ("a", "b"):
            attribute = f"lora_{self.name}_{end}"
            self.layer._untrack_variable(getattr(self.layer, attribute))
            # Not `del`: there Keras collects garbage anew for each variable.
            super(keras.layers.Layer, self.layer).__delattr__(attribute)
