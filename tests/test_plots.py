"""Pictures: whole files, with what they are to show in them."""

import subprocess
import sys
from dataclasses import replace
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from tfxfer.report.plots import Point, lr_curve, pareto, phase_curves
from tfxfer.training.lr_finder import LrCurve, curve

RATES = np.geomspace(1e-7, 10, 100)
BLUE, ORANGE, GREEN, PURPLE = (0, 114, 178), (213, 94, 0), (0, 158, 115), (170, 68, 153)


@pytest.fixture
def found() -> LrCurve:
    exponents = np.log10(RATES)
    noise = np.random.default_rng(0).normal(0, 0.1, 100)
    return curve(RATES, 2.3 - 1.8 / (1 + np.exp(-3 * (exponents + 2.5))) + noise)


def epochs(counts, model="", metric="accuracy", validation=True):
    """Lines of metrics.jsonl, by phase as many as `counts` says."""
    lines = []
    for phase, count in counts.items():
        for epoch in range(1, count + 1):
            loss = 2.0 / (len(lines) + 1)
            line = {"phase": phase, "epoch": epoch, metric: 1 - loss / 3, "loss": loss}
            if validation:
                line |= {f"val_{metric}": 1 - loss / 2, "val_loss": 1.2 * loss}
            named = {"model": model} if model else {}
            lines.append({**named, **line, "learning_rate": 1e-3, "seconds": 0.1})
    return lines


def pixels(path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert image.info["dpi"] == pytest.approx((150, 150), abs=0.1)
        return np.asarray(image.convert("RGB"))


def share(picture, colour) -> float:
    """How much of a picture is of a colour."""
    return float((np.abs(picture.astype(int) - colour).max(-1) < 8).mean())


def test_lr_curve_shows_four_marks(found, tmp_path):
    lr_curve(found, tmp_path / "lr_find.png", "--learning_rate (head at 1 times that)")
    picture = pixels(tmp_path / "lr_find.png")
    assert picture.shape == (720, 1350, 3)
    assert share(picture, (255, 255, 255)) > 0.7
    for colour in (BLUE, ORANGE, GREEN, PURPLE):
        assert share(picture, colour) > 2e-4
    assert [path.name for path in tmp_path.iterdir()] == ["lr_find.png"]


def test_an_explosion_does_not_flatten_the_curve(found, tmp_path):
    lr_curve(found, tmp_path / "calm.png")
    losses = [*found.losses[:-1], 1e6]
    lr_curve(curve(RATES, losses), tmp_path / "wild.png")
    calm, wild = (pixels(tmp_path / name)[:, :900] for name in ("calm.png", "wild.png"))
    dark = [np.nonzero((picture.max(-1) < 80).sum(1) > 5)[0] for picture in (calm, wild)]
    assert len(dark[1]) > 0.4 * len(dark[0]), "the curve still spans many rows"


def test_phase_curves_show_train_and_validation(tmp_path):
    path = tmp_path / "curves.png"
    phase_curves(epochs({"head": 3, "+block4": 2}), path)
    picture = pixels(path)
    assert picture.shape == (960, 1350, 3)
    assert share(picture, BLUE) > 1e-3
    assert share(picture, ORANGE) > 1e-3
    phase_curves(epochs({"head": 3}, metric="rmse", validation=False), path)
    picture = pixels(path)
    assert share(picture, BLUE) > 1e-3
    assert share(picture, ORANGE) == 0


def test_undone_phases_are_greyed(tmp_path):
    lines = epochs({"head": 3, "+block4": 3})
    shares = []
    for undone in ((), [("", "+block4")]):
        phase_curves(lines, tmp_path / "curves.png", undone)
        shares.append(share(pixels(tmp_path / "curves.png"), (238, 238, 238)))
    assert shares[0] < 0.05
    assert 0.25 < shares[1] < 0.5, "about half of the panels"


def test_models_share_the_places_of_phases(tmp_path):
    """The picture of several models is as that of the longest, with more lines."""
    long, short = {"head": 5, "+block4": 4}, {"head": 2, "+block4": 1}
    lines = [*epochs(long, "fold 1"), *epochs(short, "fold 2"), *epochs(short, "fold 3")]
    phase_curves(lines, tmp_path / "three.png", [("fold 2", "+block4")])
    phase_curves(epochs(long), tmp_path / "one.png")
    three, one = pixels(tmp_path / "three.png"), pixels(tmp_path / "one.png")
    boundary = [np.nonzero((picture[100:400].max(-1) < 245).all(0))[0] for picture in (three, one)]
    assert boundary[0].max() > 300, "a line beside that of the axis"
    np.testing.assert_array_equal(boundary[0], boundary[1])


@pytest.mark.parametrize(
    "lines",
    [
        epochs({"head": 1}),
        epochs({f"+a_stage_with_a_long_name_{i}": 1 for i in range(12)}),
        [{**line, "loss": float("nan")} for line in epochs({"head": 2})],
        [{**line, "loss": 0.0, "val_loss": 0.0} for line in epochs({"head": 2})],
    ],
    ids=["one epoch", "long names", "nan", "zero"],
)
def test_odd_runs_are_drawn(tmp_path, lines):
    phase_curves(lines, tmp_path / "curves.png")
    assert share(pixels(tmp_path / "curves.png"), ORANGE) > 1e-4


def test_nothing_to_draw_is_a_mistake(tmp_path):
    with pytest.raises(ValueError, match="none"):
        phase_curves([], tmp_path / "curves.png")
    assert list(tmp_path.iterdir()) == []


POINTS = (
    Point("MobileNetV2(alpha=0.35)", 4.1, 0.861, (0.842, 0.879), True),
    Point("MobileNetV3Small", 5.6, 0.859, (0.840, 0.877), False),
    Point("MobileNetV3Large", 11.2, 0.914, (0.899, 0.928), True),
    Point("MobileNetV2", 11.9, 0.912, (0.897, 0.926), False),
    Point("EfficientNetB0", 19.8, 0.931, (0.917, 0.944), True),
    Point("ResNet50", 48.0, 0.925, (0.911, 0.938), False),
    Point("EfficientNetB3 at $300$", 61.0, 0.944, None, True),
)


def test_pareto_fills_and_joins_the_points_of_the_front(tmp_path):
    shares = []
    for points in (POINTS, [replace(each, on_front=False) for each in POINTS]):
        pareto(points, tmp_path / "pareto.png", "accuracy", "digits: 7 models")
        picture = pixels(tmp_path / "pareto.png")
        assert picture.shape == (720, 1350, 3)
        shares.append(share(picture, BLUE))
    assert shares[0] > 2 * shares[1] > 5e-4
    assert [path.name for path in tmp_path.iterdir()] == ["pareto.png"]


@pytest.fixture
def boxes(monkeypatch) -> list:
    """The places of the axes and of all names in them, as they are drawn."""
    found = []
    savefig = Figure.savefig

    def look(figure, *args, **kwargs):
        (axes,) = figure.axes
        found.extend(each.get_window_extent().frozen() for each in (axes, *axes.texts))
        savefig(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", look)
    return found


def test_names_keep_clear_of_each_other(tmp_path, boxes):
    pareto(POINTS, tmp_path / "pareto.png", "accuracy", "digits")
    _, *names = boxes
    assert len(names) == len(POINTS)
    assert all(box.count_overlaps(names) == 1 for box in names), "each with itself alone"


def test_long_names_stay_inside(tmp_path, boxes):
    lengths = (60, 95, 130)  # Fits beside its point, fits in the axes, does not fit.
    points = [replace(POINTS[i], name="a" * length) for i, length in enumerate(lengths)]
    pareto(points, tmp_path / "pareto.png", "accuracy", "digits")
    axes, *names = boxes
    assert [name.width < axes.width for name in names] == [True, True, False]
    assert all(name.x0 >= axes.x0 - 1 for name in names)
    assert all(name.x1 <= axes.x1 + 1 for name in names[:2])


@pytest.mark.parametrize(
    "points",
    [
        POINTS[:1],
        [replace(each, latency_ms=3.0, value=0.5, interval=None) for each in POINTS],
        [replace(each, name="a" * 200) for each in POINTS[:2]],
        [replace(POINTS[0], latency_ms=0.01), replace(POINTS[1], latency_ms=5000.0)],
    ],
    ids=["one", "all alike", "long names", "far apart"],
)
def test_odd_models_are_drawn(tmp_path, points):
    pareto(points, tmp_path / "pareto.png", "rmse", "digits")
    assert share(pixels(tmp_path / "pareto.png"), BLUE) > 1e-4


def test_no_models_are_a_mistake(tmp_path):
    with pytest.raises(ValueError, match="none"):
        pareto([], tmp_path / "pareto.png", "accuracy", "digits")


def test_a_failure_leaves_the_old_picture(found, tmp_path, monkeypatch):
    path = tmp_path / "lr_find.png"
    path.write_text("old")

    def full_disk(*args, **kwargs):
        raise OSError("no space left")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", full_disk)
    with pytest.raises(OSError, match="no space"):
        lr_curve(found, path)
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [(path.name, "old")]


def test_settings_of_a_user_neither_matter_nor_change(found, tmp_path):
    lr_curve(found, tmp_path / "one.png")
    mine: Any = {"lines.linewidth": 30, "axes.facecolor": "black", "savefig.transparent": True}
    with matplotlib.rc_context(mine):
        lr_curve(found, tmp_path / "two.png")
        assert {name: matplotlib.rcParams[name] for name in mine} == mine
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


def test_no_pyplot_and_nothing_before_it_is_needed(tmp_path):
    code = """
import sys
from pathlib import Path
from tfxfer.report.plots import phase_curves
assert not {"matplotlib", "tensorflow"} & set(sys.modules)
phase_curves([{"phase": "head", "epoch": 1, "loss": 1.0}], Path(sys.argv[1]))
assert "matplotlib.pyplot" not in sys.modules
"""
    path = tmp_path / "curves.png"
    subprocess.run([sys.executable, "-c", code, path], check=True)
    assert pixels(path).shape == (480, 1350, 3)
