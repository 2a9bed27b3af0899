"""`--mode=finetune` on data of every kind, as a user has it: files on disk, arrays, folds."""

import csv
import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from PIL import Image

import tfxfer
from tests.memory import Memory
from tests.test_extract_run import gratings
from tfxfer.config import RunConfig
from tfxfer.errors import UserError
from tfxfer.methods import finetune as method
from tfxfer.task import REGRESSION, SINGLE_LABEL, Task


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Forty dark and forty bright images as files, and tables that speak of them."""
    place = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    rows = []
    for number in range(80):
        bright = number % 2
        kind = ("dark", "bright")[bright]
        level = int(rng.integers(150, 250) if bright else rng.integers(0, 100))
        noise = rng.integers(-20, 21, (18 + number % 3, 20, 3))
        file = place / "photos" / kind / f"{number}.{'png' if number % 3 else 'jpg'}"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.clip(level + noise, 0, 255).astype(np.uint8)).save(file)
        rows.append(
            {
                "file": f"photos/{kind}/{file.name}",
                "kind": kind,
                "bright": bright,
                "dark": 1 - bright,
                "level": level * 100,
                "roll": number // 8,
                "words": f"it is {kind}",
            }
        )
    with (place / "photos.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return place


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> str:
    """A backbone of two stages that no image leaves without features."""
    keras.utils.set_random_seed(1)
    network = keras.Sequential(
        [
            keras.Input((16, 16, 3)),
            keras.layers.Conv2D(8, 3, strides=2, name="block1_conv"),
            keras.layers.LeakyReLU(),
            keras.layers.Conv2D(8, 3, strides=2, name="block2_conv"),
            keras.layers.LeakyReLU(),
            keras.layers.GlobalAveragePooling2D(),
        ]
    )
    path = tmp_path_factory.mktemp("tiny") / "hub"
    tfxfer.save_hub_module(network, path)
    return str(path)


@pytest.fixture
def run(photos, tiny, tmp_path, data_dir):
    def command(*flags, mode="finetune"):
        done = subprocess.run(
            [
                *(sys.executable, "-m", "tfxfer.run", f"--mode={mode}", "--epochs=6"),
                *([f"--workdir={tmp_path / 'run'}"] if mode == "finetune" else []),
                *([f"--backbone={tiny}"] if mode == "finetune" else []),
                *("--learning_rate=0.03", "--batch_size=16", *flags),
            ],
            cwd=photos,
            env={**os.environ, "TFDS_DATA_DIR": data_dir, "TFXFER_CACHE_DIR": str(tmp_path / "c")},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        file = tmp_path / "run" / "results.json"
        return done.stdout, json.loads(file.read_text()) if file.exists() else {}

    return command


def test_a_folder_of_images(run):
    said, results = run("--dataset=folder:photos", "--augment=light", "--balance=sampling")
    assert "one of 2 classes" in said
    assert results["label_names"] == ["bright", "dark"]
    assert results["metrics"]["test"]["examples"] == 16
    assert results["metrics"]["test"]["accuracy"] > 0.8
    assert results["skipped"] == []


def test_a_table_of_image_paths(run):
    said, results = run("--dataset=csv:photos.csv(image=file,label=kind)", "--mix=mixup")
    assert "mix mixup" in said
    assert results["metrics"]["test"]["accuracy"] > 0.8


def test_a_table_with_several_classes(run):
    table = "csv:photos.csv(image=file,labels='bright;dark')"
    said, results = run(f"--dataset={table}", "--epochs=15")
    assert "any of 2 classes" in said
    assert results["task"] == "multi_label"
    test = results["metrics"]["test"]
    low, high = test["f1_interval"]
    assert test["f1"] > 0.8
    assert low <= test["f1"] <= high
    assert results["export"]["max_difference"] < 1e-5


def test_a_regression_table(run):
    said, results = run("--dataset=csv:photos.csv(image=file,target=level)", "--epochs=15")
    assert "regression of level" in said
    test = results["metrics"]["test"]
    assert test["r2"] > 0.5
    assert results["phases"][0]["metric"] == "rmse"
    assert "values within" in said


def test_a_table_of_texts_is_inspected(run):
    said, _ = run("--dataset=csv:photos.csv(text=words,label=kind)", mode="inspect")
    assert "texts" in said
    assert "one of 2 classes" in said
    assert "near-identical" in said


def test_a_regression_table_of_scikit_learn_is_inspected(run):
    said, _ = run("--dataset=sklearn:diabetes", mode="inspect")
    assert "rows of 10 numbers" in said
    assert "regression of" in said


def test_groups_stay_together_in_folds(run):
    said, results = run(
        "--dataset=csv:photos.csv(image=file,label=kind)", "--group_column=roll", "--folds=2"
    )
    assert "fold 2" in said
    assert len(results["folds"]["values"]) == 2
    assert results["export"] is None


def test_bad_examples_stop_the_run_or_are_listed(run, photos, tiny, tmp_path):
    (photos / "photos" / "dark" / "zero.jpg").touch()
    whole = (photos / "photos" / "dark" / "0.jpg").read_bytes()
    (photos / "photos" / "dark" / "half.jpg").write_bytes(whole[:-100])
    try:
        command = [sys.executable, "-m", "tfxfer.run", "--mode=finetune", "--dataset=folder:photos"]
        stopped = subprocess.run(
            [*command, f"--backbone={tiny}"], cwd=photos, capture_output=True, text=True
        )
        assert stopped.returncode == 2
        assert len(stopped.stderr.splitlines()) == 1
        assert "dark/zero.jpg is empty (0 bytes)" in stopped.stderr
        assert "--skip_bad" in stopped.stderr
        assert not (photos / "runs").exists()
        said, results = run("--dataset=folder:photos", "--skip_bad")
        assert "2 examples left out" in said
        skipped = {each["where"]: each["reason"] for each in results["skipped"]}
        assert sorted(skipped) == ["dark/half.jpg", "dark/zero.jpg"]
    finally:
        for name in ("zero", "half"):
            (photos / "photos" / "dark" / f"{name}.jpg").unlink()


def test_arrays_from_python(images, labels, tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("TFXFER_CACHE_DIR", str(tmp_path / "cache"))
    data = tfxfer.open_dataset(
        {"train": (np.tile(images, (4, 1, 1, 1)), np.tile(labels, 4)), "test": (images, labels)},
        label_names=("a", "b", "c"),
    )
    result = tfxfer.finetune(
        data, backbone=tiny, epochs=1, workdir=str(tmp_path / "run"), batch_size=16
    )
    assert result is not None
    assert result.metrics["test"].examples == 24
    assert result.label_names == ("a", "b", "c")
    assert result.leaks[0].train_in_test > 60, "every test image is in train four times"
    splits = tfxfer.split_data(data)
    train = tfxfer.train_batches(splits.train, 8, seed=0, augment="light")
    model = tfxfer.FineTuner(tfxfer.load_backbone(tiny), keras.layers.Dense(3))
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(
        train.epochs(),
        steps_per_epoch=train.steps,
        validation_data=tfxfer.batches(splits.validation, 8),
        epochs=2,
        shuffle=False,
        verbose=0,
    )


@pytest.fixture
def fine_tuned(tiny, tmp_path, monkeypatch):
    """Fine-tunes on data in memory, and notes what each training was given."""
    monkeypatch.setenv("TFXFER_CACHE_DIR", str(tmp_path / "cache"))
    seen = []
    train = method.train

    def watched(model, plan, data, objective, **options):
        model.unfreeze(plan[0].stages)
        _, shorter = options["shortcut"](plan[0]) or (None, None)
        seen.append((plan, data, shorter))
        return train(model, plan, data, objective, **options)

    monkeypatch.setattr(method, "train", watched)

    def run(source, **settings):
        usual = {"backbone": tiny, "epochs": 1, "workdir": str(tmp_path / "run")}
        return tfxfer.finetune(source, **{**usual, **settings}), seen

    return run


def test_folds_train_and_test_on_what_they_say(fine_tuned):
    source = Memory(train=60, test=10)
    result, seen = fine_tuned(source, folds=3, scan=False)
    assert len(seen) == 3
    assert list(result.metrics) == ["fold 1", "fold 2", "fold 3"]
    assert sum(each.examples for each in result.metrics.values()) == 60
    assert result.folds.mean == pytest.approx(np.mean(result.folds.values))
    assert len(result.phases) == 9
    trained = [set(data.train.part.rows) for _, data, _ in seen]
    assert all(len(rows) == 36 for rows in trained)


def test_every_fold_starts_from_the_pretrained_weights(fine_tuned):
    source = Memory(train=60, test=10)
    one, _ = fine_tuned(source, folds=2, scan=False)
    source_again = Memory(train=60, test=10)
    again, _ = fine_tuned(source_again, folds=2, scan=False, overwrite=True)
    assert one.folds == again.folds
    assert one.metrics == again.metrics


def test_vtab_trains_again_on_all_thousand_for_as_long(fine_tuned):
    source = Memory(train=1200, test=20)
    result, seen = fine_tuned(source, protocol="vtab1k", epochs=2, batch_size=64, scan=False)
    (_, first, _), (plan, second, _) = seen
    assert (first.train.part.examples, second.train.part.examples) == (800, 1000)
    assert second.validation is None
    kept = [phase for phase in result.phases if phase.kept]
    assert [phase.epochs for phase in plan] == [phase.best_epoch for phase in kept]
    assert set(first.train.part.rows) < set(second.train.part.rows)


@pytest.mark.parametrize(
    ("settings", "cached"),
    [
        ({}, True),
        ({"augment": "light"}, False),
        ({"augment": "light", "views": 2}, True),
        ({"mix": "mixup"}, False),
        ({"bn": "train"}, False),
        ({"balance": "class_weights"}, True),
        ({"balance": "sampling"}, True),
    ],
)
def test_the_head_learns_from_features_where_these_are_fixed(fine_tuned, settings, cached):
    result, ((_, data, features),) = fine_tuned(
        Memory(train=60, test=10), scan=False, epochs=3, **settings
    )
    assert (features is not None) == cached
    if cached:
        assert features.train.steps == data.train.steps
    assert result.metrics["test"].examples == 10


def test_a_model_that_only_guesses_is_told(fine_tuned, tmp_path, capsys):
    y = np.random.default_rng(0).integers(0, 2, 300)
    task = Task(SINGLE_LABEL, ("a", "b"))
    fine_tuned(Memory(task, train=y, test=y[:40]), scan=False, plan="head")
    assert "NOT SHOWN TO BE BETTER THAN CHANCE on 30 validation" in capsys.readouterr().out
    fine_tuned(gratings(count=300), scan=False, plan="lp_ft", workdir=str(tmp_path / "other"))
    assert "CHANCE" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("settings", "task", "says"),
    [
        ({"mix": "cutmix"}, Task(REGRESSION, ("y",)), "cutmix"),
        ({"balance": "sampling"}, Task(REGRESSION, ("y",)), "sampling"),
    ],
)
def test_settings_that_do_not_go_with_the_task_are_refused(fine_tuned, settings, task, says):
    y = np.random.default_rng(0).normal(size=(40, 1)).astype(np.float32)
    with pytest.raises(UserError, match=says):
        fine_tuned(Memory(task, train=y, test=y), scan=False, **settings)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"folds": 1}, "--folds"),
        ({"shots": -1}, "--shots"),
        ({"views": 2}, "--augment"),
        ({"schedule": "step", "warmup": 0.3}, "--warmup=0.3 must end before --schedule=step"),
        ({"protocol": "vtab1k", "shots": 5}, "vtab1k"),
        ({"cache_gb": float("inf")}, "--cache_gb"),
        ({"head": "knn"}, "--mode=extract"),
        ({"format": "parquet", "mode": "extract"}, "--mode=embed"),
        ({"folds": 3, "mode": "embed"}, "--folds is for training"),
        ({"augment": "heavy"}, "--augment must be one of none, light, randaugment"),
    ],
)
def test_settings_out_of_range_are_refused(settings, says):
    with pytest.raises(UserError, match=says):
        RunConfig(**settings)
