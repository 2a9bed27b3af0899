"""The examples do what they say."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from tfxfer.data.sources import open_dataset

EXAMPLES = Path(__file__).parent.parent / "examples"


def load(name: str):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_transfer_is_worth_what_the_readme_says(monkeypatch, data_dir):
    """Five labelled digits a class, with the rates and steps that validation chose."""
    few_shot = load("few_shot")
    monkeypatch.setattr(few_shot, "open_dataset", lambda name: open_dataset(name, data_dir))
    images, labels = few_shot.arrays("train")
    test_images, test_labels = few_shot.arrays("test")

    def mean_accuracy(way: str, rate: float, steps: int) -> float:
        found = []
        for seed in range(5):
            rows = few_shot.draw(labels, 5, seed)
            assert np.bincount(labels[rows]).tolist() == [5] * 10
            model = few_shot.fit(way, images[rows], labels[rows], rate, steps, seed)
            found.append(few_shot.accuracy(model, test_images, test_labels))
        return float(np.mean(found))

    fine_tuned = mean_accuracy("fine-tuned", 1e-3, 50)
    assert fine_tuned >= 0.94
    assert fine_tuned - mean_accuracy("random", 3e-3, 100) >= 0.08


@pytest.mark.slow
def test_images_and_a_teacher_of_ones_own_are_distilled(tmp_path):
    """Too few images for anyone to say whether the teacher knows them."""
    rng = np.random.default_rng(0)
    arrays = {
        f"x_{split}": rng.integers(0, 256, (count, 12, 12, 3), np.uint8)
        for split, count in (("train", 18), ("test", 6))
    }
    labels = {f"y_{split}": np.arange(count) % 3 for split, count in (("train", 18), ("test", 6))}
    held = {**arrays, **labels, "classes": np.array(["a", "b", "c"])}
    np.savez(tmp_path / "own.npz", allow_pickle=False, **held)
    (tmp_path / "names.txt").write_text("c\nb\na\n")
    teacher = keras.Sequential(
        [
            keras.Input((12, 12, 3)),
            keras.layers.Rescaling(1 / 255),
            keras.layers.Conv2D(4, 3, activation="relu"),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(3, activation="softmax"),
        ]
    )
    teacher.save(tmp_path / "teacher.keras")
    done = subprocess.run(
        [
            sys.executable,
            str(EXAMPLES / "distillation.py"),
            "--data=own.npz",
            "--teacher=teacher.keras(labels=names.txt)",
            "--seeds=1",
            "--epochs=1",
            "--workdir=run",
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(EXAMPLES.parent), "TFXFER_CACHE_DIR": "cache"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "verdict" in done.stdout
    assert (tmp_path / "run" / "transfer_card.md").is_file()
