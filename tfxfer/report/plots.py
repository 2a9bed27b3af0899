"""Pictures of what a run found out, drawn without a display and whatever a user has configured.

Matplotlib is imported as the first one is drawn.
"""

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tfxfer.files import written_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from tfxfer.training.lr_finder import LrCurve

_DPI = 150
# Okabe and Ito's, which eyes that confuse red and green tell apart too.
_BLUE, _ORANGE, _GREEN, _PURPLE = "#0072B2", "#D55E00", "#009E73", "#AA4499"
_INK, _GREY, _PALE = "#333333", "#999999", "#EEEEEE"
_RULES = (
    ("valley", "valley", _ORANGE, "o"),
    ("slide", "slide", _GREEN, "s"),
    ("steepest", "steepest", _PURPLE, "^"),
    ("minimum", "minimum / 10", _BLUE, "D"),
)
# Where a name may stand from its point, in points of print; the best place first.
_PLACES = tuple((x, y) for y in (7, -7, 20, -20, 33, -33) for x in (7, -7))
# What the lines of metrics.jsonl hold beside the metric.
_OTHERS = ("model", "phase", "epoch", "loss", "learning_rate", "seconds")
# Losses that differ more than that cannot be read on an even scale.
_WIDE = 20

Lines = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Point:
    """A model among others of which one is to be chosen.

    Attributes:
        name: Of the model.
        latency_ms: Time of one example in milliseconds, above 0.
        value: Its quality.
        interval: Low and high end of an interval for `value`, if there is one.
        on_front: Whether it is on the Pareto front.
    """

    name: str
    latency_ms: float
    value: float
    interval: tuple[float, float] | None
    on_front: bool


def lr_curve(curve: "LrCurve", path: Path, meaning: str = "learning rate") -> None:
    """Draws losses over rates, with a mark for each rate that is suggested.

    Args:
        curve: What the finder found.
        path: The PNG file to write; it appears whole or not at all.
        meaning: What the rates are, in words for their axis.
    """
    rates, smoothed = np.array(curve.rates), np.array(curve.smoothed)
    with _picture(path, 9, 4.8) as figure:
        axes = _panel(figure)
        axes.plot(rates, curve.losses, color=_GREY, linewidth=0.8, label="loss of a batch")
        axes.plot(rates, smoothed, color=_INK, linewidth=2, label="moving average")
        for rule, name, colour, marker in _RULES:
            rate = getattr(curve.suggestions, rule)
            loss = np.interp(np.log(rate), np.log(rates), smoothed)
            axes.axvline(rate, color=colour, linewidth=1, linestyle=":")
            axes.plot(
                rate,
                loss,
                color=colour,
                marker=marker,
                markersize=8,
                linestyle=":",
                label=f"{name}  {rate:.1e}",
                zorder=3,
            )
        # The explosion would press all else flat.
        top = max(smoothed[0], min(smoothed.max(), 4 * smoothed.min()))
        bottom = min(curve.losses)
        space = 0.08 * (top - bottom) or 1.0
        axes.set_ylim(bottom - space, top + 2 * space)
        axes.set_xlim(rates[0], rates[-1])
        axes.set_xscale("log")
        axes.set_xlabel(meaning)
        axes.set_ylabel("training loss")
        ended = "ended as the loss exploded" if curve.diverged else "up to the last rate"
        axes.set_title(f"Learning-rate finder: {len(rates)} steps, {ended}", loc="left")
        figure.legend(loc="outside right upper", frameon=False)


def phase_curves(lines: Lines, path: Path, undone: Collection[tuple[str, str]] = ()) -> None:
    """Draws loss and metric of every epoch, of training and validation, phase after phase.

    Models have each phase at the same place, which is as wide as the most epochs that one of them
    trained in it.

    Args:
        lines: Those of `metrics.jsonl`, in order, at least one.
        path: The PNG file to write; it appears whole or not at all.
        undone: Phases that did not stand, as `(model, phase)`; `model` is empty where lines have
            none.

    Raises:
        ValueError: If there are no lines.
    """
    if not lines:
        raise ValueError("Expected the metrics of at least one epoch, received none.")
    widths: dict[str, int] = {}
    for line in lines:
        widths[line["phase"]] = max(widths.get(line["phase"], 0), line["epoch"])
    starts = dict(zip(widths, np.cumsum([0, *widths.values()]).tolist(), strict=False))
    runs = _runs(lines)
    models = {model for model, _ in runs}
    metric = next((key for key in lines[0] if key not in _OTHERS and key[:4] != "val_"), None)
    shown = ["loss", metric] if metric else ["loss"]
    with _picture(path, 9, 3.2 * len(shown)) as figure:
        panels = [_panel(figure, len(shown), row) for row in range(len(shown))]
        for axes, name in zip(panels, shown, strict=True):
            for (model, phase), epochs in runs.items():
                style = {
                    "linewidth": 1.8 if len(models) == 1 else 0.9,
                    "linestyle": "--" if (model, phase) in undone else "-",
                    "marker": "o",
                    "markersize": 3.5 if len(models) == 1 else 2,
                }
                x = [starts[phase] + line["epoch"] for line in epochs]
                for key, colour in ((name, _BLUE), (f"val_{name}", _ORANGE)):
                    y = np.array([line.get(key) for line in epochs], float)  # NaN for `None`.
                    axes.plot(x, y, color=colour, **style)
            _mark_phases(axes, widths, starts, {p for m, p in undone if len(models) == 1})
            axes.set_ylabel(name)
        _scale_loss(panels[0], lines)
        _name_phases(panels[0], widths, starts)
        for axes in panels[:-1]:
            axes.tick_params(labelbottom=False)
        panels[-1].set_xlabel("epoch, over all phases")
        _epoch_legend(figure, panels[0], lines, len(models), bool(undone))


def pareto(points: Sequence[Point], path: Path, quality: str, title: str) -> None:
    """Draws quality over latency, with a line through the points on the Pareto front.

    Args:
        points: The models, at least one.
        path: The PNG file to write; it appears whole or not at all.
        quality: Name of their values, such as `accuracy`.
        title: What stands above.

    Raises:
        ValueError: If there are no points.
    """
    if not points:
        raise ValueError("Expected at least one model, received none.")
    front = sorted((each.latency_ms, each.value) for each in points if each.on_front)
    with _picture(path, 9, 4.8) as figure:
        axes = _panel(figure)
        x, y = [x for x, _ in front], [y for _, y in front]
        axes.step(x, y, where="post", color=_BLUE, linewidth=1.2, zorder=1)
        for each in points:
            low, high = each.interval or (each.value, each.value)
            axes.vlines(each.latency_ms, low, high, color=_GREY, linewidth=1.2, zorder=1)
            axes.plot(
                each.latency_ms,
                each.value,
                color=_BLUE,
                marker="o",
                markersize=7,
                markerfacecolor=_BLUE if each.on_front else "white",
            )
        axes.margins(0.1)
        _scale_latency(axes)
        axes.set_xlabel("ms an example, on this machine")
        axes.set_ylabel(quality)
        axes.set_title(title, loc="left", parse_math=False)
        _name_points(figure, axes, points)


def _scale_latency(axes: "Axes") -> None:
    """Makes the scale logarithmic, with plain numbers that are enough on a short one too."""
    from matplotlib.ticker import AutoLocator, LogLocator, NullLocator

    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)) if high > 5 * low else AutoLocator())
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter("{x:g}")


def _name_points(figure: "Figure", axes: "Axes", points: Sequence[Point]) -> None:
    """Writes each name at the first place beside its point that is free, or where it fits."""
    from matplotlib.transforms import Bbox

    figure.draw_without_rendering()  # Only then is it known where points are.
    inside = axes.get_window_extent()
    centres = axes.transData.transform([(each.latency_ms, each.value) for each in points])
    taken = [Bbox([centre - 5, centre + 5]) for centre in centres]
    for each in points:
        name = axes.annotate(
            each.name,
            (each.latency_ms, each.value),
            _PLACES[0],
            textcoords="offset points",
            va="center",
            fontsize=9,
            color=_INK,
            # Over lines that it crosses.
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5},
            parse_math=False,
            in_layout=False,
        )
        for x, y in _PLACES:
            name.set(position=(x, y), ha="left" if x > 0 else "right")
            box = name.get_window_extent()
            if inside.x0 <= box.x0 and box.x1 <= inside.x1 and not box.count_overlaps(taken):
                break
        else:  # The first, moved to the left as far as the name is too long.
            x, y = _PLACES[0]
            name.set(position=(x, y), ha="left")
            box = name.get_window_extent()
            over = max(min(box.x1 - inside.x1, box.x0 - inside.x0), 0)
            name.set(position=(x - 72 / figure.dpi * over, y))
        taken.append(name.get_window_extent())


def _runs(lines: Lines) -> dict[tuple[str, str], list[Mapping[str, Any]]]:
    """Groups epochs by model and phase."""
    runs: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for line in lines:
        runs.setdefault((line.get("model", ""), line["phase"]), []).append(line)
    return runs


def _mark_phases(
    axes: "Axes", widths: Mapping[str, int], starts: Mapping[str, int], undone: Collection[str]
) -> None:
    """Draws a line between phases, and greys those that were undone."""
    for phase, start in starts.items():
        if start:
            axes.axvline(start + 0.5, color=_GREY, linewidth=0.8)
        if phase in undone:
            end = start + widths[phase]
            axes.axvspan(start + 0.5, end + 0.5, color=_PALE, zorder=0, linewidth=0)
    axes.set_xlim(0.5, sum(widths.values()) + 0.5)
    axes.locator_params("x", integer=True, min_n_ticks=1)


def _name_phases(axes: "Axes", widths: Mapping[str, int], starts: Mapping[str, int]) -> None:
    """Writes the names of phases over their places, aslant if they are too long for them."""
    letters = 80 / sum(widths.values())  # As many as fit over an epoch.
    slant = any(len(phase) > letters * width for phase, width in widths.items())
    for phase, start in starts.items():
        axes.annotate(
            phase,
            (start + 0.5 + widths[phase] / 2, 1),
            (0, 4),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            ha="left" if slant else "center",
            rotation=40 if slant else 0,
            rotation_mode="anchor",
            fontsize=9,
            color=_INK,
        )


def _scale_loss(axes: "Axes", lines: Lines) -> None:
    """Makes the scale logarithmic where an even one would hide the small losses."""
    losses = np.array([line.get(key) for line in lines for key in ("loss", "val_loss")], float)
    losses = losses[np.isfinite(losses)]
    if losses.size and losses.min() > 0 and losses.max() > _WIDE * losses.min():
        axes.set_yscale("log")
        axes.set_ylabel("loss (logarithmic)")


def _epoch_legend(figure: "Figure", axes: "Axes", lines: Lines, models: int, undone: bool) -> None:
    each = "" if models == 1 else f", {models} models"
    axes.plot([], [], color=_BLUE, label=f"training{each}")
    if any("val_loss" in line for line in lines):
        axes.plot([], [], color=_ORANGE, label=f"validation{each}")
    if undone:
        axes.plot([], [], color=_INK, linestyle="--", label="undone afterwards")
    figure.legend(loc="outside lower right", ncols=3, frameon=False)


def _panel(figure: "Figure", rows: int = 1, row: int = 0) -> "Axes":
    axes = figure.add_subplot(rows, 1, row + 1)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color=_PALE)
    axes.set_axisbelow(True)
    return axes


@contextlib.contextmanager
def _picture(path: Path, width: float, height: float) -> Iterator["Figure"]:
    """Gives a figure, in inches, and writes it as PNG at the end of the `with` block.

    It is drawn with Matplotlib's own defaults; the settings of the process are untouched after it.
    """
    from matplotlib import style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with style.context("default"):
        figure = Figure((width, height), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure
        with written_whole(path) as unfinished:
            figure.savefig(unfinished, format="png", dpi=_DPI)
