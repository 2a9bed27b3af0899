"""Texts from a file through every mode, with models to the interfaces of TensorFlow Hub."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfxfer
from tests.conftest import values
from tests.test_cli import tfxfer as run
from tests.text_modules import BAD, GOOD, reviews, write_reviews
from tests.text_sources import LENGTH, bert, embedding, keras_hub_bert
from tfxfer.backbones import SavedModelBackbone
from tfxfer.errors import UserError

STAGES = ["embeddings", "block0", "block1", "block2", "pooler"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TFXFER_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("texts")


@pytest.fixture(scope="module")
def table(place) -> str:
    return f"csv:{write_reviews(place / 'reviews.csv')}(text=review,label=sentiment)"


@pytest.fixture(scope="module")
def source(table):
    return tfxfer.open_dataset(table)


@pytest.fixture(scope="module")
def pair_of_bert(place) -> str:
    return bert(place / "bert")


@pytest.fixture(scope="module")
def teacher(place, source, pair_of_bert) -> Path:
    """The run of a fine-tuned BERT."""
    result: Any = tfxfer.finetune(
        source,
        backbone=pair_of_bert,
        rule="none",
        plan="gradual",
        epochs=2,
        learning_rate=3e-3,
        batch_size=32,
        workdir=str(place / "teacher"),
        cache_dir=str(place / "cache"),
    )
    assert result.passed
    return place / "teacher"


def served(folder: Path, *texts: Any) -> dict[str, np.ndarray]:
    """Asks an exported model in a process that imports TensorFlow and tensorflow_text alone."""
    program = (
        "import json, sys, tensorflow as tf, tensorflow_text\n"
        "model = tf.saved_model.load(sys.argv[1]).signatures['serving_default']\n"
        "found = model(tf.constant(json.loads(sys.argv[2])))\n"
        "assert not [name for name in sys.modules if name.split('.')[0] == 'tfxfer']\n"
        "found = {k: v.numpy().tolist() for k, v in found.items()}\n"
        "found['labels'] = [each.decode() for each in found['labels']]\n"
        "print(json.dumps(found))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder / "saved_model" / "1"), json.dumps(texts)],
        capture_output=True,
        text=True,
        cwd=folder,  # Where no tfxfer lies beside.
    )
    assert done.returncode == 0, done.stderr
    return {name: np.array(each) for name, each in json.loads(done.stdout).items()}


def test_an_embedding_reads_strings(place, source, tmp_path):
    spec = embedding(place / "hub")
    result: Any = tfxfer.extract(source, backbone=spec, workdir=str(tmp_path / "run"))
    assert result.metrics["test"].accuracy > 0.9
    assert result.export.max_difference < 1e-5
    found = served(tmp_path / "run", f"it was {GOOD[0]} {GOOD[1]}", f"it was {BAD[0]} {BAD[1]}")
    assert found["labels"].tolist() == ["positive", "negative"]
    model = tfxfer.load_model(tmp_path / "run" / "model.keras", safe_mode=False)
    expected = tf.nn.softmax(model(tf.constant([f"it was {GOOD[0]} {GOOD[1]}"])))
    np.testing.assert_allclose(found["probabilities"][:1], expected, atol=1e-5)
    tuned: Any = tfxfer.finetune(source, backbone=spec, epochs=2, workdir=str(tmp_path / "tuned"))
    assert [phase.name for phase in tuned.phases] == ["head", "+table"]
    assert tuned.passed


def test_bert_is_fine_tuned_from_the_head_down(teacher, pair_of_bert):
    results = json.loads((teacher / "results.json").read_text())
    names = [phase["name"] for phase in results["phases"]]
    assert names == ["head", *(f"+{stage}" for stage in reversed(STAGES))]
    assert results["metrics"]["test"]["accuracy"] > 0.9
    assert results["export"]["max_difference"] < 1e-5
    found = served(teacher, f"the film was {GOOD[2]} {GOOD[3]}", f"{BAD[2]} {BAD[4]} plot")
    assert found["labels"].tolist() == ["positive", "negative"]


def test_frozen_phases_of_bert_leave_every_tensor_as_it_was(pair_of_bert):
    backbone = tfxfer.load_backbone(pair_of_bert)
    assert [stage.name for stage in backbone.stages] == STAGES
    model = tfxfer.FineTuner(backbone, keras.layers.Dense(2, "softmax"))
    texts, labels = reviews(16)
    data = tf.data.Dataset.from_tensor_slices((list(texts), labels)).batch(8)
    for first in range(len(STAGES), -1, -1):
        model.unfreeze([*STAGES[first:], "head"])
        model.compile("adamw", "sparse_categorical_crossentropy", run_eagerly=True)
        before = {stage.name: values(stage.weights) for stage in backbone.stages}
        model.fit(data, shuffle=False, verbose=0)
        for i, stage in enumerate(backbone.stages):
            same = [a == b for a, b in zip(before[stage.name], values(stage.weights), strict=True)]
            assert len(same) == len(stage.weights) > 0
            assert all(same) if i < first else not all(same), stage.name


def test_a_transformer_gets_the_recipe_of_bert(table, pair_of_bert, tmp_path, data_dir):
    done = run(
        "--mode=finetune",
        f"--dataset={table}",
        f"--backbone={pair_of_bert}",
        "--dry_run",
        cwd=tmp_path,
        data_dir=data_dir,
    )
    assert done.returncode == 0, done.stderr
    for said in ("by rule bert", "weight_decay 0.01", "5e-05", "linear, rises for 10%"):
        assert said in done.stdout, done.stdout


@pytest.mark.parametrize("settings", [{"augment": "light"}, {"mix": "mixup"}])
def test_what_is_for_images_is_refused_before_the_plan(source, settings, tmp_path, capsys):
    with pytest.raises(UserError, match=r"is for images, and .* holds text inputs"):
        tfxfer.finetune(source, dry_run=True, workdir=str(tmp_path / "run"), **settings)
    assert not capsys.readouterr().out


@pytest.mark.parametrize(
    "settings",
    [
        {"student": "bag"},
        {"student": "transformer", "loss": "kd+10*hint(student=block0,teacher=block1)"},
    ],
)
def test_bert_teaches_a_small_student(place, source, teacher, settings, tmp_path):
    if settings["student"] == "transformer":
        preprocess = place / "bert" / "preprocess"
        settings = {
            **settings,
            "student": f"transformer(preprocess={preprocess},seq_length={LENGTH},units=8)",
        }
    result: Any = tfxfer.distill(
        source,
        teacher=f"{teacher / 'model.keras'}(safe_mode=false)",
        epochs=8,
        seeds=1,
        learning_rate=0.01,
        batch_size=16,
        workdir=str(tmp_path / "run"),
        **settings,
    )
    assert result.passed
    assert result.card.distilled.best[0].evaluation.accuracy > 0.8
    assert result.card.costs["student"].parameters > 0
    found = served(tmp_path / "run", f"the film was {GOOD[2]} {GOOD[3]}")
    assert found["labels"].shape == (1,)


def test_a_student_attends_as_its_teacher_does(source, tmp_path):
    small = "transformer(layers=1,units=8,seq_length=12)"
    teacher = "transformer(layers=2,units=16,seq_length=12)"
    settings = {"epochs": 1, "batch_size": 16, "seeds": 1}
    tfxfer.finetune(
        source,
        backbone=teacher,
        plan="full",
        learning_rate=0.01,
        epochs=5,
        workdir=str(tmp_path / "teacher"),
    )
    result: Any = tfxfer.distill(
        source,
        teacher=str(tmp_path / "teacher"),
        student=small,
        loss="kd+100*hint(student=block0.scores,teacher=block1.scores)",
        workdir=str(tmp_path / "run"),
        **settings,
    )
    assert result.passed
    logged = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert "hint" in logged


def test_a_plan_that_is_given_is_not_that_of_the_rule(source, pair_of_bert, tmp_path, capsys):
    for settings, plan in (({}, "lp_ft"), ({"plan": "gradual"}, "gradual")):
        place = str(tmp_path / plan)
        tfxfer.finetune(source, backbone=pair_of_bert, dry_run=True, workdir=place, **settings)
        assert f"plan      {plan} by rule bert" in capsys.readouterr().out


@pytest.mark.parametrize("method", ["finetune", "extract"])
def test_pairs_of_texts(method, pair_of_bert, tmp_path):
    texts, labels = reviews(120)
    others, _ = reviews(120, seed=5)
    lines = [f"{a},{b},{y}" for a, b, y in zip(texts, others, labels, strict=True)]
    (tmp_path / "pairs.csv").write_text("\n".join(["first,second,label", *lines]) + "\n")
    result: Any = getattr(tfxfer, method)(
        tfxfer.open_dataset(f"csv:{tmp_path / 'pairs.csv'}(text=first,pair=second)"),
        backbone=pair_of_bert,
        epochs=1,
        workdir=str(tmp_path / "run"),
        cache_dir=str(tmp_path / "cache"),
    )
    assert result.passed
    found = served(tmp_path / "run", ["the film was good", "the plot was dull"])
    assert found["probabilities"].shape == (1, 2)


def test_texts_that_are_cut_are_counted(table, pair_of_bert, tmp_path, data_dir):
    short = pair_of_bert.replace(f"seq_length={LENGTH}", "seq_length=10")
    done = run(
        "--mode=extract",
        f"--dataset={table}",
        f"--backbone={short}",
        "--workdir=run",
        cwd=tmp_path,
        data_dir=data_dir,
        TFXFER_CACHE_DIR=str(tmp_path / "cache"),
    )
    assert done.returncode == 0, done.stderr
    texts, _ = reviews(240)
    # Every word is one token, and one stands at each end.
    longer = sum(len(text.split()) + 2 > 10 for text in texts)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert 0 < sum(results["cut"].values()) == longer < 240
    assert "texts longer than the backbone reads, which are cut: " in done.stdout


def test_empty_and_undecodable_texts_are_data_errors(tmp_path, data_dir):
    lines = [f"{text},{label}".encode() for text, label in zip(*reviews(60), strict=True)]
    lines[3], lines[7] = b",0", b"caf\xe9 good,1"
    (tmp_path / "t.csv").write_bytes(b"\n".join([b"text,label", *lines]))
    flags = ("--mode=extract", "--dataset=csv:t.csv", "--backbone=words", "--workdir=run")
    done = run(*flags, cwd=tmp_path, data_dir=data_dir)
    assert done.returncode == 2
    assert "t.csv line 5 has an empty 'text'" in done.stderr
    assert "1 more" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()
    done = run(*flags, "--skip_bad", cwd=tmp_path, data_dir=data_dir)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert len(results["skipped"]) == 2


def test_without_tensorflow_text_it_says_what_to_install(pair_of_bert, table, tmp_path):
    program = (
        "import sys; sys.modules['tensorflow_text'] = None\n"
        "from tfxfer.run import main; sys.exit(main())"
    )
    flags = ("--mode=extract", f"--dataset={table}", f"--backbone={pair_of_bert}", "--workdir=run")
    done = subprocess.run(
        [sys.executable, "-c", program, *flags], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 2
    assert done.stderr.endswith(
        "needs the package tensorflow-text, which is not installed. "
        "Install it with pip install 'tfxfer[text]'.\n"
    )
    assert done.stderr.count("\n") == 1


def test_a_preset_of_keras_hub(source, tmp_path):
    """With few weights that train, and slower ones below."""
    result: Any = tfxfer.finetune(
        source,
        backbone=keras_hub_bert(tmp_path),
        plan="full",
        adapt="lora",
        lora_rank=2,
        layer_decay=0.8,
        epochs=1,
        workdir=str(tmp_path / "run"),
    )
    assert result.passed
    assert result.export.max_difference < 1e-5
    assert served(tmp_path / "run", "the film was good")["labels"].shape == (1,)


def test_two_devices(source, pair_of_bert, mirrored, monkeypatch, tmp_path):
    monkeypatch.setattr("tfxfer.distribute.pick_strategy", lambda *_: mirrored)
    result: Any = tfxfer.finetune(
        source,
        backbone=pair_of_bert,
        epochs=1,
        plan="full",
        workdir=str(tmp_path / "run"),
    )
    assert result.passed
    assert result.export.max_difference < 1e-5


def test_a_second_head_reads_the_features_of_the_first(source, pair_of_bert, tmp_path, monkeypatch):
    first: Any = tfxfer.extract(source, backbone=pair_of_bert, workdir=str(tmp_path / "a"))
    assert first.passed

    def fail(inputs):
        raise AssertionError("the encoder ran again")

    monkeypatch.setattr(SavedModelBackbone, "infer_fixed", lambda self, version: fail)
    settings = {"backbone": pair_of_bert, "head": "ridge", "workdir": str(tmp_path / "b")}
    second: Any = tfxfer.extract(source, **settings)
    assert second.passed
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(AssertionError, match="the encoder ran again"):
        tfxfer.extract(source, **settings, overwrite=True)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["extract", "finetune", "distill"])
def test_the_embedded_texts_run_with_a_changed_flag_alone(mode, tmp_path, data_dir):
    done = run(
        f"--mode={mode}",
        "--dataset=docstrings",
        *(("--seeds=1", "--epochs=6") if mode == "distill" else ()),
        "--workdir=run",
        cwd=tmp_path,
        data_dir=data_dir,
        timeout=1200,
        TFXFER_CACHE_DIR=str(tmp_path / "cache"),
    )
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["metrics"]["test"]["accuracy"] > 0.5
    found = served(tmp_path / "run", "Returns the inverse of a matrix.", "Draws a histogram.")
    assert set(found["labels"]) <= {"keras", "matplotlib", "numpy", "scikit-learn", "scipy"}
