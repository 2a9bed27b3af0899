"""The folder of a run."""

import contextlib
import errno
import fcntl
import itertools
import json
import os
import shutil

import pytest

from tfxfer.config import RunConfig
from tfxfer.errors import CheckpointError, TrainingError, UserError
from tfxfer.locks import lock
from tfxfer.report.workdir import choose_workdir, goes_on, places_before, run_in, write_json


def config(path, **changes) -> RunConfig:
    return RunConfig(workdir=str(path), **changes)


def test_choosing_creates_nothing(tmp_path):
    assert choose_workdir(config(tmp_path / "a" / "b")) == tmp_path / "a" / "b"
    assert list(tmp_path.iterdir()) == []


def test_default_is_a_new_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = choose_workdir(RunConfig(backbone="https://a.b/c/resnet.tar.gz"))
    assert path.parts[0] == "runs"
    assert path.name.startswith("finetune-digits-resnet-tar-gz-")
    assert choose_workdir(RunConfig()).name.startswith("finetune-digits-2")


@pytest.mark.parametrize(
    "name", ["config.json", "results.json", "metrics.jsonl", "saved_model", "model.keras"]
)
def test_another_run_is_refused_and_left_alone(tmp_path, name):
    (tmp_path / name).write_text("precious")
    with pytest.raises(UserError, match=f"{name}.*--overwrite"):
        choose_workdir(config(tmp_path))
    assert (tmp_path / name).read_text() == "precious"


@pytest.fixture
def taken(tmp_path):
    """A folder with a finished run and a file of the user's."""
    path = tmp_path / "run"
    with run_in(path, config(path)):
        (path / "saved_model" / "1").mkdir(parents=True)
        (path / "results.json").write_text("old")
    (path / "notes.txt").write_text("mine")
    return path


def names(path) -> list[str]:
    return sorted(file.name for file in path.iterdir())


def test_overwrite_replaces_the_run_and_nothing_else(taken):
    chosen = config(taken, overwrite=True, seed=9)
    path = choose_workdir(chosen)
    assert (taken / "results.json").exists(), "kept until the new run starts"
    with run_in(path, chosen):
        assert "results.json" not in names(taken)
    assert names(taken) == ["config.json", "notes.txt"]
    assert json.loads((taken / "config.json").read_text())["seed"] == 9


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt, UserError])
def test_run_that_fails_puts_the_old_one_back(taken, failure):
    before = {file: file.read_bytes() for file in taken.rglob("*") if file.is_file()}
    chosen = config(taken, overwrite=True)
    with pytest.raises(failure), run_in(choose_workdir(chosen), chosen):
        (taken / "results.json").write_text("new")
        (taken / "saved_model").mkdir()
        raise failure(*["", ""][: 2 if failure is UserError else 1])
    assert names(taken) == ["config.json", "notes.txt", "results.json", "saved_model"]
    assert {file: file.read_bytes() for file in taken.rglob("*") if file.is_file()} == before


class Killed(BaseException):
    """No system call comes after it, as if the process was killed."""


_CALLS = ("mkdir", "rename", "replace", "unlink", "rmdir")


@contextlib.contextmanager
def killed_after(calls: int):
    """Lets so many calls that change the folder happen; gives how many there were."""
    seen = []

    def counted(call):
        def wrapper(*args, **kwargs):
            if len(seen) == calls:
                raise Killed
            seen.append(call)
            return call(*args, **kwargs)

        return wrapper

    with pytest.MonkeyPatch.context() as patch:
        for name in _CALLS:
            patch.setattr(os, name, counted(getattr(os, name)))
        with contextlib.suppress(Killed):
            yield seen


def begin(path, trains=True, error: BaseException | None = None, **changes):
    """A run that writes something of everything and, if there is no error, succeeds."""
    chosen = config(path, overwrite=True, **changes)
    with run_in(choose_workdir(chosen), chosen):
        (path / "metrics.jsonl").write_text("new")
        (path / "plan.json").write_text("new")
        step = path / "checkpoints" / "model" / "step"
        step.mkdir(parents=True)
        if trains:
            (step / "checkpoint").write_text("new")
        (path / "saved_model").mkdir()
        (path / "saved_model" / "saved_model.pb").write_text("new")
        if error is not None:
            raise error
        (path / "results.json").write_text("new")


def contents(path) -> dict:
    """All files of a run, but for the time at which they were written."""
    return {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}


def mistake() -> UserError:
    return UserError("wrong", "mend it")


@pytest.fixture
def quick(monkeypatch):
    """Versions of packages take long to find."""
    monkeypatch.setattr("tfxfer.report.workdir._PACKAGES", ("tfxfer",))


def kills(taken, tmp_path, act):
    """Does something again and again in a copy of a folder, killed after 0, 1, 2 ... calls.

    Gives each folder as it was left, with whether the process lived to its end.
    """
    start = tmp_path / "start"
    taken.rename(start)
    for calls in itertools.count():
        shutil.copytree(start, taken)
        with killed_after(calls) as seen:
            act()
        alive = len(seen) < calls
        yield alive
        shutil.rmtree(taken)
        if alive:
            assert calls > 10, "each call was tried"
            return


def test_old_run_survives_a_kill_at_any_moment(quick, taken, tmp_path):
    """As it is replaced by one that fails: by itself, or over one that was killed before."""
    old = contents(taken)

    def fails(seed):
        with pytest.raises(UserError, match="wrong"):
            begin(taken, trains=False, error=mistake(), seed=seed)

    def overwritten():
        with killed_after(10**6):
            begin(taken, error=Killed(), seed=1)
        fails(2)

    for act in (lambda: fails(1), overwritten):
        for _ in kills(taken, tmp_path, act):
            with pytest.raises(UserError, match="must not hold another run"):
                choose_workdir(config(taken, seed=3))  # Nobody asked to replace it.
            fails(3)
            assert contents(taken) == old
            assert names(taken) == ["config.json", "notes.txt", "results.json", "saved_model"]
        (tmp_path / "start").rename(taken)


def test_new_run_is_whole_or_not_done_at_any_moment(quick, taken, tmp_path):
    for alive in kills(taken, tmp_path, lambda: begin(taken, seed=1)):
        with pytest.raises(UserError, match="must not hold another run"):
            choose_workdir(config(taken, seed=3))
        results = taken / "results.json"
        if results.exists() and results.read_text() == "new":
            assert json.loads((taken / "config.json").read_text())["seed"] == 1
            assert not (taken / ".replaced").exists()
        else:
            assert not alive
        begin(taken, seed=4)
        assert json.loads((taken / "config.json").read_text())["seed"] == 4
        assert not [name for name in names(taken) if name.startswith(".")]


def test_run_that_fails_when_all_is_written_is_whole_or_undone(quick, taken, tmp_path):
    old = contents(taken)

    def fails():
        chosen = config(taken, overwrite=True, seed=1)
        with pytest.raises(UserError), run_in(choose_workdir(chosen), chosen):
            (taken / "saved_model").mkdir()
            (taken / "results.json").write_text("new")
            raise mistake()

    for _ in kills(taken, tmp_path, fails):
        with pytest.raises(UserError, match="must not hold another run"):
            choose_workdir(config(taken))
        if (taken / "results.json").exists() and (taken / "results.json").read_text() == "new":
            assert (taken / "saved_model").exists()
        else:
            with pytest.raises(UserError, match="wrong"):
                begin(taken, trains=False, error=mistake())
            assert contents(taken) == old


def test_what_a_killed_undo_left_is_of_a_run(quick, tmp_path):
    path = tmp_path / "run"
    path.mkdir()
    (path / "notes.txt").write_text("mine")

    def fails():
        with pytest.raises(UserError, match="wrong"):
            begin(path, trains=False, error=mistake())

    for _ in kills(path, tmp_path, fails):
        fails()
        assert names(path) == ["notes.txt"]


def test_an_unfinished_run_is_overwritten_as_often_as_one_likes(tmp_path):
    path = tmp_path / "run"
    for seed in range(3):
        with killed_after(10**6):
            begin(path, error=Killed(), seed=seed)
        assert json.loads((path / "config.json").read_text())["seed"] == seed
    begin(path, seed=3)
    assert names(path) == [
        "config.json",
        "metrics.jsonl",
        "plan.json",
        "results.json",
        "saved_model",
    ]


def test_run_that_fails_leaves_nothing(tmp_path):
    chosen = config(tmp_path / "a" / "b")
    with pytest.raises(RuntimeError), run_in(choose_workdir(chosen), chosen):
        (tmp_path / "a" / "b" / "metrics.jsonl").touch()
        raise RuntimeError
    assert names(tmp_path) == []


def test_a_training_that_would_fail_again_leaves_nothing_to_go_on_from(tmp_path):
    with pytest.raises(UserError, match="goes on where it was"):
        begin(tmp_path / "mistake", error=mistake())
    assert (tmp_path / "mistake").is_dir()
    with pytest.raises(TrainingError, match=r"^diverged. mend it$"):
        begin(tmp_path / "run", error=TrainingError("diverged", "mend it"))
    assert not (tmp_path / "run").exists()
    taught = config(tmp_path / "taught")
    teacher = tmp_path / "taught" / "teacher"
    with (
        pytest.raises(TrainingError, match=r"^diverged. mend it Runs within .* are kept"),
        run_in(choose_workdir(taught), taught),
    ):
        teacher.mkdir()
        (teacher / "results.json").write_text("{}")
        raise TrainingError("diverged", "mend it")
    assert (teacher / "results.json").is_file(), "an hour's work"


def test_two_runs_at_once_do_not_share_a_folder(tmp_path):
    chosen = config(tmp_path / "run")
    first, second = choose_workdir(chosen), choose_workdir(chosen)
    with run_in(first, chosen):
        (tmp_path / "run" / "metrics.jsonl").write_text("first")
        with pytest.raises(UserError, match="another run"), run_in(second, chosen):
            raise AssertionError
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == "first"


def test_a_run_that_is_going_on_is_told_before_data_is_opened(tmp_path):
    chosen = config(tmp_path / "run")
    with run_in(choose_workdir(chosen), chosen):
        for again in (chosen, chosen.replace(seed=1, overwrite=True)):
            with pytest.raises(UserError, match="is going on in"):
                choose_workdir(again)
        assert choose_workdir(chosen.replace(dry_run=True)) == tmp_path / "run"


def test_how_often_checkpoints_are_written_makes_no_other_run(tmp_path):
    begun = config(tmp_path / "run")
    with killed_after(10**6):
        begin(tmp_path / "run", error=Killed())
    assert goes_on(tmp_path / "run", begun.replace(checkpoint_seconds=5))
    assert not goes_on(tmp_path / "run", begun.replace(seed=1))


def test_what_cannot_be_read_is_left_and_told(tmp_path):
    chosen = config(tmp_path / "run")
    damage = CheckpointError(tmp_path, ValueError("half"))
    with pytest.raises(CheckpointError) as told, run_in(choose_workdir(chosen), chosen):
        (tmp_path / "run" / "checkpoints").mkdir()
        (tmp_path / "run" / "checkpoints" / "places.json").write_text("{")
        raise damage
    assert "goes on where it was" not in str(told.value)
    with pytest.raises(CheckpointError, match="cannot be read: JSONDecodeError"):
        places_before(tmp_path / "run", chosen)
    assert names(tmp_path / "run") == ["checkpoints", "config.json"]


def test_overwrite_spares_what_is_of_no_run(tmp_path):
    (tmp_path / "config.json").write_text('{"name": "a web site"}')
    with pytest.raises(UserError, match="something else"):
        choose_workdir(config(tmp_path, overwrite=True))
    assert (tmp_path / "config.json").read_text() == '{"name": "a web site"}'


def test_folders_of_somebody_are_no_place_for_a_run(tmp_path):
    (tmp_path / "cat").mkdir()
    (tmp_path / "log.txt").touch()
    with pytest.raises(UserError, match="holds other folders: cat"):
        choose_workdir(config(tmp_path))
    choose_workdir(config(tmp_path / "run"))
    (tmp_path / "cat").rmdir()
    choose_workdir(config(tmp_path))


@pytest.mark.parametrize("flag", ["dataset", "unlabeled"])
@pytest.mark.parametrize("inside", ["", "runs/1"])
def test_what_a_run_writes_is_no_class_of_the_dataset(tmp_path, flag, inside):
    mode = "distill" if flag == "unlabeled" else "finetune"
    chosen = config(tmp_path / "images" / inside, mode=mode, **{flag: f"folder:{tmp_path}/images"})
    with pytest.raises(UserError, match=f"not be in the folder of --{flag}"):
        choose_workdir(chosen)


def test_config_holds_every_setting_and_the_versions(tmp_path):
    chosen = config(tmp_path / "run", seed=5)
    with run_in(choose_workdir(chosen), chosen):
        written = json.loads((tmp_path / "run" / "config.json").read_text())
    versions = written.pop("versions")
    assert written == chosen.to_dict()
    assert {"python", "tensorflow", "keras", "tensorflow-datasets"} <= set(versions)


def test_name_that_is_too_long_is_refused(tmp_path):
    with pytest.raises(UserError, match="too long"):
        choose_workdir(config(tmp_path / "a" / ("b" * 300)))
    assert names(tmp_path) == []


def test_long_backbone_names_make_short_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    choose_workdir(RunConfig(backbone="https://a.b/x.tar.gz?sig=" + "f" * 500))


def test_json_appears_whole_or_not_at_all(tmp_path):
    write_json(tmp_path / "results.json", {"loss": 1.0})
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "results.json", {"loss": float("nan")})
    assert json.loads((tmp_path / "results.json").read_text()) == {"loss": 1.0}
    assert names(tmp_path) == ["results.json"]


def test_file_in_the_way_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(UserError, match="must be a folder"):
            choose_workdir(config(path))


def test_a_lock_that_was_removed_is_no_lock(tmp_path, monkeypatch):
    """One process opens the file, and another one that had it removes it before it is locked."""
    flock, calls = fcntl.flock, []

    def late(file, how):
        if not calls:
            (tmp_path / "lock").unlink()
        calls.append(how)
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with pytest.raises(FileNotFoundError):
        lock(tmp_path / "lock", "w")
    with lock(tmp_path / "lock", "w"), pytest.raises(BlockingIOError):
        lock(tmp_path / "lock", "w")
    calls.clear()
    chosen = config(tmp_path / "run")
    with (
        run_in(choose_workdir(chosen), chosen),
        pytest.raises(UserError, match="is going on"),
        run_in(tmp_path / "run", chosen),
    ):
        raise AssertionError


def test_lock_made_anew_in_between_is_of_somebody_else(tmp_path, monkeypatch):
    flock = fcntl.flock

    def late(file, how):
        (tmp_path / "lock").unlink()
        (tmp_path / "lock").touch()
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with pytest.raises(FileNotFoundError):
        lock(tmp_path / "lock", "w")


def test_full_disk_is_told_in_a_line(tmp_path):
    path = tmp_path / "run"
    full = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(UserError, match=r"must have room, and is full. Make some\.$"):
        begin(path, trains=False, error=full)
    assert not path.exists()
    with pytest.raises(UserError, match=rf"is full. Make some; .*--workdir={path} goes on"):
        begin(path, error=full)
    assert (path / "checkpoints").exists()
    with pytest.raises(OSError, match="broken"):
        begin(path, error=OSError(errno.EIO, "broken"), seed=1)


def test_full_disk_as_the_folder_is_claimed(taken, monkeypatch):
    before = contents(taken)

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tfxfer.report.workdir.write_json", full)
    with pytest.raises(UserError, match="must have room"):
        begin(taken)
    assert contents(taken) == before


def test_what_killed_processes_were_writing_is_removed(taken):
    def litter():
        (taken / ".unfinished-77-model.keras").touch()
        (taken / ".unfinished-embeddings-x").mkdir()
        (taken / "mine").mkdir(exist_ok=True)
        (taken / "mine" / ".unfinished-1-x").touch()

    litter()
    weights = taken / "checkpoints" / "model" / "weights"
    with pytest.raises(KeyboardInterrupt):
        begin(taken, error=KeyboardInterrupt())
    assert not list(taken.glob(".unfinished-*"))
    litter()
    weights.mkdir()
    (weights / ".unfinished-77-phase-1.npz").touch()
    chosen = config(taken)
    with run_in(choose_workdir(chosen), chosen):
        assert not list(taken.glob(".unfinished-*"))
        assert list(weights.iterdir()) == []
    assert (taken / "mine" / ".unfinished-1-x").exists(), "of no run"
