"""One look at every example before training: which cannot be decoded, and which are alike."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import scipy.fft
import tensorflow as tf

from tfxfer.cache import Cache, Parts
from tfxfer.data.base import IMAGE, TABLE, TEXT, BadExample, DataSource
from tfxfer.errors import UserError, first_line

_SAMPLES = 96  # Pixels a side that are taken of an image,
_SIDE = 32  # pixels a side of the thumbnail that they are averaged to,
_LOW = 8  # and the lowest of its frequencies a side that are kept.
_FLAT = 4.0  # Range of the gray values below which a thumbnail shows nothing.
_BATCH = 256
_PAIRS = 2**22  # Pairs of hashes compared at a time.

_KIND, _BAD = "scan", "bad"  # In the cache: the kind of the entries, and the array of bad ones.


@dataclass(frozen=True)
class Scan:
    """What a look at every example found.

    Attributes:
        bad: Images that cannot be decoded, and texts that are empty or not UTF-8, in order; without
            those of `DataSource.bad`.
        hashes: By split, a hash of each example, uint64 `[n]`: of images one that is nearly the
            same for images that look the same, of texts one that is the same for the same text, or
            the same pair of texts. Those of bad examples are near none. Empty for other inputs.
    """

    bad: tuple[BadExample, ...]
    hashes: Mapping[str, np.ndarray]


def scan(source: DataSource, splits: Sequence[str], cache: Cache | None = None) -> Scan:
    """Decodes every image of a source once, or reads every text.

    The hash of an image is the perceptual hash of Zauner, "Implementation and Benchmarking of
    Perceptual Image Hash Functions" (2010): 64 low frequencies of the cosine transform of a gray
    thumbnail, each above their median or not. Images of one colour, and those of fewer than 32
    pixels a side, of which many differ by less than a copy does, have a hash of their values.

    Args:
        source: The data; what is in its `bad` is passed over.
        splits: Names of the splits to look at.
        cache: Where the result is kept, and read if it is there already; nowhere if `None`.

    Returns:
        What was found.

    Raises:
        UserError: If the cache folder cannot be used.
    """
    if source.info.inputs == TABLE:
        return Scan((), {})
    parts = {"data fingerprint": source.fingerprint, "splits": " ".join(splits)}
    if cache and (kept := _read(cache, parts)):
        return kept
    known = {(example.split, example.row) for example in source.bad}
    bad: list[BadExample] = []
    hashes: dict[str, np.ndarray] = {}
    for split in splits:
        count = source.info.examples[split]
        rows = np.array([row for row in range(count) if (split, row) not in known], np.int64)
        # Rows without a hash of their own get one that is near no other.
        hashes[split] = np.array([_hash(f"{split}/{row}".encode()) for row in range(count)])
        look = _hash_images if source.info.inputs == IMAGE else _hash_texts
        wrong: dict[int, str] = {}
        for row, found in look(source, split, rows):
            if isinstance(found, str):
                wrong[row] = found
            else:
                hashes[split][row] = found
        places = source.places(split, sorted(wrong))
        bad += [
            BadExample(place, wrong[row], split, row)
            for row, place in zip(sorted(wrong), places, strict=True)
        ]
    result = Scan(tuple(bad), hashes)
    if cache:
        _write(result, cache, parts, source.info.name)
    return result


def duplicate_distance(inputs: str) -> int:
    """Returns the distance of hashes up to which two examples count as the same.

    Args:
        inputs: `image` or `text`.
    """
    return 0 if inputs == TEXT else 4


def near_duplicates(hashes: np.ndarray, others: np.ndarray, distance: int) -> np.ndarray:
    """Finds which examples are nearly the same as one of others.

    Args:
        hashes: uint64 `[n]`.
        others: uint64 `[m]`.
        distance: The largest number of bits that may differ, in [0, 64].

    Returns:
        Which of the `n` are, bool `[n]`.
    """
    if not distance or not len(others):
        return np.isin(hashes, others)
    unique, inverse = np.unique(hashes, return_inverse=True)
    others = np.unique(others)
    near = np.zeros(len(unique), bool)
    columns = min(len(others), _PAIRS)
    step = max(1, _PAIRS // columns)
    for start in range(0, len(unique), step):
        block = unique[start : start + step, None]
        for first in range(0, len(others), columns):
            bits = np.bitwise_count(block ^ others[None, first : first + columns])
            near[start : start + step] |= (bits <= distance).any(axis=1)
    return near[inverse]


def stop_for_bad(bad: Sequence[BadExample], skip_bad: bool) -> None:
    """Stops if there are examples that cannot be used.

    Args:
        bad: The examples.
        skip_bad: Whether the user said to go on without them.

    Raises:
        UserError: If there are any, and they are not to be skipped; it names the first.
    """
    if not bad or skip_bad:
        return
    more = f", and {len(bad) - 1} more cannot be used" if len(bad) > 1 else ""
    raise UserError(
        f"{bad[0].where} {bad[0].reason}{more}",
        "Correct the data, or add --skip_bad to go on without what cannot be used.",
    )


def _hash_images(
    source: DataSource, split: str, rows: np.ndarray
) -> Iterator[tuple[int, np.uint64 | str]]:
    def small(image: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        values = tf.image.resize(image, (_SAMPLES, _SAMPLES))
        return tf.cast(values, tf.uint8), tf.shape(image)

    def content(image: tf.Tensor) -> tuple[tf.Tensor]:
        return (tf.fingerprint(tf.reshape(image, (1, -1)))[0],)

    left = np.ones(len(rows), bool)
    unclear = left.copy()
    if all(side is None or side >= _SIDE for side in source.info.shape[:2]):
        for at, samples, shapes in _each(source, split, rows, small):
            hashes, flat = _perceptual(samples)
            unclear[at] = flat | (shapes[:, :2].min(axis=1) < _SIDE)
            left[at] = unclear[at]
            clear = ~unclear[at]
            yield from zip(rows[at][clear].tolist(), hashes[clear], strict=True)
    at_unclear = np.flatnonzero(unclear)
    for at, hashes in _each(source, split, rows[unclear], content):
        left[at_unclear[at]] = False
        found = np.ascontiguousarray(hashes).view(np.uint64)[:, 0]
        yield from zip(rows[unclear][at].tolist(), found, strict=True)
    failed = rows[left]
    if len(failed):
        for row, (_, raw, _) in zip(failed.tolist(), source.read(split, failed), strict=True):
            yield row, _try(source, raw)


def _each(
    source: DataSource, split: str, rows: np.ndarray, look: Callable[[tf.Tensor], tuple[Any, ...]]
) -> Iterator[tuple[Any, ...]]:
    """Decodes rows in parallel; gives batches of positions in `rows` and what `look` returns.

    An image that fails is left out, and known by the position that is missing: a call of Python
    for each, to catch its error, would cost more than decoding it.
    """
    if not len(rows):
        return
    data = (
        source.read(split, rows)
        .enumerate()
        .map(lambda at, e: (at, *look(source.decode(e[1]))), num_parallel_calls=tf.data.AUTOTUNE)
        .ignore_errors()
        .batch(_BATCH)
        .prefetch(2)
    )
    yield from data.as_numpy_iterator()


def _try(source: DataSource, raw: Any) -> np.uint64 | str:
    try:
        image = source.decode(raw).numpy()
    except tf.errors.OpError as error:
        # Without the name of the operation, which is no news to the owner of the image.
        text = first_line(error).partition(": ")[2].rpartition("}} ")[2].partition(" [Op:")[0]
        return f"cannot be decoded: {text.rstrip('. ') or 'damaged data'}"
    return _hash(image.tobytes())


def _perceptual(samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns a hash of each image, and whether it is of one colour, from uint8 `[n, s, s, c]`."""
    count, step = len(samples), _SAMPLES // _SIDE
    parts = samples.reshape(count, _SIDE, step, _SIDE, step * samples.shape[-1])
    gray = parts.mean(axis=(2, 4), dtype=np.float32)
    flat = np.ptp(gray, axis=(1, 2)) < _FLAT
    frequencies = np.asarray(scipy.fft.dctn(gray, axes=(1, 2)))
    low = frequencies[:, 1 : _LOW + 1, 1 : _LOW + 1].reshape(count, -1)
    bits = low > np.median(low, axis=1, keepdims=True)
    return np.packbits(bits, axis=1).view(np.uint64)[:, 0], flat


def _hash_texts(
    source: DataSource, split: str, rows: np.ndarray
) -> Iterator[tuple[int, np.uint64 | str]]:
    data = source.read(split, rows).map(lambda _, raw, __: source.decode(raw)).batch(_BATCH)
    examples = (texts for batch in data.as_numpy_iterator() for texts in batch)
    for row, texts in zip(rows.tolist(), examples, strict=True):
        yield row, _look_at_texts([texts] if isinstance(texts, bytes) else texts.tolist())


def _look_at_texts(texts: Sequence[bytes]) -> np.uint64 | str:
    """Returns a hash of a text or a pair of texts, or what is wrong with it."""
    try:
        if not all(text.decode().strip() for text in texts):
            return "has an empty text"
    except UnicodeDecodeError:
        return "is not UTF-8"
    # With its length, so that what is moved from one text of a pair to the other counts.
    first, *second = texts
    return _hash(b"%d %s%s" % (len(first), first, *second) if second else first)


def _hash(content: bytes) -> np.uint64:
    return np.frombuffer(hashlib.blake2b(content, digest_size=8).digest(), np.uint64)[0]


def _read(cache: Cache, parts: Parts) -> Scan | None:
    arrays = cache.read(_KIND, parts)
    if arrays is None:
        return None
    hashes = {name: np.array(array) for name, array in arrays.items() if name != _BAD}
    stated = json.loads(arrays[_BAD].tobytes())
    return Scan(tuple(BadExample(**example) for example in stated), hashes)


def _write(result: Scan, cache: Cache, parts: Parts, about: str) -> None:
    stated = json.dumps([asdict(example) for example in result.bad]).encode()
    arrays = {_BAD: np.frombuffer(stated, np.uint8), **result.hashes}
    shapes = {name: (array.shape, array.dtype) for name, array in arrays.items()}
    with cache.write(_KIND, parts, shapes, about) as draft:
        for name, array in arrays.items():
            draft.arrays[name][:] = array
