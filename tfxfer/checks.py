"""Which values of settings are in range, and which go together."""

import math
from collections.abc import Mapping
from typing import Any

from tfxfer.errors import UserError

Settings = Mapping[str, Any]
"""Values by the name of their flag."""

# Least value, most value, whether the least itself is one, whether the most is, and advice.
_RANGES: dict[str, tuple[float, float, bool, bool, str]] = {
    "batch_size": (1, math.inf, True, False, "Give a larger one."),
    "epochs": (0, math.inf, True, False, "Give a larger one."),
    "shots": (0, math.inf, True, False, "Give a larger one."),
    "max_examples": (0, math.inf, True, False, "Give a larger one."),
    "views": (0, math.inf, True, False, "Give a larger one."),
    "cache_gb": (0, math.inf, False, False, "Give a size."),
    "seed": (0, 2**32, True, False, "Give another seed."),
    "learning_rate": (0, math.inf, False, False, "Rates from 1e-4 to 1e-2 are usual."),
    "layer_decay": (0, 1, False, True, "0.75 is usual; 1 is off."),
    "warmup": (0, 1, True, False, "0.1 is usual; 0 is off."),
    "patience": (0, math.inf, True, False, "Give a larger one; 0 never stops early."),
    "weight_decay": (0, math.inf, True, False, "Values from 1e-4 to 1e-1 are usual; 0 is off."),
    "l2_sp": (0, math.inf, True, False, "0.01 is usual; 0 is off."),
    "ema": (0, 1, True, False, "0.99 to 0.9999 are usual; 0 is off."),
    "lora_rank": (1, math.inf, True, False, "4 to 16 are usual."),
    "label_smoothing": (0, 1, True, False, "0.1 is usual; 0 is off."),
    "dropout": (0, 1, True, False, "0.2 is usual; 0 is off."),
    "clip_norm": (0, math.inf, True, False, "1 is usual; 0 is off."),
    "num_logical_devices": (0, math.inf, True, False, "2 is usual; 0 is off."),
    "accumulate": (1, math.inf, True, False, "1 is off."),
    "alpha": (0, math.inf, True, False, "0.1 is usual; 0 asks for no labels."),
    "budget": (0, math.inf, True, False, "Three epochs a backbone are a start; 0 is off."),
    "seeds": (1, math.inf, True, False, "3 to 5 are usual."),
    "generations": (1, math.inf, True, False, "1 is off."),
    "checkpoint_seconds": (0, math.inf, True, False, "30 is usual."),
}

MILESTONES = (0.3, 0.6, 0.9)
"""Where `--schedule=step` lowers the rate to a tenth, as shares of a phase.

Those of VTAB-1k's recipe (Zhai et al. 2019, "The Visual Task Adaptation Benchmark", section 3).
"""

# How to train, and on which of the examples: nothing that features of all examples need.
_OF_TRAINING = (
    "protocol",
    "shots",
    "max_examples",
    "folds",
    "drop_leaks",
    "augment",
    "mix",
    "balance",
    "views",
    "epochs",
)
# How the backbone is trained, too.
_OF_FINE_TUNING = (
    "plan",
    "layer_decay",
    "schedule",
    "warmup",
    "rule",
    "patience",
    "optimizer",
    "weight_decay",
    "l2_sp",
    "ema",
    "average",
    "adapt",
    "lora_rank",
    "label_smoothing",
    "dropout",
    "clip_norm",
    "accumulate",
    "jit",
    "boundary_cache",
    "checkpoint_seconds",
)
# What only a student has that learns of a teacher.
_OF_DISTILLATION = (
    "teacher",
    "student",
    "loss",
    "alpha",
    "seeds",
    "unlabeled",
    "assistant",
    "generations",
)
# What is of training alone, too, but also of heads and students.
_OF_STEPS = ("learning_rate", "augment", "mix", "balance", "views")
# What only a choice among backbones has.
_OF_SELECTION = ("backbones", "budget")
# What the backbones say themselves, or successive halving does.
_NOT_OF_SELECTION = (
    "backbone",
    "value_range",
    "image_size",
    "stages",
    "epochs",
    "protocol",
    "folds",
    "average",
    "boundary_cache",
    "checkpoint_seconds",
)
# What each rung of a comparison has of its own.
_NOT_OF_COMPARISON = (
    *("head", "plan", "rule", "schedule", "warmup", "protocol", "folds", "average", "adapt"),
    *("lora_rank", "teacher", "seeds", "unlabeled", "assistant", "generations"),
)
# What there is no backbone for, where a teacher is given and no student is of its kind.
_OF_BACKBONE = ("backbone", "value_range", "stages")
# What a student that is trained in one piece, and compared with another, has no use for.
_NOT_OF_DISTILLATION = (
    "protocol",
    "folds",
    "plan",
    "layer_decay",
    "rule",
    "patience",
    "l2_sp",
    "average",
    "adapt",
    "lora_rank",
    "boundary_cache",
)


def check_ranges(settings: Settings) -> None:
    """Checks every number by itself.

    Raises:
        UserError: If one is out of range.
    """
    for name, (least, most, with_least, with_most, advice) in _RANGES.items():
        value = settings[name]
        above = value >= least if with_least else value > least
        below = value <= most if with_most else value < most
        if not (above and below and math.isfinite(value)):
            raise UserError(f"--{name} must be {_range(name)}, not {value}", advice)
    if settings["folds"] < 0 or settings["folds"] == 1:
        raise UserError(
            f"--folds must be 0 or at least 2, not {settings['folds']}", "Five or ten are usual."
        )


def _range(name: str) -> str:
    least, most, with_least, with_most, _ = _RANGES[name]
    if most == math.inf:
        return f"at least {least:g}" if with_least else f"above {least:g} and finite"
    top = "2**32" if most == 2**32 else f"{most:g}"
    return f"in {'[' if with_least else '('}{least:g}, {top}{']' if with_most else ')'}"


def check_together(settings: Settings, defaults: Settings) -> None:
    """Checks that settings do not contradict each other, and that the mode heeds them.

    Args:
        settings: The values.
        defaults: What they are if nobody gives them.

    Raises:
        UserError: If some do not go together.
    """
    given = {name: value for name, value in settings.items() if value != defaults[name]}
    _check_data(settings, given)
    _check_mode(settings, given)
    _check_fine_tuning(settings, given)
    if settings["mode"] == "distill":
        _check_distillation(settings, given)


def _check_distillation(settings: Settings, given: Settings) -> None:
    if settings["unlabeled"] == "rest" and not {"shots", "max_examples"} & set(given):
        raise UserError(
            "--unlabeled=rest is what --shots or --max_examples leave of train, and neither is "
            "given",
            "Give one of them, or name a dataset.",
        )
    own = "self" in (settings["student"], *map(str.strip, settings["assistant"].split(";")))
    unused = [name for name in _OF_BACKBONE if name in given]
    if settings["teacher"] and unused and not own:
        raise UserError(
            f"--{unused[0]} is of the backbone that is fine-tuned to teach, and --teacher is given",
            "Leave one of them out; what a teacher's file does not tell stands in parentheses: "
            "--teacher='model.h5(value_range=\"0,255\")'.",
        )
    if settings["seed"] + settings["seeds"] > 2**32:
        raise UserError(
            f"--seed={settings['seed']} must leave room for --seeds={settings['seeds']} below "
            "2**32",
            "Give a smaller one.",
        )
    if settings["generations"] > 1 and settings["assistant"]:
        raise UserError(
            "--generations and --assistant both put students between teacher and student",
            "Leave one of them out.",
        )


def _check_data(settings: Settings, given: Settings) -> None:
    if settings["protocol"] == "vtab1k":
        if {"shots", "max_examples", "folds"} & set(given):
            raise UserError(
                "--protocol=vtab1k draws its own 1000 examples",
                "Leave --shots, --max_examples and --folds out.",
            )
        if settings["drop_leaks"]:
            raise UserError(
                "--protocol=vtab1k trains on 1000 examples, and --drop_leaks leaves some out",
                "Leave one of them out.",
            )
    if settings["views"] and settings["augment"] == "none" and settings["rule"] != "bit":
        raise UserError("--views counts augmented versions", "Give --augment too.")
    frozen = settings["mode"] != "distill"  # Else what is computed once is the teacher's.
    moving = settings["mix"] != "none" or (frozen and settings["bn"] == "train")
    if settings["views"] and moving:
        other = f"--mix={settings['mix']}" if settings["mix"] != "none" else "--bn=train"
        raise UserError(
            f"--views computes features once, and with {other} they are new in every epoch",
            "Leave one of them out.",
        )


def _check_mode(settings: Settings, given: Settings) -> None:
    mode = settings["mode"]
    if settings["clear"] and mode != "cache":
        raise UserError("--clear empties the cache", "Give --mode=cache too.")
    for name, only in (("head", "extract"), ("format", "embed")):
        if name in given and mode != only:
            raise UserError(
                f"--{name}={settings[name]} is for --mode={only}, not {mode}",
                "Give that mode, or leave it out.",
            )
    if mode == "embed" and (found := [name for name in _OF_TRAINING if name in given]):
        raise UserError(
            f"--{found[0]} is for training, and --mode=embed writes features of all",
            "Leave it out.",
        )
    if mode == "compare" and (found := [name for name in _NOT_OF_COMPARISON if name in given]):
        raise UserError(
            f"--{found[0]} is not for --mode=compare, in which each way to use the backbone has "
            "its own",
            "Leave it out.",
        )
    distilling = mode in ("distill", "compare")
    if not distilling and (found := [name for name in _OF_DISTILLATION if name in given]):
        raise UserError(
            f"--{found[0]} is for --mode=distill, not {mode}", "Give that mode, or leave it out."
        )
    if mode == "distill" and (found := [name for name in _NOT_OF_DISTILLATION if name in given]):
        raise UserError(
            f"--{found[0]} is not for --mode=distill, which trains each student whole and as long "
            "as the one that it is compared with",
            "Leave it out, or fine-tune the teacher with it, and give its workdir as --teacher.",
        )
    if mode != "select" and (found := [name for name in _OF_SELECTION if name in given]):
        raise UserError(
            f"--{found[0]} is for --mode=select, not {mode}", "Give that mode, or leave it out."
        )
    if mode == "select" and settings["rule"] == "bit":
        raise UserError(
            "--rule=bit says how many steps are taken, and --mode=select does by --budget",
            "Leave one of them out.",
        )
    if mode == "select" and (found := [name for name in _NOT_OF_SELECTION if name in given]):
        raise UserError(
            f"--{found[0]} is not for --mode=select, which compares several backbones",
            "Leave it out; options of one stand in its parentheses, as in "
            "--backbones='net.h5(value_range=\"0,255\"), glyphs', and --budget is of all epochs.",
        )
    fine_tuning = [name for name in _OF_FINE_TUNING if name in given]
    rated = [*fine_tuning, *(name for name in _OF_STEPS if name in given)]
    if rated and mode == "select" and not settings["budget"]:
        raise UserError(
            f"--{rated[0]} says how backbones are fine-tuned, and without --budget none is",
            "Give --budget too, or leave it out.",
        )
    if fine_tuning and mode not in ("finetune", "lr_find", "distill", "select", "compare"):
        raise UserError(
            f"--{fine_tuning[0]} says how the backbone is trained, and --mode={mode} trains none",
            "Leave it out, or give --mode=finetune.",
        )


def _check_fine_tuning(settings: Settings, given: Settings) -> None:
    if settings["schedule"] == "step" and settings["warmup"] >= MILESTONES[0]:
        raise UserError(
            f"--warmup={settings['warmup']:g} must end before --schedule=step lowers the rate, at "
            f"{MILESTONES[0]:g} of each phase",
            "Give a smaller one.",
        )
    if "lora_rank" in given and settings["adapt"] != "lora":
        raise UserError("--lora_rank is of low-rank additions", "Give --adapt=lora too.")
    if settings["adapt"] == "lora" and settings["l2_sp"]:
        raise UserError(
            f"--l2_sp={settings['l2_sp']:g} pulls weights toward their start, and --adapt=lora "
            "leaves these where they are",
            "Leave one of them out.",
        )
    if settings["rule"] != "bit" and settings["accumulate"] > settings["batch_size"]:
        raise UserError(
            f"--accumulate={settings['accumulate']} must be at most --batch_size="
            f"{settings['batch_size']}, of which it makes parts",
            "Give a smaller one.",
        )
    if settings["average"] != "none" and settings["protocol"] == "vtab1k":
        raise UserError(
            f"--average={settings['average']} is chosen on validation, and --protocol=vtab1k "
            "trains on that in the end",
            "Leave one of them out.",
        )
