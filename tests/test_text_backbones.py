"""Backbones for texts where they are unusual: as teachers, in pairs, or with odd inputs."""

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfxfer
from tests.text_modules import WORDS, write_reviews
from tests.text_sources import LENGTH, bert, embedding
from tfxfer.backbones.hashed import HashedWords
from tfxfer.backbones.self_check import check_features
from tfxfer.config import RunConfig
from tfxfer.data.base import IMAGE, TEXT
from tfxfer.errors import UserError
from tfxfer.export import save_hub_module, save_predictor
from tfxfer.methods import finetune
from tfxfer.methods.backbone import check_inputs
from tfxfer.methods.students import with_own_kind
from tfxfer.methods.teachers import load_teacher
from tfxfer.spec import parse_spec

PAIRS = np.array([["good film", "bad plot"], ["the end", "a story"]], object)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TFXFER_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def pair_of_bert(tmp_path_factory) -> str:
    return bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = write_reviews(tmp_path_factory.mktemp("texts") / "reviews.csv", 80)
    return tfxfer.open_dataset(f"csv:{path}(text=review,label=sentiment)")


def looking_up(inputs: Any, words: list[str] = WORDS) -> keras.Model:
    """A mean of vectors of the words of a vocabulary, without padding."""
    x = keras.layers.TextVectorization(vocabulary=words, output_sequence_length=6)(inputs)
    x = keras.layers.Embedding(len(words) + 2, 4, embeddings_initializer="normal", mask_zero=True)(
        x
    )
    return keras.Model(inputs, x)


def test_a_saved_model_is_fine_tuned_to_be_the_teacher(source, tmp_path, monkeypatch):
    """In a file that the run has written itself, and so trusts."""
    whole, quick = finetune.run, {"plan": "head", "learning_rate": 0.1, "epochs": 5}
    monkeypatch.setattr(
        finetune, "run", lambda config, *given: whole(config.replace(**quick), *given)
    )
    result: Any = tfxfer.distill(
        source,
        backbone=embedding(tmp_path / "hub"),
        student="bag",
        batch_size=8,
        epochs=1,
        seeds=1,
        workdir=str(tmp_path / "run (seed=1)"),
    )
    assert result.passed
    with pytest.raises(UserError, match=r"Add \(safe_mode=false\)"):
        tfxfer.distill(source, teacher=str(tmp_path / "run (seed=1)" / "teacher"))


@pytest.mark.parametrize("run", [tfxfer.finetune, tfxfer.lr_find, tfxfer.distill])
def test_xla_compiles_no_texts(run, source, tmp_path):
    with pytest.raises(UserError, match="XLA compiles no strings"):
        run(source, jit=True, workdir=str(tmp_path / "run"))


@pytest.mark.parametrize(("inputs", "student"), [(IMAGE, "tiny"), (TEXT, "bag")])
def test_self_is_the_usual_student_of_a_run_that_named_none(inputs, student, tmp_path):
    (tmp_path / "config.json").write_text('{"mode": "distill", "student": "auto"}')
    (tmp_path / "results.json").write_text("{}")
    config = RunConfig(mode="distill", teacher=str(tmp_path), student="self")
    assert with_own_kind(config, inputs).backbone == student


def test_texts_and_pairs_go_through_one_backbone():
    backbone: Any = tfxfer.load_backbone("bag(units=4,seq_length=8)")
    traced = []
    whole = backbone.features

    def counted(*args):
        traced.append(args[0].shape)
        return whole(*args)

    backbone.features = counted
    for infer in (lambda x: backbone.infer(x), lambda x: backbone.infer_fixed("now")(x)):
        for inputs in map(tf.constant, (PAIRS[:, 0], PAIRS, PAIRS[:, 1], PAIRS[::-1])):
            np.testing.assert_allclose(infer(inputs), backbone(inputs), atol=1e-6)
    traced.clear()
    for count in (3, 4, 5):
        pairs = tf.constant([["good", "bad"]] * count)
        backbone.infer(pairs)
        backbone.infer(pairs[:, 0])
    assert [tuple(each) for each in traced] == [(None, 2), (None,)]


def test_a_network_that_looks_words_up_is_a_module_of_tf_hub(tmp_path):
    network = looking_up(keras.Input((), dtype="string"))
    save_hub_module(network, tmp_path / "hub")
    again = tf.saved_model.load(str(tmp_path / "hub"))
    texts = tf.constant(["good film", "the plot"])
    np.testing.assert_allclose(again(texts), network(texts), atol=1e-6)


class _OfAnyRank(tf.Module):
    """Hashed words, with a signature that leaves the rank of its texts open."""

    def __init__(self):
        super().__init__()
        self.table = tf.Variable(tf.random.normal((32, 4)))

    @tf.function(input_signature=[tf.TensorSpec(None, tf.string)])
    def __call__(self, texts):
        words = tf.strings.split(tf.reshape(texts, [-1]))
        return tf.reduce_mean(tf.gather(self.table, hashed(words, 32)), axis=1)


def hashed(words: tf.RaggedTensor, buckets: int) -> tf.RaggedTensor:
    return words.with_flat_values(tf.strings.to_hash_bucket_fast(words.flat_values, buckets))


def test_a_saved_model_that_leaves_the_rank_of_texts_open(tmp_path):
    module = _OfAnyRank()
    tf.saved_model.save(module, str(tmp_path / "any"))
    backbone = tfxfer.load_backbone(str(tmp_path / "any"))
    texts = tf.constant(["good film", "the plot"])
    np.testing.assert_allclose(backbone(texts), module(texts), atol=1e-6)


@pytest.mark.parametrize("kind", ["Keras", "SavedModel"])
def test_texts_that_are_taken_as_a_column(kind, tmp_path):
    network = looking_up(keras.Input((1,), dtype="string"))
    network = keras.Model(network.input, keras.layers.GlobalAveragePooling1D()(network.output))
    path = tmp_path / ("a.keras" if kind == "Keras" else "a")
    network.save(path) if kind == "Keras" else save_hub_module(network, path)
    backbone = tfxfer.load_backbone(str(path))
    texts = tf.constant(["good film", "the plot was dull"])
    expected = network(texts[:, None])
    np.testing.assert_allclose(backbone(texts), expected, atol=1e-6)
    model = tfxfer.FineTuner(backbone, keras.layers.Dense(2))
    model.save(tmp_path / "model.keras")
    again = tfxfer.load_model(tmp_path / "model.keras", safe_mode=False)
    np.testing.assert_allclose(again(texts), model(texts), atol=1e-6)


def test_what_was_exported_for_pairs_teaches_of_pairs_alone(source, tmp_path):
    task = source.info.task
    model = tfxfer.FineTuner(tfxfer.load_backbone("bag"), keras.layers.Dense(2))
    save_predictor(model, tmp_path / "served", task, (2,))
    teacher: Any = load_teacher(str(tmp_path / "served"), task)
    pairs = tf.constant(PAIRS)
    expected: Any = tf.nn.softmax(model(pairs))
    np.testing.assert_allclose(teacher.model(pairs), expected, atol=1e-6)
    backbone = tfxfer.load_backbone(str(tmp_path / "served"))
    assert str(backbone.contract) == "of any length, in pairs"
    assert backbone(backbone.contract.noise(3)).shape == (3, 2)
    with pytest.raises(ValueError, match=r"Expected pairs \[batch, 2\]"):
        backbone(tf.constant(["good"]))
    with pytest.raises(UserError, match="takes pairs of texts"):
        check_inputs(backbone, source.info)


def numbers(length: int, *texts: Any) -> np.ndarray:
    return HashedWords(buckets=10_000, sequence_length=length)(tf.constant(texts)).numpy()


@pytest.mark.parametrize(
    ("first", "second", "kept"),
    [
        ("a b c d e f", "x", "a b c d - x"),
        ("a", "u v w x y z", "a - u v w x"),
        ("a b c d", "w x y z", "a b c - w x"),
        ("a b", "", "a b -"),
        ("", "x y z", "- x y z"),
    ],
)
def test_both_of_a_pair_are_read_where_one_is_long(first, second, kept):
    (found,) = numbers(7, [first, second])
    words, (between,) = kept.split(), set(numbers(4, ["", ""])[0]) - {0, 1}
    expected = [1, *(between if w == "-" else numbers(2, w)[0, 1] for w in words)]
    np.testing.assert_array_equal(found, np.pad(expected, (0, 7 - len(expected))))


def test_words_of_scripts_with_marks_stay_whole():
    layer = HashedWords(buckets=100, sequence_length=8)
    texts = ["\u0939\u093f\u0928\u094d\u0926\u0940 \u092d\u093e\u0937\u093e", "cafe\u0301, d'or!"]
    np.testing.assert_array_equal(layer.lengths(tf.constant(texts)), [3, 3])
    np.testing.assert_array_equal(layer.lengths(tf.constant([texts])), [6])


def test_losses_of_tokens_want_the_same_tokens(pair_of_bert):
    def model(spec):
        return tfxfer.FineTuner(tfxfer.load_backbone(spec), keras.layers.Dense(2))

    teacher = model(pair_of_bert)
    preprocess = parse_spec(pair_of_bert).options["preprocess"]
    small = f"seq_length={LENGTH},layers=1,units=4"
    other = model(f"transformer({small})")
    same = model(f"transformer({small},preprocess={preprocess})")
    hint = "hint(student=block0,teacher=block1)"
    with pytest.raises(UserError, match=r"transformer\(preprocess=HANDLE"):
        tfxfer.Distiller(other, teacher, hint)
    tfxfer.Distiller(other, teacher, "hint")
    tfxfer.Distiller(same, teacher, hint)
    of_words = "hint(student=embeddings,teacher=embeddings)"
    long, short, few = (model(f"bag({each})") for each in ("units=16", "seq_length=9", "buckets=9"))
    with pytest.raises(UserError, match="different tokens"):
        tfxfer.Distiller(short, long, of_words)
    tfxfer.Distiller(few, long, of_words)


def test_texts_of_unknown_words_are_told_as_such(tmp_path):
    backbone = tfxfer.load_backbone(embedding(tmp_path / "hub"))
    with pytest.raises(UserError, match="it knows no word of these texts"):
        check_features(backbone, np.array(["", " "], object))


def test_more_tokens_than_an_encoder_reads(pair_of_bert):
    spec = pair_of_bert.replace(f"seq_length={LENGTH}", "seq_length=64")
    with pytest.raises(UserError, match=r"texts of 64 tokens.*Give a smaller seq_length"):
        check_features(tfxfer.load_backbone(spec), np.array(["good", "bad"], object))


def test_an_encoder_without_preprocessing_is_told_how_to_write_it(pair_of_bert):
    encoder = parse_spec(pair_of_bert).name
    with pytest.raises(UserError) as told:
        tfxfer.load_backbone(f"{encoder}(output=sequence_output)")
    assert f'{encoder}(output="sequence_output", preprocess="HANDLE")' in str(told.value)


def test_another_vocabulary_is_another_fingerprint(tmp_path):
    def fingerprint(words):
        network = looking_up(keras.Input((), dtype="string"), words)
        network.layers[1].set_vocabulary(words)
        network.layers[1]._lookup_layer.input_vocabulary = None  # As `adapt` leaves it.
        network.layers[2].set_weights([np.ones((len(words) + 2, 4))])
        return tfxfer.load_backbone(network).fingerprint

    assert fingerprint(["good", "bad"]) == fingerprint(["good", "bad"]) != fingerprint(["bad", "a"])


def test_padding_is_left_out_where_a_network_tells_it():
    network = looking_up(keras.Input((), dtype="string"))
    backbone = tfxfer.load_backbone(network)
    short, none = tf.constant(["good film"]), tf.constant([""])
    table = network.layers[-1].get_weights()[0]
    expected = table[[WORDS.index("good") + 2, WORDS.index("film") + 2]].mean(axis=0)
    for features in (backbone(short), backbone.infer(short), backbone.infer_fixed("now")(short)):
        np.testing.assert_allclose(features[0], expected, atol=1e-6)
    assert not np.any(backbone(none))
