"""What people call the splits of a dataset."""

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}


def split_named(name: str) -> str | None:
    """Returns the split that people call so, such as `validation` for `val`, or `None`."""
    return SPLIT_NAMES.get(name.strip().lower())
