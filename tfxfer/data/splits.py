"""Which examples train, which validate, which test; nothing is in two of them."""

import itertools
from collections.abc import Sequence

import numpy as np
from sklearn.model_selection import (
    GroupShuffleSplit,
    KFold,
    StratifiedGroupKFold,
    StratifiedKFold,
    train_test_split,
)

from tfxfer.data.base import BadExample, DataSource
from tfxfer.data.draw import draw_fewer
from tfxfer.data.parts import Part, Splits
from tfxfer.errors import UserError
from tfxfer.task import SINGLE_LABEL

TRAIN, VALIDATION, TEST = "train", "validation", "test"

_TEST_SHARE = 0.2
_VALIDATION_SHARE = 0.1
_VTAB = (800, 200)
_HIDDEN = -1  # The label that TFDS gives where the authors keep the labels of a test split.


def split_data(
    source: DataSource,
    seed: int = 0,
    *,
    bad: Sequence[BadExample] = (),
    shots: int = 0,
    max_examples: int = 0,
    vtab: bool = False,
) -> Splits:
    """Uses the splits that the source has and carves the missing ones from train.

    Test is the source's `test`, else its `validation`, else a fifth of `train`, the same fifth for
    every seed. Validation is the source's `validation` if that is still free, else a tenth of
    `train`, drawn with `seed`. A split whose labels are hidden counts as missing. What is carved
    is stratified by class, and keeps groups together.

    Args:
        source: A dataset with a `train` split.
        seed: Seed of what is drawn, but for test.
        bad: Examples to leave out.
        shots: Examples to keep of each class in train, once validation is carved; all if 0.
        max_examples: Examples to keep in train, once validation is carved; all if 0.
        vtab: Whether to draw 800 examples to train on and 200 to validate with from `train`, as in
            Zhai et al. 2019, "A Large-scale Study of Representation Learning with the Visual Task
            Adaptation Benchmark", section 3.1.

    Returns:
        Train, validation and test; no example is in two of them.

    Raises:
        UserError: If there is no `train` split, or too little of a class to carve or draw from.
    """
    given = given_parts(source, bad)
    train, test = _test(source, given)
    if vtab:
        train, validation = _vtab(train, seed)
    elif VALIDATION in given and given[VALIDATION].split != test.split:
        validation = given[VALIDATION]
    else:
        train, validation = _carve(train, _VALIDATION_SHARE, seed)
    splits = Splits(train, validation, test)
    _check_groups(splits)
    if not vtab:  # Its 800 examples are drawn without regard to class.
        check_classes(splits)
    return draw_fewer(splits, shots, max_examples, seed)


def fold_data(
    source: DataSource,
    folds: int,
    seed: int = 0,
    *,
    bad: Sequence[BadExample] = (),
    shots: int = 0,
    max_examples: int = 0,
) -> tuple[Splits, ...]:
    """Splits the train split for cross-validation; the source's own test split stays untouched.

    Every example of `train` is in the test part of exactly one fold. Validation, which early
    stopping looks at, is the source's, or else a tenth of what a fold trains on: also where the
    source has no `test`, so that its `validation` is what other runs test on. Folds are stratified
    by class, and keep groups together.

    Args:
        source: A dataset with a `train` split.
        folds: How many, at least 2.
        seed: Seed of the folds and of what is carved.
        bad: Examples to leave out.
        shots: Examples to keep of each class in what a fold trains on; all if 0.
        max_examples: Examples to keep in what a fold trains on; all if 0.

    Returns:
        Train, validation and test of each fold.

    Raises:
        UserError: If there is no `train` split, or a class has fewer examples than folds.
    """
    given = given_parts(source, bad)
    whole = given[TRAIN]
    if whole.examples < folds:
        raise UserError(
            f"Dataset {source.info.name} must have an example for each of {folds} folds, and has "
            f"{whole.examples}",
            "Give fewer --folds.",
        )
    strata, groups = whole.strata, whole.groups
    _check_enough(whole, strata, folds if groups is None else 1, f"be in each of {folds} folds")
    if groups is not None and len(np.unique(groups)) < folds:
        raise UserError(
            f"Dataset {source.info.name} must have a group for each of {folds} folds, and has "
            f"{len(np.unique(groups))}",
            "Give fewer --folds.",
        )
    if strata is not None:
        sizes = np.unique(strata, return_counts=True)[1]
        if (sizes.max() if groups is not None else sizes.min()) < folds:
            strata = None  # Too few of each for every fold to have one.
    if groups is not None:
        maker = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    elif strata is not None:
        maker = StratifiedKFold(folds, shuffle=True, random_state=seed)
    else:
        maker = KFold(folds, shuffle=True, random_state=seed)
    classes = np.zeros(whole.examples) if strata is None else strata
    parts = []
    for number, (_, held) in enumerate(maker.split(classes, classes, groups), start=1):
        mask = _mask(held, whole.examples)
        test = whole.keep(mask, f"fold {number} of {folds} of {whole.origin}")
        train = whole.keep(~mask, f"the other {folds - 1} folds")
        if VALIDATION in given and TEST in given:
            validation = given[VALIDATION]
        else:
            train, validation = _carve(train, _VALIDATION_SHARE, seed)
        splits = Splits(train, validation, test)
        _check_groups(splits)
        check_classes(splits)
        parts.append(draw_fewer(splits, shots, max_examples, seed))
    return tuple(parts)


def check_classes(splits: Splits) -> None:
    """Checks that what is trained on has every class that is validated and tested.

    Args:
        splits: The parts.

    Raises:
        UserError: If train is empty, has one class alone, or lacks one of the others.
    """
    train, info = splits.train, splits.train.source.info
    fix = "Add examples, or split the data in another way."
    if not train.examples:
        raise UserError(f"Dataset {info.name} has no example left in {train.origin}", fix)
    if info.task.kind != SINGLE_LABEL:
        return
    classes = np.unique(train.labels)
    for part in (splits.validation, splits.test):
        if len(lacking := np.setdiff1d(part.labels, classes)):
            raise UserError(
                f"Dataset {info.name} has class {info.task.names[lacking[0]]!r} in {part.origin}, "
                f"and no example of it in {train.origin}",
                fix,
            )
    if len(classes) < 2:
        raise UserError(
            f"Dataset {info.name} must have examples of two classes to train on, and all of "
            f"{train.origin} are {info.task.names[classes[0]]!r}",
            fix,
        )


def _check_groups(splits: Splits) -> None:
    parts = (splits.train, splits.validation, splits.test)
    for one, other in itertools.combinations(parts, 2):
        groups, others = one.groups, other.groups
        if groups is None or others is None:
            continue
        if len(shared := np.intersect1d(groups, others)):
            places = [
                part.source.where(part.split, int(part.rows[np.flatnonzero(of == shared[0])[0]]))
                for part, of in ((one, groups), (other, others))
            ]
            raise UserError(
                f"{places[0]} is in {one.origin} and {places[1]} in {other.origin}, and both are "
                "of one group",
                "Leave --group_column out, or bring each group into one part.",
            )


def given_parts(source: DataSource, bad: Sequence[BadExample]) -> dict[str, Part]:
    """Returns the splits that a source has and that can be used, whole but for bad examples.

    Args:
        source: A dataset with a `train` split.
        bad: Examples to leave out.

    Raises:
        UserError: If there is nothing to train on.
    """
    sizes = source.info.examples
    if not sizes.get(TRAIN):
        raise UserError(
            f"Dataset {source.info.name} must have a 'train' split, and has "
            f"{sorted(sizes) or 'none'}",
            "Choose a dataset with examples to train on.",
        )
    parts = {}
    for name in (TRAIN, VALIDATION, TEST):
        if not sizes.get(name):
            continue
        mask = np.ones(sizes[name], bool)
        mask[[each.row for each in bad if each.split == name and each.row >= 0]] = False
        labels = source.labels(name)
        if (labels == _HIDDEN if labels.ndim == 1 else np.isnan(labels).any(axis=1)).all():
            continue
        origin = name if name == TRAIN else f"split {name!r}"
        part = Part(source, name, np.arange(sizes[name]), origin).keep(mask)
        if part.examples:
            parts[name] = part
    if TRAIN not in parts:
        raise UserError(
            f"Dataset {source.info.name} must have usable examples to train on, and all "
            f"{sizes[TRAIN]} are bad",
            "Mend them, or choose another dataset.",
        )
    return parts


def _test(source: DataSource, given: dict[str, Part]) -> tuple[Part, Part]:
    """Returns what is left to train on, and the test part."""
    for name in (TEST, VALIDATION):
        if name in given:
            return given[TRAIN], given[name]
    return _carve(given[TRAIN], _TEST_SHARE, 0)


def _carve(part: Part, share: float, seed: int) -> tuple[Part, Part]:
    """Splits a part into the rest and the share that is held out, in the order of the source.

    At least one example a class is held out, or the split would not be stratified.
    """
    if part.examples < 2:
        raise UserError(
            f"Dataset {part.source.info.name} needs two examples at least to hold one out, and "
            f"{part.origin} has {part.examples}",
            "Add examples, or give the splits.",
        )
    rows, strata, groups = np.arange(part.examples), part.strata, part.groups
    if groups is not None:
        if len(np.unique(groups)) < 2:
            raise UserError(
                f"Dataset {part.source.info.name} needs two groups at least to hold one out, and "
                f"{part.origin} has one",
                "Leave --group_column out, or give the splits.",
            )
        # Of several random draws, the one whose classes are spread most evenly.
        draws = GroupShuffleSplit(20, test_size=share, random_state=seed).split(rows, None, groups)
        held = min((held for _, held in draws), key=lambda held: _unevenness(held, strata))
    else:
        classes = 0 if strata is None else len(np.unique(strata))
        _check_enough(part, strata, 2, "hold one out")
        size = max(round(share * len(rows)), classes, 1)
        _, held = train_test_split(rows, test_size=size, stratify=strata, random_state=seed)
    mask = _mask(np.asarray(held), part.examples)
    rest = part.origin if part.origin.startswith(("rest", "the other")) else f"rest of {TRAIN}"
    return part.keep(~mask, rest), part.keep(mask, f"{share:.0%} of {part.origin}")


def _vtab(part: Part, seed: int) -> tuple[Part, Part]:
    train, validation = _VTAB
    wanted = train + validation
    if part.examples < wanted:
        raise UserError(
            f"--protocol=vtab1k draws {wanted} examples from train, and "
            f"{part.source.info.name} has {part.examples} there",
            "Choose a larger dataset, or --protocol=standard.",
        )
    order = np.random.default_rng(seed).permutation(part.examples)
    return (
        part.pick(order[:train], f"{train} of train"),
        part.pick(order[train:wanted], f"{validation} of train"),
    )


def _unevenness(held: np.ndarray, strata: np.ndarray | None) -> float:
    """Returns how far the shares of the strata in `held` are from those in all, in `[0, 2]`."""
    if strata is None:
        return 0.0
    _, strata = np.unique(strata, return_inverse=True)
    everywhere = np.bincount(strata) / len(strata)
    here = np.bincount(strata[held], minlength=len(everywhere)) / len(held)
    return float(np.abs(here - everywhere).sum())


def _check_enough(part: Part, strata: np.ndarray | None, least: int, to: str) -> None:
    if strata is None or part.source.info.task.kind != SINGLE_LABEL:
        return
    classes, counts = np.unique(strata, return_counts=True)
    if counts.min() < least:
        name = part.source.info.task.names[classes[counts.argmin()]]
        raise UserError(
            f"Dataset {part.source.info.name} needs at least {least} training examples of each "
            f"class to {to}, and has {counts.min()} of {name!r}",
            "Add examples, or leave out the classes that have so few; if the labels are amounts, "
            "give --task=regression.",
        )


def _mask(rows: np.ndarray, count: int) -> np.ndarray:
    mask = np.zeros(count, bool)
    mask[rows] = True
    return mask
