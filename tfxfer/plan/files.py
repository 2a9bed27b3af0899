"""Plans as JSON files, to be read and edited by hand."""

import json
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from tfxfer.errors import UserError
from tfxfer.files import written_whole
from tfxfer.plan.base import Phase, Plan

_PHASES, _FROZEN = "phases", "frozen"
_FIX = "Correct the file; plan.json of a run, and the README, show how it is written."


def write_plan(plan: Plan, path: Path) -> None:
    """Writes a plan as a JSON object of `phases` and `frozen` stages, one field a line.

    Args:
        plan: The plan.
        path: The file.
    """
    phases = []
    for phase in plan.phases:
        lines = (f"      {_json(f.name)}: {_json(getattr(phase, f.name))}" for f in fields(Phase))
        phases.append("    {\n" + ",\n".join(lines) + "\n    }")
    listed = ",\n".join(phases)
    text = f'{{\n  "{_PHASES}": [\n{listed}\n  ],\n  "{_FROZEN}": {_json(plan.frozen)}\n}}\n'
    with written_whole(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def read_plan(path: Path) -> Plan:
    """Reads a plan that `write_plan` has written, or a person.

    Args:
        path: A JSON object: `phases`, a list of objects with the fields of `Phase`, of which those
            with a default may be left out; and `frozen`, stages that no phase trains, if any.

    Returns:
        The plan; `check` tells whether it fits a model.

    Raises:
        UserError: If the file cannot be read, or is no plan; it names phase and key.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_once)
    except OSError as error:
        raise UserError(
            f"Plan {path} cannot be read: {error.strerror}", "Name a file that can be."
        ) from error
    except ValueError as error:
        raise UserError(f"Plan {path} must be a JSON file: {error}", _FIX) from error
    try:
        return _plan(found)
    except ValueError as error:
        raise UserError(f"Plan {path}: {error}", _FIX) from error


def _plan(found: Any) -> Plan:
    entries = _object(found, "The plan", {_PHASES: True, _FROZEN: False})
    listed = entries[_PHASES]
    if not isinstance(listed, list):
        raise ValueError(f"The plan: expected {_PHASES!r} as a list, received {_short(listed)}")
    frozen = _typed(entries.get(_FROZEN, []), tuple[str, ...], "The plan", _FROZEN)
    return Plan(tuple(_phase(each, number) for number, each in enumerate(listed, 1)), frozen)


def _phase(found: Any, number: int) -> Phase:
    name = found.get("name") if isinstance(found, Mapping) else None
    where = f"Phase {name!r}" if isinstance(name, str) else f"Phase {number}"
    required = {field.name: field.default is MISSING for field in fields(Phase)}
    hints = get_type_hints(Phase)
    entries = _object(found, where, required)
    return Phase(**{key: _typed(value, hints[key], where, key) for key, value in entries.items()})


def _object(found: Any, where: str, required: Mapping[str, bool]) -> dict[str, Any]:
    """Checks the keys of a JSON object: which it may have, and whether it must."""
    if not isinstance(found, dict):
        raise ValueError(f"{where}: expected an object, received {_short(found)}")
    if unknown := sorted(set(found) - set(required)):
        raise ValueError(f"{where}: unknown key {unknown[0]!r}, expected {', '.join(required)}")
    if missing := [key for key, must in required.items() if must and key not in found]:
        raise ValueError(f"{where}: missing key {missing[0]!r}")
    return found


def _typed(value: Any, hint: Any, where: str, key: str) -> Any:
    """Returns a JSON value as what a field of a phase is annotated with."""
    try:
        return _as(value, hint)
    except (TypeError, OverflowError):
        raise ValueError(
            f"{where}: expected {key!r} as {_words(hint)}, received {_short(value)}"
        ) from None


def _as(value: Any, hint: Any) -> Any:
    if get_origin(hint) is UnionType:
        hint = next(
            each for each in get_args(hint) if (get_origin(each) is tuple) == _listed(value)
        )
    if get_origin(hint) is tuple and _listed(value):
        return tuple(_as(each, get_args(hint)[0]) for each in value)
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise TypeError
    return value


def _listed(value: Any) -> bool:
    return isinstance(value, list)


def _words(hint: Any) -> str:
    """Says a type as JSON has it."""
    if get_origin(hint) is UnionType:
        return " or ".join(map(_words, get_args(hint)))
    if get_origin(hint) is tuple:
        return f"a list, of {_words(get_args(hint)[0])} each"
    return {str: "a string", int: "a whole number", float: "a number", bool: "true or false"}[hint]


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Makes an object of a file; of a key given twice, JSON would keep the last without a word."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in found if keys.count(key) > 1)
        raise ValueError(f"key {twice!r} is given twice in one object")
    return found


def _json(value: Any) -> str:
    return json.dumps(value, allow_nan=False)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
