"""How a run takes the place of another one in a folder, whenever the process may be killed.

A new run moves what is there to `.aside`, and renames that to `.replaced` once all is in it; then
it writes the file that says that it has begun. Whatever is undone or given up ends by putting back
what is in `.replaced`. So the folder says at every moment what it holds: the old run, if there is
`.aside`, or if there is `.replaced` and nothing has begun; else the new run.
"""

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tfxfer.files import remove

_ASIDE, _REPLACED = ".aside", ".replaced"


@dataclass(frozen=True)
class Place:
    """A folder with the files and folders of one run, and perhaps others that are of no run.

    Attributes:
        folder: The folder, which one process at a time may change.
        names: Of all that a run may write: first what says that it has begun, last what says that
            it is done.
        passing: Those that a run needs only until it is done.
    """

    folder: Path
    names: tuple[str, ...]
    passing: tuple[str, ...]

    @property
    def present(self) -> list[str]:
        """Those of the names that are there."""
        return [name for name in self.names if os.path.lexists(self.folder / name)]

    @property
    def settled(self) -> bool:
        """Whether no run is replacing another one."""
        return not any((self.folder / name).is_dir() for name in (_ASIDE, _REPLACED))

    @contextlib.contextmanager
    def claimed(self) -> Iterator[None]:
        """Puts another run aside; in the block the new one says that it has begun."""
        try:
            if (self.folder / _REPLACED).is_dir():
                self._give_up()  # An unfinished run; what it was to replace may still come back.
            elif present := self.present:
                (self.folder / _ASIDE).mkdir()
                for name in present:
                    (self.folder / name).rename(self.folder / _ASIDE / name)
                (self.folder / _ASIDE).rename(self.folder / _REPLACED)
            yield
        except BaseException:
            self.settle()
            raise

    def undo(self) -> None:
        """Removes a run, and puts back what it replaced."""
        for name in reversed(self.present):  # While it is half-removed it has begun, and not more.
            remove(self.folder / name)
        self.settle()

    def finish(self) -> None:
        """Removes what only an unfinished run needs, and what it replaced."""
        for name in (*self.passing, _REPLACED):
            shutil.rmtree(self.folder / name, ignore_errors=True)

    def settle(self) -> None:
        """Ends what a killed process began; if this one is killed too, the next one does."""
        if (self.folder / _REPLACED).is_dir():
            if not (self.folder / self.names[0]).exists():
                self._give_up()
                (self.folder / _REPLACED).rename(self.folder / _ASIDE)
            elif (self.folder / self.names[-1]).exists():
                self.finish()
        if (self.folder / _ASIDE).is_dir():
            for old in list((self.folder / _ASIDE).iterdir()):
                old.rename(self.folder / old.name)
            (self.folder / _ASIDE).rmdir()

    def _give_up(self) -> None:
        """Removes a run for the one in `.replaced`, which counts from the first file on."""
        for name in self.present:
            remove(self.folder / name)
