"""Which kind of source a spec names, and whether it is there; needs no TensorFlow."""

from pathlib import Path

from tfxfer.errors import UserError
from tfxfer.spec import Spec

TABLES = ("csv", "tsv", "jsonl")
FOLDER, SKLEARN, TFDS = "folder", "sklearn", "tfds"


def kind_of(spec: Spec) -> str:
    """Returns one of `TABLES`, `folder`, `sklearn` or, for everything else, `tfds`."""
    kind, colon, _ = spec.name.partition(":")
    return kind if colon and kind in (*TABLES, FOLDER, SKLEARN) else TFDS


def check_path(kind: str, path: Path) -> None:
    """Checks that there is what `kind:path` names.

    Args:
        kind: One of `TABLES`, which are files, or `folder`.
        path: Of it.

    Raises:
        UserError: If it is not there, or the one where the other is meant.
    """
    text, wanted = f"'{kind}:{path}'", "folder" if kind == FOLDER else "file"
    found = _what_is(path)
    if found == wanted:
        return
    if found == "folder":
        raise UserError(f"{text} is a folder", f"For images in it write {FOLDER}:{path}.")
    if found == "file":
        form = path.suffix.removeprefix(".").lower()
        fix = f"Write {form}:{path}." if form in TABLES else "Name the folder of the classes."
        raise UserError(f"{text} is a file", fix)
    unclosed = "(" in str(path) and not str(path).endswith(")")
    raise UserError(
        f"{text} must name a {wanted}, and there is none",
        "It has no ) at its end." if unclosed else "Check the path.",
    )


def _what_is(path: Path) -> str:
    try:
        return "folder" if path.is_dir() else "file" if path.is_file() else ""
    except OSError:  # Such as a name that is too long.
        return ""
