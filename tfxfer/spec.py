"""Specs: a name with options, such as `keras:MobileNetV2(alpha=0.35, weights=none)`."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from tfxfer.errors import UserError

_OPTIONS = re.compile(r"(?P<name>.+?)\((?P<options>[^()]*)\)", re.DOTALL)
# Commas between quotes or brackets belong to the value.
_OPTION = re.compile(
    r"""\s*(?P<key>[A-Za-z_]\w*)\s*=\s*(?P<value>"[^"]*"|'[^']*'|[^,"']*?)\s*(?:,|$)"""
)
_WORDS = {"true": True, "false": False, "none": None}


@dataclass(frozen=True)
class Spec:
    """A name and its options.

    Attributes:
        name: What stands before the parentheses.
        options: Values by key: `bool`, `None`, `int`, `float` or `str`.
        text: The spec as it was given.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    text: str = ""

    def only(self, known: Collection[str]) -> None:
        """Checks that there are no other options than these.

        Args:
            known: Their keys.

        Raises:
            UserError: If there are.
        """
        if unknown := sorted(set(self.options) - set(known)):
            raise UserError(
                f"{self.name!r} has no option {unknown[0]!r}",
                f"It takes {', '.join(sorted(known))}." if known else "It takes none.",
            )


def parse_spec(text: str) -> Spec:
    """Reads `name` or `name(key=value, ...)`.

    Parentheses that hold anything but `key=value` are part of the name, so that every path is a
    spec. `true`, `false` and `none`, in any case, and numbers are read as such, everything else
    as a string; quotes keep a value a string and protect its commas.

    Args:
        text: The spec.

    Returns:
        Its parts.

    Raises:
        UserError: If an option is given twice.
    """
    text = text.strip()
    parts = _OPTIONS.fullmatch(text)
    if not parts:
        return Spec(text, text=text)
    options: dict[str, Any] = {}
    rest, at = parts["options"].rstrip(), 0
    while at < len(rest):
        option = _OPTION.match(rest, at)
        if not option:
            return Spec(text, text=text)
        if option["key"] in options:
            raise UserError(f"{text!r} gives {option['key']!r} twice", "Give it once.")
        options[option["key"]] = _value(option["value"])
        at = option.end()
    return Spec(parts["name"].strip(), options, text) if options else Spec(text, text=text)


def _value(text: str) -> Any:
    if text[:1] in ("'", '"'):
        return text[1:-1]
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text
