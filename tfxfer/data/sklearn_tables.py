"""The real tables that come with scikit-learn: rows of numbers with a class or with numbers."""

import sklearn.datasets

from tfxfer.data.arrays import open_arrays
from tfxfer.data.base import DataSource
from tfxfer.data.kinds import SKLEARN
from tfxfer.errors import UserError

PREFIX = f"{SKLEARN}:"

_REGRESSION = {"diabetes": ("progression",), "linnerud": ("Weight", "Waist", "Pulse")}
_CLASSES = ("iris", "wine", "breast_cancer")


def open_sklearn(name: str, *, task: str = "") -> DataSource:
    """Opens a table of scikit-learn; everything is `train`.

    Args:
        name: `diabetes` (442 rows, one target), `linnerud` (20 rows, three targets), `iris`,
            `wine` or `breast_cancer` (classes); with `sklearn:` before it or not.
        task: What to take the labels for; what they are if empty.

    Returns:
        The rows, float32, in the order of scikit-learn.

    Raises:
        UserError: If there is no such table.
    """
    table = name.removeprefix(PREFIX)
    if table not in (*_REGRESSION, *_CLASSES):
        raise UserError(
            f"{PREFIX}NAME must name one of {', '.join((*_REGRESSION, *_CLASSES))}, not {table!r}",
            "Choose one of them.",
        )
    data = getattr(sklearn.datasets, f"load_{table}")()
    names = _REGRESSION.get(table) or [str(label) for label in data.target_names]
    return open_arrays(
        (data.data, data.target), label_names=names, task=task, name=f"{PREFIX}{table}"
    )
