"""The proof that a phase moved what it declared, and nothing else."""

import hashlib

import numpy as np

from tfxfer.errors import TrainingError
from tfxfer.models import Staged
from tfxfer.plan import Phase


def digests(model: Staged) -> dict[str, list[str]]:
    """Hashes each weight, by stage: what a phase moved shows without a copy of the model."""
    return {
        stage.name: [
            hashlib.blake2b(np.asarray(weight.numpy()).tobytes(), digest_size=16).hexdigest()
            for weight in stage.weights
        ]
        for stage in model.stages
    }


def unmoved_stages(phase: Phase, model: Staged, before: dict[str, list[str]]) -> tuple[str, ...]:
    """Compares weights with what the phase declared to train, bit by bit.

    Args:
        phase: What has trained.
        model: What was trained.
        before: What `digests` returned before.

    Returns:
        Stages that were to train and did not move, as their gradients vanish.

    Raises:
        RuntimeError: If a frozen weight moved.
        TrainingError: If nothing moved at all, though steps were taken.
    """
    after = digests(model)
    unmoved = []
    for stage in model.stages:
        pairs = zip(stage.weights, before[stage.name], after[stage.name], strict=True)
        moved = [weight for weight, old, new in pairs if old != new]
        held = {id(weight) for weight in stage.held}
        frozen = held if stage.name not in phase.stages else {id(each) for each in stage.fixed}
        if broken := [weight for weight in moved if id(weight) in frozen]:
            raise RuntimeError(
                f"Phase {phase.name!r} freezes stage {stage.name!r}, and {broken[0].path} moved."
                if frozen is held
                else f"Phase {phase.name!r} fixes {broken[0].path}, and it moved."
            )
        if stage.name in phase.stages and not any(weight.trainable for weight in moved):
            unmoved.append(stage.name)
    # A head that is solved again, on the same features, is as it was.
    if set(unmoved) == set(phase.stages) and not phase.solved:
        raise TrainingError(
            f"Phase {phase.name!r} trains at rate {max(phase.rates):g}, and no weight moved",
            "Choose a larger learning rate.",
        )
    return tuple(unmoved)
