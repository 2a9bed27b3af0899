"""TFDS names, prepared folders and their parts, and what is said where they cannot be had."""

import hashlib
import socket
import subprocess
import sys
import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from sklearn.datasets import load_digits
from tensorflow_datasets.core.download.checksums import UrlInfo

from tfxfer.data import availability, tfds_source
from tfxfer.data.availability import check_available
from tfxfer.data.base import DataInfo
from tfxfer.data.labels import no_labels
from tfxfer.data.scan import scan
from tfxfer.data.sources import open_unlabelled
from tfxfer.data.tfds_source import TfdsSource, open_tfds
from tfxfer.errors import UserError
from tfxfer.spec import parse_spec
from tfxfer.task import MULTI_LABEL, REGRESSION, SINGLE_LABEL, Task

features = tfds.features


def opened(spec: str, data_dir, **settings) -> TfdsSource:
    return open_tfds(parse_spec(spec), data_dir=str(data_dir), **settings)


def rows(dataset: tf.data.Dataset) -> list[tuple]:
    return list(dataset.as_numpy_iterator())


def ids(source: TfdsSource, name: str) -> list[bytes]:
    return [row[0] for row in rows(source.read(name))]


def store(folder: Path, kinds: dict, **splits: list[dict]) -> Path:
    """Writes a dataset of no class, as its owner would; returns its folder."""
    tfds.dataset_builders.store_as_tfds_dataset(
        name="mine",
        version="1.0.0",
        data_dir=folder,
        features=features.FeaturesDict(kinds),
        split_datasets={name: list(enumerate(examples)) for name, examples in splits.items()},
    )
    return folder / "mine" / "1.0.0"


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """Where the digits are prepared."""
    folder = tmp_path_factory.mktemp("prepared")
    opened("digits", folder)
    return folder


@pytest.fixture
def no_network(monkeypatch):
    """Every connection fails at once, and none goes through a proxy."""

    def refuse(address, *_, **__):
        raise OSError(f"no route to {address}")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr("urllib.request.getproxies", dict)


@pytest.fixture
def untouched(monkeypatch):
    """The hosts that are asked for: a test that ends with none has not gone there."""
    asked = []

    def ask(address, *_, **__):
        asked.append(address)
        raise OSError

    monkeypatch.setattr(socket, "create_connection", ask)
    monkeypatch.setattr("urllib.request.getproxies", dict)
    yield asked
    assert not asked


NOTES = "".join(f"note {row}\t{'good' if row % 2 else 'bad'}\n" for row in range(12))


class TinyNotes(tfds.core.GeneratorBasedBuilder):
    """A dataset whose files are downloaded, as those of TFDS are."""

    VERSION = tfds.core.Version("1.0.0")
    url: ClassVar[str] = "http://127.0.0.1:9/notes.tsv"
    url_infos: ClassVar = {
        url: UrlInfo(
            size=tfds.core.utils.Size(len(NOTES)),
            checksum=hashlib.sha256(NOTES.encode()).hexdigest(),
            filename="notes.tsv",
        )
    }

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            features=features.FeaturesDict(
                {"note": features.Text(), "mood": features.ClassLabel(names=["bad", "good"])}
            ),
            supervised_keys=("note", "mood"),
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(dl_manager.download(self.url))}

    def _generate_examples(self, path):
        for row, line in enumerate(Path(path).read_text().splitlines()):
            note, mood = line.split("\t")
            yield row, {"note": note, "mood": mood}


@pytest.fixture
def notes(tmp_path) -> Path:
    """A folder with the file that `tiny_notes` needs."""
    folder = tmp_path / "by_hand"
    folder.mkdir()
    (folder / "notes.tsv").write_text(NOTES)
    return folder


# What can be had, before TensorFlow is imported.


OFFLINE = """
import socket, sys, urllib.request
def refuse(*_, **__):
    raise OSError
socket.create_connection = refuse
urllib.request.getproxies = dict
from tfxfer.data.availability import check_available
try:
    check_available(sys.argv[1], data_dir=sys.argv[2])
except ValueError as error:
    print(error)
print("tensorflow" in sys.modules)
"""


def ask_offline(name: str, data_dir: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", OFFLINE, name, str(data_dir)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.parametrize("name", ["mnist", "mnist:3.*.*", "accentdb"])
def test_without_a_network_the_answer_says_what_to_do(name, tmp_path):
    done = ask_offline(name, tmp_path)
    assert done.stderr == ""  # Of TFDS' warnings, too, there is none.
    answer, imported = done.stdout.splitlines()
    assert imported == "False"
    assert "the network is not there" in answer
    assert "cannot be reached" in answer
    assert "--tfds_manual_dir=DIR with " in answer
    if "mnist" in name:
        assert "storage.googleapis.com" in answer
        assert "train-labels-idx1-ubyte.gz" in answer


@pytest.mark.slow
@pytest.mark.timed
def test_without_a_network_the_answer_comes_at_once(tmp_path):
    def seconds() -> float:
        began = time.monotonic()
        assert "cannot be reached" in ask_offline("mnist", tmp_path).stdout
        return time.monotonic() - began

    assert min(seconds() for _ in range(3)) < 2


def test_a_network_that_never_answers_is_not_waited_for(monkeypatch):
    over = threading.Event()

    def hang(*_, **__):
        over.wait()
        raise OSError

    monkeypatch.setattr(socket, "create_connection", hang)
    began = time.monotonic()
    assert not availability.is_reachable("127.0.0.1", 80)
    assert time.monotonic() - began < 1.8
    over.set()


def test_name_that_is_not_prepared_is_told_where_downloads_are_off(untouched, tmp_path):
    with pytest.raises(UserError, match=r"'mnist' is not prepared in .*tfds build mnist"):
        check_available("mnist", str(tmp_path), download=False)
    with pytest.raises(UserError, match="not prepared"):
        opened("mnist", tmp_path, download=False)


def test_prepared_data_and_generated_data_need_no_network(untouched, home, tmp_path):
    check_available("digits", str(home), download=False)
    check_available("digits:1.*.*", str(home), download=False)
    check_available("digits", str(tmp_path), download=False)  # Generated from a file at hand.
    check_available(str(home / "digits" / "1.0.0"), download=False)


def test_version_that_is_prepared_is_pointed_out(untouched, tmp_path):
    old = tmp_path / "tiny_notes" / "0.9.0"
    old.mkdir(parents=True)
    (old / "dataset_info.json").write_text("{}")
    with pytest.raises(UserError, match=r"version 0\.9\.0 is: tiny_notes:0\.9\.0"):
        check_available("tiny_notes", str(tmp_path), download=False)


def test_proxy_is_left_to_tfds(untouched, monkeypatch, tmp_path):
    monkeypatch.setattr("urllib.request.getproxies", lambda: {"https": "http://proxy:3128"})
    monkeypatch.setattr("urllib.request.proxy_bypass", lambda host: False)
    check_available("mnist", str(tmp_path))


def test_files_by_hand_take_the_place_of_a_network(no_network, notes, tmp_path):
    check_available("tiny_notes", str(tmp_path), manual_dir=str(notes))
    (notes / "notes.tsv").rename(notes / "other.tsv")
    with pytest.raises(UserError, match=r"holds none of its files.*with notes\.tsv"):
        check_available("tiny_notes", str(tmp_path), manual_dir=str(notes))
    with pytest.raises(UserError, match="must be a folder"):
        check_available("tiny_notes", str(tmp_path), manual_dir=str(notes / "none"))


@pytest.mark.parametrize(
    "name",
    [
        "no_such_data",
        "digits:x",
        "digits:9.9.9",
        "digits/other",
        "huggingface:mnist",
        "kaggle:mnist",
        "a/b/c",
    ],
)
def test_unknown_names_are_user_errors(name, no_network, tmp_path):
    with pytest.raises(UserError, match="cannot be opened by TensorFlow Datasets"):
        opened(name, tmp_path)


def test_close_names_are_suggested(tmp_path):
    with pytest.raises(UserError, match=r"Did you mean .*mnist"):
        check_available("mnits", str(tmp_path))
    store(tmp_path, {"x": features.Text(), "y": np.int64}, train=[{"x": "a", "y": 0}])
    with pytest.raises(UserError, match="Did you mean mine"):
        check_available("mime", str(tmp_path))


def test_path_of_no_prepared_data_is_told_as_such(tmp_path):
    with pytest.raises(UserError, match=r"holds none.*folder:"):
        check_available(str(tmp_path))
    with pytest.raises(UserError, match="does not exist"):
        check_available(str(tmp_path / "none"))


# Preparing.


def test_files_by_hand_are_prepared_without_a_network(untouched, notes, tmp_path, capfd):
    source = opened("tiny_notes", tmp_path, download=False, manual_dir=str(notes))
    assert capfd.readouterr().out == ""
    assert source.info == DataInfo(
        "tiny_notes/1.0.0", Task(SINGLE_LABEL, ("bad", "good")), "text", (), {"train": 12}
    )
    found = {(text, int(y)) for _, text, y in rows(source.split("train"))}
    assert found == {(f"note {row}".encode(), row % 2) for row in range(12)}
    again = opened("tiny_notes:1.*.*", tmp_path, download=False)
    assert again.fingerprint == source.fingerprint


def test_wrong_file_by_hand_is_named(no_network, notes, tmp_path):
    (notes / "notes.tsv").write_text("other")
    with pytest.raises(UserError, match=rf"{notes}/notes\.tsv, has wrong checksum") as caught:
        opened("tiny_notes", tmp_path, manual_dir=str(notes))
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("tiny_notes/1.0.0"))


@pytest.mark.parametrize(("download", "reason"), [(True, "network is not"), (False, "is off")])
def test_missing_file_is_named_at_once(no_network, monkeypatch, notes, tmp_path, download, reason):
    other = TinyNotes.url.replace("notes", "more")
    both = {**TinyNotes.url_infos, other: UrlInfo(tfds.core.utils.Size(1), "00", "more.tsv")}
    monkeypatch.setattr(TinyNotes, "url_infos", both)
    monkeypatch.setattr(TinyNotes, "url", other)
    with pytest.raises(UserError, match=rf"needs more\.tsv from http.* not in {notes}.*{reason}"):
        opened("tiny_notes", tmp_path, manual_dir=str(notes), download=download)


def test_files_are_downloaded_where_there_is_a_network(monkeypatch, notes, tmp_path):
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format, *args):
            del format, args

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(notes))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/notes.tsv"
        monkeypatch.setattr("urllib.request.getproxies", dict)
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        monkeypatch.setattr(TinyNotes, "url_infos", {url: TinyNotes.url_infos[TinyNotes.url]})
        monkeypatch.setattr(TinyNotes, "url", url)
        source = opened("tiny_notes", tmp_path)
        server.shutdown()
    assert source.info.examples == {"train": 12}


def test_downloads_that_are_left_from_before_are_taken_up(no_network, tmp_path):
    kept = tmp_path / "downloads" / "tiny_notes" / "notes.tsv"
    kept.parent.mkdir(parents=True)
    kept.write_text(NOTES)
    check_available("tiny_notes", str(tmp_path))


def test_files_in_the_folder_where_tfds_looks_for_them_are_found(untouched, notes, tmp_path):
    (tmp_path / "data" / "downloads").mkdir(parents=True)
    notes.rename(tmp_path / "data" / "downloads" / "manual")
    assert opened("tiny_notes", tmp_path / "data", download=False).info.examples == {"train": 12}


# The digits.


def test_digits_are_scikit_learns(home):
    images, labels = load_digits(return_X_y=True)
    expected = {
        (np.rint(image * 255 / 16).astype(np.uint8).tobytes(), label)
        for image, label in zip(images, labels, strict=True)
    }
    source = opened("digits", home)
    found = [
        (image.tobytes(), label)
        for name in ("train", "test")
        for _, image, label in rows(source.split(name))
    ]
    assert len(found) == 1797
    assert set(found) == expected


def test_digits_test_split_is_stratified_and_fixed(home):
    source = opened("digits", home)
    counts = np.bincount(source.labels("test"))
    assert counts.sum() == 360
    assert counts.min() >= 35
    assert counts.max() <= 37
    assert ids(source, "test") == ids(opened("digits", home), "test")


def test_digits_is_a_tfds_dataset_like_any_other(home):
    loaded, info = tfds.load("digits", data_dir=home, with_info=True, download=False)
    assert info.splits["train"].num_examples == 1437
    assert len(loaded["test"]) == 360
    task = Task(SINGLE_LABEL, tuple("0123456789"))
    assert opened("digits", home).info == DataInfo(
        "digits/1.0.0", task, "image", (8, 8, 1), {"train": 1437, "test": 360}
    )


def test_labels_come_in_the_order_of_the_split(home, monkeypatch):
    source = opened("digits", home)
    found = [y for _, _, y in rows(source.read("train"))]
    assert source.labels("train").dtype == np.int64
    assert source.labels("train").tolist() == found
    monkeypatch.setattr(tfds_source, "_HASHED_WHOLE", 0)  # Read anew, not kept from the hashing.
    assert opened("digits", home).labels("train").tolist() == found


def test_chosen_rows_are_those_rows(home):
    source = opened("digits", home)
    everything = rows(source.split("test"))
    chosen = source.split("test", np.array([3, 5, 359]))
    assert int(chosen.cardinality()) == 3
    assert [row[0] for row in rows(chosen)] == [everything[i][0] for i in (3, 5, 359)]
    np.testing.assert_array_equal(rows(chosen)[1][1], everything[5][1])
    assert source.where("test", 5) == f"{everything[5][0].decode()} of digits/1.0.0"


def test_images_are_given_encoded_and_decoded(home):
    source = opened("digits", home)
    (_, raw, _) = rows(source.read("test", np.array([0])))[0]
    assert raw.startswith(b"\x89PNG")
    image = source.decode(tf.constant(raw))
    assert (image.shape, image.dtype) == ((8, 8, 1), tf.uint8)
    assert len(raw) < source.raw_bytes < 2 * len(raw)


@pytest.mark.parametrize(
    "change",
    [
        lambda images, labels: (images, np.roll(labels, 1)),
        lambda images, labels: (np.roll(images, 1, axis=0), labels),
    ],
)
def test_fingerprint_tells_datasets_of_equal_size_apart(home, tmp_path, monkeypatch, change):
    fingerprint = opened("digits", home).fingerprint
    assert opened("digits", tmp_path / "same").fingerprint == fingerprint
    images, labels = load_digits(return_X_y=True)
    monkeypatch.setattr("sklearn.datasets.load_digits", lambda **_: change(images, labels))
    assert opened("digits", tmp_path / "other").fingerprint != fingerprint


def test_fingerprint_does_not_depend_on_the_number_of_files(home, tmp_path):
    builder = tfds.builder("digits", data_dir=tmp_path)
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(num_shards=3))
    source = opened("digits", tmp_path)
    assert len(list(tmp_path.glob("digits/1.0.0/*train*"))) == 3
    assert source.fingerprint == opened("digits", home).fingerprint


@pytest.mark.parametrize("whole", [True, False])
def test_fingerprint_tells_parts_apart(home, monkeypatch, whole):
    if not whole:
        monkeypatch.setattr(tfds_source, "_HASHED_WHOLE", 0)
        monkeypatch.setattr(tfds_source, "_HASHED_FIRST", 10)
    parts = ("train", "train[:20]", "train[20:40]", "train[:10]+train[30:40]", "train[:20%]")
    found = {opened(f"digits(train={part})", home).fingerprint for part in parts}
    assert len(found) == len(parts)


def flip(data: bytearray) -> None:
    data[len(data) // 2] ^= 0xFF


def cut(data: bytearray) -> None:
    del data[len(data) // 2 :]


@pytest.mark.parametrize("damage", [flip, cut, bytearray.clear])
def test_damaged_file_is_a_user_error(tmp_path, damage):
    opened("digits", tmp_path)
    (file,) = (tmp_path / "digits" / "1.0.0").glob("*train*record*")
    data = bytearray(file.read_bytes())
    damage(data)
    file.write_bytes(data)
    with pytest.raises(UserError, match=r"damaged file.*Delete"):
        opened("digits", tmp_path)
    file.unlink()
    with pytest.raises(UserError, match=r"damaged file.*Delete"):
        opened("digits", tmp_path)


# Parts, and prepared folders.


def test_parts_are_cut_as_tfds_cuts_them(home):
    whole = ids(opened("digits", home), "train")
    source = opened("digits(train=train[:80%],validation=train[80%:])", home)
    assert source.info.examples == {"train": 1150, "validation": 287, "test": 360}
    assert ids(source, "train") + ids(source, "validation") == whole
    assert source.where("validation", 7) == f"{whole[1157].decode()} of digits/1.0.0"
    assert len(source.labels("validation")) == 287
    both = opened("digits(train=train+test,test=none)", home)
    assert both.info.examples == {"train": 1797}
    assert len(set(ids(both, "train"))) == 1797


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ("train=train[:80%],validation=train[70%:]", "share examples.*test=none"),
        ("validation=train[80%:]", "train=train and validation=.* share examples"),
        ("train=train+test", "share examples"),
        ("train=train+train[:1]", "has examples twice"),
        ("train=learn", "'learn' is no part of dataset digits/1.0.0.*train .1437"),
        ("train=train[", "is no part of"),
        ("train=train[:0%]", "holds no examples"),
        ("train=7", "is no part of"),
        ("extra=train", "no option 'extra'"),
    ],
)
def test_parts_that_cannot_be_are_refused(home, parts, message):
    with pytest.raises(UserError, match=message):
        opened(f"digits({parts})", home)


def test_prepared_folder_is_read_without_its_class(untouched, home):
    source = opened(str(home / "digits" / "1.0.0"), "")
    named = opened("digits", home)
    assert source.info == named.info
    assert source.fingerprint == named.fingerprint
    cut = opened(f"{home / 'digits' / '1.0.0'}(test=test[:9])", "")
    assert cut.info.examples == {"train": 1437, "test": 9}


# Features and tasks.


def examples(count: int, **make) -> list[dict]:
    return [{key: value(row) for key, value in make.items()} for row in range(count)]


def test_own_images_are_read_by_name(tmp_path):
    kinds = {
        "photo": features.Image(shape=(None, None, 3)),
        "kind": features.ClassLabel(names=["cat", "dog"]),
    }
    make = {
        "photo": lambda row: np.full((5 + row, 9, 3), row, np.uint8),
        "kind": lambda row: row % 2,
    }
    store(tmp_path, kinds, train=examples(8, **make), dev=examples(4, **make))
    source = opened("mine", tmp_path)
    assert source.info == DataInfo(
        "mine/1.0.0",
        Task(SINGLE_LABEL, ("cat", "dog")),
        "image",
        (None, None, 3),
        {"train": 8, "validation": 4},
    )
    found = {(image.shape, int(label)) for _, image, label in rows(source.split("validation"))}
    assert found == {((5 + row, 9, 3), row % 2) for row in range(4)}


def test_texts_with_several_labels(tmp_path):
    kinds = {
        "text": features.Text(),
        "tags": features.Sequence(features.ClassLabel(names=["a", "b", "c"])),
    }
    make = {
        "text": lambda row: f"text {row}",
        "tags": lambda row: [tag for tag in range(3) if row >> tag & 1],
    }
    store(tmp_path, kinds, train=examples(8, **make))
    source = opened("mine", tmp_path)
    assert source.info.task == Task(MULTI_LABEL, ("a", "b", "c"))
    assert (source.info.inputs, source.info.shape) == ("text", ())
    for _, text, y in rows(source.split("train")):
        row = int(text.split()[1])
        assert y.dtype == np.float32
        assert y.tolist() == [row & 1, row >> 1 & 1, row >> 2 & 1]
    assert source.labels("train").shape == (8, 3)
    assert source.bad == ()


def test_tables_of_numbers_with_a_number_to_learn(tmp_path):
    kinds = {
        "row": features.Tensor(shape=(3,), dtype=np.float64),
        "price": np.float32,
        "id": features.Text(),
    }
    make = {
        "row": lambda row: np.arange(3.0) + row,
        "price": lambda row: row / 4,
        "id": str,
    }
    store(tmp_path, kinds, train=examples(6, **make))
    source = opened("mine(table=row)", tmp_path)
    assert source.info.task == Task(REGRESSION, ("price",))
    assert (source.info.inputs, source.info.shape) == ("table", (3,))
    for _, x, y in rows(source.split("train")):
        assert (x.dtype, y.dtype, y.shape) == (np.float32, np.float32, (1,))
        np.testing.assert_array_equal(x, np.arange(3) + 4 * y[0])
    several = opened("mine(text=id,target=row)", tmp_path)
    assert several.info.task == Task(REGRESSION, ("row_0", "row_1", "row_2"))
    assert several.info.inputs == "text"
    assert several.labels("train").shape == (6, 3)
    assert several.fingerprint != source.fingerprint


def test_whole_numbers_are_classes_unless_the_task_says_otherwise(tmp_path):
    kinds = {"x": features.Tensor(shape=(2,), dtype=np.int32), "stars": np.int64}
    make = {"x": lambda row: np.array([row, -row], np.int32), "stars": lambda row: row % 4}
    store(tmp_path, kinds, train=examples(8, **make), test=examples(3, **make))
    source = opened("mine", tmp_path)
    assert source.info.task == Task(SINGLE_LABEL, ("0", "1", "2", "3"))
    assert sorted(source.labels("train")) == [0, 0, 1, 1, 2, 2, 3, 3]
    for options, task in (("", REGRESSION), ("(target=stars)", "")):
        source = opened(f"mine{options}", tmp_path, task=task)
        assert source.info.task == Task(REGRESSION, ("stars",))
        assert sorted(source.labels("test").tolist()) == [[0], [1], [2]]


def test_large_whole_numbers_are_no_classes(tmp_path):
    kinds = {"x": features.Text(), "views": np.int64}
    store(tmp_path, kinds, train=examples(5, x=str, views=lambda row: 10**9 * row))
    with pytest.raises(UserError, match=r"labels up to 4000000000.*target=views"):
        opened("mine", tmp_path)


def test_zeros_and_ones_are_labels(tmp_path):
    kinds = {"x": features.Text(), "tags": features.Tensor(shape=(3,), dtype=np.uint8)}
    make = {"x": str, "tags": lambda row: np.array([row % 2, row // 2, row // 3], np.uint8)}
    store(tmp_path, kinds, train=examples(5, **make))
    source = opened("mine", tmp_path)
    assert source.info.task == Task(MULTI_LABEL, ("0", "1", "2"))
    (bad,) = source.bad  # The fifth has a 2.
    assert "labels [0, 2, 1] where each must be 0 or 1" in bad.reason
    assert opened("mine(target=tags)", tmp_path).info.task.kind == REGRESSION


@pytest.mark.parametrize(
    "task", [Task(SINGLE_LABEL, ("a", "b")), Task(REGRESSION, ("n", "m"))], ids=lambda t: t.kind
)
@pytest.mark.parametrize("extra", [{}, {"boxes": features.Sequence(features.BBoxFeature())}])
def test_inputs_that_nobody_looks_at_labels_of_need_none(tmp_path, task, extra):
    kinds = {"x": features.Image(shape=(4, 4, 1)), **extra}
    make = {
        "x": lambda row: np.full((4, 4, 1), row, np.uint8),
        **dict.fromkeys(extra, lambda _: []),
    }
    store(tmp_path, kinds, train=examples(5, **make))
    with pytest.raises(UserError, match="one class label"):
        opened("mine", tmp_path)
    source = open_unlabelled("mine", task, str(tmp_path))
    assert (source.info.task, source.info.inputs, source.bad) == (task, "image", ())
    found = rows(source.split("train", np.array([1, 3])))
    assert len(found) == 2
    assert {image.shape for _, image, _ in found} == {(4, 4, 1)}
    np.testing.assert_array_equal([y for _, _, y in found], no_labels(task, 2))
    np.testing.assert_array_equal(source.labels("train"), no_labels(task, 5))


@pytest.mark.parametrize(
    ("kind", "good", "wrong", "reason"),
    [
        (features.ClassLabel(num_classes=3), 1, -1, "label -1 where 0 to 2"),
        (features.Sequence(features.ClassLabel(num_classes=3)), [0, 2], [0, -1], "label [0, -1]"),
        (features.Scalar(np.float32), 0.5, np.nan, "target nan"),
        (features.Tensor(shape=(2,), dtype=np.float32), [1, 2], [1, np.inf], "target [1.0, inf]"),
        (features.Scalar(np.int64), 1, -2, "label -2"),
    ],
)
def test_labels_out_of_range_are_told_and_hidden_ones_are_not(tmp_path, kind, good, wrong, reason):
    def split(*labels):
        return [
            {"x": f"{row}", "y": np.array(label, getattr(kind, "np_dtype", None))}
            for row, label in enumerate(labels)
        ]

    folder = store(
        tmp_path,
        {"x": features.Text(), "y": kind},
        train=split(good, good, wrong, good),
        test=split(wrong, wrong),
    )
    source = opened(str(folder), "")
    labels = source.labels("train").reshape(4, -1)
    broken = labels == -1 if labels.dtype == np.int64 else np.isnan(labels)
    (bad,) = source.bad
    (row,) = np.flatnonzero(broken.all(axis=1))
    assert broken.any(axis=1).sum() == 1
    assert (bad.split, bad.row) == ("train", row)
    assert reason in bad.reason
    assert bad.where == source.where("train", int(row))
    (found,) = rows(source.read("train", np.array([row])))
    assert found[1] == b"2"
    np.testing.assert_array_equal(np.ravel(found[2]), labels[row])


PAIR = {"a": features.Text(), "b": features.Text(), "y": np.int64}


@pytest.mark.parametrize(
    ("kinds", "options", "task", "message"),
    [
        (PAIR, "", "", r"pair of texts.*a .Text., b .Text., y .*\(text=a,pair=b,label=KEY\)"),
        (PAIR, "pair=b", "", "must name the second of two texts, and text= the first"),
        (PAIR, "text=b,pair=b", "", "must name the second of two texts, and text= the first"),
        (PAIR, "text=a,pair=c", "", r"no feature 'c'.*a, b, y"),
        (PAIR, "text=a,pair=y", "", "must hold"),
        (PAIR, "text=a,pair=b,label=b", "", "must hold"),
        (PAIR, "text=c", "", r"no feature 'c'.*a, b, y"),
        (PAIR, "text=a,label=b", "", "must hold"),
        (PAIR, "text=a,image=b", "", "both image= and text="),
        (PAIR, "text=a,label=y,target=y", "", "both label= and target="),
        (PAIR, "text=a,label=y", REGRESSION, "is for single_label, and the task is regression"),
        (PAIR, "text=a", MULTI_LABEL, "of use for multi_label"),
        (PAIR, "text=a", "ranking", "must be one of"),
        ({"a": features.Text(), "y": np.float32}, "", SINGLE_LABEL, "of use for single_label"),
        ({"a": features.Text(), "y": features.ClassLabel(num_classes=2)}, "", REGRESSION, "of use"),
        ({"a": np.float32, "y": np.float32}, "", "", r"must hold.*\(image=KEY,label=KEY\)"),
        ({"a": features.Image(shape=(2, 2, 4)), "y": np.int64}, "", "", "8-bit image of 1 or 3"),
    ],
)
def test_features_that_do_not_fit_are_refused(tmp_path, kinds, options, task, message):
    def value(kind):
        if isinstance(kind, features.Text):
            return "text"
        return np.zeros((2, 2, 4), np.uint8) if isinstance(kind, features.Image) else 0

    folder = store(tmp_path, kinds, train=[{key: value(kind) for key, kind in kinds.items()}])
    with pytest.raises(UserError, match=message):
        opened(f"{folder}({options})" if options else str(folder), "", task=task)


def test_task_and_text_are_of_the_features_that_are_named(tmp_path):
    make = {"a": str, "b": lambda row: f"b{row}", "y": lambda row: row % 2}
    store(tmp_path, PAIR, train=examples(4, **make))
    source = opened("mine(text=b,label=y)", tmp_path)
    assert {text for _, text, _ in rows(source.split("train"))} == {b"b0", b"b1", b"b2", b"b3"}
    assert opened("mine(text=a,label=y)", tmp_path).fingerprint != source.fingerprint


@pytest.mark.parametrize("options", ["", "(text=premise,pair=hypothesis)"])
def test_pairs_of_texts(tmp_path, options):
    kinds = {"premise": features.Text(), "hypothesis": features.Text(), "idx": np.int32}
    kinds |= {"label": features.ClassLabel(names=["no", "yes"])}
    texts = [("a b", "c"), ("a", "b c"), ("é", "d")]
    make = [
        {"premise": first, "hypothesis": second, "idx": row, "label": row % 2}
        for row, (first, second) in enumerate(texts)
    ]
    store(tmp_path, kinds, train=make)
    source = opened(f"mine{options}", tmp_path)
    assert source.info == DataInfo(
        "mine/1.0.0", Task(SINGLE_LABEL, ("no", "yes")), "text", (2,), {"train": 3}
    )
    assert source.split("train").element_spec[1] == tf.TensorSpec([2], tf.string)
    found = rows(source.split("train"))
    assert {tuple(text.decode() for text in x) for _, x, _ in found} == set(texts)
    ((_, batch, _),) = rows(source.split("train", np.array([0, 2])).batch(2))
    assert batch.tolist() == [found[0][1].tolist(), found[2][1].tolist()]
    assert len(set(scan(source, ["train"]).hashes["train"].tolist())) == 3


def test_fingerprint_tells_pairs_apart(tmp_path):
    def of(folder, first, second, spec="mine(text=a,pair=b,label=y)"):
        if not (tmp_path / folder).exists():
            store(tmp_path / folder, PAIR, train=[{"a": first, "b": second, "y": 0}])
        return opened(spec, tmp_path / folder).fingerprint

    given = [of("0", "ab", "c"), of("1", "a", "bc"), of("2", "abc", "")]
    given += [
        of("0", "", "", f"mine({options},label=y)") for options in ("text=a", "text=b,pair=a")
    ]
    assert len(set(given)) == 5


@pytest.mark.parametrize("options", ["text=a", "text=a,pair=b"])
def test_texts_that_cannot_be_used_are_found_by_the_scan(tmp_path, monkeypatch, options):
    texts = [b"x", b"caf\xe9", b" \n", b"y\0", b""]
    store(
        tmp_path,
        PAIR,
        train=[{"a": text, "b": "b", "y": row % 2} for row, text in enumerate(texts)],
    )
    source = opened(f"mine({options},label=y)", tmp_path)
    stored = [np.ravel(x)[0] for _, x, _ in rows(source.read("train"))]
    monkeypatch.setattr(TfdsSource, "where", None)  # A pass over the files for each.
    found = scan(source, ["train"])
    reasons = {b"caf\xe9": "is not UTF-8", b" \n": "has an empty text", b"": "has an empty text"}
    expected = [(row, reasons[text]) for row, text in enumerate(stored) if text in reasons]
    assert [(each.row, each.reason) for each in found.bad] == expected
    assert found.bad[0].where == f"{ids(source, 'train')[expected[0][0]].decode()} of mine/1.0.0"


def test_second_text_of_a_pair_may_not_be_empty(tmp_path):
    make = {"a": str, "b": lambda row: " " * row, "y": lambda row: row % 2}
    store(tmp_path, PAIR, train=examples(2, **make))
    source = opened("mine(text=a,pair=b,label=y)", tmp_path)
    assert [each.reason for each in scan(source, ["train"]).bad] == ["has an empty text"] * 2


def test_check_is_asked_before_anything_is_opened(monkeypatch, tmp_path):
    def refuse(*arguments):
        raise UserError(f"asked {arguments}", "So it is.")

    monkeypatch.setattr(tfds_source, "check_available", refuse)
    with pytest.raises(UserError, match=r"asked \('mnist', 'DIR', False, 'HAND'\)"):
        open_tfds(parse_spec("mnist"), data_dir="DIR", download=False, manual_dir="HAND")
    assert availability.check_available is check_available
