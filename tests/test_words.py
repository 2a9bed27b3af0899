"""The embedded embedding of texts: its interface, and that its script makes such a module."""

import importlib
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import tensorflow as tf

import tfxfer

WORDS = Path(tfxfer.__file__).parent / "backbones" / "words"
EXAMPLES = Path(__file__).parent.parent / "examples"
TEXTS = ["Fits a linear model.", "", "Plots the axes of a figure.", "zzxqv ßßλλ"]
CORPUS = ["cats chase mice", "dogs chase cats", "mice eat cheese", "dogs eat meat", ""] * 3


@pytest.fixture(scope="module")
def script() -> ModuleType:
    sys.path.insert(0, str(EXAMPLES))
    try:
        return importlib.import_module("pretrain_words")
    finally:
        sys.path.remove(str(EXAMPLES))


@pytest.fixture(scope="module")
def retrained(script, tmp_path_factory) -> Path:
    """An embedding of 4 units that was learned from a few sentences."""
    folder = tmp_path_factory.mktemp("retrained")
    module = script.pretrain(CORPUS, folder / "words.txt", words=6, units=4)
    script.save(module, str(folder / "saved"))
    (folder / "words.txt").unlink()  # The saved one has its own.
    return folder / "saved"


@pytest.fixture(params=["embedded", "retrained"])
def module(request, retrained):
    return tf.saved_model.load(str(WORDS if request.param == "embedded" else retrained))


def test_interface_is_that_of_tf_hub(module):
    (table,) = module.trainable_variables
    assert [v.name for v in module.variables] == [table.name] == ["table/embeddings:0"]
    assert table.dtype == tf.float32
    assert list(module.regularization_losses) == []
    features = module(tf.constant(TEXTS))
    assert features.shape == (4, table.shape[1])
    assert features.dtype == tf.float32
    for training in (False, True):
        np.testing.assert_array_equal(module(tf.constant(TEXTS), training=training), features)
    served = module.signatures["serving_default"](inputs=tf.constant(TEXTS))
    np.testing.assert_array_equal(served["outputs"], features)


def test_features_are_finite_and_of_nothing_zero(module):
    features = module(tf.constant(TEXTS)).numpy()
    assert np.isfinite(features).all()
    assert not features[1].any()
    assert module(tf.constant([], tf.string)).shape == (0, features.shape[1])


def test_table_is_trained_where_words_were(module):
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(module(tf.constant(TEXTS[:1]), training=True))
    gradient = tf.convert_to_tensor(tape.gradient(loss, module.trainable_variables[0])).numpy()
    assert 0 < np.any(gradient, axis=1).sum() <= 4


def test_words_differ_and_case_and_punctuation_do_not():
    embed = tf.saved_model.load(str(WORDS))
    words = embed(tf.constant(["matrix", "figure", "regression", "file"])).numpy()
    assert len(np.unique(words, axis=0)) == 4
    one, other = embed(tf.constant(["The sparse_matrix (of 3 rows)!", "the Sparse Matrix of rows"]))
    np.testing.assert_array_equal(one, other)


def test_related_words_are_near():
    embed = tf.saved_model.load(str(WORDS))
    rows, columns, socket = tf.math.l2_normalize(
        embed(tf.constant(["rows", "columns", "socket"])), axis=1
    ).numpy()
    assert rows @ columns > rows @ socket + 0.2


def test_embedded_one_is_small():
    size = sum(path.stat().st_size for path in WORDS.rglob("*") if path.is_file())
    assert size < 1.6e6


def test_neighbors_are_counted_by_distance_and_within_a_text(script):
    counts = script.count_neighbors([np.array([0, 1, 2]), np.array([3])], 4, window=2).toarray()
    expected = np.zeros((4, 4))
    expected[0, 1] = expected[1, 2] = 1
    expected[0, 2] = 0.5
    np.testing.assert_array_equal(counts, expected + expected.T)


def test_same_texts_give_the_same_table(script, retrained, tmp_path):
    again = script.pretrain(CORPUS, tmp_path / "words.txt", words=6, units=4)
    (table,) = tf.saved_model.load(str(retrained)).trainable_variables
    np.testing.assert_array_equal(again.table, table)


def test_pretraining_leaves_out_what_the_dataset_holds(script, monkeypatch, tmp_path):
    (tmp_path / "keras").mkdir()
    (tmp_path / "README.md").write_text("A dataset of birds.")
    (tmp_path / "keras" / "README.md").write_text("A copy of the library.")
    (tmp_path / "a.py").write_text(
        'def f():\n    """Adds up all of the numbers."""\ndef _g():\n    """Anything else."""\n'
    )
    held = [{"text": "adds up all of the numbers", "label": "numpy", "file": "numpy/a.py"}]
    monkeypatch.setattr(script.docstrings, "collect", lambda: held)
    monkeypatch.setattr(script, "PACKAGES", ())
    monkeypatch.setattr(script.sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setattr(script.pydoc_data.topics, "topics", {})
    assert sorted(script.read_texts()) == ["A dataset of birds.", "Anything else."]
