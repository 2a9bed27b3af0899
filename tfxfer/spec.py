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
# Commas and semicolons between quotes or parentheses belong to a spec.
_SPECS = re.compile(r"""(?:"[^"]*"|'[^']*'|\((?:"[^"]*"|'[^']*'|[^()"'])*\)|[^,;"'()]|[()"'])+""")
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

    def having(self, key: str, value: Any) -> "Spec":
        """Returns the same name with one option more, or another value of it."""
        return _spec(self.name, {**self.options, key: value})

    def without(self, keys: Collection[str]) -> "Spec":
        """Returns the same name without some of the options.

        Args:
            keys: Of the options to leave out, whether they are there or not.
        """
        options = {key: value for key, value in self.options.items() if key not in keys}
        if len(options) == len(self.options):
            return self
        return _spec(self.name, options)


def split_specs(text: str) -> tuple[str, ...]:
    """Reads several specs between commas or semicolons.

    Args:
        text: Such as `glyphs, keras:ResNet50(weights=none, layer=pool), 'a,b.keras'`; those between
            quotes or parentheses do not part specs, and quotes around a whole one are taken off.

    Returns:
        The specs, without those that are empty.
    """
    found = (each.strip() for each in _SPECS.findall(text))
    return tuple(
        each[1:-1] if len(each) > 1 and each[0] == each[-1] and each[0] in "\"'" else each
        for each in found
        if each
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


def _spec(name: str, options: Mapping[str, Any]) -> Spec:
    inside = ", ".join(f"{key}={_shown(value)}" for key, value in options.items())
    return Spec(name, options, f"{name}({inside})" if inside else name)


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else str(value)


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
