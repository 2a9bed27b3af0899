"""Datasets from TensorFlow Datasets, by name."""

import hashlib
import json
import sys
from pathlib import Path

import tensorflow as tf
import tensorflow_datasets as tfds

import tfxfer.data.digits  # noqa: F401  (registers the embedded dataset with TFDS)
from tfxfer.data.base import DataInfo
from tfxfer.errors import UserError


class TfdsSource:
    """A prepared TFDS image dataset with one label an example; a `DataSource`.

    Args:
        builder: A builder whose data is prepared.

    Raises:
        UserError: If the dataset is not one of images with a class label each.
    """

    def __init__(self, builder: tfds.core.DatasetBuilder):
        self._builder = builder
        self._keys, (image, label) = _image_and_label(builder.info)
        self.info = DataInfo(
            name=f"{builder.name}:{builder.version}",
            label_names=tuple(label.names),
            image_shape=image.shape,
            examples={name: split.num_examples for name, split in builder.info.splits.items()},
        )
        self.fingerprint = _fingerprint(builder)

    def split(self, name: str) -> tf.data.Dataset:
        """Returns `(id, image, label)` in the order of the files."""
        image, label = self._keys
        return self._read(name).map(
            lambda example: (example["tfds_id"], example[image], example[label])
        )

    def labels(self, name: str) -> tf.data.Dataset:
        """Returns the labels alone; images are not decoded."""
        image, label = self._keys
        return self._read(name, {image: tfds.decode.SkipDecoding()}).map(lambda e: e[label])

    def _read(self, name: str, decoders: dict | None = None) -> tf.data.Dataset:
        return self._builder.as_dataset(
            split=name,
            shuffle_files=False,
            decoders=decoders,
            read_config=tfds.ReadConfig(add_tfds_id=True, try_autocache=False),
        )


def open_tfds(name: str, data_dir: str = "") -> TfdsSource:
    """Opens a TFDS dataset, preparing it at the first use.

    Args:
        name: A TFDS name, with version or config if need be: `digits`, `mnist:3.*.*`.
        data_dir: Folder of prepared datasets; TFDS's own default if empty.

    Returns:
        The dataset.

    Raises:
        UserError: If TFDS knows no such dataset, cannot prepare it, or it is of another kind.
    """
    try:
        builder = tfds.builder(name, data_dir=data_dir or None)
    except (tfds.core.DatasetNotFoundError, ValueError, AssertionError, RuntimeError) as error:
        raise UserError(
            f"--dataset must name a TensorFlow Datasets dataset, and {name!r} is none: "
            f"{str(error).splitlines()[0]}",
            "Use 'digits', or a name from https://www.tensorflow.org/datasets/catalog.",
        ) from error
    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    try:
        builder.download_and_prepare(file_format="tfrecord")
    except Exception as error:  # Every dataset fails in its own way: network, disk, checksums.
        raise UserError(
            f"--dataset={name} could not be prepared in {builder.data_dir}: "
            f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
            "Check the network and the free disk, or name a prepared folder with --data_dir.",
        ) from error
    return TfdsSource(builder)


def _image_and_label(info: tfds.core.DatasetInfo):
    """Returns the keys and the features of the image and of its label."""
    keys = info.supervised_keys
    if isinstance(keys, tuple) and len(keys) == 2 and all(isinstance(key, str) for key in keys):
        image, label = (info.features[key] for key in keys)
        if isinstance(image, tfds.features.Image) and isinstance(label, tfds.features.ClassLabel):
            return keys, (image, label)
    raise UserError(
        f"--dataset={info.full_name} must hold images with one class label each, "
        f"not {sorted(info.features or ())} with supervised keys {keys}",
        "Choose an image classification dataset.",
    )


def _fingerprint(builder: tfds.core.DatasetBuilder) -> str:
    """Hashes what TFDS recorded of the data: name, version, features, sizes and shards."""
    described = {
        "name": builder.info.full_name,
        "features": str(builder.info.features),
        "splits": {
            name: [split.num_bytes, list(split.shard_lengths)]
            for name, split in sorted(builder.info.splits.items())
        },
        "files": sorted(
            (path.name, path.stat().st_size)
            for path in Path(builder.data_path).iterdir()
            if "record" in path.name
        ),
    }
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
