"""Several workers in processes of their own, on this machine."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfxfer
from tfxfer import turns
from tfxfer.errors import UserError
from tfxfer.workers import Worker, this_worker

# What a worker that is not the chief makes goes into a folder that the test can look at.
_PROGRAM = """
import sys
from pathlib import Path
from tfxfer import run
from tfxfer.report import workdir
workdir._of_this_process = lambda: Path(sys.argv[1])
sys.exit(run.main(["run", *sys.argv[2:]]))
"""


def config(index: int, role: str = "worker", **cluster: int) -> str:
    addresses = {name: [f"host{i}:1" for i in range(count)] for name, count in cluster.items()}
    return json.dumps({"cluster": addresses, "task": {"type": role, "index": index}})


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        ("", Worker(0, 1)),
        (config(1, worker=2), Worker(1, 2)),
        (config(0, role="chief", chief=1, worker=2), Worker(0, 3)),
        (config(0, chief=1, worker=2), Worker(1, 3)),
        ("{}", Worker(0, 1)),
    ],
)
def test_which_worker_this_is(stated, expected, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", stated)
    assert this_worker() == this_worker("multiworker") == expected
    assert this_worker("none") == Worker(0, 1)


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ("workers", "must be JSON with cluster and task"),
        (config(0, worker=2, ps=1), "Parameter servers"),
        (config(2, worker=2), "must be one of its cluster, and is worker 2"),
    ],
)
def test_what_is_no_cluster_is_told(stated, message, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", stated)
    with pytest.raises(UserError, match=message):
        this_worker()


def _ports(count: int) -> list[int]:
    with contextlib.ExitStack() as open_sockets:
        sockets = [open_sockets.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@contextlib.contextmanager
def _started(
    folder: Path, flags: Sequence[str], data_dir: str, count: int = 2, slurm: bool = False
) -> Iterator[list[subprocess.Popen]]:
    """Starts workers with the same command; `run` is the workdir, `1` the folder of worker 1.

    They learn of each other from `TF_CONFIG`, or as the tasks of a SLURM step on one node do.
    """
    addresses = [f"127.0.0.1:{port}" for port in _ports(count)]
    running = []
    with contextlib.ExitStack() as files:
        for index in range(count):
            (folder / str(index)).mkdir(exist_ok=True)
            task = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
            environment = {
                **os.environ,
                "TF_CONFIG": json.dumps(task) if count > 1 else "",
                "TFXFER_CACHE_DIR": str(folder / f"cache {count}"),
                "PYTHONPATH": str(Path(tfxfer.__file__).parent.parent),
            }
            if slurm:
                environment |= {
                    "TF_CONFIG": "",
                    "SLURM_PROCID": str(index),
                    "SLURM_STEP_NODELIST": "localhost",
                    "SLURM_STEP_NUM_NODES": "1",
                    "SLURM_STEP_NUM_TASKS": str(count),
                    "SLURM_STEP_TASKS_PER_NODE": str(count),
                }
            running.append(
                subprocess.Popen(
                    [
                        *(sys.executable, "-c", _PROGRAM, str(folder / str(index))),
                        *(*flags, f"--data_dir={data_dir}", "--workdir=run"),
                    ],
                    cwd=folder,
                    env=environment,
                    stdout=files.enter_context((folder / f"{index}.out").open("w")),
                    stderr=files.enter_context((folder / f"{index}.err").open("w")),
                )
            )
        try:
            yield running
        finally:
            for each in running:
                each.kill()
                each.wait()


def _ran(folder: Path, flags: Sequence[str], data_dir: str, count: int = 2) -> dict:
    """Runs to the end, and returns the results of the chief."""
    folder.mkdir(exist_ok=True)
    with _started(folder, flags, data_dir, count) as running:
        codes = [each.wait(timeout=300) for each in running]
    told = [(folder / f"{index}.err").read_text() for index in range(count)]
    assert codes == [0] * count, told
    return json.loads((folder / "run" / "results.json").read_text())


def _weights(folder: Path) -> list[np.ndarray]:
    return tfxfer.load_model(folder / "model.keras").get_weights()


def _student(path: Path) -> str:
    """Without batch normalization, which goes by the share of each worker."""
    keras.utils.set_random_seed(0)
    keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            keras.layers.Rescaling(1 / 255),
            keras.layers.Conv2D(8, 3, strides=2, activation="relu", name="block1_conv"),
            keras.layers.Conv2D(16, 3, strides=2, activation="relu", name="block2_conv"),
            keras.layers.GlobalAveragePooling2D(),
        ]
    ).save(path)
    return str(path)


_TWENTY_STEPS = ["--max_examples=320", "--batch_size=32", "--epochs=1", "--learning_rate=0.001"]
_MODES = {
    "extract": ["--mode=extract", "--max_examples=320"],
    "finetune": ["--mode=finetune", "--plan=last_k(k=1)", *_TWENTY_STEPS],
    "distill": [
        *("--mode=distill", "--teacher=teacher", "--student=student.keras", "--seeds=1"),
        *("--loss=kd+0.1*rkd_distance", *_TWENTY_STEPS, "--epochs=2"),
    ],
}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory, data_dir) -> Path:
    """The run of a teacher that knows digits."""
    folder = tmp_path_factory.mktemp("teacher")
    _ran(folder, ["--mode=extract"], data_dir, count=1)
    return folder / "run"


@pytest.mark.slow
@pytest.mark.parametrize("mode", sorted(_MODES))
def test_two_workers_do_what_one_does(mode, tmp_path, data_dir, teacher):
    results = {}
    for count in (1, 2):
        folder = tmp_path / str(count)
        folder.mkdir()
        if mode == "distill":
            (folder / "teacher").symlink_to(teacher)
            _student(folder / "student.keras")
        results[count] = _ran(folder, _MODES[mode], data_dir, count)
    both = [_weights(tmp_path / "2" / name) for name in ("run", "1")]
    for chief, other, alone in zip(*both, _weights(tmp_path / "1" / "run"), strict=True):
        np.testing.assert_array_equal(chief, other)
        np.testing.assert_allclose(chief, alone, rtol=0, atol=1e-4)
    one, two = (results[count]["metrics"]["test"] for count in (1, 2))
    assert two["examples"] == one["examples"] == 360
    assert two["accuracy"] == pytest.approx(one["accuracy"], abs=1e-9)
    assert (tmp_path / "2" / "1.out").read_text() == ""
    assert "2 workers with 2 CPU" in (tmp_path / "2" / "0.out").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("mode", sorted(_MODES))
def test_two_devices_do_what_one_does(mode, tmp_path, data_dir, teacher):
    results = {}
    for count in (1, 2):
        folder = tmp_path / str(count)
        folder.mkdir()
        (folder / "teacher").symlink_to(teacher)
        _student(folder / "student.keras")
        flags = [*_MODES[mode], "--strategy=mirrored", "--num_logical_devices=2"]
        results[count] = _ran(folder, flags if count == 2 else _MODES[mode], data_dir, 1)
    assert "2 CPU" in (tmp_path / "2" / "0.out").read_text()
    one, two = (_weights(tmp_path / str(count) / "run") for count in (1, 2))
    for alone, shared in zip(one, two, strict=True):
        np.testing.assert_allclose(shared, alone, rtol=0, atol=1e-4)
    test = [results[count]["metrics"]["test"] for count in (1, 2)]
    assert test[0]["examples"] == test[1]["examples"] == 360
    assert test[0]["accuracy"] == pytest.approx(test[1]["accuracy"], abs=1e-9)


@pytest.mark.slow
def test_a_worker_that_dies_ends_the_job_which_then_goes_on(tmp_path, data_dir):
    flags = [*_MODES["finetune"], "--max_examples=0", "--epochs=2", "--checkpoint_seconds=1"]
    whole = _ran(tmp_path / "whole", flags, data_dir)
    folder = tmp_path / "killed"
    folder.mkdir()
    with _started(folder, flags, data_dir) as (chief, other):
        # The first epoch is over, the second runs.
        while not (folder / "run" / "metrics.jsonl").exists():
            assert chief.poll() is None, (folder / "0.err").read_text()
            with contextlib.suppress(subprocess.TimeoutExpired):
                chief.wait(timeout=0.05)
        other.send_signal(signal.SIGKILL)
        assert chief.wait(timeout=60) == 3
    told = (folder / "0.err").read_text().strip().splitlines()
    assert [line for line in told if line.startswith("tfxfer: error")] == [
        "tfxfer: error: worker 0 of 2 has lost another one, which may say why; start all of them "
        "again with the same command, which goes on where training was"
    ]
    assert not (folder / "run" / "results.json").exists()
    results = _ran(folder, flags, data_dir)
    assert "going on with the unfinished run" in (folder / "0.out").read_text()
    assert results["metrics"] == whole["metrics"]
    for one, other in zip(_weights(folder / "run"), _weights(tmp_path / "whole/run"), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.slow
def test_tasks_of_a_slurm_step_are_workers(tmp_path, data_dir):
    flags = ["--mode=extract", "--max_examples=50", "--strategy=multiworker"]
    with _started(tmp_path, flags, data_dir, slurm=True) as running:
        codes = [each.wait(timeout=300) for each in running]
    assert codes == [0, 0], (tmp_path / "1.err").read_text()
    assert "2 workers with 2 CPU" in (tmp_path / "0.out").read_text()
    assert (tmp_path / "1.out").read_text() == ""


@pytest.mark.slow
def test_a_worker_that_is_told_to_end_ends_all(tmp_path, data_dir):
    flags = [*_MODES["finetune"], "--max_examples=0", "--epochs=50"]
    with _started(tmp_path, flags, data_dir) as (chief, other):
        while not (tmp_path / "run" / "metrics.jsonl").exists():
            assert chief.poll() is None, (tmp_path / "0.err").read_text()
            with contextlib.suppress(subprocess.TimeoutExpired):
                chief.wait(timeout=0.05)
        other.terminate()
        assert other.wait(timeout=60) == 143
        assert chief.wait(timeout=60) == 3


@pytest.mark.slow
def test_a_mistake_ends_all_workers(tmp_path, data_dir):
    (tmp_path / "run" / "images").mkdir(parents=True)
    with _started(tmp_path, ["--mode=extract"], data_dir) as running:
        assert [each.wait(timeout=120) for each in running] == [2, 2]
    assert "holds other folders" in (tmp_path / "0.err").read_text()


def test_workers_read_their_batches_and_no_others(monkeypatch):
    """Of five batches, three workers with a device each take two in turn, the last one a filler."""

    def some(numbers: np.ndarray) -> tf.data.Dataset:
        return tf.data.Dataset.from_tensor_slices(numbers)

    taken = []
    for index in range(3):
        monkeypatch.setattr("tfxfer.turns.worker_count", lambda strategy: 3)
        monkeypatch.setattr("tfxfer.turns.worker_index", lambda strategy, i=index: i)
        strategy = SimpleNamespace(num_replicas_in_sync=3)
        data = turns._read_by_worker(some, 5, strategy)  # type: ignore[arg-type]
        taken.append([(int(real), int(number)) for real, number in data])
    assert taken == [[(1, 0), (1, 3)], [(1, 1), (1, 4)], [(1, 2), (0, 0)]]
