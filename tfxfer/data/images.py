"""Image files: what their headers say, how they are decoded, and a hash of many of them."""

import hashlib
import stat
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import tensorflow as tf
from PIL import Image, UnidentifiedImageError

# What `tf.io.decode_image` decodes, and what it does not, so that people with such are told.
IMAGE_SUFFIXES = frozenset((".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".bmp", ".webp"))
UNREAD_SUFFIXES = frozenset((".tif", ".tiff", ".heic", ".heif", ".avif"))

_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP")
_GRAY_FORMATS = ("JPEG", "PNG")  # The others are always decoded to three channels.
_GRAY_MODES = ("1", "L", "LA", "I", "I;16", "I;16B", "I;16L")
_BMP_MODES = ("RGB", "L")  # Of others TensorFlow takes the indices of the palette for colours.

_WHOLE = 2**30  # Bytes up to which the contents of all files are hashed,
_FIRST = 1000  # and the number of files whose contents are hashed of more.
_THREADS = 16


@dataclass(frozen=True)
class Header:
    """What the header of an image file says.

    Attributes:
        size: Height and width.
        channels: 1 if the image is decoded to one channel without loss, else 3.
    """

    size: tuple[int, int]
    channels: int


def read_header(path: str) -> Header | str:
    """Reads the header of an image file; its pixels are never decoded.

    Images of more than `PIL.Image.MAX_IMAGE_PIXELS` pixels are refused: a file of some kilobytes
    can decode to gigabytes.

    Args:
        path: Of the file.

    Returns:
        What the header says, or else why the file cannot be used, in words that follow its name.
    """
    limit = Image.MAX_IMAGE_PIXELS
    too_large = f"has more than {limit:,} pixels, which are not decoded"
    try:
        status = Path(path).stat()
        if not stat.S_ISREG(status.st_mode):
            return "is no file"
        if not status.st_size:
            return "is empty (0 bytes)"
        with Image.open(path, formats=_FORMATS) as image:
            width, height = image.size
            kind, mode = image.format, image.mode
    except FileNotFoundError:
        return "does not exist"
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        return too_large
    except UnidentifiedImageError:
        if Path(path).suffix.lower() in UNREAD_SUFFIXES:
            return "is of no format that is read here; convert it to JPEG or PNG"
        return "is no JPEG, PNG, GIF, BMP or WebP image"
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"
    except Exception:  # Pillow's readers raise errors of many types on damaged headers.
        return "has a damaged header"
    if limit and width * height > limit:
        return too_large
    if kind == "BMP" and mode not in _BMP_MODES:
        return "is a BMP image with a palette, which is not decoded; save it as PNG"
    gray = mode in _GRAY_MODES and (kind in _GRAY_FORMATS or kind == "MPO")
    return Header((height, width), 1 if gray else 3)


def read_headers(paths: Sequence[str]) -> list[Header | str]:
    """Reads the headers of many files in parallel; see `read_header`."""
    # Set here, not for each file: the filters of warnings are those of all threads.
    with warnings.catch_warnings(), ThreadPoolExecutor(_THREADS) as pool:
        warnings.simplefilter("ignore")
        return list(pool.map(read_header, paths, chunksize=64))


def common_shape(headers: Sequence[Header | str]) -> tuple[int | None, int | None, int]:
    """Finds the shape that images are decoded to.

    Args:
        headers: Of all images; those that cannot be used are passed over.

    Returns:
        Height and width, each `None` where images differ, and channels: 1 if all are grayscale.
    """
    good = [header for header in headers if isinstance(header, Header)]
    heights = {header.size[0] for header in good}
    widths = {header.size[1] for header in good}
    gray = bool(good) and all(header.channels == 1 for header in good)
    return (
        heights.pop() if len(heights) == 1 else None,
        widths.pop() if len(widths) == 1 else None,
        1 if gray else 3,
    )


def decode_image_file(path: tf.Tensor, shape: tuple[int | None, ...]) -> tf.Tensor:
    """Reads and decodes an image file; a TensorFlow function.

    Of an animation the first frame is taken, of 16 bits the upper 8; transparency is dropped, and
    the orientation that a camera notes in the file is not applied.

    Args:
        path: String scalar.
        shape: Height, width and channels of the image, `None` where they vary. One channel can be
            had of JPEG and PNG files.

    Returns:
        The image, uint8.

    Raises:
        tf.errors.OpError: If the file cannot be read or decoded, or has another shape.
    """
    data = tf.io.read_file(path)
    image = tf.cond(
        tf.strings.substr(data, 0, 2) == b"BM",
        lambda: _decode_bmp(data, shape[-1]),
        lambda: tf.io.decode_image(data, shape[-1], expand_animations=False),
    )
    return tf.ensure_shape(image, shape)


def _decode_bmp(data: tf.Tensor, channels: int | None) -> tf.Tensor:
    # The decoder gives the channels of the file, 1, 3 or 4, and no others.
    image = tf.io.decode_bmp(data)
    return tf.gather(image, tf.minimum(tf.range(channels), tf.shape(image)[-1] - 1), axis=-1)


def hash_files(paths: Sequence[str]) -> str:
    """Hashes files; their names are left to the caller.

    Args:
        paths: Of the files, in order.

    Returns:
        A hash of the contents of all if they have at most 1 GiB together; else of the size and
        time of change of each, and of the contents of the first 1,000.
    """

    def status(path: str) -> tuple[int, int]:
        try:
            result = Path(path).stat()
        except (OSError, ValueError):  # The path of a table can hold anything.
            return 0, 0
        # Reading from a pipe or a device might never end.
        return (result.st_size, result.st_mtime_ns) if stat.S_ISREG(result.st_mode) else (0, 0)

    def content(path: str) -> bytes:
        try:
            with Path(path).open("rb") as file:
                return hashlib.file_digest(file, hashlib.sha256).digest()
        except OSError:
            return b"unreadable"

    with ThreadPoolExecutor(_THREADS) as pool:
        statuses = list(pool.map(status, paths, chunksize=64))
        whole = sum(size for size, _ in statuses) <= _WHOLE
        files = [path for path, (size, _) in zip(paths, statuses, strict=True) if size]
        files = files if whole else files[:_FIRST]
        digest = hashlib.sha256(
            repr([size if whole else (size, time) for size, time in statuses]).encode()
        )
        for part in pool.map(content, files, chunksize=16):
            digest.update(part)
    return digest.hexdigest()
