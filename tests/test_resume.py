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
from tests.test_finetune_plans import Bright
from tfxfer.config import RunConfig
from tfxfer.errors import UserError
from tfxfer.plan import Phase, Plan, write_plan
from tfxfer.report.replacing import Place
from tfxfer.report.workdir import choose_workdir, goes_on, run_in
from tfxfer.training.checkpoints import Checkpoints

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


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """One a test: sources in memory are all of one fingerprint."""
    monkeypatch.setenv("TFXFER_CACHE_DIR", str(tmp_path / "cache"))


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
            _, stderr = process.communicate(timeout=rng.uniform(5, 12))
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            kills += 1
        else:
            assert process.returncode == 0, stderr
        if (tmp_path / "run" / "results.json").exists():
            # It was done before all kills: another run, with the same end.
            assert same(tmp_path, whole)
            for file in ("results.json", "model.keras", "metrics.jsonl"):
                (tmp_path / "run" / file).unlink()
    finished(start(tmp_path, data_dir))
    assert same(tmp_path, whole)


def test_an_interrupted_run_goes_on(tmp_path, data_dir, whole):
    process = start(tmp_path, data_dir)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("Epoch 2"):  # Now there are checkpoints.
            break
    stderr = ""
    while process.poll() is None:
        # Python drops an interrupt that arrives in a callback from C++; a person presses again.
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            _, stderr = process.communicate(timeout=5)
    assert process.returncode == 130
    assert stderr.endswith("; the same command with --workdir=run goes on where it was\n")
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


def ends(path, chosen: RunConfig, error: BaseException, trained=True, **identity) -> str:
    """A run that ends by an error, before or after its first checkpoint; returns what it says."""
    with pytest.raises(type(error)) as told, run_in(choose_workdir(chosen), chosen, identity):
        folder = path / "checkpoints" / "model"
        Checkpoints(folder, identity)
        (path / "metrics.jsonl").write_text("{}")
        (path / "saved_model").mkdir()
        if trained:
            (folder / "step").mkdir(exist_ok=True)
            (folder / "step" / "checkpoint").touch()
        raise error
    return str(told.value)


@pytest.mark.parametrize(
    "error", [RuntimeError("broken"), KeyboardInterrupt(), SystemExit(), UserError("bad", "Mend.")]
)
def test_what_was_trained_is_gone_on_with_however_it_ended(tmp_path, error):
    path = tmp_path / "run"
    chosen = config(path)
    told = ends(path, chosen, error)
    again = f"the same command with --workdir={path} goes on where it was"
    expected = {KeyboardInterrupt: again, UserError: f"bad. Mend; {again}."}
    assert told == expected.get(type(error), str(error))
    assert goes_on(path, chosen)
    assert not goes_on(path, config(path, seed=3))
    with run_in(choose_workdir(chosen), chosen):
        assert not (path / "saved_model").exists(), "made again"
        assert (path / "metrics.jsonl").exists()
        assert (path / "checkpoints" / "model" / "step" / "checkpoint").exists()
        (path / "results.json").write_text("{}")
    assert not goes_on(path, chosen)
    assert not (path / "checkpoints").exists()


@pytest.mark.parametrize("error", [RuntimeError(), KeyboardInterrupt(), UserError("bad", "Mend.")])
def test_before_anything_is_trained_nothing_stays(tmp_path, error):
    told = ends(tmp_path / "run", config(tmp_path / "run"), error, trained=False)
    assert told == str(error)
    assert not (tmp_path / "run").exists()


def test_work_of_earlier_processes_outlives_a_mistake(tmp_path):
    path = tmp_path / "run"
    ends(path, config(path), SystemExit())
    with pytest.raises(UserError, match="goes on"), run_in(path, config(path)):
        raise UserError("The disk of the cache must have room", "Make some.")
    assert goes_on(path, config(path))
    other = config(path, seed=1)
    with pytest.raises(UserError, match="unfinished one with --seed=0, not 1"):
        choose_workdir(other)
    other = config(path, seed=1, overwrite=True)
    with run_in(choose_workdir(other), other):
        assert not (path / "checkpoints").exists()
    assert config_of(path).seed == 1


def test_what_was_replaced_comes_back_only_if_nothing_came_of_it(tmp_path):
    path = tmp_path / "run"
    with run_in(choose_workdir(config(path)), config(path)):
        (path / "results.json").write_text("old")
    again = config(path, overwrite=True, seed=1)
    ends(path, again, KeyboardInterrupt(), trained=False)
    assert (path / "results.json").read_text() == "old"
    ends(path, again, KeyboardInterrupt())
    assert goes_on(path, again)
    with run_in(choose_workdir(again), again):
        pass
    assert not (path / ".replaced").exists()
    assert config_of(path).seed == 1


def test_metrics_of_a_run_without_checkpoints_are_dropped(tmp_path, monkeypatch):
    path, chosen = tmp_path / "run", config(tmp_path / "run")
    with monkeypatch.context() as patch:  # As if it was killed.
        patch.setattr(Place, "undo", lambda self: None)
        ends(path, chosen, SystemExit(), trained=False, data="0")
    assert goes_on(path, chosen)
    with run_in(path, chosen, {"data": "1"}):
        assert sorted(each.name for each in path.iterdir()) == [".lock", "config.json"]


def test_changed_data_is_told_and_can_be_overwritten(tmp_path):
    path, begun = tmp_path / "run", {"plan": ["head"], "data": "0", "backbone": "0"}
    ends(path, config(path), SystemExit(), **begun)
    changed = {**begun, "data": "1"}
    with (
        pytest.raises(UserError, match="unfinished one whose data changed since") as told,
        run_in(path, config(path), changed),
    ):
        raise AssertionError
    assert str(told.value).endswith("Replace it with --overwrite, or name another folder.")
    chosen = config(path, overwrite=True)
    with run_in(path, chosen, begun):
        assert (path / "checkpoints").exists(), "the same is gone on with, --overwrite or not"
    ends(path, chosen, SystemExit(), **begun)
    with run_in(path, chosen, changed):
        assert not (path / "checkpoints").exists()
        assert not (path / "metrics.jsonl").exists()


@pytest.fixture(scope="module")
def dropping(tmp_path_factory) -> str:
    """A network with dropout, the state of which is no weight."""
    keras.utils.set_random_seed(1)
    network = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            keras.layers.Rescaling(1 / 127.5, -1),
            keras.layers.Conv2D(4, 3, strides=2, activation="relu", name="block1_conv"),
            keras.layers.Conv2D(4, 2, activation="relu", name="block2_conv"),
            keras.layers.Dropout(0.5),
            keras.layers.GlobalAveragePooling2D(),
        ]
    )
    path = tmp_path_factory.mktemp("network") / "dropping.keras"
    network.save(path)
    return str(path)


@pytest.mark.parametrize(
    ("settings", "method", "calls"),
    [
        ({"folds": 2, "average": "soup", "plan": "full"}, "finish", 1),
        ({"protocol": "vtab1k", "batch_size": 200, "plan": "full"}, "finish", 1),
        ({"adapt": "lora", "boundary_cache": "on", "augment": "light", "views": 2}, "write", 9),
    ],
    ids=["folds", "refit", "cached"],
)
def test_every_kind_of_run_goes_on_to_the_same_end(
    tmp_path, monkeypatch, dropping, settings, method, calls
):
    monkeypatch.setenv("TFXFER_CACHE_DIR", str(tmp_path / "cache"))
    steps = {"backbone": dropping, "epochs": 2, "batch_size": 20, "plan": "last_k(k=1)"}
    source = Bright(side=8, train=1000 if "protocol" in settings else 60, test=20)
    ended: dict[str, list[np.ndarray]] = {}
    finish = Checkpoints.finish

    def noted(self, model, state):
        ended[path.name] = model.get_weights()  # Of the last fold, in the end.
        finish(self, model, state)

    def exported(model, *rest):
        ended[path.name] = model.get_weights()

    def run():
        return tfxfer.finetune(
            source,
            workdir=str(path / "run"),
            checkpoint_seconds=0.0 if method == "write" else 30.0,
            **{**steps, **settings},
        )

    monkeypatch.setattr(Checkpoints, "finish", noted)
    monkeypatch.setattr("tfxfer.methods.finetune.export", exported)
    path = tmp_path / "whole"
    whole = run()
    path = tmp_path / "killed"
    with monkeypatch.context() as patch:
        act, left = getattr(Checkpoints, method), [None] * calls

        def killing(self, *args):
            act(self, *args)
            left.pop()
            if not left:
                raise SystemExit

        patch.setattr(Checkpoints, method, killing)
        with pytest.raises(SystemExit):
            run()
    resumed = run()
    assert whole is not None
    assert resumed is not None
    assert (resumed.metrics, resumed.averages) == (whole.metrics, whole.averages)
    assert lines(tmp_path / "killed") == lines(tmp_path / "whole")
    for ours, theirs in zip(ended["killed"], ended["whole"], strict=True):
        assert np.array_equal(ours, theirs)


def test_an_edited_plan_is_told_and_leaves_no_line_of_the_old_one(tmp_path, monkeypatch, dropping):
    def plan_of(*names) -> str:
        phases = [Phase(name, ("head",), 2, 1e-3) for name in names]
        write_plan(Plan(tuple(phases), ("block1", "block2")), tmp_path / "plan.json")
        return str(tmp_path / "plan.json")

    def run(plan, **more):
        return tfxfer.finetune(
            Bright(side=8, train=60, test=20),
            workdir=str(tmp_path / "run"),
            backbone=dropping,
            epochs=0,
            batch_size=20,
            plan=plan,
            **more,
        )

    def killed(self, model, state):
        raise SystemExit

    monkeypatch.setattr("tfxfer.methods.finetune.export", lambda *args: None)
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(Checkpoints, "finish", killed)
        run(plan_of("old", "older"))
    with pytest.raises(UserError, match=r"whose plan changed since.*--overwrite"):
        run(plan_of("new"))
    run(plan_of("new"), overwrite=True)
    assert [line["phase"] for line in lines(tmp_path)] == ["new", "new"]
