"""Which weights are frozen or trained together: stages by the names of the weights."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, takewhile

from tfxfer.backbones.base import HEAD
from tfxfer.errors import UserError

_MOST = 8
_BLOCK = re.compile(
    r".*?(?P<part>(block|stage|layer|conv(?![123]d))_?\d+)(?=[a-z]?(_|$))", re.IGNORECASE
)

_TRANSFORMER_BLOCK = re.compile(r"(?:^|_)(?:layer|block)s?_?(\d+)(?=_|$)", re.IGNORECASE)


@dataclass(frozen=True)
class Group:
    """A stage to be.

    Attributes:
        name: Its name.
        members: Positions of what belongs to it.
    """

    name: str
    members: tuple[int, ...]


def by_block(
    names: Sequence[str], learned: Sequence[bool], kernels: Sequence[bool]
) -> tuple[Group, ...]:
    """Groups weights or layers by the blocks that their names tell of.

    Neighbours of the same block form a group: the first part of their names that tells any apart
    agrees, up to the number of a block, so that `conv2_block1_1_conv` and `conv2_block2_0_bn` are
    both `conv2`. Where that gives more groups than anyone would unfreeze one by one, those whose
    names have no number of a block go with the one before, or, where there are no blocks, those
    without a kernel; and if there are still too many, neighbours are joined. What has nothing to
    train with it, such as a counter, goes with the group before.

    Args:
        names: Paths such as `block1/conv`, from the input side to the output side.
        learned: Whether a gradient trains any of it.
        kernels: Whether any of it has two dimensions or more.

    Returns:
        At most 8 groups, input side first; none if nothing is learned.
    """
    if not any(learned):
        return ()
    paths = [name.split("/") for name in names]
    agree = (len(set(parts)) == 1 for parts in zip(*(path[:-1] for path in paths), strict=False))
    root = len(list(takewhile(bool, agree)))
    blocks = [_BLOCK.match(path[root]) for path in paths]
    labels = [block[0] if block else path[root] for block, path in zip(blocks, paths, strict=True)]
    labels = _with_block(labels, blocks)
    groups = _neighbours(labels, [bool(learn) for learn in learned], learned)
    if len(groups) > _MOST:
        starts = [bool(block) for block in blocks]
        if len({label for label, start in zip(labels, starts, strict=True) if start}) < 2:
            starts = list(kernels)
        groups = _neighbours(labels, starts, learned)
    count = min(len(groups), _MOST)
    bounds = [len(groups) * i // count for i in range(count + 1)]
    joined: list[Group] = []
    for low, high in pairwise(bounds):
        first, last = groups[low].name, groups[high - 1].name
        name = first if high - low == 1 else f"{first}..{last}"
        taken = [HEAD, *(group.name for group in joined)]
        members = tuple(i for group in groups[low:high] for i in group.members)
        joined.append(Group(name if name not in taken else f"{name}_{len(joined)}", members))
    return tuple(joined)


def by_transformer_block(names: Sequence[str], learned: Sequence[bool]) -> tuple[Group, ...]:
    """Groups weights or layers of a transformer: `embeddings`, `block0` and so on, `pooler`.

    Embeddings are what comes before the first block; what comes between two blocks or after the
    last one belongs to the block before it, but for the pooler. A block whose weights are used
    several times, as in ALBERT, is one. Where nothing has the number of a block, `by_block` groups.

    Args:
        names: Paths such as `transformer/layer_0/output/kernel`, from the input side on.
        learned: Whether a gradient trains any of it.

    Returns:
        The groups, input side first; none if nothing is learned.
    """
    if not any(learned):
        return ()
    numbers = [_number_of_block(name) for name in names]
    known = sorted({number for number in numbers if number is not None})
    if not known:
        return by_block(names, learned, [True] * len(names))
    members: dict[str, list[int]] = {"embeddings": []}
    members |= {f"block{i}": [] for i in range(len(known))}
    members["pooler"] = []
    last = "embeddings"
    for i, (name, number) in enumerate(zip(names, numbers, strict=True)):
        if number is not None:
            last = f"block{known.index(number)}"
        outside = "embedding" if "embed" in name.lower() else ""
        outside = "pooler" if names_pooler(name) else outside and "embeddings"
        members[last if number is not None or not outside else outside].append(i)
    groups = [Group(name, tuple(found)) for name, found in members.items() if found]
    return tuple(_with_learned(groups, learned))


def names_pooler(name: str) -> bool:
    """Whether a weight of a transformer belongs to what pools its tokens, by its path."""
    return "pool" in name.lower()


def _number_of_block(name: str) -> int | None:
    """Reads the number off `transformer/layer_3/...`, `encoder_layer_3` or `block3`."""
    for part in name.split("/"):
        if found := _TRANSFORMER_BLOCK.search(part):
            return int(found[1])
    return None


def _with_learned(groups: Sequence[Group], learned: Sequence[bool]) -> list[Group]:
    """Joins what has nothing to train with its neighbour."""
    joined: list[Group] = []
    for group in groups:
        before = joined[-1] if joined else None
        learns = any(learned[i] for i in group.members)
        if before and not (learns and any(learned[i] for i in before.members)):
            name = group.name if learns else before.name
            joined[-1] = Group(name, before.members + group.members)
        else:
            joined.append(group)
    return joined


def _with_block(labels: Sequence[str], blocks: Sequence[re.Match | None]) -> list[str]:
    """Gives `bn_conv1` after `conv1` the label of that: the numbered part of both is the same."""
    same: list[str] = []
    for i, (label, block) in enumerate(zip(labels, blocks, strict=True)):
        before = blocks[i - 1] if i else None
        agree = block and before and block["part"].lower() == before["part"].lower()
        same.append(same[-1] if agree else label)
    return same


def _neighbours(
    labels: Sequence[str], starts: Sequence[bool], learned: Sequence[bool]
) -> list[Group]:
    """Groups neighbours of one label; only what `starts` says may begin another group."""
    groups: list[Group] = []
    for i, label in enumerate(labels):
        last = groups[-1] if groups else None
        if last is None:
            groups.append(Group(label, (i,)))
        elif not any(learned[member] for member in last.members):
            groups[-1] = Group(label, (*last.members, i))
        elif label == last.name or not starts[i]:
            groups[-1] = Group(last.name, (*last.members, i))
        else:
            groups.append(Group(label, (i,)))
    return groups


def by_pattern(names: Sequence[str], learned: Sequence[bool], patterns: str) -> tuple[Group, ...]:
    """Groups weights by regular expressions.

    Args:
        names: Paths such as `block1/conv/kernel`.
        learned: Whether a gradient trains it.
        patterns: Regular expressions between semicolons, one a stage, input side first, each
            searched in the paths; they are the names of the stages.

    Returns:
        The groups.

    Raises:
        UserError: If a pattern is not valid or finds nothing to train, if a weight is found by
            none or by several, or if the patterns are not in the order of the weights.
    """
    parts = [part.strip() for part in patterns.split(";") if part.strip()]
    if not parts or len(set(parts)) < len(parts) or HEAD in parts:
        raise UserError(
            f"--stages must hold different regular expressions, none of them {HEAD!r}, "
            f"and is {patterns!r}",
            "Write it as 'stem|block1;block2;block3'.",
        )
    members: dict[str, list[int]] = {part: [] for part in parts}
    for i, name in enumerate(names):
        found = [part for part in parts if _search(part, name)]
        if len(found) != 1:
            among = f"by {' and '.join(map(repr, found))}" if found else "by none"
            raise UserError(
                f"--stages must find each weight once, and finds {name!r} {among}",
                "--mode=inspect --list_weights shows the paths of all weights.",
            )
        members[found[0]].append(i)
    if empty := [part for part in parts if not any(learned[i] for i in members[part])]:
        raise UserError(
            f"--stages must find a weight to train with each pattern, and {empty[0]!r} finds none",
            "--mode=inspect --list_weights shows the paths of all weights.",
        )
    middle = [sum(members[part]) / len(members[part]) for part in parts]
    for before, after in pairwise(range(len(parts))):
        if middle[before] > middle[after]:
            raise UserError(
                f"--stages must go from the input side to the output side, and {parts[before]!r} "
                f"stands before {parts[after]!r}",
                "Change their order.",
            )
    return tuple(Group(name, tuple(found)) for name, found in members.items())


def _search(pattern: str, name: str) -> bool:
    try:
        return re.search(pattern, name) is not None
    except re.error as error:
        raise UserError(
            f"--stages must hold regular expressions, and {pattern!r} is none: {error}",
            "Write it as 'stem|block1;block2;block3'.",
        ) from error
