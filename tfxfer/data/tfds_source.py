"""Datasets from TensorFlow Datasets, by name."""

import contextlib
import hashlib
import io
import json
import sys
from collections.abc import Iterator

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from tfxfer.data.base import DataInfo
from tfxfer.data.digits import Digits
from tfxfer.errors import UserError, first_line

_HASHED_WHOLE = 2**30  # Bytes.
_HASHED_FIRST = 1000  # Examples a split, of what is larger.


class TfdsSource:
    """A prepared TFDS image dataset with one label an example; a `DataSource`.

    The fingerprint covers every example of a dataset of up to 1 GiB; of a larger one, the size of
    each split and its first 1,000 examples.

    Args:
        builder: A builder whose data is prepared.

    Raises:
        UserError: If the dataset is not one of images with a class label each.
    """

    def __init__(self, builder: tfds.core.DatasetBuilder):
        self._builder = builder
        self._keys, (image, label) = _image_and_label(builder.info)
        self._decode = image.decode_example
        self.info = DataInfo(
            name=builder.info.full_name,
            label_names=tuple(label.names),
            image_shape=image.shape,
            examples={name: split.num_examples for name, split in builder.info.splits.items()},
        )
        self.fingerprint = self._fingerprint()

    def split(self, name: str, rows: np.ndarray | None = None) -> tf.data.Dataset:
        """Returns `(id, image, label)` in the order of the files."""
        examples = self._read(name)
        if rows is not None:
            mask = np.zeros(self.info.examples[name], bool)
            mask[rows] = True
            paired = tf.data.Dataset.zip(examples, tf.data.Dataset.from_tensor_slices(mask))
            examples = paired.filter(lambda example, keep: keep).map(lambda example, keep: example)
        image, label = self._keys
        return examples.map(
            lambda example: (example["tfds_id"], self._decode(example[image]), example[label]),
            num_parallel_calls=tf.data.AUTOTUNE,
        )

    def labels(self, name: str) -> np.ndarray:
        """Returns the labels alone; images are not decoded."""
        labels = self._read(name).map(lambda example: example[self._keys[1]])
        return np.concatenate(list(self._numpy(labels)))

    def _fingerprint(self) -> str:
        """Hashes examples rather than files: two preparations of the same data differ in bytes."""
        splits = self._builder.info.splits
        sizes = {name: [split.num_examples, split.num_bytes] for name, split in splits.items()}
        described = [self.info.name, str(self._builder.info.features), sorted(sizes.items())]
        digest = hashlib.sha256(json.dumps(described).encode())
        count = -1 if self._builder.info.dataset_size <= _HASHED_WHOLE else _HASHED_FIRST
        image, label = self._keys
        for name in sorted(splits):
            examples = self._read(name).take(count).map(lambda e: (e[image], e[label]))
            for images, labels in self._numpy(examples):
                digest.update(b"".join(images))
                digest.update(labels.tobytes())
        return digest.hexdigest()

    def _numpy(self, dataset: tf.data.Dataset) -> Iterator:
        """Gives a dataset in large batches of arrays."""
        try:
            yield from dataset.batch(1000).as_numpy_iterator()
        except tf.errors.DataLossError as error:
            raise UserError(
                f"Dataset {self.info.name} has a damaged file: {first_line(error)}",
                f"Delete {self._builder.data_dir} and prepare it again.",
            ) from error

    def _read(self, name: str) -> tf.data.Dataset:
        """Reads examples with images as they are on disk, encoded."""
        return self._builder.as_dataset(
            split=name,
            shuffle_files=False,
            decoders={self._keys[0]: tfds.decode.SkipDecoding()},
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
    except Exception as error:  # Unknown names, versions, configs and hosts fail each in their way.
        raise UserError(
            f"Dataset {name!r} cannot be opened by TensorFlow Datasets: {first_line(error)}",
            "Use 'digits', a name from https://www.tensorflow.org/datasets/catalog, or a name with "
            f"the folder it is prepared in as data_dir, which is {data_dir or 'empty'!r} now.",
        ) from error
    _image_and_label(builder.info)  # Before gigabytes of another kind are downloaded.
    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    embedded = isinstance(builder, Digits)  # Nothing of it is downloaded; say nothing of that.
    try:
        with contextlib.redirect_stdout(io.StringIO()) if embedded else contextlib.nullcontext():
            builder.download_and_prepare(file_format="tfrecord")
    except Exception as error:  # Every dataset fails in its own way: network, disk, checksums.
        if not builder.is_prepared():  # Another process may have been quicker.
            raise UserError(
                f"Dataset {name!r} could not be prepared in {builder.data_dir}: "
                f"{first_line(error)}",
                "Check the network and the free disk, or name the folder where it is prepared.",
            ) from error
    return TfdsSource(builder)


def _image_and_label(info: tfds.core.DatasetInfo):
    """Returns the keys and the features of the image and of its label.

    The supervised keys if the dataset names them, else the only image and the only class label.
    """
    features = info.features or {}
    keys = info.supervised_keys
    if keys is None:
        images = [key for key in features if isinstance(features[key], tfds.features.Image)]
        labels = [key for key in features if isinstance(features[key], tfds.features.ClassLabel)]
        keys = (*images, *labels) if len(images) == len(labels) == 1 else ()
    if len(keys) == 2 and all(isinstance(key, str) for key in keys):
        image, label = (features[key] for key in keys)
        if (
            isinstance(image, tfds.features.Image)
            and isinstance(label, tfds.features.ClassLabel)
            and image.np_dtype == np.uint8
            and image.shape[-1] in (1, 3)
        ):
            return keys, (image, label)
    raise UserError(
        f"Dataset {info.full_name} must hold 8-bit images of 1 or 3 channels with one class label "
        f"each, not {sorted(features)} with supervised keys {info.supervised_keys}",
        "Choose an image classification dataset.",
    )
