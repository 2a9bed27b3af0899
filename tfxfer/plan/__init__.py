"""Plans of fine-tuning as data: which stages train, for how long, at which rate.

A recipe or a file makes a `Plan`, `with_...` change its phases, `check` proves that it fits a
model, and `training.loop` does what it says.
"""

from tfxfer.plan.base import Phase, Plan, check_plan
from tfxfer.plan.changes import with_layer_decay, with_patience, with_schedule
from tfxfer.plan.choice import is_file, leaves_choice, make_plan
from tfxfer.plan.files import read_plan, write_plan
from tfxfer.plan.recipes import fastai, full, gradual, head, last_k, lp_ft, surgical

__all__ = [
    "Phase",
    "Plan",
    "check_plan",
    "fastai",
    "full",
    "gradual",
    "head",
    "is_file",
    "last_k",
    "leaves_choice",
    "lp_ft",
    "make_plan",
    "read_plan",
    "surgical",
    "with_layer_decay",
    "with_patience",
    "with_schedule",
    "write_plan",
]
