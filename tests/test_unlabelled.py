"""Examples to learn from without their labels, of tables and of what is left of the data."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tests.memory import Memory
from tfxfer.config import RunConfig
from tfxfer.data.arrays import open_arrays, open_inputs
from tfxfer.data.base import DataSource
from tfxfer.data.parts import Part
from tfxfer.data.sources import open_dataset
from tfxfer.data.table import open_table
from tfxfer.errors import UserError
from tfxfer.methods import unlabelled
from tfxfer.methods.cache import configured_cache
from tfxfer.methods.data import ready_data
from tfxfer.methods.opening import Opened
from tfxfer.spec import parse_spec
from tfxfer.task import REGRESSION, SINGLE_LABEL, Task
from tfxfer.timing import Stopwatch

TEXTS = np.array([f"text {i}" for i in range(40)])


@pytest.fixture
def found(tmp_path):
    """What a run on a source would learn from without labels, and the source's parts."""

    def find(
        source: DataSource, other: DataSource | None = None, **settings: Any
    ) -> tuple[Part, Any]:
        config = RunConfig(mode="distill", cache_dir=str(tmp_path / "cache"), **settings)
        data, backbone = ready_data(config, source), None
        cache: Any = configured_cache(config)
        strategy: Any = tf.distribute.get_strategy()
        shared = Opened(config, strategy, backbone, data, cache, Stopwatch())  # pyright: ignore[reportArgumentType]
        part = unlabelled.unlabelled_part(config, shared, other)
        assert part is not None
        return part, data.splits[0]

    return find


def texts() -> DataSource:
    return open_arrays((TEXTS, np.arange(len(TEXTS)) % 2))


def inputs(part: Part) -> list[str]:
    return [x.decode() for _, x, _ in part.dataset.as_numpy_iterator()]


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("lines", [("text", "x", "y"), ("text,label", "x,", "y,a")])
def test_labels_of_a_table_are_not_looked_at(lines, tmp_path):
    spec = parse_spec(f"csv:{write(tmp_path / 't.csv', *lines)}")
    with pytest.raises(UserError):
        open_table(spec)
    task = Task(SINGLE_LABEL, ("a", "b"))
    source = open_table(spec, unlabelled=task)
    assert (source.info.task, source.info.examples, source.bad) == (task, {"train": 2}, ())
    assert source.labels("train").tolist() == [-1, -1]
    numbers = open_table(spec, unlabelled=Task(REGRESSION, ("n", "m"))).labels("train")
    np.testing.assert_array_equal(numbers, np.full((2, 2), np.nan))


def test_without_its_labels_a_table_is_another_one(tmp_path):
    spec = parse_spec(f"csv:{write(tmp_path / 't.csv', 'text,label', 'x,a', 'y,b')}")
    source = open_table(spec)
    assert open_table(spec, unlabelled=source.info.task).fingerprint != source.fingerprint


@pytest.mark.parametrize("scanned", [True, False])
def test_a_table_needs_no_labels(scanned, found, tmp_path, monkeypatch):
    file = write(tmp_path / "more.csv", "text", "new", *TEXTS)
    if not scanned:
        monkeypatch.setattr(unlabelled, "scan", None)  # Nothing is looked at.
    part, splits = found(texts(), unlabeled=f"csv:{file}", scan=scanned)
    held = {*inputs(splits.validation), *inputs(splits.test)} if scanned else set()
    assert inputs(part) == ["new", *(text for text in TEXTS if text not in held)]
    assert part.labels.tolist() == [-1] * part.examples


def test_empty_texts_are_left_out_only_if_that_is_said(found, tmp_path):
    spec = f"csv:{write(tmp_path / 'more.csv', 'text,label', 'new,', ' ,a', 'other,b')}"
    with pytest.raises(UserError, match=r"more\.csv line 3 has an empty 'text'"):
        found(texts(), unlabeled=spec)
    part, _ = found(texts(), unlabeled=spec, skip_bad=True)
    assert inputs(part) == ["new", "other"]


def test_pairs_and_single_texts_do_not_mix(found, tmp_path):
    single = f"csv:{write(tmp_path / 'single.csv', 'text', 'new')}"
    lines = [f"{a},other,{i % 2}" for i, a in enumerate(TEXTS)]
    file = write(tmp_path / "pairs.csv", "text,second,label", *lines)
    pairs = f"csv:{file}(text=text,pair=second)"
    for source, other, says in (
        (open_dataset(pairs), single, r"pairs of texts, and csv:single\.csv holds texts"),
        (texts(), pairs, r"texts, and csv:pairs\.csv holds pairs of texts"),
    ):
        with pytest.raises(UserError, match=f"must hold {says}"):
            found(source, unlabeled=other)


@pytest.mark.parametrize(
    "held_as",
    [np.array, list, tf.data.Dataset.from_tensor_slices],
    ids=["array", "list", "tf.data"],
)
def test_what_python_holds_needs_no_labels(held_as, found):
    more = open_inputs(held_as(["new", *TEXTS]))
    part, splits = found(texts(), unlabeled="inputs", other=more)
    held = {*inputs(splits.validation), *inputs(splits.test)}
    assert inputs(part) == ["new", *(text for text in TEXTS if text not in held)]


@pytest.mark.parametrize(
    "held_as",
    [
        tuple,
        lambda pair: tf.data.Dataset.from_tensors(pair),
        dict.fromkeys,
        lambda _: None,
        lambda _: [],
        lambda _: 5,
    ],
    ids=["pair", "tf.data", "splits", "none", "empty", "number"],
)
def test_inputs_alone_are_wanted(held_as):
    with pytest.raises(UserError, match=r"(?s)inputs .*without labels.*Give x alone"):
        open_inputs(held_as(("x", "y")))


class Twins(Memory):
    """Every image of the first half once more in the second."""

    def image(self, row):
        return super().image(row % 30)


def test_the_rest_has_nothing_that_is_held_out(found):
    source, settings = Twins(train=60), {"unlabeled": "rest", "max_examples": 10}
    part, splits = found(source, **settings)
    held = {int(row) % 30 for each in (splits.validation, splits.test) for row in each.rows}
    assert part.examples
    assert not held & {int(row) % 30 for row in part.rows}
    whole, _ = found(source, **settings, scan=False)
    assert held & {int(row) % 30 for row in whole.rows}


def test_files_of_a_dataset_that_is_not_downloaded_are_found(found, monkeypatch):
    asked = {}

    def opened(*args, **options):
        asked.update(options)
        return Memory(train=4)

    monkeypatch.setattr(unlabelled, "open_unlabelled", opened)
    part, _ = found(Memory(train=40), unlabeled="any", tfds_manual_dir="/mine", scan=False)
    assert (part.examples, asked["manual_dir"]) == (4, "/mine")
