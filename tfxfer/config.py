"""Every setting of one run, in one frozen value."""

import dataclasses
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tfxfer.checks import check_ranges, check_together
from tfxfer.errors import UserError
from tfxfer.task import KINDS

MODES = (
    *("finetune", "distill", "extract", "embed", "lr_find", "select", "compare"),
    *("inspect", "cache"),
)
BATCH_NORM = ("freeze", "stage", "train")
PROTOCOLS = ("standard", "vtab1k")
AUGMENT = ("none", "light", "randaugment")
MIX = ("none", "mixup", "cutmix")
BALANCE = ("none", "class_weights", "sampling")
HEADS = ("logistic", "ridge", "linear", "mlp", "knn", "cosine", "prototype")
FORMATS = ("npz", "parquet")
SCHEDULES = ("constant", "cosine", "linear", "one_cycle", "step")
RULES = ("auto", "none", "bit", "bert")
OPTIMIZERS = ("adam", "sgd")
ADAPTERS = ("none", "lora", "bitfit")
AVERAGES = ("none", "wise_ft", "soup")
PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")
BOUNDARY = ("auto", "on", "off")

STRATEGIES = ("auto", "none", "mirrored", "multiworker", "tpu")

CHOICES = {
    "mode": MODES,
    "bn": BATCH_NORM,
    "task": ("auto", *KINDS),
    "protocol": PROTOCOLS,
    "augment": AUGMENT,
    "mix": MIX,
    "balance": BALANCE,
    "head": ("auto", *HEADS),
    "format": FORMATS,
    "schedule": SCHEDULES,
    "rule": RULES,
    "optimizer": OPTIMIZERS,
    "adapt": ADAPTERS,
    "average": AVERAGES,
    "precision": PRECISIONS,
    "strategy": STRATEGIES,
    "boundary_cache": BOUNDARY,
}
"""The values that a setting may have, where they are words."""

AUTO = "auto"
"""A setting that is left to the data."""

INVOCATION = ("workdir", "overwrite", "dry_run", "debug", "list_weights", "clear")
"""Settings that speak of one invocation, not of the experiment: a config file does not set them."""


def _setting(default: Any, text: str) -> Any:
    return dataclasses.field(default=default, metadata={"help": text})


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """The settings of a run; each is a flag of the same name, with the help text beside it.

    Raises:
        UserError: If a value is out of range.
    """

    mode: str = _setting("finetune", "What to do.")
    dataset: str = _setting(
        "digits",
        "The data: a TensorFlow Datasets name or the folder of a prepared one, folder:PATH, "
        "csv:FILE, tsv:FILE, jsonl:FILE, sklearn:NAME; options in parentheses. Embedded: digits, "
        "images, and docstrings, texts.",
    )
    task: str = _setting(
        "auto", "What the labels are; auto finds out: classes, several classes, or numbers."
    )
    data_dir: str = _setting(
        "", "Folder of prepared datasets; that of TensorFlow Datasets if empty."
    )
    download: bool = _setting(True, "Download a dataset that is not prepared yet.")
    tfds_manual_dir: str = _setting(
        "", "Folder with the files that a TensorFlow Datasets name would download."
    )
    protocol: str = _setting(
        "standard",
        "vtab1k: 800 training examples and 200 of validation choose how long each phase trains, "
        "then all 1000 train that long.",
    )
    shots: int = _setting(0, "Training examples of each class; all if 0.")
    max_examples: int = _setting(0, "Most training examples; all if 0.")
    folds: int = _setting(
        0, "Cross-validation: train this often, each time on all but one fold of train; off if 0."
    )
    group_column: str = _setting(
        "", "Column of a table; rows that agree in it stay in one part of the data."
    )
    scan: bool = _setting(
        True,
        "Decode every image once before training, to find damaged ones and near-identical ones in "
        "two parts of the data.",
    )
    drop_leaks: bool = _setting(
        False, "Leave out training examples that stand almost alike in validation or test."
    )
    skip_bad: bool = _setting(
        False, "Go on without examples that cannot be used; results.json lists them."
    )
    augment: str = _setting(
        "none", "Training images: as they are, flipped and cropped (light), or by RandAugment."
    )
    mix: str = _setting("none", "Mix training images and labels, two and two.")
    balance: str = _setting(
        "none", "Where classes differ in size: weigh their losses, or draw them equally often."
    )
    views: int = _setting(
        0,
        "With --augment: train on this many augmented versions of each image in turn, so that what "
        "is frozen sees each once; on new ones in every epoch if 0.",
    )
    cache_dir: str = _setting("", "Folder of features computed once; ~/.cache/tfxfer if empty.")
    cache_gb: float = _setting(10.0, "What that folder may hold; the least recently used go.")
    format: str = _setting("npz", "With --mode=embed: of the file with the features.")
    clear: bool = _setting(False, "With --mode=cache: empty it.")
    backbone: str = _setting(
        AUTO,
        "The pretrained network: keras:NAME, a .keras or .h5 file, the folder, .tar.gz or URL of a "
        "SavedModel, kaggle://..., keras_hub:PRESET; options in parentheses. Embedded are glyphs, "
        "for images, and words, for texts, one of which auto takes. bag and transformer are "
        "for texts too, with random weights.",
    )
    backbones: str = _setting(
        "",
        "With --mode=select: what to choose from, between commas, each as for --backbone; options "
        "of one may also be image_size, value_range and stages. If empty, those that are there "
        "without a download.",
    )
    budget: int = _setting(
        0,
        "With --mode=select: epochs of fine-tuning, over all backbones together, spent by "
        "successive halving on those that features speak for; none if 0.",
    )
    image_size: str = _setting(
        "",
        "Height and width that images are brought to, such as 96 or 96x128, where the backbone "
        "leaves them open; its own if empty.",
    )
    value_range: str = _setting(
        "",
        "Values of black and white that the backbone wants, such as 0,1 or -1,1 or 0,255; found "
        "out if empty.",
    )
    stages: str = _setting(
        "",
        "Stages of the backbone as regular expressions between semicolons, input side first, "
        "searched in the paths of the weights; found out if empty.",
    )
    bn: str = _setting(
        "freeze",
        "Where batch normalization goes by the batch in training: nowhere (freeze), in the stages "
        "that train (stage) or everywhere (train).",
    )
    self_check: bool = _setting(
        True, "Refuse a backbone whose features or value range look wrong on the first images."
    )
    list_weights: bool = _setting(False, "With --mode=inspect: list the weights of each stage.")
    teacher: str = _setting(
        "",
        "With --mode=distill: the workdir of an earlier run, a .keras or .h5 file, or a SavedModel "
        "that classifies; several between semicolons, as 0.7*runs/a;0.3*b.keras. If empty, the "
        "backbone is fine-tuned first, and is the teacher.",
    )
    student: str = _setting(
        AUTO,
        "With --mode=distill: tiny, for images; bag or transformer, for texts; whatever --backbone "
        "takes; or self for the teacher's own kind. auto is tiny or bag.",
    )
    loss: str = _setting(
        "auto",
        "With --mode=distill: what the student learns of the teacher, such as "
        "kd(temperature=4)+0.5*hint(student=block2,teacher=conv3). auto is 0.9*kd(temperature=4), "
        "or its like for several labels and for numbers.",
    )
    alpha: float = _setting(0.1, "With --mode=distill: weight of the loss on labels. At least 0.")
    seeds: int = _setting(
        3, "With --mode=distill: students to compare with as many trained on labels alone."
    )
    unlabeled: str = _setting(
        "",
        "With --mode=distill: a dataset to learn from without its labels, or rest for what "
        "--shots or --max_examples leave of train.",
    )
    assistant: str = _setting(
        "",
        "With --mode=distill: a student between, which is taught first and then teaches; several "
        "between semicolons.",
    )
    generations: int = _setting(
        1, "With --mode=distill: students of one kind, each taught by the one before."
    )
    workdir: str = _setting("", "Folder to write to; a new one under runs/ if empty.")
    seed: int = _setting(0, "Seed of everything random, in [0, 2**32).")
    batch_size: int = _setting(32, "Examples a training step, over all devices; at least 1.")
    epochs: int = _setting(
        0,
        "Most epochs in each phase; if 0, 8 to fine-tune, 30 to distil, and 100 to train a head on "
        "features.",
    )
    head: str = _setting(
        "auto",
        "With --mode=extract: what stands on the features; auto is logistic, or ridge for numbers.",
    )
    learning_rate: float = _setting(
        3e-3,
        "Adam's rate for the head alone; a tenth of it once the backbone trains too. Above 0.",
    )
    plan: str = _setting(
        AUTO,
        "How to fine-tune: gradual, lp_ft, full, head, last_k(k=2), surgical, "
        "surgical(stages=block1), fastai, or a JSON file of phases, such as plan.json of a run; "
        "auto is gradual, or what --rule has.",
    )
    layer_decay: float = _setting(
        1.0, "Rate of a stage over that of the next one towards the head, in (0, 1]."
    )
    schedule: str = _setting("constant", "How the rate goes within a phase.")
    warmup: float = _setting(0.0, "Share of a phase in which the rate rises, in [0, 1).")
    rule: str = _setting(
        AUTO,
        "bit: schedule, resolution and mixup from the size of the data, as in BiT. bert: AdamW at "
        "5e-5, warm-up and linear decay, where these are not given; auto takes it for pretrained "
        "text encoders, and none for the rest.",
    )
    patience: int = _setting(
        3, "Epochs without a better validation loss before a phase stops; never if 0."
    )
    optimizer: str = _setting("adam", "What takes the steps; sgd has a momentum of 0.9.")
    weight_decay: float = _setting(
        0.0, "Decoupled weight decay, of kernels only: not of biases and norms. At least 0."
    )
    l2_sp: float = _setting(
        0.0, "Strength of the pull of the backbone toward its pretrained weights. At least 0."
    )
    ema: float = _setting(
        0.0, "Decay of a moving average of the weights, which is validated and kept; off if 0."
    )
    average: str = _setting(
        "none",
        "After training, what of pretrained and trained weights (wise_ft), or of the best epochs "
        "(soup), validates best, taken together.",
    )
    adapt: str = _setting(
        "none", "What of the backbone trains: all, low-rank additions (lora), biases and norms."
    )
    lora_rank: int = _setting(8, "With --adapt=lora: rank of the additions, at least 1.")
    label_smoothing: float = _setting(0.0, "Share of a label spread over all classes, in [0, 1).")
    dropout: float = _setting(0.0, "Share of features that the head leaves out in training.")
    precision: str = _setting("float32", "Of the backbone's computation; the loss is in float32.")
    clip_norm: float = _setting(0.0, "Most norm of a step's gradient, of all weights; off if 0.")
    accumulate: int = _setting(
        1, "Parts that a batch is computed in, one after the other, to save memory; at least 1."
    )
    jit: bool = _setting(False, "Compile the training step with XLA.")
    strategy: str = _setting(
        "auto",
        "Devices that share the work: the workers of TF_CONFIG, or all GPUs (auto); one (none); "
        "those of this machine; workers, also of a SLURM step; a TPU.",
    )
    num_logical_devices: int = _setting(
        0, "Split the CPU into so many devices, to try mirrored out; not if 0."
    )
    sync_bn: bool = _setting(
        False,
        "Normalize batches over all devices where that trains; if not, statistics are averaged "
        "after each epoch.",
    )
    deterministic: bool = _setting(False, "Only deterministic kernels, also on a GPU; slower.")
    boundary_cache: str = _setting(
        "auto",
        "Keep what frozen stages make of each image, and train on that: where it pays (auto), "
        "wherever it can be done (on), never (off).",
    )
    checkpoint_seconds: float = _setting(
        30.0, "Seconds between two checkpoints that a run which was killed goes on from."
    )
    overwrite: bool = _setting(
        False,
        "Replace the run in --workdir; but an unfinished one of the same settings, data and "
        "backbone is gone on with.",
    )
    dry_run: bool = _setting(False, "Prepare the dataset, print the plan and stop.")
    debug: bool = _setting(
        False, "Show the traceback of a mistake, and TensorFlow's notes as it starts."
    )

    def __post_init__(self):
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise UserError(
                    f"--{name} must be one of {', '.join(choices)}, not {getattr(self, name)!r}",
                    "Choose one of them.",
                )
        for name in ("dataset", "backbone", "plan"):
            if not getattr(self, name):
                raise UserError(f"--{name} must not be empty", f"Leave --{name} out or name one.")
        _ = self.image_pixels, self.image_values
        check_ranges(vars(self))
        check_together(vars(self), {name: _default(name) for name in vars(self)})

    @property
    def image_pixels(self) -> tuple[int, int] | None:
        """Height and width of `image_size`; `None` if it is empty."""
        if not self.image_size:
            return None
        sides = re.fullmatch(r"(\d+)(?:x(\d+))?", self.image_size.strip().lower())
        size = (int(sides[1]), int(sides[2] or sides[1])) if sides else (0, 0)
        if min(size) < 1:
            raise UserError(
                f"--image_size must be pixels such as 96 or 96x128, not {self.image_size!r}",
                "Give height and width.",
            )
        return size

    @property
    def image_values(self) -> tuple[float, float] | None:
        """Values of black and of white of `value_range`; `None` if it is empty."""
        if not self.value_range:
            return None
        try:
            low, high = map(float, self.value_range.strip("[]() ").split(","))
        except ValueError:
            low = high = math.nan
        if not (math.isfinite(low) and math.isfinite(high) and low != high):
            raise UserError(
                f"--value_range must be two numbers such as 0,1, not {self.value_range!r}",
                "Give the values of black and of white.",
            )
        return low, high

    def given(self, names: Sequence[str]) -> list[str]:
        """Returns those of some settings that are not as they are if nobody gives them."""
        return [name for name in names if getattr(self, name) != _default(name)]

    def replace(self, **changes: Any) -> "RunConfig":
        """Returns a copy with some settings changed."""
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Returns the settings as a dict that JSON can hold."""
        return dataclasses.asdict(self)


def _default(name: str) -> Any:
    return RunConfig.__dataclass_fields__[name].default


def settings_from_file(path: str) -> dict[str, Any]:
    """Reads settings from a JSON file, such as the `config.json` of an earlier run.

    Args:
        path: A JSON object of setting names and values. `versions` and the settings of one
            invocation (`workdir`, `overwrite`, `dry_run`, `debug`,
            `list_weights`, `clear`) are passed over.

    Returns:
        The settings found, by name.

    Raises:
        UserError: If the file cannot be read, is not a JSON object, or holds an unknown name or
            a value of the wrong type.
    """
    try:
        settings = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(
            f"--config={path} must be a JSON file: {reason}",
            'Give a file such as {"epochs": 5}, or the config.json of an earlier run.',
        ) from error
    if not isinstance(settings, Mapping):
        raise UserError(
            f"--config={path} must hold a JSON object, not a {type(settings).__name__}",
            'Write it as {"epochs": 5}.',
        )
    fields = {field.name: field for field in dataclasses.fields(RunConfig)}
    kept = {}
    for name, value in settings.items():
        if name == "versions" or name in INVOCATION:
            continue
        if name not in fields:
            raise UserError(
                f"--config={path} has an unknown setting {name!r}",
                f"The settings are {', '.join(n for n in fields if n not in INVOCATION)}.",
            )
        expected = type(fields[name].default)
        if expected is float and type(value) is int and abs(value) < 2**63:
            value = float(value)
        if type(value) is not expected:
            raise UserError(
                f"--config={path} must give {name} as {expected.__name__}, not {value!r}",
                "Correct the value.",
            )
        kept[name] = value
    return kept
