"""Names with options."""

import pytest

from tfxfer.errors import UserError
from tfxfer.spec import parse_spec


@pytest.mark.parametrize(
    ("text", "name", "options"),
    [
        ("glyphs", "glyphs", {}),
        ("keras:VGG16(weights=none)", "keras:VGG16", {"weights": None}),
        ("a(x=1, y=0.5,z=true)", "a", {"x": 1, "y": 0.5, "z": True}),
        ("a( x = b/c.h5 )", "a", {"x": "b/c.h5"}),
        ("a(x='1,2', y=\"none\")", "a", {"x": "1,2", "y": "none"}),
        ("a(x=)", "a", {"x": ""}),
        ("photos (1).keras", "photos (1).keras", {}),
        ("photos (copy)", "photos (copy)", {}),
        ("photos (1)/m.keras(layer=x)", "photos (1)/m.keras", {"layer": "x"}),
        ("a()", "a()", {}),
        ("(x=1)", "(x=1)", {}),
        ("a(x=1 y)", "a", {"x": "1 y"}),
        ("a(x=1,)", "a", {"x": 1}),
    ],
)
def test_parts(text, name, options):
    spec = parse_spec(text)
    assert (spec.name, dict(spec.options), spec.text) == (name, options, text)


def test_option_given_twice_is_refused():
    with pytest.raises(UserError, match="'x' twice"):
        parse_spec("a(x=1, x=2)")


def test_unknown_option_is_refused():
    with pytest.raises(UserError, match=r"no option 'z'. It takes x, y"):
        parse_spec("a(z=1)").only(["y", "x"])
    with pytest.raises(UserError, match="It takes none"):
        parse_spec("a(z=1)").only([])
