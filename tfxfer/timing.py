"""Wall time of the parts of a run."""

import contextlib
import time
from collections.abc import Iterator


class Stopwatch:
    """Measures named parts of a run.

    Attributes:
        seconds: Wall seconds by part, in the order measured.
    """

    def __init__(self):
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """Adds the time spent inside the `with` block to `part`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - start
