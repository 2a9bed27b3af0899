"""The one error that is the user's to mend."""


class UserError(ValueError):
    """A mistake in what the user gave: a flag, a dataset, a backbone, a folder.

    The command line prints it as one line and exits with code 2; in Python it is a `ValueError`.

    Args:
        problem: What was expected and what was received.
        fix: What to do about it.
    """

    def __init__(self, problem: str, fix: str):
        super().__init__(f"{problem.rstrip(' .?')}. {fix}")


def first_line(error: BaseException) -> str:
    """Returns the type and the first line of an error that a library raised."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
