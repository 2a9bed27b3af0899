"""`--mode=finetune` from the command line to a model that serves."""

import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds

import tfxfer
from tests.memory import Memory
from tests.test_cli import tfxfer as run
from tfxfer.config import RunConfig
from tfxfer.methods import finetune
from tfxfer.report.console import Console
from tfxfer.report.predictions import read_predictions
from tfxfer.report.workdir import choose_workdir

# A process that knows TensorFlow and nothing of Keras models or of this package.
_SERVE = """
import sys
import numpy as np
import tensorflow as tf
folder, images, answers = sys.argv[1:]
serve = tf.saved_model.load(folder).signatures["serving_default"]
out = serve(images=tf.constant(np.load(images)))
assert "tfxfer" not in sys.modules
np.savez(answers, probabilities=out["probabilities"], labels=out["labels"].numpy().astype(str))
"""


@pytest.fixture(scope="module")
def short_run(tmp_path_factory, data_dir):
    """A short run, twice, with the same seed."""
    place = tmp_path_factory.mktemp("runs")
    done = [
        run("--epochs=1", "--seed=3", f"--workdir={name}", cwd=place, data_dir=data_dir)
        for name in ("one", "two")
    ]
    assert [d.returncode for d in done] == [0, 0], done[0].stderr
    return place, done


def results(folder) -> dict:
    return json.loads((folder / "results.json").read_text())


def test_it_writes_what_it_says(short_run):
    place, (done, _) = short_run
    assert sorted(path.name for path in (place / "one").iterdir()) == [
        "config.json",
        "curves.png",
        "metrics.jsonl",
        "model.keras",
        "plan.json",
        "predictions.npz",
        "results.json",
        "saved_model",
    ]
    assert "1293 train" in done.stdout
    assert "+block1" in done.stdout
    assert "test accuracy" in done.stdout
    assert "one/saved_model/1" in done.stdout


def test_predictions_are_what_was_scored(short_run):
    place, _ = short_run
    told = read_predictions(place / "one" / "predictions.npz")
    for name, examples in (("validation", 144), ("test", 360)):
        assert told[name].outputs.shape == (examples, 10)
        right = np.mean(told[name].outputs.argmax(axis=1) == told[name].y)
        assert right == pytest.approx(results(place / "one")["metrics"][name]["accuracy"])


def test_results_are_complete(short_run):
    place, _ = short_run
    found = results(place / "one")
    test = found["metrics"]["test"]
    assert test["examples"] == 360
    low, high = test["accuracy_interval"]
    assert low < test["accuracy"] < high or test["accuracy"] == high == 1
    assert found["metrics"]["validation"]["examples"] == 144
    parameters = found["parameters"]
    assert parameters["total"] == parameters["backbone"] + parameters["head"]
    assert set(found["fingerprints"]) == {"data", "backbone"}
    assert set(found["timings"]) == {"loading", "training", "evaluation", "export"}
    lines = (place / "one" / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == sum(phase["epochs"] for phase in found["phases"])


def test_one_seed_gives_one_result(short_run):
    place, _ = short_run
    one, two = results(place / "one"), results(place / "two")
    assert one["metrics"] == two["metrics"]
    assert one["fingerprints"] == two["fingerprints"]
    for phases in (one["phases"], two["phases"]):
        for phase in phases:
            phase.pop("seconds")
    assert one["phases"] == two["phases"]


def test_a_second_run_in_the_same_folder_needs_overwrite(short_run, data_dir):
    place, _ = short_run
    before = (place / "two" / "results.json").read_bytes()
    done = run("--workdir=two", cwd=place, data_dir=data_dir)
    assert done.returncode == 2
    assert (place / "two" / "results.json").read_bytes() == before
    # A mistake found later must not cost the old run either.
    flags = ("--workdir=two", "--overwrite", "--backbone=nowhere")
    assert run(*flags, cwd=place, data_dir=data_dir).returncode == 2
    assert (place / "two" / "results.json").read_bytes() == before


def test_dry_run_prints_the_plan_and_writes_nothing(tmp_path, data_dir):
    done = run("--dry_run", "--workdir=run", cwd=tmp_path, data_dir=data_dir)
    assert done.returncode == 0, done.stderr
    assert "+block1" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_two_devices_do_the_whole_run(tmp_path, data_dir, mirrored, monkeypatch, capsys):
    monkeypatch.setattr("tfxfer.distribute.pick_strategy", lambda *_: mirrored)
    # 1,293 digits: the last batch of 34 would be one digit for two devices.
    config = RunConfig(
        epochs=1, batch_size=34, workdir=str(tmp_path / "run"), data_dir=data_dir, seed=3
    )
    result: Any = finetune.run(config, choose_workdir(config), Console())
    assert "2 CPU" in capsys.readouterr().out
    assert result.metrics["test"].examples == 360
    assert result.metrics["test"].accuracy > 0.95
    assert result.export.passed
    assert result.export.max_difference < 1e-5
    served, trained, _ = served_and_trained(tmp_path / "run", data_dir, tmp_path)
    np.testing.assert_allclose(served["probabilities"], trained, atol=1e-5)


def test_images_of_many_sizes_are_served_as_they_were_evaluated(tmp_path, hub_folder):
    class Photos(Memory):
        def image(self, row):
            size = (20 + 7 * int(row), 90 - int(row), 1)
            return np.random.default_rng(row).integers(0, 256, size, dtype=np.uint8)

    photos = Photos(side=None, train=40, test=6)
    result: Any = tfxfer.finetune(
        photos,
        epochs=2,
        learning_rate=0.1,
        backbone=str(hub_folder),
        workdir=str(tmp_path / "run"),
    )
    assert result.export.examples == 6
    assert result.export.max_difference < 1e-5


def served_and_trained(folder, data_dir, tmp_path):
    """Test probabilities of the SavedModel, by TensorFlow alone, and of the Keras model."""
    data = tfds.load("digits", split="test", data_dir=data_dir, as_supervised=True)
    images, labels = map(np.stack, zip(*data.as_numpy_iterator(), strict=True))
    np.save(tmp_path / "images.npy", images)
    answers = tmp_path / "answers.npz"
    command = [sys.executable, "-c", _SERVE, folder / "saved_model/1", tmp_path / "images.npy"]
    subprocess.run([*map(str, command), str(answers)], check=True, capture_output=True)
    logits = tfxfer.load_model(folder / "model.keras").predict(images, verbose=0)
    exponent = np.exp(logits - logits.max(-1, keepdims=True))
    return np.load(answers), exponent / exponent.sum(-1, keepdims=True), labels


def test_served_model_answers_as_the_trained_one(short_run, data_dir, tmp_path):
    place, _ = short_run
    served, trained, labels = served_and_trained(place / "one", data_dir, tmp_path)
    np.testing.assert_allclose(served["probabilities"], trained, atol=1e-5)
    right = served["labels"].astype(int) == labels
    assert right.mean() == pytest.approx(results(place / "one")["metrics"]["test"]["accuracy"])


@pytest.mark.slow
def test_default_run_keeps_its_promise(tmp_path, data_dir):
    done = run("--mode=finetune", cwd=tmp_path, data_dir=data_dir)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "runs").iterdir()
    found = results(folder)
    assert found["metrics"]["test"]["accuracy"] >= 0.985
    assert found["metrics"]["test"]["examples"] == 360
    assert found["timings"]["training"] <= 180
    served, trained, _ = served_and_trained(folder, data_dir, tmp_path)
    np.testing.assert_allclose(served["probabilities"], trained, atol=1e-5)
