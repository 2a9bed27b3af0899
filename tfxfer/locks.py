"""Files that one process holds; the system lets go of them when it ends, however it ends."""

import errno
import fcntl
import io
import os
from pathlib import Path


def lock(file: Path, mode: str) -> io.FileIO:
    """Opens a file for this process alone, until it is closed.

    Args:
        file: The file. Only who holds it may remove it.
        mode: As `io.FileIO` takes it.

    Returns:
        The file, open.

    Raises:
        BlockingIOError: If another process has it.
        FileNotFoundError: If another process has removed it meanwhile.
        OSError: If it cannot be opened or locked.
    """
    opened = io.FileIO(file, mode)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # One of the same name may have been made since, which somebody else can hold.
        if not os.path.samestat(os.fstat(opened.fileno()), file.stat()):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(file))
    except BaseException:
        opened.close()
        raise
    return opened
