"""Image files, really encoded, for tests."""

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image


def picture(seed: int, size: tuple[int, int] = (48, 64), channels: int = 3) -> np.ndarray:
    """A picture of blobs, uint8 `[height, width, channels]`, unlike that of another seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (24, 32, channels), np.uint8)
    image = Image.fromarray(coarse if channels == 3 else coarse[..., 0])
    array = np.asarray(image.resize((size[1], size[0]), Image.Resampling.BICUBIC))
    return array.reshape(*size, channels)


def save(path: Path, pixels: np.ndarray, **options) -> Path:
    """Encodes an image as the suffix of the path says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    flat = pixels[..., 0] if pixels.ndim == 3 and pixels.shape[-1] == 1 else pixels
    Image.fromarray(flat).save(path, **options)
    return path


def truncate(path: Path) -> Path:
    """Cuts off the second half of a file."""
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    return path


def bomb(path: Path, side: int = 20_000) -> Path:
    """Writes a PNG of a few kilobytes that decodes to `side * side` pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    packer = zlib.compressobj(9)
    row = bytes(1 + (side + 7) // 8)  # One bit a pixel.
    rows = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0))
        + chunk(b"IDAT", rows)
        + chunk(b"IEND", b"")
    )
    return path
