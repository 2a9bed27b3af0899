"""What is left of the data: examples to learn from without their labels."""

from collections.abc import Sequence

import numpy as np

from tfxfer.data.parts import Part
from tfxfer.errors import UserError


def rest_of(part: Part, taken: Sequence[Part]) -> Part:
    """Returns the examples of a part that others do not take.

    Args:
        part: All examples that may be used, such as those that training examples were drawn from.
        taken: Parts of the same source. Those of other splits take nothing.

    Returns:
        The others, in the order of the part.

    Raises:
        UserError: If none is left.
    """
    free = np.ones(part.examples, bool)
    for each in taken:
        if each.split == part.split:
            free &= ~np.isin(part.rows, each.rows)
    rest = part.keep(free, f"rest of {part.split}")
    if not rest.examples:
        raise UserError(
            f"Dataset {part.source.info.name} has no example of {part.origin} left to use without "
            "its label",
            "Draw fewer by --shots or --max_examples, or give other unlabelled data.",
        )
    return rest
