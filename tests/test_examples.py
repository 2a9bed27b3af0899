"""The examples do what they say."""

import importlib.util
from pathlib import Path

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
