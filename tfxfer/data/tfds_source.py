"""Datasets from TensorFlow Datasets: by name, or by the folder that they are prepared in."""

import contextlib
import functools
import hashlib
import io
import itertools
import json
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError

from tfxfer.data.availability import can_download, check_available, open_builder
from tfxfer.data.base import IMAGE, TABLE, BadExample, DataInfo, DataSource
from tfxfer.data.digits import Digits
from tfxfer.data.docstrings import Docstrings
from tfxfer.data.labels import check_task, no_labels
from tfxfer.data.roles import PAIR
from tfxfer.data.split_names import split_named
from tfxfer.data.tfds_features import INPUTS, LABELS, Input, Label, NoLabel, find_features
from tfxfer.errors import UserError, first_line
from tfxfer.spec import Spec
from tfxfer.task import Task

_PARTS = ("train", "validation", "test")
_HASHED_WHOLE = 2**30  # Bytes.
_HASHED_FIRST = 1000  # Examples a split, of what is larger.
_BATCH = 256


class TfdsSource(DataSource):
    """A prepared TFDS dataset.

    The fingerprint covers every example of a dataset of up to 1 GiB; of a larger one, the size of
    each split and its first 1,000 examples. It does not depend on how many files the data is in.

    Args:
        builder: A builder whose data is prepared.
        parts: For the name of each split what it is in TFDS' syntax, such as `train[:80%]`.
        x: The feature that goes in.
        label: The feature that is to be learned.

    Raises:
        UserError: If a file is damaged.
    """

    def __init__(
        self,
        builder: tfds.core.DatasetBuilder,
        parts: Mapping[str, str],
        x: Input,
        label: Label,
    ):
        self._builder = builder
        self._parts = dict(parts)
        self._x = x
        self._name = builder.info.full_name
        self._found: dict[str, np.ndarray] = {}
        whole = [split for split in builder.info.splits.values() if split.num_examples]
        self.raw_bytes = max(
            1, sum(s.num_bytes for s in whole) // max(1, sum(s.num_examples for s in whole))
        )
        sizes = {name: builder.info.splits[part].num_examples for name, part in parts.items()}
        self._label = label
        if label.names is None:
            self._label = Label(label.key, label.kind, self._count_classes(sum(sizes.values())))
        self.info = DataInfo(
            name=self._name,
            task=Task(label.kind, self._label.names or ()),
            inputs=x.inputs,
            shape=x.shape,
            examples=sizes,
        )
        self.fingerprint = self._fingerprint()

    def read(self, name: str, rows: np.ndarray | None = None) -> tf.data.Dataset:
        """Returns a split as `(id, raw, y)` in the order of the files; images are encoded."""
        return self._chosen(name, rows).map(
            lambda example: (
                example["tfds_id"],
                self._x.raw(example),
                self._label.y(example[self._label.key]),
            ),
            num_parallel_calls=tf.data.AUTOTUNE,
        )

    def decode(self, raw: Any) -> tf.Tensor:
        """Decodes an image; gives texts as they are, and numbers as float32."""
        if self._x.inputs == IMAGE:
            return self._x.feature.decode_example(raw)
        return tf.cast(raw, tf.float32) if self._x.inputs == TABLE else raw

    def labels(self, name: str) -> np.ndarray:
        """Returns the labels alone; inputs are not parsed. They are read once."""
        if isinstance(self._label, NoLabel):
            return no_labels(self.info.task, self.info.examples[name])
        if name not in self._found:
            labels = self._read(name, [self._label.key], ids=False).map(
                lambda example: self._label.y(example[self._label.key]),
                num_parallel_calls=tf.data.AUTOTUNE,
            )
            self._found[name] = np.concatenate(list(self._numpy(labels)))
        return self._found[name]

    @functools.cached_property
    def bad(self) -> tuple[BadExample, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Examples with labels out of range, of splits whose labels are not hidden as a whole."""
        bad = []
        for name in self._parts:
            labels = self.labels(name)
            wrong = labels < 0 if labels.ndim == 1 else np.isnan(labels).any(axis=1)
            if not wrong.any() or wrong.all():
                continue
            rows = np.flatnonzero(wrong)
            examples = self._chosen(name, rows, [self._label.key]).as_numpy_iterator()
            for row, example in zip(rows, examples, strict=True):
                reason = self._label.complaint(np.asarray(example[self._label.key]))
                bad.append(BadExample(self._place(example["tfds_id"]), reason, name, int(row)))
        return tuple(bad)

    def where(self, name: str, row: int) -> str:
        """Names an example by its TFDS id: its file, and its place in it."""
        return self.places(name, [row])[0]

    def places(self, name: str, rows: Sequence[int]) -> list[str]:
        """Names examples in one pass over the files."""
        chosen = self._chosen(name, np.array(rows, int), [self._label.key]) if rows else []
        return [self._place(example["tfds_id"].numpy()) for example in chosen]

    def _place(self, example_id: bytes) -> str:
        return f"{example_id.decode()} of {self._name}"

    def _count_classes(self, examples: int) -> tuple[str, ...]:
        """Names the classes of whole numbers 0, 1, and so on to the largest."""
        most = -1
        for name in self._parts:
            labels = self._read(name, [self._label.key], ids=False).map(
                lambda example: example[self._label.key]
            )
            most = max(most, *(int(batch.max()) for batch in self._numpy(labels)))
        if not 0 <= most < max(examples, 2):
            raise UserError(
                f"Dataset {self._name} has labels up to {most} in {self._label.key!r}, and only "
                f"{examples} examples: these are no classes counted from 0",
                f"If they are quantities, say so: target={self._label.key}.",
            )
        return tuple(map(str, range(most + 1)))

    def _fingerprint(self) -> str:
        """Hashes examples rather than files: two preparations of the same data differ in bytes."""
        info, keys = self._builder.info, [*self._x.keys, self._label.key]
        whole = info.dataset_size <= _HASHED_WHOLE
        task = self.info.task
        described: list[Any] = [self._name, keys, self.info.inputs, task.kind, task.names]
        if not whole:
            described.append(sorted(self._parts.items()))
            described.append(
                sorted((n, s.num_examples, s.num_bytes) for n, s in info.splits.items())
            )
        digest = hashlib.sha256(json.dumps(described).encode())
        for name in sorted(self._parts):
            digest.update(json.dumps([name, self.info.examples[name]]).encode())
            examples = self._read(name, keys, ids=False).take(-1 if whole else _HASHED_FIRST)
            pairs = examples.map(
                lambda example: (self._x.raw(example), self._label.y(example[self._label.key])),
                num_parallel_calls=tf.data.AUTOTUNE,
            )
            found = []
            for inputs, labels in self._numpy(pairs):
                if inputs.dtype == object:
                    digest.update(np.array([len(value) for value in inputs.flat]).tobytes())
                    digest.update(b"".join(inputs.flat))
                else:
                    digest.update(inputs.tobytes())
                digest.update(labels.tobytes())
                found.append(labels)
            if whole:
                self._found[name] = np.concatenate(found)
        return digest.hexdigest()

    def _numpy(self, dataset: tf.data.Dataset) -> Iterator:
        """Gives a dataset in large batches of arrays."""
        try:
            yield from dataset.batch(_BATCH).as_numpy_iterator()
        except tf.errors.OpError as error:  # Flipped, cut off, gone: each fails in its way.
            raise UserError(
                f"Dataset {self._name} has a damaged file: {first_line(error)}",
                f"Delete {self._builder.data_dir} and prepare it again.",
            ) from error

    def _chosen(
        self, name: str, rows: np.ndarray | None, keys: Sequence[str] = ()
    ) -> tf.data.Dataset:
        """Reads the examples at some positions; all if `None`."""
        examples = self._read(name, keys or [*self._x.keys, self._label.key])
        if rows is None:
            return examples
        mask = np.zeros(self.info.examples[name], bool)
        mask[rows] = True
        paired = tf.data.Dataset.zip(examples, tf.data.Dataset.from_tensor_slices(mask))
        kept = paired.filter(lambda example, keep: keep)
        chosen = kept.map(lambda example, keep: example)
        return chosen.apply(tf.data.experimental.assert_cardinality(int(mask.sum())))

    def _read(self, name: str, keys: Sequence[str], ids: bool = True) -> tf.data.Dataset:
        """Reads some features of all examples, images as they are on disk, in their order."""
        encoded = self._x.inputs == IMAGE and self._x.key in keys
        with _quiet():  # It warns of its own use of what it deprecates.
            return self._builder.as_dataset(
                split=self._parts[name],
                shuffle_files=False,
                decoders=tfds.decode.PartialDecoding(
                    dict.fromkeys(keys, True),
                    {self._x.key: tfds.decode.SkipDecoding()} if encoded else {},
                ),
                # One file after the other: the order does not depend on the number of files.
                read_config=tfds.ReadConfig(
                    add_tfds_id=ids, try_autocache=False, interleave_cycle_length=1
                ),
            )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the warnings of TFDS, which are not the user's to mend, off the screen."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def open_tfds(
    spec: Spec,
    *,
    data_dir: str = "",
    download: bool = True,
    manual_dir: str = "",
    task: str = "",
    unlabelled: Task | None = None,
) -> TfdsSource:
    """Opens a TFDS dataset, preparing it at the first use.

    Args:
        spec: A TFDS name, with config or version if need be, such as `mnist:3.*.*`, or the folder
            of a prepared dataset. Options `train`, `validation` and `test` are parts in TFDS'
            syntax, such as `train[:80%]+extra`, or `none`; `image`, `text` or `table` names the
            feature that goes in, `pair`, beside `text`, that of a second text, and `label`,
            `labels` or `target` the one that is to be learned.
        data_dir: Folder of prepared datasets; TFDS's own default if empty.
        download: Whether files may be downloaded; without it the network is not touched.
        manual_dir: Folder with files that would be downloaded otherwise.
        task: One of `task.KINDS`; by the feature if empty.
        unlabelled: What the labels would be, if nobody is to look at them: there need be none.

    Returns:
        The dataset.

    Raises:
        UserError: If TFDS knows no such dataset, cannot have or prepare it, or it is of another
            kind.
    """
    spec.only((*_PARTS, *INPUTS, PAIR, *LABELS))
    check_task(task)
    check_available(spec.name, data_dir, download, manual_dir)
    builder = open_builder(spec.name, data_dir)
    x, label = find_features(
        builder.info, spec, task, unlabelled
    )  # Before gigabytes of another kind come.
    _prepare(builder, spec.name, download, manual_dir)
    return TfdsSource(builder, _splits(builder.info, spec), x, label)


def _prepare(builder: tfds.core.DatasetBuilder, name: str, download: bool, manual_dir: str) -> None:
    """Prepares what is not prepared yet."""
    if _is_there(builder):
        return
    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    if not download:
        _forbid_downloads(builder, manual_dir, "--download is off")
    elif not can_download(builder):
        _forbid_downloads(builder, manual_dir, "the network is not there")
    config = tfds.download.DownloadConfig(manual_dir=manual_dir or None, try_download_gcs=False)
    # Where nothing is downloaded, say nothing of that.
    silent = isinstance(builder, Digits | Docstrings) or bool(manual_dir) or not download
    try:
        with contextlib.redirect_stdout(io.StringIO()) if silent else contextlib.nullcontext():
            builder.download_and_prepare(download_config=config, file_format="tfrecord")
    except UserError:
        raise
    except NonMatchingChecksumError as error:
        raise UserError(
            f"Dataset {name!r} cannot be prepared from a file that is not the one that TFDS knows: "
            f"{first_line(error)}",
            "Delete that file, and get it again from that address.",
        ) from error
    except Exception as error:  # Every dataset fails in its own way: network, disk, formats.
        if not _is_there(builder):  # Another process may have been quicker.
            raise UserError(
                f"Dataset {name!r} could not be prepared in {builder.data_dir}: "
                f"{first_line(error)}",
                "Check the network and the free disk, or name the folder where it is prepared.",
            ) from error
    if not _is_there(builder):
        raise UserError(
            f"Dataset {name!r} is incomplete: {builder.data_dir} holds no dataset_info.json",
            "Delete that folder.",
        )


def _is_there(builder: tfds.core.DatasetBuilder) -> bool:
    return (builder.data_path / "dataset_info.json").exists()


def _forbid_downloads(builder: tfds.core.DatasetBuilder, manual_dir: str, reason: str) -> None:
    """Makes a builder fail, rather than download a file that is not there."""
    make = builder._make_download_manager

    def refuse(resource: Any) -> NoReturn:
        known = (builder.url_infos or {}).get(resource.url)
        file = known and known.filename
        raise UserError(
            f"Dataset {builder.name!r} needs {file or 'a file'} from {resource.url}, which is not "
            f"{f'in {manual_dir}' if manual_dir else 'there'}, and {reason}",
            "Put it there, or give --tfds_manual_dir=DIR of a folder with it.",
        )

    def make_without_network(**settings: Any) -> Any:
        manager = make(**settings)
        manager._download = refuse
        return manager

    builder._make_download_manager = make_without_network


def _splits(info: tfds.core.DatasetInfo, spec: Spec) -> dict[str, str]:
    """Returns for the name of each split what it is in TFDS' syntax.

    Raises:
        UserError: If a part is none of the dataset, is empty, or shares examples with another.
    """
    filled = [str(name) for name, split in info.splits.items() if split.num_examples]
    own = {}
    for name in filled:
        alias = split_named(name) or name
        own[name if alias in filled else alias] = name
    given = {name: spec.options[name] for name in _PARTS if name in spec.options}
    parts = {name: str(part).strip() for name, part in {**own, **given}.items() if part is not None}
    files = {name: _instructions(info, part) for name, part in parts.items()}
    for name in [name for name in parts if name not in _PARTS]:
        if any(_overlap(files[name], files[other]) for other in given if other in parts):
            del parts[name]  # Such as `extra`, where train=train+extra has it.
    for name, other in itertools.combinations_with_replacement(parts, 2):
        if _overlap(files[name], files[other] if other != name else []):
            both = f"{name}={parts[name]} and {other}={parts[other]} share examples"
            twice = f"{name}={parts[name]} has examples twice"
            raise UserError(
                f"Of {info.full_name} {twice if name == other else both}",
                "Give parts that do not overlap, such as (train=train[:80%],"
                "validation=train[80%:]); test=none leaves one out.",
            )
    return parts


def _instructions(info: tfds.core.DatasetInfo, part: str) -> list[Any]:
    """Returns which examples of which files a part is."""
    try:
        files = info.splits[part].file_instructions
        problem = "" if files else "it holds no examples"
    except Exception as error:  # Unknown names and bad syntax fail each in their way.
        files, problem = [], first_line(error)
    if problem:
        names = ", ".join(f"{n} ({s.num_examples})" for n, s in info.splits.items())
        raise UserError(
            f"{part!r} is no part of dataset {info.full_name}: {problem}",
            f"Its splits are {names}; parts are written such as train[:80%] or train+test.",
        )
    return files


def _overlap(some: Sequence[Any], others: Sequence[Any]) -> bool:
    """Says whether two lists of instructions, or one with itself, name an example twice."""
    spans = sorted((f.filename, f.skip, f.skip + f.take) for f in (*some, *others))
    return any(
        file == next_file and start < end
        for (file, _, end), (next_file, start, _) in itertools.pairwise(spans)
    )
