"""How much memory a call needs at its peak."""

import contextlib
import ctypes
import functools
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tensorflow as tf

_PROC = Path("/proc/self")


def peak_bytes(run: Callable[[], Any]) -> int | None:
    """Measures what a call needs at its peak, beyond what was in use before.

    On a GPU that is the device's memory. Else it is the larger of what TensorFlow's allocator
    counts and of what the process came to hold, which only Linux tells: the first leaves out what
    others such as NumPy take, the second what is taken of the memory that the allocator keeps from
    earlier work. Beside a few MB that is exact to about 1 MB; what other threads take meanwhile
    counts too.

    Args:
        run: What to measure. It must return only when its work is done.

    Returns:
        Bytes, at least 0; `None` where nothing tells them.
    """
    if tf.config.list_logical_devices("GPU"):
        gauges = [functools.partial(_allocated, "GPU:0")]
    else:
        gauges = [functools.partial(_allocated, "CPU:0"), _resident]
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # There is none without glibc.
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # Or the process would not have to grow.
    before = [gauge(reset=True) for gauge in gauges]
    run()
    after = [gauge() for gauge in gauges]
    pairs = zip(before, after, strict=True)
    return max((b - a for a, b in pairs if a is not None and b is not None), default=None)


def _allocated(device: str, reset: bool = False) -> int | None:
    """Returns the peak of what TensorFlow allocated on a device since the last reset.

    Args:
        device: Such as `GPU:0`.
        reset: Whether the peak is to be what is allocated now.

    Returns:
        Bytes; `None` if its allocator does not count.
    """
    try:
        if reset:
            tf.config.experimental.reset_memory_stats(device)
        return tf.config.experimental.get_memory_info(device)["peak"]
    except ValueError:
        return None


def _resident(reset: bool = False) -> int | None:
    """As `_allocated`, of the memory that the process holds."""
    try:
        if reset:
            (_PROC / "clear_refs").write_text("5")  # See proc_pid_clear_refs(5).
        lines = (_PROC / "status").read_text().splitlines()
        return 1024 * int(dict(line.split(":", 1) for line in lines)["VmHWM"].split()[0])
    except (OSError, KeyError):
        return None
