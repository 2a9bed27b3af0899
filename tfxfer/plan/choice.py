"""From what `--plan` says to a plan."""

import difflib
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from tfxfer.errors import UserError
from tfxfer.plan.base import Plan
from tfxfer.plan.files import read_plan
from tfxfer.plan.recipes import fastai, full, gradual, head, last_k, lp_ft, surgical
from tfxfer.spec import Spec, parse_spec

_RECIPES = {
    recipe.__name__: recipe for recipe in (gradual, lp_ft, full, head, last_k, surgical, fastai)
}
_OPTIONS = {"last_k": ("k",), "surgical": ("stages",)}


def make_plan(
    text: str,
    stages: Sequence[str],
    epochs: int,
    learning_rate: float,
    chosen: Collection[str] = (),
) -> Plan:
    """Makes the plan that `--plan` asks for.

    Args:
        text: Name of a recipe, with its options: `gradual`, `lp_ft`, `full`, `head`,
            `last_k(k=2)`, `surgical`, `surgical(stages=block1|block2)`, `fastai`; or a JSON file,
            which says everything itself.
        stages: Names of all stages, input side first, the head last.
        epochs: Most epochs in each phase.
        learning_rate: Rate of the head alone, above 0.
        chosen: What `surgical` trains of the backbone if it names no stages.

    Returns:
        The plan, checked against the stages.

    Raises:
        UserError: If there is no such recipe or file, or it does not fit the model.
        ValueError: If `surgical` names no stages and none are chosen.
    """
    spec = parse_spec(text)
    if spec.name not in _RECIPES:
        return _of_file(_path(text), stages)
    spec.only(_OPTIONS.get(spec.name, ()))
    options: dict[str, Any] = {}
    if spec.name in _OPTIONS:
        if len(stages) == 1:
            raise UserError(
                f"--plan={spec.text} trains stages of the backbone, and it has none",
                "Choose --plan=head.",
            )
        if spec.name == "last_k":
            options["k"] = _count(spec, len(stages) - 1)
        else:
            options["chosen"] = _named(spec, stages) or chosen
    phases = _RECIPES[spec.name](stages, epochs, learning_rate, **options)
    trained = {name for phase in phases for name in phase.stages}
    plan = Plan(phases, tuple(name for name in stages if name not in trained))
    plan.check(stages)
    return plan


def leaves_choice(text: str) -> bool:
    """Whether the stages must be chosen, by their gradients, before `make_plan` knows them."""
    spec = parse_spec(text)
    return spec.name == "surgical" and not spec.options


def is_file(text: str) -> bool:
    """Whether `--plan` names a file, which says rates, schedules and patience itself."""
    return parse_spec(text).name not in _RECIPES


def _path(text: str) -> Path:
    """Returns the file, or helps with a name that has a typo."""
    path = Path(text.strip()).expanduser()
    if path.suffix == ".json" or path.exists():
        return path
    name = parse_spec(text).name
    if name.partition("(")[0] in _OPTIONS:
        raise UserError(
            f"--plan={text} must be a name with its option as name(option=value)",
            "Write last_k(k=2), or surgical(stages=block1|block2).",
        )
    near = difflib.get_close_matches(name.lower(), _RECIPES, n=3, cutoff=0.5)
    raise UserError(
        f"There is no plan {name!r}, nor a file of that name",
        f"Did you mean {' or '.join(near)}?" if near else f"There are {', '.join(_RECIPES)}.",
    )


def _of_file(path: Path, stages: Sequence[str]) -> Plan:
    plan = read_plan(path)
    try:
        plan.check(stages)
    except ValueError as error:
        raise UserError(
            f"Plan {path}: {error}",
            f"Correct the file; the stages are {', '.join(stages)}, each of which must be in a "
            "phase or in 'frozen'.",
        ) from error
    return plan


def _count(spec: Spec, most: int) -> int:
    k = spec.options.get("k", 1)
    if type(k) is not int or not 1 <= k <= most:
        raise UserError(
            f"--plan={spec.text} must have a k from 1 to {most}, the stages of the backbone",
            "Give another k.",
        )
    return k


def _named(spec: Spec, stages: Sequence[str]) -> tuple[str, ...]:
    """Returns the stages that `surgical(stages=...)` names, between `|`, `+`, `;` or commas."""
    if "stages" not in spec.options:
        return ()
    text, below = str(spec.options["stages"]), stages[:-1]
    # A stage that was found by a pattern may have such a sign in its name.
    names = (text,) if text in below else tuple(filter(None, re.split(r"[|+,;\s]+", text)))
    if unknown := [name for name in names if name not in stages]:
        raise UserError(
            f"--plan={spec.text}: the backbone has no stage {unknown[0]!r}",
            f"It has {', '.join(below)}.",
        )
    if not set(names) & set(below):
        raise UserError(
            f"--plan={spec.text} names no stage of the backbone",
            f"It has {', '.join(below)}; --plan=head trains the head alone.",
        )
    return names
