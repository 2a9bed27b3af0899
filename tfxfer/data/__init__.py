"""Where examples come from: a source is opened by its name, split, and batched."""

from tfxfer.data.base import DataInfo, DataSource
from tfxfer.data.pipeline import batches
from tfxfer.data.splits import Part, Splits, split_data
from tfxfer.data.tfds_source import open_tfds

__all__ = ["DataInfo", "DataSource", "Part", "Splits", "batches", "open_dataset", "split_data"]


def open_dataset(name: str, data_dir: str = "") -> DataSource:
    """Opens a dataset by its name, preparing it at the first use.

    Args:
        name: A TFDS name, such as `mnist`; `digits` is embedded and needs no download.
        data_dir: Folder of prepared datasets; TFDS's own default if empty.

    Returns:
        The dataset.

    Raises:
        UserError: If there is no such dataset, or it cannot be used.
    """
    return open_tfds(name, data_dir)
