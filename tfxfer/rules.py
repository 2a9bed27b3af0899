"""Rules that set the whole training, from the size of the data and the kind of the network."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tfxfer.plan import Phase, Plan

_SMALL, _MEDIUM = 20_000, 500_000
_LOW_RESOLUTION = 96 * 96
_BATCH = 512


@dataclass(frozen=True)
class BitRule:
    """How to fine-tune, as BiT-HyperRule has it.

    Attributes:
        steps: Training steps.
        warmup: Share of them in which the rate rises linearly.
        milestones: Shares of them after which the rate is a tenth.
        batch_size: Examples a step.
        learning_rate: Of all weights.
        optimizer: `sgd`, with a momentum of 0.9 and without weight decay.
        resize: Height and width that training images are brought to, in pixels.
        crop: Height and width that are cut out of them at random, and that images to evaluate on
            are brought to.
        mixup: Parameter of the Beta distribution of mixup; no mixup if 0.
    """

    steps: int
    warmup: float
    milestones: tuple[float, ...]
    batch_size: int
    resize: int
    crop: int
    mixup: float
    learning_rate: float = 0.003
    optimizer: str = "sgd"

    def plan(self, stages: Sequence[str]) -> Plan:
        """Returns the plan: everything trains, for exactly `steps`.

        Args:
            stages: Names of all stages, input side first, the head last.

        Returns:
            One phase, which does not stop early, as its schedule has an end.
        """
        phase = Phase(
            "all",
            tuple(stages),
            epochs=0,
            learning_rate=self.learning_rate,
            schedule="step",
            warmup=self.warmup,
            milestones=self.milestones,
            patience=0,
            steps=self.steps,
        )
        return Plan((phase,))


def bit(examples: int, image_size: tuple[int, int] | None = None) -> BitRule:
    """Returns BiT-HyperRule for a dataset.

    Kolesnikov et al. 2020, "Big Transfer (BiT): General Visual Representation Learning", section
    3.3, with the numbers of its code, `bit_hyperrule.py`. Its head starts at zero.

    Fewer than 512 examples make one batch of them all: the 512 that BiT draws would be these, each
    several times, and their mean gradient the same.

    Args:
        examples: Of training, at least 1.
        image_size: Height and width of the images as they are; `None` if they differ, as photos
            do, which count as large.

    Returns:
        The rule.

    Raises:
        ValueError: If there are no examples.
    """
    if examples < 1:
        raise ValueError(f"Expected at least 1 example, received {examples}.")
    if examples < _SMALL:
        steps, rise, milestones = 500, 100, (0.4, 0.6, 0.8)
    elif examples < _MEDIUM:
        steps, rise, milestones = 10_000, 500, (0.3, 0.6, 0.9)
    else:
        steps, rise, milestones = 20_000, 500, (0.3, 0.6, 0.9)
    small = image_size is not None and image_size[0] * image_size[1] < _LOW_RESOLUTION
    resize, crop = (160, 128) if small else (512, 480)
    return BitRule(
        steps=steps,
        warmup=rise / steps,
        milestones=milestones,
        batch_size=min(_BATCH, examples),
        resize=resize,
        crop=crop,
        mixup=0.0 if examples < _SMALL else 0.1,
    )


_STEPS, _FEWEST, _MOST = 2_000, 3, 20


def bert(examples: int, batch_size: int, few_weights: bool = False) -> dict[str, Any]:
    """Says how a pretrained text encoder is fine-tuned.

    AdamW with a decay of 0.01, at a rate of 5e-5 that rises in the first tenth and falls linearly
    (Devlin et al. 2019, "BERT", section A.3), for 3 to 20 epochs, the more the fewer examples there
    are (Mosbach et al. 2021, "On the Stability of Fine-tuning BERT", section 6), from a head that
    is solved on the frozen features (Kumar et al. 2022). Low-rank additions, or biases and norms
    alone, learn at 5e-4 (Hu et al. 2022, "LoRA", table 9).

    Args:
        examples: To train on, at least 1.
        batch_size: Examples a step, at least 1.
        few_weights: Whether few weights of the backbone train.

    Returns:
        Settings by name.
    """
    steps = -(-examples // batch_size)
    return {
        "plan": "lp_ft",
        "optimizer": "adam",
        "weight_decay": 0.01,
        "learning_rate": 5e-3 if few_weights else 5e-4,  # A tenth of it once everything trains.
        "schedule": "linear",
        "warmup": 0.1,
        "epochs": min(max(-(-_STEPS // steps), _FEWEST), _MOST),
        "patience": 0,
    }
