"""Fewer training examples, drawn: some of each class, or some in all."""

from dataclasses import replace

import numpy as np
from sklearn.model_selection import train_test_split

from tfxfer.data.parts import Part, Splits
from tfxfer.errors import UserError
from tfxfer.task import SINGLE_LABEL


def draw_fewer(splits: Splits, shots: int = 0, max_examples: int = 0, seed: int = 0) -> Splits:
    """Draws some training examples of each class, or some in all; all if both are 0.

    Args:
        splits: The parts.
        shots: Examples of each class.
        max_examples: Examples in all.
        seed: Of what is drawn.

    Returns:
        The parts, with fewer examples in train.

    Raises:
        UserError: If a class has too few, or the task has no classes to draw from.
    """
    return replace(splits, train=_fewer(splits.train, shots, max_examples, seed))


def _fewer(part: Part, shots: int, max_examples: int, seed: int) -> Part:
    """Draws some examples of each class, or some in all."""
    rng = np.random.default_rng(seed)
    if shots:
        task = part.source.info.task
        if task.kind != SINGLE_LABEL:
            raise UserError(
                f"--shots draws examples of each class, and {part.source.info.name} is a task of "
                f"{task.kind}",
                "Give --max_examples.",
            )
        labels, chosen = part.labels, []
        for c in np.unique(labels):
            rows = np.flatnonzero(labels == c)
            if len(rows) < shots:
                raise UserError(
                    f"--shots={shots} needs as many examples of each class to train on, and there "
                    f"are {len(rows)} of {task.names[c]!r}",
                    "Give a smaller number.",
                )
            chosen.append(rng.choice(rows, shots, replace=False))
        part = part.pick(np.concatenate(chosen), f"{shots} a class of {part.origin}")
    if max_examples and max_examples < part.examples:
        strata = part.strata
        classes = len(np.unique(part.labels)) if part.source.info.task.kind == SINGLE_LABEL else 1
        if max_examples < classes:
            raise UserError(
                f"--max_examples={max_examples} must leave an example of each of {classes} classes",
                "Give a larger number.",
            )
        sizes = np.array([part.examples]) if strata is None else np.unique_counts(strata).counts
        few = min(max_examples, part.examples - max_examples) < len(sizes) or sizes.min() < 2
        kept, _ = train_test_split(
            np.arange(part.examples),
            train_size=max_examples,
            stratify=None if few else strata,
            random_state=seed,
        )
        part = part.pick(np.asarray(kept), f"{max_examples} of {part.origin}")
    return part
