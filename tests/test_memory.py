"""What a call needs at its peak."""

import sys

import numpy as np
import pytest
import tensorflow as tf

from tfxfer import memory
from tfxfer.memory import peak_bytes

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")


@pytest.fixture
def no_allocator(monkeypatch):
    """As where TensorFlow's allocator does not count."""

    def fail(device):
        raise ValueError("Allocator stats not available")

    monkeypatch.setattr(tf.config.experimental, "reset_memory_stats", fail)


def test_what_numpy_takes_is_seen():
    for _ in range(2):
        assert peak_bytes(lambda: np.ones(200_000_000, np.uint8)) == pytest.approx(2e8, rel=0.1)


def test_memory_that_is_held_before_does_not_count():
    held = np.ones(50_000_000, np.uint8)
    peak = peak_bytes(held.sum)
    assert peak is not None
    assert 0 <= peak < 2e7


def test_what_tensorflow_keeps_from_earlier_work_hides_nothing():
    for _ in range(3):
        peak = peak_bytes(lambda: tf.ones(10_000_000))
        assert peak is not None
        assert 3.9e7 < peak < 1e8


def test_linux_tells_where_the_allocator_does_not(no_allocator):
    assert peak_bytes(lambda: np.ones(40_000_000, np.uint8)) == pytest.approx(4e7, rel=0.1)


@pytest.mark.parametrize("status", [None, "Name:\tpython\nVmRSS:\t  10 kB\n"])
def test_nothing_is_told_without_permission(no_allocator, monkeypatch, tmp_path, status):
    proc = tmp_path / "proc"
    if status:
        proc.mkdir()
        (proc / "status").write_text(status)
    monkeypatch.setattr(memory, "_PROC", proc)
    assert peak_bytes(lambda: np.ones(1000)) is None
