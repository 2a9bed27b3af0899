"""The look at every example: what cannot be decoded, what is alike, and the file it is kept in."""

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tests.image_files import picture, save, truncate
from tfxfer.cache import Cache
from tfxfer.data.arrays import open_arrays
from tfxfer.data.base import BadExample
from tfxfer.data.folder import FolderSource, open_folder
from tfxfer.data.scan import Scan, duplicate_distance, near_duplicates, scan, stop_for_bad
from tfxfer.errors import UserError
from tfxfer.spec import parse_spec


def opened(folder: Path) -> FolderSource:
    return open_folder(parse_spec(f"folder:{folder}"))


@pytest.fixture
def folder(tmp_path) -> Path:
    """Twelve photos of two classes in train; the first ten again in test, changed a little."""
    for seed in range(12):
        pixels = picture(seed, (128, 160))
        save(tmp_path / "photos" / "train" / str(seed % 2) / f"{seed:02}.png", pixels)
        if seed < 10:
            image = Image.fromarray(pixels)
            if seed >= 5:
                image = image.resize((80, 64), Image.Resampling.LANCZOS)
            save(
                tmp_path / "photos" / "test" / str(seed % 2) / f"{seed:02}.jpg",
                np.asarray(image),
                quality=60,
            )
    return tmp_path / "photos"


def test_changed_copies_are_found_and_nothing_else(folder):
    source = opened(folder)
    found = scan(source, ["train", "test"])
    assert found.bad == ()
    assert {name: (h.shape, h.dtype) for name, h in found.hashes.items()} == {
        "train": ((12,), np.dtype(np.uint64)),
        "test": ((10,), np.dtype(np.uint64)),
    }
    near = near_duplicates(found.hashes["train"], found.hashes["test"], duplicate_distance("image"))
    names = [source.where("train", row)[-6:-4] for row in np.flatnonzero(near).tolist()]
    assert sorted(names) == [f"{seed:02}" for seed in range(10)]
    assert near_duplicates(found.hashes["test"], found.hashes["train"], 4).all()


def test_every_damaged_image_is_named_and_the_rest_hashed(folder):
    whole = scan(opened(folder), ["train", "test"])
    truncate(folder / "train" / "0" / "04.png")
    truncate(folder / "train" / "1" / "11.png")
    truncate(folder / "test" / "1" / "03.jpg")
    source = opened(folder)
    assert source.bad == ()
    found = scan(source, ["train", "test"])
    assert [(b.where, b.split) for b in found.bad] == [
        ("train/0/04.png", "train"),
        ("train/1/11.png", "train"),
        ("test/1/03.jpg", "test"),
    ]
    assert all(b.where == source.where(b.split, b.row) for b in found.bad)
    for name in ("train", "test"):
        same = found.hashes[name] == whole.hashes[name]
        assert np.flatnonzero(~same).tolist() == [b.row for b in found.bad if b.split == name]


def test_only_broken_images_are_left_out(tmp_path):
    """An image whose pixels are damaged, not cut off, and all images damaged."""
    for name in ("a/1.png", "b/2.png"):
        path = save(tmp_path / name, picture(1))
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 0xFF
        path.write_bytes(data)
    assert [b.where for b in scan(opened(tmp_path), ["train"]).bad] == ["a/1.png", "b/2.png"]


def test_what_the_source_knows_as_bad_is_not_looked_at(folder):
    (folder / "train" / "0" / "00.png").write_bytes(b"")
    source = opened(folder)
    assert len(source.bad) == 1
    found = scan(source, ["train"])
    assert found.bad == ()
    assert found.hashes["train"].shape == (12,)
    assert len(set(found.hashes["train"].tolist())) == 12


def test_flat_and_tiny_images_are_alike_only_if_equal():
    flat = np.stack([np.full((40, 40, 3), value, np.uint8) for value in (0, 9, 9, 200)])
    for images in (flat, flat[:, :8, :8], np.stack([picture(s, (16, 16)) for s in (0, 1, 1, 2)])):
        hashes = scan(open_arrays((images, np.arange(4) % 2)), ["train"]).hashes["train"]
        bits = np.bitwise_count(hashes[:, None] ^ hashes[None])
        assert bits[1, 2] == 0
        assert np.sort(bits[np.triu_indices(4, 1)])[1] > duplicate_distance("image")


def test_images_of_many_sizes_some_tiny(tmp_path):
    for name, pixels in {
        "a/1.png": picture(0, (8, 8)),
        "a/2.png": picture(1, (100, 90)),
        "b/1.png": picture(0, (8, 8)),
        "b/2.png": picture(1, (50, 45)),
    }.items():
        save(tmp_path / name, pixels)
    hashes = scan(opened(tmp_path), ["train"]).hashes["train"]
    bits = np.bitwise_count(hashes[:, None] ^ hashes[None])
    assert (bits <= 4).tolist() == [
        [True, False, True, False],
        [False, True, False, True],
        [True, False, True, False],
        [False, True, False, True],
    ]


def test_texts_are_alike_if_equal_and_rows_of_numbers_are_not_hashed():
    texts = np.array(["one", "two", "one", "One"])
    hashes = scan(open_arrays((texts, np.arange(4) % 2)), ["train"]).hashes["train"]
    assert (hashes[:, None] == hashes[None]).sum(1).tolist() == [2, 1, 2, 1]
    pairs = np.array([["a b", "c"], ["a", "b c"], ["a b", "c"], ["c", "a b"]])
    hashes = scan(open_arrays((pairs, np.arange(4) % 2)), ["train"]).hashes["train"]
    assert (hashes[:, None] == hashes[None]).sum(1).tolist() == [2, 1, 2, 1]
    assert duplicate_distance("text") == 0
    numbers = np.ones((4, 2), np.float32)
    assert scan(open_arrays((numbers, np.arange(4) % 2)), ["train"]) == Scan((), {})


@pytest.mark.parametrize("pair", [None, 0, 1])
@pytest.mark.parametrize("data", [False, True])
def test_texts_that_are_empty_or_not_utf8_are_bad(tmp_path, pair, data):
    texts = [b"one", b"", b" \t\n", "\u3000".encode(), b"caf\xe9", "caf\ud800", b"two"]
    x = np.array(texts, object)
    if pair is not None:
        x = np.stack([x, np.full(len(x), b"other", object)][:: 1 if pair else -1], axis=1)
    y = np.arange(len(x)) % 2
    if data:
        x[x == texts[5]] = b"caf\xff"
    source = open_arrays(tf.data.Dataset.from_tensor_slices(([*x], y)) if data else (x, y))
    assert source.bad == ()
    cache = Cache(tmp_path / "cache", 10**9)
    expected = tuple(
        BadExample(f"row {row} of train", reason, "train", row)
        for row, reason in enumerate(["has an empty text"] * 3 + ["is not UTF-8"] * 2, start=1)
    )
    assert scan(source, ["train"], cache).bad == expected
    assert scan(source, ["train"], cache).bad == expected
    assert len(set(scan(source, ["train"]).hashes["train"].tolist())) == len(x)
    with pytest.raises(UserError, match=r"^row 1 of train has an empty text, and 4 more cannot"):
        stop_for_bad(expected, skip_bad=False)


def test_result_is_kept_and_read_again(folder, tmp_path, monkeypatch):
    truncate(folder / "train" / "0" / "04.png")
    cache = Cache(tmp_path / "cache", 10**9)
    source = opened(folder)
    first = scan(source, ["train", "test"], cache)
    assert [(entry.kind, entry.about) for entry in cache.entries()] == [("scan", "folder:photos")]

    def fail(*_):
        raise AssertionError("decoded again")

    monkeypatch.setattr(FolderSource, "decode", fail)
    again = scan(source, ["train", "test"], cache)
    assert again.bad == first.bad
    assert all((again.hashes[name] == first.hashes[name]).all() for name in ("train", "test"))
    for splits, other in ((["test"], cache), (["train", "test"], None)):
        with pytest.raises(AssertionError, match="decoded again"):
            scan(source, splits, other)


def test_another_dataset_is_looked_at_anew(folder, tmp_path):
    cache = Cache(tmp_path / "cache", 10**9)
    assert scan(opened(folder), ["train"], cache).bad == ()
    truncate(folder / "train" / "0" / "04.png")
    assert len(scan(opened(folder), ["train"], cache).bad) == 1


@pytest.mark.parametrize("distance", [0, 3, 64])
@pytest.mark.parametrize("pairs", [7, 2**22])
def test_near_duplicates_equal_a_plain_loop(distance, pairs, monkeypatch):
    monkeypatch.setattr("tfxfer.data.scan._PAIRS", pairs)
    random = np.random.default_rng(0)
    ours = random.integers(0, 2**64, 50, np.uint64)
    others = random.integers(0, 2**64, 20, np.uint64)
    for row in range(10):
        flipped = random.choice(64, row % 5, replace=False)
        ours[row] = others[row] ^ np.uint64(sum(1 << int(bit) for bit in flipped))
    expected = [any((int(a) ^ int(b)).bit_count() <= distance for b in others) for a in ours]
    assert near_duplicates(ours, others, distance).tolist() == expected
    assert not near_duplicates(ours, others[:0], distance).any()


def test_one_line_names_the_first_and_counts_the_rest():
    bad = [BadExample(f"{row}.jpg", "is empty", "train", row) for row in range(3)]
    with pytest.raises(UserError) as error:
        stop_for_bad(bad, skip_bad=False)
    assert str(error.value) == (
        "0.jpg is empty, and 2 more cannot be used. "
        "Correct the data, or add --skip_bad to go on without what cannot be used."
    )
    with pytest.raises(UserError, match=r"^0.jpg is empty\. Correct"):
        stop_for_bad(bad[:1], skip_bad=False)
    stop_for_bad(bad, skip_bad=True)
    stop_for_bad([], skip_bad=False)


def test_an_error_that_is_not_of_an_image_is_not_hidden(folder, monkeypatch):
    def lost(self, name, rows=None):
        def fail():
            raise OSError("the disk is gone")
            yield

        return tf.data.Dataset.from_generator(
            fail,
            output_signature=(
                tf.TensorSpec((), tf.string),
                tf.TensorSpec((), tf.string),
                tf.TensorSpec((), tf.int64),
            ),
        )

    monkeypatch.setattr(FolderSource, "read", lost)
    with pytest.raises((tf.errors.OpError, ValueError), match="the disk is gone"):
        scan(opened(folder), ["train"])
