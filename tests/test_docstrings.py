"""The embedded texts: what is in them, what is not, and when they are made anew."""

from importlib import metadata

import pytest

from tfxfer.data import docstrings
from tfxfer.data.availability import check_available
from tfxfer.data.docstrings import LIBRARIES, Docstrings, docstrings_of, fold, is_test, summary
from tfxfer.data.sources import open_dataset

SOURCE = r'''
"""Of the module."""

def public(x):
    """First \d line.

    Parameters
    ----------
    """
    def inner():
        """Of no use to others."""

if True:
    async def later(): "Later."

class Shown:
    """Shown."""
    def method(self):
        """Method."""
    def _hidden(self):
        """Hidden."""

class _Private:
    """Private."""
    def method(self):
        """Of a private class."""
'''


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> str:
    """Where the texts are prepared."""
    folder = str(tmp_path_factory.mktemp("prepared"))
    open_dataset("docstrings", folder)
    return folder


@pytest.fixture(scope="module")
def splits(home) -> dict[str, list[dict]]:
    builder = Docstrings(data_dir=home)
    return {
        name: list(builder.as_dataset(split=name).as_numpy_iterator()) for name in ("train", "test")
    }


# The dataset.


def test_texts_of_a_file_are_in_one_split(splits):
    files = {name: {e["file"].decode() for e in examples} for name, examples in splits.items()}
    assert not any(map(is_test, files["train"]))
    assert all(map(is_test, files["test"]))
    assert 0.15 < len(splits["test"]) / (len(splits["train"]) + len(splits["test"])) < 0.25


def test_classes_are_about_as_large_in_each_split(splits):
    for examples in splits.values():
        labels = [int(example["label"]) for example in examples]
        counts = [labels.count(label) for label in range(len(LIBRARIES))]
        assert min(counts) > max(counts) / 2
    packages = list(LIBRARIES.values())
    for example in splits["test"]:
        assert example["file"].decode().split("/")[0] == packages[example["label"]]


def test_no_text_is_there_twice_or_names_a_library(splits):
    texts = [example["text"].decode() for each in splits.values() for example in each]
    assert len({fold(text) for text in texts}) == len(texts) > 3000
    assert all(5 <= len(text.split()) <= 60 for text in texts)
    for name in {*LIBRARIES, *LIBRARIES.values(), "sklearn", "tensorflow"}:
        assert not [text for text in texts if name in text.lower()]
    for alias in ("np", "sp", "plt", "mpl", "tf"):
        assert not [text for text in texts if alias in text.lower().split()]


def test_it_is_a_dataset_of_texts_like_any_other(home):
    source = open_dataset("docstrings", home)
    assert source.info.inputs == "text"
    assert source.info.task.names == tuple(LIBRARIES)
    assert source.info.name == f"docstrings/{docstrings.config().name}/1.0.0"
    assert source.fingerprint == open_dataset("docstrings", home).fingerprint


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """Has the dataset made of a package of one's own, of a given version and text."""

    def make(version: str, text: str):
        monkeypatch.setattr(metadata, "version", lambda name: version)
        monkeypatch.setattr(Docstrings, "BUILDER_CONFIGS", [docstrings.config()])
        package = tmp_path / "toy_library"
        package.mkdir(exist_ok=True)
        for split in (True, False):
            name = next(
                f"{c}.py" for c in "abcdefghij" if is_test(f"{package.name}/{c}.py") is split
            )
            said = f"{text} in the {'test' if split else 'train'} split"
            (package / name).write_text(f'def function():\n    """{said}."""\n')
        return open_dataset("docstrings", str(tmp_path / "data"), download=False)

    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(docstrings, "LIBRARIES", {"toy": "toy_library", "no": "no_such_library"})
    return make


def texts(source, split: str) -> list[str]:
    return [raw.decode() for _, raw, _ in source.read(split).as_numpy_iterator()]


def test_preparing_says_nothing(toy, capfd):
    assert texts(toy("1.0", "One text"), "test") == ["One text in the test split."]
    assert capfd.readouterr().out == ""


def test_other_versions_are_another_dataset(toy):
    old, new = toy("1.0", "An old text"), toy("2.0+local", "A new text")
    assert old.info.name == "docstrings/toy-1.0_no-1.0/1.0.0"
    assert new.info.name == "docstrings/toy-2.0+local_no-2.0+local/1.0.0"
    assert old.fingerprint != new.fingerprint
    assert texts(new, "train") == ["A new text in the train split."]
    assert texts(toy("1.0", "Changed"), "train") == ["An old text in the train split."]


def test_library_without_a_version_is_no_error(monkeypatch):
    def unknown(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", unknown)
    assert "scipy-unknown" in docstrings.config().name


def test_it_needs_no_network(tmp_path):
    check_available("docstrings", str(tmp_path), download=False)


def test_text_that_two_libraries_share_is_left_out(monkeypatch):
    found = {
        "sklearn": {"shared text": ("a.py", "Shared text."), "one": ("a.py", "One.")},
        "scipy": {"shared text": ("b.py", "shared text"), "two": ("b.py", "Two.")},
    }
    monkeypatch.setattr(docstrings, "_texts", lambda package: found.get(package, {}))
    assert [example["text"] for example in docstrings.collect()] == ["One.", "Two."]


# The texts.


def test_docstrings_are_those_of_what_is_public():
    found = list(docstrings_of(SOURCE))
    assert found[0].startswith("First \\d line.")
    assert sorted(found[1:]) == ["Later.", "Method.", "Shown."]
    everything = list(docstrings_of(SOURCE, private=True))
    assert {"Hidden.", "Private.", "Of a private class."} <= set(everything)


@pytest.mark.parametrize(
    ("docstring", "expected"),
    [
        ("Fit the model to data.\n\nParameters\n----------\nX : array", "Fit the model to data."),
        ("Computes a loss of\nsome kind.\n\nArgs:\n    x: it", "Computes a loss of some kind."),
        ("One two three four five.\n\nSix.\n\nSeven.", "One two three four five. Six."),
        ("Too short a text.", ""),
        ("One two three four five. This wraps `numpy.dot`.", "One two three four five."),
        ("One two three four five. As in np.dot.", "One two three four five."),
        ("See :func:`~scipy.fft.fft`, which is the same thing.", ""),
        ("Solve a @ x = b by :meth:`~.Solver.run` [1]_.", "Solve a @ x = b by Solver.run."),
        ("A `link <https://a.org>`_ to *args and ``x * y``.", "A link to args and x * y."),
        ("One two three four five.\n\n>>> f(1)\n2\n\nSix.", "One two three four five. Six."),
        ("One two three four five.\n\n.. deprecated:: 1.2\n    Gone.", ""),
        ("word " * 70, ("word " * 60).strip()),
    ],
)
def test_summary(docstring, expected):
    assert summary(docstring) == expected


def test_fold_ignores_case_and_punctuation():
    assert fold("A  text, of `Words`.") == fold("a text of words")
