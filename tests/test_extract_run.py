"""`--mode=extract` and `--mode=embed`, on data of every kind."""

import json
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfxfer
from tests.memory import Memory
from tests.test_cli import tfxfer as run
from tfxfer.config import HEADS, RunConfig
from tfxfer.data.sources import open_dataset
from tfxfer.data.splits import split_data
from tfxfer.errors import UserError
from tfxfer.methods import embed
from tfxfer.report.console import Console
from tfxfer.report.workdir import choose_workdir
from tfxfer.task import MULTI_LABEL, REGRESSION, Task


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TFXFER_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> str:
    keras.utils.set_random_seed(1)
    network = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            keras.layers.Conv2D(16, 3, strides=2, name="block1_conv"),
            keras.layers.LeakyReLU(),
            keras.layers.GlobalAveragePooling2D(),
        ]
    )
    path = tmp_path_factory.mktemp("tiny") / "hub"
    tfxfer.save_hub_module(network, path)
    return str(path)


class Gratings(Memory):
    """Images of a pattern that tells their class, and noise that tells each apart."""

    def image(self, row):
        rng = np.random.default_rng(row)
        label = np.ravel(self._labels["train"][row % len(self._labels["train"])])[0]
        tilt = np.arange(8)[:, None] * (label % 3) + np.arange(8)[None] * (label > 0.5)
        image = 128 + 90 * np.sin(tilt) + rng.normal(0, 15, (8, 8))
        return np.clip(image, 0, 255).astype(np.uint8)[..., None]


def gratings(kind: str | None = None, count: int = 90, **more) -> Gratings:
    rng = np.random.default_rng(0)
    if kind == REGRESSION:
        y = rng.uniform(0, 2, (count, 1)).astype(np.float32)
        return Gratings(Task(REGRESSION, ("tilt",)), side=8, train=y, **more)
    if kind == MULTI_LABEL:
        y = rng.integers(0, 2, (count, 2)).astype(np.float32)
        return Gratings(Task(MULTI_LABEL, ("a", "b")), side=8, train=y, **more)
    return Gratings(Task("single_label", ("a", "b", "c")), side=8, train=count, **more)


def extract(source, tiny, tmp_path, **settings) -> Any:
    usual = {"backbone": tiny, "workdir": str(tmp_path / "run"), "learning_rate": 0.03}
    return tfxfer.extract(source, **{**usual, **settings})


@pytest.mark.parametrize("head", HEADS)
def test_what_is_served_is_what_was_fitted(head, tiny, tmp_path):
    result = extract(gratings(), tiny, tmp_path, head=head, epochs=60)
    assert result.head.name == head
    assert result.export.max_difference < 1e-5
    assert result.metrics["test"].accuracy > 0.8
    assert result.metrics["test"].examples == 18
    model = tfxfer.load_model(tmp_path / "run" / "model.keras", safe_mode=False)
    test = split_data(gratings()).test
    images = np.stack([x for _, x, _ in test.dataset.as_numpy_iterator()])
    assert np.mean(np.argmax(model(images), -1) == test.labels) == result.metrics["test"].accuracy
    signatures = tf.saved_model.load(str(tmp_path / "run" / "saved_model" / "1")).signatures
    features = signatures["features"](images=images)["features"]
    np.testing.assert_allclose(features, model.backbone(images), atol=1e-5)
    saved = json.loads((tmp_path / "run" / "results.json").read_text())
    assert saved["head"]["name"] == head
    assert set(saved["timings"]) == {"loading", "features", "head", "evaluation", "export"}


@pytest.mark.parametrize(
    ("kind", "head", "works"),
    [
        (MULTI_LABEL, "auto", True),
        (MULTI_LABEL, "ridge", True),
        (MULTI_LABEL, "knn", True),
        (MULTI_LABEL, "linear", True),
        (MULTI_LABEL, "prototype", False),
        (REGRESSION, "auto", True),
        (REGRESSION, "knn", True),
        (REGRESSION, "mlp", True),
        (REGRESSION, "logistic", False),
        (REGRESSION, "cosine", False),
    ],
)
def test_heads_for_other_tasks(kind, head, works, tiny, tmp_path):
    if not works:
        with pytest.raises(UserError, match=head):
            extract(gratings(kind), tiny, tmp_path, head=head)
        assert not (tmp_path / "run").exists()
        return
    result = extract(gratings(kind), tiny, tmp_path, head=head, epochs=40)
    assert result.export.passed
    found = result.metrics["test"]
    assert found.f1 > 0.5 if kind == MULTI_LABEL else found.r2 > 0


def test_the_backbone_runs_once_for_all_heads_seeds_and_folds(tiny, tmp_path, monkeypatch):
    seen = []
    from tfxfer.methods import extract as method

    compute = method.compute_features

    def counting(backbone, part, *args, **options):
        features = backbone.features
        backbone.features = lambda images, training: seen.append(1) or features(images, training)
        return compute(backbone, part, *args, **options)

    monkeypatch.setattr(method, "compute_features", counting)
    # Folds export nothing, which would call the backbone too, as the self-check would.
    usual = {"folds": 2, "self_check": False, "epochs": 2, "overwrite": True}
    extract(gratings(), tiny, tmp_path, **{**usual, "overwrite": False})
    first = len(seen)
    assert first
    for settings in ({"head": "knn"}, {"seed": 5}, {"head": "linear"}, {"folds": 3}):
        extract(gratings(), tiny, tmp_path, **{**usual, **settings})
    assert len(seen) == first


def test_folds_are_scored_and_nothing_exported(tiny, tmp_path):
    result = extract(gratings(), tiny, tmp_path, folds=3)
    assert result.export is None
    assert len(result.folds.values) == 3
    assert sum(each.examples for each in result.metrics.values()) == 90
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "config.json",
        "results.json",
    ]


def test_vtab_fits_again_on_all_thousand(tiny, tmp_path):
    result = extract(gratings(count=1300), tiny, tmp_path, protocol="vtab1k", scan=False)
    assert result.metrics["validation"].examples == 200
    assert result.head.sweep


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"mix": "mixup"}, "--mix"),
        ({"augment": "light"}, "--views"),
        ({"augment": "light", "views": 2}, "--head=linear or mlp"),
        ({"balance": "sampling"}, "--balance"),
        ({"head": "linear", "learning_rate": 1e38}, "learning rate"),
        ({"epoch": 3}, "Did you mean epochs"),
        ({"dataset": "digits"}, "open_dataset"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings, says, tiny, tmp_path):
    with pytest.raises(UserError, match=says):
        extract(gratings(), tiny, tmp_path, **settings)
    assert not (tmp_path / "run").exists()


def test_augmented_views_train_a_head(tiny, tmp_path):
    result = extract(gratings(), tiny, tmp_path, head="linear", augment="light", views=2, epochs=20)
    assert result.metrics["test"].examples == 18


def test_digits_reach_what_is_promised(tmp_path, data_dir):
    """The second run reads the features of the first, and takes less than two seconds."""
    for name in ("one", "two"):
        done = run("--mode=extract", f"--workdir={name}", cwd=tmp_path, data_dir=data_dir)
        assert done.returncode == 0, done.stderr
        assert "head logistic, strength" in done.stdout
    found = json.loads((tmp_path / "two" / "results.json").read_text())
    assert found["metrics"]["test"]["accuracy"] >= 0.97
    assert sum(found["timings"][part] for part in ("features", "head", "evaluation")) < 2


def test_embeddings_are_written_and_measured(tiny, tmp_path):
    source = gratings(test=30)
    config = RunConfig(mode="embed", backbone=tiny, workdir=str(tmp_path / "run"))
    result = embed.run(config, choose_workdir(config), Console(), source)
    assert result is not None
    assert result.examples == {"train": 90, "test": 30}
    assert result.measured == "test"
    assert result.verification is not None
    assert result.verification.auc > 0.8
    assert result.retrieval is not None
    assert result.retrieval.recall_at[1] > 0.8
    written = np.load(tmp_path / "run" / "embeddings" / "test" / "embeddings.npz")
    assert written["features"].shape == (30, 16)
    assert written["ids"].tolist() == [f"test{row}" for row in range(30)]
    assert written["labels"].tolist() == ["abc"[row % 3] for row in range(30)]
    serve = tf.saved_model.load(str(tmp_path / "run" / "saved_model" / "1"))
    images = np.stack([x for _, x, _ in source.split("test").as_numpy_iterator()])
    served = serve.signatures["serving_default"](images=images)["features"]
    np.testing.assert_allclose(served, written["features"], atol=1e-5)


def test_what_embeddings_leave_out_is_said(tmp_path, capsys):
    for i, name in enumerate(["a/1.png", "a/2.png", "b/1.png", "b/2.png", "b/3.png"]):
        file = tmp_path / "photos" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        image = np.full((8, 8, 3), 40 * i, np.uint8)
        file.write_bytes(tf.io.encode_png(image).numpy() if i else b"no image")
    config = RunConfig(mode="embed", backbone="tiny", skip_bad=True, workdir=str(tmp_path / "run"))
    source = open_dataset(f"folder:{tmp_path / 'photos'}")
    result = embed.run(config, choose_workdir(config), Console(), source)
    assert result is not None
    assert len(result.skipped) == 1
    assert "1 example left out, such as" in capsys.readouterr().out


def test_embeddings_of_numbers_are_not_verified(tiny, tmp_path):
    config = RunConfig(mode="embed", backbone=tiny, workdir=str(tmp_path / "run"))
    result = embed.run(config, choose_workdir(config), Console(), gratings(REGRESSION))
    assert result is not None
    assert result.verification is None
    json.loads((tmp_path / "run" / "results.json").read_text())
