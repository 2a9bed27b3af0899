"""What do plans of fine-tuning give? One table, on any data and backbone.

    python examples/finetuning.py --shots=20 --seeds=5
    python examples/finetuning.py --data=folder:photos --backbone=keras:MobileNetV2 --image_size=128

Each row is a way to train, and runs once for each of the seeds 0, 1, ...: a seed draws the
validation part and the few shots from train, and the head's first weights. Test is looked at once a
run, and nothing is chosen by it.

*   `random`: the network from random weights, all of it trained, its batch normalization too;
*   `extract`: the frozen backbone and logistic regression on its features;
*   `head`: the frozen backbone and a head by gradient;
*   `full`: everything trained from the first step, from pretrained weights;
*   `gradual`: the default of `--mode=finetune`;
*   `lp_ft`: the head solved on frozen features, then everything;
*   `decay`: `gradual`, each stage at 0.75 of the rate of the next one towards the head.

What the tool offers runs with its defaults. The two baselines are tuned: `random` and `full` take
the learning rate with the least validation loss, over draws of their own (`--tuning`). Epochs are
equal: `random` and `full` may take as many in their one phase as `gradual` in all of its phases.
Early stopping is alike, but for `random`, which stops ten epochs after its best and not three. Its
batch normalization has a momentum of 0.9: with the 0.999 of some networks, averages that start from
nothing do not settle in so few steps, and validation would choose weights that learned nothing.

The interval is Student's t over seeds, so it covers the draw of the examples and the chance in
training, not that of the test examples, which are the same for each seed. Seconds are those of
training: features, phases and head, without loading, test and export, and without anything cached.
"""

import contextlib
import dataclasses
import io
import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags, logging
from scipy.stats import t as student_t

import tfxfer
from tfxfer.backbones.hub import resolve
from tfxfer.config import RunConfig

DATA = flags.DEFINE_string("data", "digits", "The data, as --dataset of the command line.")
BACKBONE = flags.DEFINE_string("backbone", "glyphs", "As on the command line.")
IMAGE_SIZE = flags.DEFINE_string("image_size", "", "As on the command line.")
SEEDS = flags.DEFINE_integer("seeds", 5, "Runs of each row.", lower_bound=2)
SHOTS = flags.DEFINE_integer("shots", 0, "Training examples of each class; all if 0.")
EPOCHS = flags.DEFINE_integer("epochs", 8, "Most epochs in each phase.", lower_bound=1)
TUNING = flags.DEFINE_integer("tuning", 3, "Draws that choose each rate.", lower_bound=1)
ROWS = flags.DEFINE_list("rows", [], "Rows to run; all if empty.")

DEFAULT = "gradual"
TUNING_SEED = 1000
MOMENTUM = 0.9
TRAINING = ("features", "head", "training")  # Parts of `timings`.


@dataclasses.dataclass(frozen=True)
class Row:
    """A way to train.

    Attributes:
        text: What it is.
        run: `tfxfer.finetune` or `tfxfer.extract`.
        settings: Those that differ from the defaults.
        rates: Learning rates to choose from; that of the tool if empty.
        whole: Whether one phase may take the epochs of all phases of `gradual`.
        pretrained: Whether it starts from pretrained weights.
    """

    text: str
    run: Callable[..., Any] = tfxfer.finetune
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    rates: Sequence[float] = ()
    whole: bool = False
    pretrained: bool = True


TABLE = {
    "random": Row(
        "from random weights",
        settings={"plan": "full", "bn": "train", "patience": 10},
        rates=(3e-3, 1e-2, 3e-2, 1e-1, 3e-1),  # Everything trains at a tenth of it.
        whole=True,
        pretrained=False,
    ),
    "extract": Row("extraction", run=tfxfer.extract),
    "head": Row("head alone", settings={"plan": "head"}),
    "full": Row("full", settings={"plan": "full"}, rates=(1e-3, 3e-3, 1e-2, 3e-2), whole=True),
    "gradual": Row("gradual, the default", settings={"plan": "gradual"}),
    "lp_ft": Row("lp_ft", settings={"plan": "lp_ft"}),
    "decay": Row("gradual, layer decay 0.75", settings={"plan": "gradual", "layer_decay": 0.75}),
}


@dataclasses.dataclass(frozen=True)
class Found:
    """What one run gave.

    Attributes:
        loss: Validation loss.
        validation: Validation accuracy.
        test: Test accuracy.
        seconds: Of training.
        undone: Number of phases that were undone.
    """

    loss: float
    validation: float
    test: float
    seconds: float
    undone: int


def random_network(spec: str, path: Path, seed: int) -> str:
    """Writes a network of `keras.applications` with random weights; returns its spec."""
    if re.search(r"weights\s*=", spec):
        spec = re.sub(r"weights\s*=[^,)]*", "weights=none", spec)
    else:
        spec = f"{spec[:-1]},weights=none)" if spec.endswith(")") else f"{spec}(weights=none)"
    keras.utils.set_random_seed(seed)
    network = tfxfer.load_backbone(spec, image_size=pixels()).network
    for layer in network.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = MOMENTUM
    network.save(path)
    return str(path)


def random_module(spec: str, path: Path, seed: int) -> str:
    """Writes a SavedModel again with random weights; returns its path."""
    module: Any = tf.saved_model.load(str(resolve(spec)))
    keras.utils.set_random_seed(seed)
    for weight in module.variables:
        if len(weight.shape) > 1:
            weight.assign(keras.initializers.HeNormal()(weight.shape))
        else:
            ones = weight.name.split(":")[0].endswith(("gamma", "moving_variance"))
            weight.assign(np.full(weight.shape, float(ones)))
    tf.saved_model.save(module, str(path))
    return str(path)


def from_random_weights(spec: str, folder: Path, seed: int) -> str:
    """Returns a spec of the same network without what it has learned, written to a folder."""
    if spec.startswith("keras:"):
        return random_network(spec, folder / "random.keras", seed)
    return random_module(spec, folder / "random", seed)


def pixels() -> tuple[int, int] | None:
    """Returns height and width of `--image_size`."""
    return RunConfig(image_size=IMAGE_SIZE.value).image_pixels


def run(row: Row, data: Any, stages: int, seed: int, rate: float | None) -> Found:
    """Trains once, with nothing cached, and tests."""
    keras.backend.clear_session()
    settings: dict[str, Any] = {
        "shots": SHOTS.value,
        "image_size": IMAGE_SIZE.value,
        "scan": False,
        "seed": seed,
        **row.settings,
    }
    if row.run is tfxfer.finetune:
        settings["epochs"] = EPOCHS.value * (stages if row.whole else 1)
    if rate:
        settings["learning_rate"] = rate
    with tempfile.TemporaryDirectory() as name, contextlib.redirect_stdout(io.StringIO()):
        folder = Path(name)
        settings["backbone"] = BACKBONE.value
        if not row.pretrained:
            # What random weights make of images need not look as the check of backbones wants it.
            settings |= {
                "backbone": from_random_weights(BACKBONE.value, folder, seed),
                "self_check": False,
            }
        found = row.run(
            data, workdir=str(folder / "run"), cache_dir=str(folder / "cache"), **settings
        )
    validation, test = found.metrics["validation"], found.metrics["test"]
    return Found(
        validation.loss,
        validation.accuracy,
        test.accuracy,
        sum(found.timings.get(part, 0.0) for part in TRAINING),
        sum(not phase.kept for phase in found.phases),
    )


def choose(name: str, row: Row, data: Any, stages: int) -> float | None:
    """Returns the learning rate with the least mean validation loss; `None` for the default."""
    if not row.rates:
        return None
    losses = {}
    for rate in row.rates:
        seeds = range(TUNING_SEED, TUNING_SEED + TUNING.value)
        found = [run(row, data, stages, seed, rate) for seed in seeds]
        losses[rate] = float(np.mean([each.loss for each in found]))
        print(f"{name}: rate {rate:g}: validation loss {losses[rate]:.4f}", flush=True)
    return min(losses, key=losses.__getitem__)


def half_width(values: Sequence[float] | np.ndarray) -> float:
    """Returns half of the 95% interval of a mean."""
    n = len(values)
    return float(student_t.ppf(0.975, n - 1) * np.std(values, ddof=1) / n**0.5)


def table(found: dict[str, list[Found]], rates: dict[str, float | None]) -> str:
    """Returns what was found as Markdown."""
    lines = [
        "| | test accuracy | 95% interval | each seed | validation | phases undone | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, runs in found.items():
        rate = rates[name]
        scores = [each.test for each in runs]
        cells = [
            TABLE[name].text + (f", rate {rate:g}" if rate else ""),
            f"{np.mean(scores):.4f}",
            f"+- {half_width(scores):.4f}",
            " ".join(f"{score:.4f}" for score in scores),
            f"{np.mean([each.validation for each in runs]):.4f}",
            f"{np.mean([each.undone for each in runs]):.1f}",
            f"{np.mean([each.seconds for each in runs]):.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def compare(found: dict[str, list[Found]]) -> str:
    """Says how the default stands against every other row, seed by seed."""
    scores = {name: np.array([each.test for each in runs]) for name, runs in found.items()}
    best = max(scores, key=lambda name: scores[name].mean())
    low = scores[best].mean() - half_width(scores[best])
    within = "within" if scores[DEFAULT].mean() >= low else "below"
    lines = [f"{DEFAULT} is {within} the interval of the best row, {best}"]
    for name, other in scores.items():
        if name != DEFAULT:
            gap = scores[DEFAULT] - other
            lines.append(f"{DEFAULT} - {name}: {gap.mean():+.4f} +- {half_width(gap):.4f}")
    return "\n".join(lines)


def main(argv) -> None:
    """Prints the table."""
    del argv
    logging.set_verbosity(logging.ERROR)
    if unknown := sorted(set(ROWS.value) - set(TABLE)):
        raise app.UsageError(f"There is no row {unknown[0]!r} among {', '.join(TABLE)}.")
    data = tfxfer.open_dataset(DATA.value)
    backbone = tfxfer.load_backbone(BACKBONE.value, image_size=pixels())
    stages = len(backbone.stages) + 1  # One phase for each, and one for the head.
    found: dict[str, list[Found]] = {}
    rates: dict[str, float | None] = {}
    for name in ROWS.value or TABLE:
        row = TABLE[name]
        rates[name] = choose(name, row, data, stages)
        found[name] = []
        for seed in range(SEEDS.value):
            found[name].append(run(row, data, stages, seed, rates[name]))
            print(f"{name}: seed {seed}: {found[name][-1]}", flush=True)
    print(table(found, rates))
    if DEFAULT in found:
        print(compare(found))


if __name__ == "__main__":
    app.run(main)
