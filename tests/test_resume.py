"""Runs that are killed or interrupted, as real processes, and what comes of the same command."""

import contextlib
import json
import os
import signal
import subprocess
import sys

import keras
import numpy as np
import pytest

import tfxfer
from tfxfer.config import RunConfig
from tfxfer.errors import UserError
from tfxfer.report.workdir import choose_workdir, goes_on, run_in

# All that has a state of its own: dropout, augmentation, a schedule, an average, momentum.
_SETTINGS = [
    "--max_examples=200",
    "--epochs=3",
    "--batch_size=16",
    "--augment=light",
    "--dropout=0.3",
    "--schedule=cosine",
    "--warmup=0.2",
    "--ema=0.9",
    "--weight_decay=0.01",
    "--layer_decay=0.8",
    "--checkpoint_seconds=0",
    "--plan=last_k(k=2)",
    "--scan=false",
]

# A test runner in the background may hand down that SIGINT is ignored.
_CODE = (
    "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
    "runpy.run_module('tfxfer.run', run_name='__main__')"
)


def start(folder, data_dir, *more: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", _CODE, "--workdir=run", *_SETTINGS, *more],
        cwd=folder,
        env={**os.environ, "TFDS_DATA_DIR": data_dir, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(process: subprocess.Popen) -> str:
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    return stdout


def weights(folder) -> list[np.ndarray]:
    return tfxfer.load_model(folder / "run" / "model.keras").get_weights()


def same(one, other) -> bool:
    """Whether two runs ended the same, to the bit, but for the time they took."""
    for ours, theirs in zip(weights(one), weights(other), strict=True):
        if not np.array_equal(ours, theirs):
            return False
    return lines(one) == lines(other)


def lines(folder) -> list[dict]:
    text = (folder / "run" / "metrics.jsonl").read_text()
    return [{**json.loads(line), "seconds": 0} for line in text.splitlines()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, data_dir, digits):
    """A run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    finished(start(folder, data_dir))
    return folder


def kill_after_line(process: subprocess.Popen, begins: str, count: int) -> None:
    """Kills a process when it has printed so many lines of a kind, unless it ends before."""
    assert process.stdout is not None
    for line in process.stdout:
        count -= line.startswith(begins)
        if not count:
            break
    process.kill()
    process.communicate()


def test_a_run_that_was_killed_ends_as_if_it_was_not(tmp_path, data_dir, whole):
    for begins, count in (("Epoch", 2), ("phase", 2)):  # In the first phase; in the second.
        kill_after_line(start(tmp_path, data_dir), begins, count)
        assert goes_on(tmp_path / "run", config_of(tmp_path / "run"))
    out = finished(start(tmp_path, data_dir))
    assert "phase head" not in out, "the first phase is not trained again"
    assert same(tmp_path, whole)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == sorted(
        path.name for path in (whole / "run").iterdir()
    )


@pytest.mark.slow
def test_ten_kills_at_random_moments(tmp_path, data_dir, whole):
    rng = np.random.default_rng(0)
    kills = 0
    while kills < 10:
        process = start(tmp_path, data_dir)
        try:
            process.communicate(timeout=rng.uniform(5, 12))
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            kills += 1
        else:  # It was done before all kills: another run, with the same end.
            assert process.returncode == 0
            assert same(tmp_path, whole)
            for file in ("results.json", "model.keras", "metrics.jsonl"):
                (tmp_path / "run" / file).unlink()
    finished(start(tmp_path, data_dir))
    assert same(tmp_path, whole)


def test_an_interrupted_run_goes_on(tmp_path, data_dir, whole):
    process = start(tmp_path, data_dir)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("Epoch"):
            break
    stderr = ""
    while process.poll() is None:
        # Python drops an interrupt that arrives in a callback from C++; a person presses again.
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            _, stderr = process.communicate(timeout=5)
    assert process.returncode == 130
    assert "the same command goes on" in stderr.splitlines()[-1]
    assert "Traceback" not in stderr
    other = start(tmp_path, data_dir, "--seed=1")
    _, stderr = other.communicate()
    assert other.returncode == 2
    assert "unfinished one with --seed=0, not 1" in stderr
    finished(start(tmp_path, data_dir))
    assert same(tmp_path, whole)


def config_of(path) -> RunConfig:
    settings = json.loads((path / "config.json").read_text())
    return RunConfig(**{k: v for k, v in settings.items() if k != "versions"})


def config(path, **changes) -> RunConfig:
    return RunConfig(workdir=str(path), **changes)


def test_what_a_crash_left_is_gone_on_with_and_a_mistake_is_not(tmp_path):
    chosen = config(tmp_path / "run")

    def fail(error):
        with pytest.raises(type(error)), run_in(choose_workdir(chosen), chosen):
            (tmp_path / "run" / "checkpoints").mkdir(exist_ok=True)
            (tmp_path / "run" / "saved_model").mkdir()
            raise error

    fail(OSError("disk full"))
    assert goes_on(tmp_path / "run", chosen)
    assert not goes_on(tmp_path / "run", config(tmp_path / "run", seed=3))
    with run_in(choose_workdir(chosen), chosen):
        assert not (tmp_path / "run" / "saved_model").exists(), "made again"
        assert (tmp_path / "run" / "checkpoints").exists()
        (tmp_path / "run" / "results.json").write_text("{}")
    assert not goes_on(tmp_path / "run", chosen)
    again = config(tmp_path / "run", overwrite=True, seed=4)
    with pytest.raises(UserError), run_in(choose_workdir(again), again):
        (tmp_path / "run" / "checkpoints").mkdir()
        raise UserError("wrong", "mend it")
    assert json.loads((tmp_path / "run" / "config.json").read_text())["seed"] == 0
    assert (tmp_path / "run" / "results.json").exists(), "put back"


def test_what_was_replaced_comes_back_only_if_nothing_came_of_it(tmp_path):
    chosen = config(tmp_path / "run")
    with run_in(choose_workdir(chosen), chosen):
        (tmp_path / "run" / "results.json").write_text("old")
    again = config(tmp_path / "run", overwrite=True, seed=1)
    with pytest.raises(KeyboardInterrupt, match="goes on"), run_in(choose_workdir(again), again):
        (tmp_path / "run" / "checkpoints").mkdir()
        raise KeyboardInterrupt
    assert goes_on(tmp_path / "run", again)
    with run_in(choose_workdir(again), again):
        pass
    assert not (tmp_path / "run" / ".replaced").exists()
    assert json.loads((tmp_path / "run" / "config.json").read_text())["seed"] == 1


def test_seeds_of_dropout_are_state(tmp_path):
    """Or a run that goes on would draw other masks."""
    layer = keras.layers.Dropout(0.5)
    assert [each.name for each in layer.variables] == ["seed_generator_state"]
