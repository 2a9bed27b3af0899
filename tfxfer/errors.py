"""The one error that is the user's to mend."""

import re


class UserError(ValueError):
    """A mistake in what the user gave: a flag, a dataset, a backbone, a folder.

    The command line prints it as one line and exits with code 2; in Python it is a `ValueError`.

    Args:
        problem: What was expected and what was received.
        fix: What to do about it.
    """

    def __init__(self, problem: str, fix: str):
        super().__init__(f"{problem.rstrip(' .?')}. {fix}")


class TrainingError(UserError):
    """A training that fails the same way however often it goes on, such as one that diverges."""


class CheckpointError(UserError):
    """What an unfinished training left on the disk cannot be read."""

    def __init__(self, folder: object, error: BaseException):
        refused = isinstance(error, OSError) and error.errno
        super().__init__(
            f"What an unfinished training left in {folder} must be whole, and cannot be read: "
            f"{first_line(error)}",
            "See to it that it can be read, or name another --workdir."
            if refused
            else "Remove that folder, and the training begins anew, or name another --workdir.",
        )


def first_line(error: BaseException) -> str:
    """Returns the type and the first line of an error that a library raised."""
    text = re.sub(r"\x1b\[\d*m", "", str(error))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if len(lines) > 1 and lines[0].startswith("Exception encountered when calling"):
        del lines[0]  # Keras: what was raised comes after.
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
