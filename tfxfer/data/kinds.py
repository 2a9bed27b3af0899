"""Which kind of source a spec names; needs no TensorFlow."""

from tfxfer.spec import Spec

TABLES = ("csv", "tsv", "jsonl")
FOLDER, SKLEARN, TFDS = "folder", "sklearn", "tfds"


def kind_of(spec: Spec) -> str:
    """Returns one of `TABLES`, `folder`, `sklearn` or, for everything else, `tfds`."""
    kind, colon, _ = spec.name.partition(":")
    return kind if colon and kind in (*TABLES, FOLDER, SKLEARN) else TFDS
