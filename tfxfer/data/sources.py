"""A dataset by its spec, or by what Python holds of it."""

from pathlib import Path
from typing import Any

from tfxfer.data.arrays import open_arrays
from tfxfer.data.base import DataSource
from tfxfer.data.folder import open_folder
from tfxfer.data.kinds import FOLDER, SKLEARN, TABLES, kind_of
from tfxfer.data.loose_images import LooseImages
from tfxfer.data.sklearn_tables import open_sklearn
from tfxfer.data.table import open_table
from tfxfer.data.tfds_source import open_tfds
from tfxfer.errors import UserError
from tfxfer.spec import Spec, parse_spec
from tfxfer.task import Task


def open_dataset(
    source: Any,
    data_dir: str = "",
    *,
    task: str = "",
    group_column: str = "",
    download: bool = True,
    manual_dir: str = "",
    label_names: tuple[str, ...] | None = None,
) -> DataSource:
    """Opens a dataset, preparing it at the first use.

    Args:
        source: Arrays `(x, y)`, a `tf.data.Dataset` of single pairs, or one of these for each
            split, such as `{"train": (x, y), "test": (x, y)}`; or a spec:

            *   `digits`, which is embedded;
            *   a TFDS name, such as `mnist` or `cats_vs_dogs:4.*.*`, or the folder of a prepared
                dataset, with `train=`, `validation=` and `test=` in TFDS' own syntax for parts,
                such as `train=train[:80%]`;
            *   `folder:PATH`, images in one folder a class, with or without a folder for each of
                train, validation and test above;
            *   `csv:FILE`, `tsv:FILE`, `jsonl:FILE`, with `text=` or `image=`, and `label=`,
                `labels=`, `target=` or `targets=` naming columns;
            *   `sklearn:NAME`, a table that comes with scikit-learn, such as `diabetes`.

            Options stand in parentheses: `csv:reviews.csv(text=review, label=stars)`.
        data_dir: Folder of prepared TFDS datasets; TFDS's own default if empty.
        task: `single_label`, `multi_label` or `regression`; found out if empty.
        group_column: Column of a table; rows that agree in it stay together in splits.
        download: Whether a TFDS dataset may be downloaded.
        manual_dir: Folder with the files that TFDS would download.
        label_names: Names of the classes or targets of arrays.

    Returns:
        The dataset.

    Raises:
        UserError: If there is no such dataset, or it cannot be used.
    """
    if not isinstance(source, str):
        _only_for_tables(group_column)
        return open_arrays(source, label_names=label_names, task=task)
    spec = parse_spec(source)
    kind = kind_of(spec)
    if kind in TABLES:
        return open_table(spec, task=task, group_column=group_column)
    _only_for_tables(group_column)
    if kind == FOLDER:
        return open_folder(spec, task=task)
    if kind == SKLEARN:
        spec.only([])
        return open_sklearn(spec.name, task=task)
    _no_file(spec)
    return open_tfds(spec, data_dir=data_dir, download=download, manual_dir=manual_dir, task=task)


def open_unlabelled(
    source: str,
    task: Task,
    data_dir: str = "",
    *,
    download: bool = True,
    manual_dir: str = "",
    skip_bad: bool = False,
) -> DataSource:
    """Opens a dataset of which no label is looked at, and which need have none.

    Args:
        source: A spec, as for `open_dataset`; `folder:PATH` is all images in it, in whatever
            folders. The tables of scikit-learn have their labels.
        task: What the labels would be.
        data_dir: Folder of prepared TFDS datasets; TFDS's own default if empty.
        download: Whether a TFDS dataset may be downloaded.
        manual_dir: Folder with the files that TFDS would download.
        skip_bad: Whether to leave out images whose header cannot be read.

    Returns:
        The dataset.

    Raises:
        UserError: If there is no such dataset, or it cannot be used.
    """
    spec = parse_spec(source)
    kind = kind_of(spec)
    if kind == FOLDER:
        spec.only(())
        return LooseImages(spec.name.removeprefix(f"{FOLDER}:"), task, skip_bad)
    if kind in TABLES:
        return open_table(spec, unlabelled=task)
    if kind == SKLEARN:
        return open_dataset(source)
    _no_file(spec)
    return open_tfds(
        spec, data_dir=data_dir, download=download, manual_dir=manual_dir, unlabelled=task
    )


def _no_file(spec: Spec) -> None:
    if Path(spec.name).expanduser().is_file():
        raise UserError(
            f"Dataset {spec.name!r} is a file", f"Say of which kind, such as csv:{spec.name}."
        )


def _only_for_tables(group_column: str) -> None:
    if group_column:
        raise UserError(
            f"--group_column={group_column} names a column of a csv:, tsv: or jsonl: dataset, "
            "and this is none",
            "Leave it out.",
        )
