"""Folders of images: layouts, formats, and files that cannot be used."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.image_files import bomb, picture, save, truncate
from tfxfer.data.base import IMAGE, BadExample, DataInfo
from tfxfer.data.folder import FolderSource, open_folder
from tfxfer.data.images import Header, hash_files, read_header, read_headers
from tfxfer.data.scan import scan, stop_for_bad
from tfxfer.data.split_names import split_named
from tfxfer.errors import UserError
from tfxfer.spec import parse_spec
from tfxfer.task import SINGLE_LABEL, Task


def opened(folder: Path, **options) -> FolderSource:
    return open_folder(parse_spec(f"folder:{folder}"), **options)


def ids(source: FolderSource, name: str) -> list[str]:
    return [row[0].decode() for row in source.read(name).as_numpy_iterator()]


@pytest.fixture
def pets(tmp_path) -> Path:
    """Two classes of two images, without splits."""
    for seed, name in enumerate(["cat/1.jpg", "cat/2.jpg", "dog/1.jpg", "dog/2.jpg"]):
        save(tmp_path / "pets" / name, picture(seed))
    return tmp_path / "pets"


def test_folder_without_splits_is_train(pets):
    source = opened(pets)
    assert source.info == DataInfo(
        "folder:pets", Task(SINGLE_LABEL, ("cat", "dog")), IMAGE, (48, 64, 3), {"train": 4}
    )
    assert ids(source, "train") == ["cat/1.jpg", "cat/2.jpg", "dog/1.jpg", "dog/2.jpg"]
    assert source.labels("train").tolist() == [0, 0, 1, 1]
    assert source.where("train", 2) == "dog/1.jpg"
    assert source.bad == ()


@pytest.mark.parametrize(
    ("folders", "splits"),
    [
        (("train", "val", "test"), ["train", "validation", "test"]),
        (("Training", "valid"), ["train", "validation"]),
        (("train", "dev", "testing"), ["train", "validation", "test"]),
        (("train", "test", "unlabeled"), ["train", "test"]),
    ],
)
def test_split_folders_by_usual_names(tmp_path, folders, splits):
    for seed, folder in enumerate(folders):
        for label in ("a", "b"):
            save(tmp_path / folder / label / "1.png", picture(seed))
    source = opened(tmp_path)
    assert list(source.info.examples) == splits
    assert ids(source, "train") == [f"{folders[0]}/a/1.png", f"{folders[0]}/b/1.png"]
    assert source.bad == ()


def test_class_of_trains_is_a_class(tmp_path):
    for label in ("train", "bus"):
        save(tmp_path / label / "1.png", picture(0))
    assert opened(tmp_path).info.task.names == ("bus", "train")


def test_nested_folders_links_and_other_files(pets, tmp_path):
    save(pets / "cat" / "by day" / "früh ☀.png", picture(7))
    save(tmp_path / "elsewhere" / "3.jpg", picture(8))
    (pets / "dog" / "more").symlink_to(tmp_path / "elsewhere")
    (pets / "dog" / "around").symlink_to(pets / "dog")
    save(pets / "cat" / ".hidden.jpg", picture(9))
    (pets / "cat" / "Thumbs.db").write_bytes(b"x")
    (pets / "cat" / "notes.txt").write_text("x")
    (pets / "about.txt").write_text("x")
    source = opened(pets)
    assert ids(source, "train") == [
        "cat/1.jpg",
        "cat/2.jpg",
        "cat/by day/früh ☀.png",
        "dog/1.jpg",
        "dog/2.jpg",
        "dog/more/3.jpg",
    ]
    assert source.bad == ()


def test_name_that_is_not_unicode(pets):
    name = os.fsdecode(b"caf\xe9.jpg")
    save(pets / "cat" / "3.jpg", picture(3)).rename(pets / "cat" / name)
    source = opened(pets)
    assert source.where("train", 2) == "cat/caf\ufffd.jpg"
    rows = list(source.split("train").as_numpy_iterator())
    assert rows[2][0] == b"cat/caf\xe9.jpg"
    assert rows[2][1].shape == (48, 64, 3)


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".webp", ".gif", ".PNG"])
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "LA"])
def test_pixels_are_those_of_pillow(tmp_path, suffix, mode):
    image = Image.fromarray(picture(0)).convert(mode)
    for label in ("a", "b"):
        path = tmp_path / label / f"1{suffix}"
        path.parent.mkdir()
        try:
            image.save(path, lossless=True)
        except OSError:
            pytest.skip(f"Pillow writes no {mode} as {suffix}")
    header = read_header(str(tmp_path / "a" / f"1{suffix}"))
    if isinstance(header, str):
        assert (suffix, mode, "palette" in header) == (".bmp", "P", True)
        return
    source = opened(tmp_path)
    (_, pixels, _), _ = source.split("train").as_numpy_iterator()
    with Image.open(path) as again:
        # Transparency is dropped, not mixed in.
        base = again.convert("RGBA").convert("RGB")
    expected = np.asarray(base)
    gray = suffix.lower() == ".png" and mode in ("L", "LA")
    assert source.info.shape == (48, 64, 1 if gray else 3)
    np.testing.assert_array_equal(pixels, expected[..., :1] if gray else expected)


def test_sixteen_bits_keep_the_upper_eight(tmp_path):
    wide = np.arange(48 * 64, dtype=np.uint16).reshape(48, 64) * 21
    for label in ("a", "b"):
        save(tmp_path / label / "1.png", wide)
    (_, pixels, _), _ = opened(tmp_path).split("train").as_numpy_iterator()
    np.testing.assert_array_equal(pixels[..., 0], wide >> 8)


def test_shape_is_what_images_have_in_common(pets):
    save(pets / "cat" / "3.png", picture(3, (48, 50), 1))
    assert opened(pets).info.shape == (48, None, 3)
    assert {row[1].shape[-1] for row in opened(pets).split("train").as_numpy_iterator()} == {3}


# Each way in which a file can be wrong, and what is said of it.
def zero_bytes(path: Path) -> str:
    path.write_bytes(b"")
    return "is empty (0 bytes)"


def text(path: Path) -> str:
    path.write_text("no image at all")
    return "is no JPEG, PNG, GIF, BMP or WebP image"


def huge(path: Path) -> str:
    bomb(path)
    assert path.stat().st_size < 200_000
    return "has more than 89,478,485 pixels, which are not decoded"


def large(path: Path) -> str:
    bomb(path, 9_500)  # Pillow only warns of it.
    return "has more than 89,478,485 pixels, which are not decoded"


def lost_link(path: Path) -> str:
    path.symlink_to(path.with_name("nowhere"))
    return "does not exist"


def pipe(path: Path) -> str:
    os.mkfifo(path)
    return "is no file"


@pytest.mark.parametrize("make", [zero_bytes, text, huge, large, lost_link, pipe])
def test_bad_files_are_found_by_their_headers_and_the_rest_is_usable(pets, make):
    good = opened(pets)
    reason = make(pets / "cat" / "1b.jpg")
    source = opened(pets)
    assert source.bad == (BadExample("cat/1b.jpg", reason, "train", 1),)
    with pytest.raises(UserError, match=r"cat/1b\.jpg .*skip_bad"):
        stop_for_bad(source.bad, skip_bad=False)
    stop_for_bad(source.bad, skip_bad=True)
    assert source.info.examples == {"train": 5}
    assert source.labels("train").tolist() == [0, 0, 0, 1, 1]
    kept = list(source.split("train", np.array([0, 2, 3, 4])).as_numpy_iterator())
    assert [row[0] for row in kept] == [row[0] for row in good.read("train").as_numpy_iterator()]
    assert scan(source, ["train"]).bad == ()


def test_truncated_image_is_found_by_the_scan(pets):
    truncate(pets / "dog" / "1.jpg")
    source = opened(pets)
    assert source.bad == ()
    (bad,) = scan(source, ["train"]).bad
    assert (bad.where, bad.split, bad.row) == ("dog/1.jpg", "train", 2)
    assert bad.reason.startswith("cannot be decoded: ")


def test_empty_class_folder(pets):
    (pets / "bird").mkdir()
    source = opened(pets)
    assert source.bad == (BadExample("bird", "is a class folder without images", "train", -1),)
    assert source.info.task.names == ("cat", "dog")
    assert source.info.examples == {"train": 4}


def test_images_in_no_class_folder(pets):
    for name in ("a.jpg", "b.jpg"):
        save(pets / name, picture(5))
    reason = "is in no class folder, as are 1 more"
    assert opened(pets).bad == (BadExample("a.jpg", reason, "train", -1),)


def test_class_in_test_that_train_lacks(tmp_path):
    for seed, name in enumerate(["train/a/1", "train/b/1", "test/a/2", "test/c/2", "test/c/3"]):
        save(tmp_path / f"{name}.png", picture(seed))
    source = opened(tmp_path)
    reason = "is of class 'c', which has no image in train"
    assert source.bad == (
        BadExample("test/c/2.png", reason, "test", 1),
        BadExample("test/c/3.png", reason, "test", 2),
    )
    assert source.info.task.names == ("a", "b")
    assert source.labels("test").tolist() == [0, -1, -1]


def test_class_without_usable_images_is_none(pets):
    (pets / "ant").mkdir()
    (pets / "ant" / "1.jpg").write_bytes(b"")
    source = opened(pets)
    assert source.info.task.names == ("cat", "dog")
    assert [example.where for example in source.bad] == ["ant/1.jpg"]


def test_one_class_only(tmp_path):
    save(tmp_path / "a" / "1.png", picture(0))
    with pytest.raises(UserError, match=r"and has only 'a'.*one level too deep or too high"):
        opened(tmp_path)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "1.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"has only 'a'; b/1\.png is empty"):
        opened(tmp_path)


def test_what_is_no_folder_of_images(tmp_path, pets):
    with pytest.raises(UserError, match="must name a folder"):
        opened(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no option 'size'"):
        open_folder(parse_spec(f"folder:{pets}(size=3)"))
    with pytest.raises(UserError, match="the task is regression"):
        opened(pets, task="regression")
    for name in ("val/a/1.png", "test/a/1.png"):
        save(tmp_path / "parts" / name, picture(0))
    with pytest.raises(UserError, match="must have a folder 'train' beside 'test' and 'val'"):
        opened(tmp_path / "parts")
    for name in ("train/a/1.png", "valid/a/1.png"):
        save(tmp_path / "parts" / name, picture(0))
    with pytest.raises(UserError, match="one folder for validation, and has 'val' and 'valid'"):
        opened(tmp_path / "parts")


def test_headers_come_in_order(pets):
    paths = [str(pets / name) for name in ("cat/1.jpg", "nowhere", "dog/2.jpg")]
    assert read_headers(paths) == [Header((48, 64), 3), "does not exist", Header((48, 64), 3)]
    cut = truncate(save(pets / "x.png", picture(0)))
    cut.write_bytes(cut.read_bytes()[:12])
    assert isinstance(read_header(str(cut)), str)


@pytest.mark.parametrize("suffix", [".tif", ".TIFF", ".heic", ".avif"])
def test_image_of_a_format_that_is_not_read(pets, suffix):
    path = pets / "cat" / f"0{suffix}"
    Image.fromarray(picture(0)).save(path, "TIFF")
    reason = "is of no format that is read here; convert it to JPEG or PNG"
    assert opened(pets).bad == (BadExample(f"cat/0{suffix}", reason, "train", 0),)
    assert opened(pets).labels("train").tolist() == [0, 0, 0, 1, 1]


def test_file_instead_of_a_folder(tmp_path):
    file = tmp_path / "photos.csv"
    file.write_text("image,label\n")
    with pytest.raises(UserError, match=r"is a file\. Write csv:.*photos\.csv"):
        opened(file)
    image = save(tmp_path / "cat.png", picture(0))
    with pytest.raises(UserError, match=r"is a file\. Name the folder"):
        opened(image)
    with pytest.raises(UserError, match=r"must name a folder.* has no \) at its end"):
        opened(tmp_path / "photos(size=3")


def test_large_folders_are_hashed_by_the_first_files(pets, monkeypatch):
    paths = [str(path) for path in sorted(pets.rglob("*.jpg"))]
    times = [Path(path).stat() for path in paths]

    def overwrite(path: str) -> None:
        at = paths.index(path)
        data = bytearray(Path(path).read_bytes())
        data[-3] ^= 1
        Path(path).write_bytes(data)
        os.utime(path, ns=(times[at].st_atime_ns, times[at].st_mtime_ns))

    monkeypatch.setattr("tfxfer.data.images._WHOLE", 10)
    monkeypatch.setattr("tfxfer.data.images._FIRST", 2)
    before = hash_files(paths)
    overwrite(paths[3])
    assert hash_files(paths) == before
    overwrite(paths[1])
    changed = hash_files(paths)
    assert changed != before
    os.utime(paths[3], ns=(0, 0))
    assert hash_files(paths) != changed


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("Train", "train"),
        (" val ", "validation"),
        ("TESTING", "test"),
        ("trains", None),
        ("", None),
    ],
)
def test_names_of_splits(name, split):
    assert split_named(name) == split
