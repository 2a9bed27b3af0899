"""`--mode=select`: backbones ranked by what they are worth on the data."""

import json
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from sklearn.datasets import load_digits

import tfxfer
from tests.test_cli import tfxfer as run
from tests.test_extract_run import gratings
from tfxfer.cache import Cache
from tfxfer.errors import UserError
from tfxfer.task import MULTI_LABEL, REGRESSION

TWO = "tiny, tiny(width=0.25, random=block4)"
FOUR = (
    "glyphs, glyphs(random=block4), glyphs(random=all), keras:MobileNetV2(alpha=0.35, weights=none)"
)


def select(source, tmp_path, **settings) -> Any:
    usual = {"workdir": str(tmp_path / "run"), "cache_dir": str(tmp_path / "cache")}
    return tfxfer.select(source, **{"backbones": TWO, **usual, **settings})


def without_test(source):
    """A source whose test examples must not be read."""
    read = source.read

    def guarded(name, rows=None):
        assert name != "test"
        return read(name, rows)

    source.read = guarded
    return source


def test_what_is_written_and_what_is_not_looked_at(tmp_path, capsys):
    source = without_test(gratings(test=30))
    result = select(source, tmp_path, scan=False, budget=2)
    found = json.loads((tmp_path / "run" / "results.json").read_text())["selection"]
    assert [each["name"] for each in found["candidates"]] == [
        each.name for each in result.selection.candidates
    ]
    for each in found["candidates"]:
        assert each["cost"]["parameters"] > 0
        assert each["cost"]["latency_ms"] > 0
        assert each["knn"]["interval"][0] <= each["knn"]["value"] <= each["knn"]["interval"][1]
        assert {"logme", "nleep", "parc", "parameters"} <= set(each["scores"])
        (tuned,) = each["fine_tuned"]
        assert tuned["epochs"] == 1
        assert 0 <= tuned["validation"]["accuracy"] <= 1
    first = found["candidates"][0]
    assert set(found["correlations"]) == {"knn", "linear_probe", *first["scores"]}
    assert found["correlated"] == 2
    assert (tmp_path / "run" / "pareto.png").read_bytes()[:4] == b"\x89PNG"
    said = capsys.readouterr().out
    assert "weighted tau with what 2 backbones reached" in said
    assert "test examples were not looked at" in said
    # One pass of each backbone, which its fine-tuning has the head from.
    assert len(Cache(tmp_path / "cache", 10**9).entries()) == 2


def test_a_backbone_that_knows_the_task_beats_one_that_does_not(tmp_path, capsys):
    x, y = load_digits(return_X_y=True)
    images = (x[:400].reshape(-1, 8, 8, 1) * 15.9).astype(np.uint8)
    data = tfxfer.open_dataset((images, y[:400]))
    result = select(data, tmp_path, backbones="tiny(width=0.1), glyphs", scan=False)
    best, other = result.selection.candidates
    assert (best.name, best.rank) == ("glyphs", 1)
    assert (other.name, other.rank) == ("tiny(width=0.1)", 2)
    assert result.selection.best == ("glyphs",)
    assert result.selection.correlations == {}
    assert "best: glyphs, better than tiny(width=0.1) beyond" in capsys.readouterr().out


@pytest.mark.parametrize(("kind", "metric"), [(REGRESSION, "rmse"), (MULTI_LABEL, "f1")])
def test_other_tasks_have_figures_of_their_own(kind, metric, tmp_path):
    result = select(gratings(kind), tmp_path, scan=False, budget=2)
    assert result.selection.metric == metric
    for each in result.selection.candidates:
        assert set(each.scores) == {"logme", "parameters"}
        assert getattr(each.fine_tuned[0].validation, metric) >= 0


def test_a_backbone_whose_training_fails_is_left_out_and_named(tmp_path, capsys):
    image = keras.Input((24, 24, 1))
    # The slope of a square root is infinite where a ReLU gives 0.
    x = keras.ops.sqrt(keras.layers.Conv2D(8, 5, activation="relu")(image))
    path = tmp_path / "steep.keras"
    keras.Model(image, keras.layers.GlobalAveragePooling2D()(x)).save(path)
    backbones = f"tiny, {path}"
    result = select(gratings(), tmp_path, backbones=backbones, budget=2, scan=False, plan="full")
    assert result.selection.best == ("tiny",)
    found = json.loads((tmp_path / "run" / "results.json").read_text())["selection"]["candidates"]
    failed = {each["name"]: each["failed"] for each in found}
    assert failed["tiny"] == ""
    assert "finite" in failed[str(path)]
    said = capsys.readouterr().out
    assert "steep.keras failed in round 1: " in said
    assert "only tiny is left" in said


def test_texts(tmp_path):
    rng = np.random.default_rng(0)
    words = np.array([["good", "fine", "great"], ["bad", "poor", "dull"]])
    y = np.arange(60) % 2
    texts = [f"the film {i} was {words[label][rng.integers(3)]}" for i, label in enumerate(y)]
    result = select(
        tfxfer.open_dataset((texts, y)),
        tmp_path,
        backbones="words, bag, transformer(layers=1, units=16, heads=2)",
        scan=False,
    )
    assert len(result.selection.candidates) == 3
    assert result.selection.best


def test_a_spec_holds_what_is_of_one_backbone(tmp_path):
    result = select(
        gratings(),
        tmp_path,
        scan=False,
        backbones='tiny(width=0.5, image_size=16), tiny(width=0.5, value_range="-1,1"), tiny',
    )
    flops = {each.name: each.cost.flops for each in result.selection.candidates}
    assert flops["tiny(width=0.5, image_size=16)"] != flops['tiny(width=0.5, value_range="-1,1")']


def write_photos(folder) -> str:
    """Two classes of images, each of another size."""
    for i in range(24):
        image = np.random.default_rng(i).integers(0, 256, (30 + i, 40, 3), np.uint8)
        (folder / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        (folder / "ab"[i % 2] / f"{i}.png").write_bytes(tf.io.encode_png(image).numpy())
    return f"folder:{folder}"


def test_images_of_different_sizes_are_brought_to_one(tmp_path, capsys):
    source = tfxfer.open_dataset(write_photos(tmp_path / "photos"))
    flat = keras.Sequential([keras.Input((None, None, 3)), keras.layers.Conv2D(4, 3, strides=8)])
    flat.save(tmp_path / "flat.keras")
    flat = f"{tmp_path / 'flat.keras'}"
    with pytest.raises(UserError, match=r"takes images of any size.*or image_size=224 in its pare"):
        select(source, tmp_path, backbones=f"glyphs, {flat}")
    assert "kNN" not in capsys.readouterr().out
    result = select(source, tmp_path, backbones=f"tiny, tiny(random=all), {flat}(image_size=32)")
    flops = {each.name: each.cost.flops for each in result.selection.candidates}
    assert len(flops) == 3
    assert flops["tiny"] == flops["tiny(random=all)"]


@pytest.mark.parametrize(
    ("other", "message"), [("glyfs", "Did you mean glyphs"), ("words", "takes texts")]
)
def test_what_cannot_be_used_is_told_before_anything_is_measured(other, message, tmp_path, capsys):
    with pytest.raises(UserError, match=message):
        select(gratings(), tmp_path, backbones=f"glyphs, {other}")
    assert "kNN" not in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


def test_many_examples_are_drawn_from(tmp_path, capsys):
    big = gratings(count=3000)
    assert select(big, tmp_path, scan=False, dry_run=True) is None
    assert "2000 of" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--mode=select", "--backbones=glyphs"), "--backbones must name at least two"),
        (("--mode=select", "--backbone=glyphs"), "--backbone is not for --mode=select"),
        (("--mode=select", "--learning_rate=0.1"), "without --budget none is"),
        (("--mode=select", "--budget=-1"), "--budget must be at least 0"),
        (("--budget=3",), "--budget is for --mode=select"),
        (("--mode=select", "--backbones=glyphs,glyphss"), "Did you mean glyphs"),
    ],
)
def test_mistakes_are_told_in_one_line(flags, message, data_dir, tmp_path):
    done = run(*flags, "--noscan", cwd=tmp_path, data_dir=data_dir)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "runs").glob("*")) if (tmp_path / "runs").exists() else True


@pytest.mark.slow
def test_digits_rank_backbones_as_fine_tunings_do(digits, tmp_path, capsys):
    result = select(digits, tmp_path, backbones=FOUR, budget=16)
    found = result.selection.candidates
    names = [each.strip() for each in FOUR.split(", glyphs")]
    assert found[0].name == names[0] == "glyphs"
    assert [each.rank for each in found][-2:] == [3, 4]
    reached = [each.fine_tuned[0].validation.accuracy for each in found]
    assert reached == sorted(reached, reverse=True)
    for name in ("knn", "linear_probe"):
        assert result.selection.correlations[name] > 0.9
    assert "glyphs" in result.selection.best
    assert [len(each.fine_tuned) for each in found] == [2, 2, 1, 1]
    assert "weighted tau" in capsys.readouterr().out
