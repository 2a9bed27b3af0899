"""The folder of a run."""

import json

import pytest

from tfxfer.config import RunConfig
from tfxfer.errors import UserError
from tfxfer.report.workdir import choose_workdir, run_in, write_json


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


def test_run_that_fails_leaves_nothing(tmp_path):
    chosen = config(tmp_path / "a" / "b")
    with pytest.raises(RuntimeError), run_in(choose_workdir(chosen), chosen):
        (tmp_path / "a" / "b" / "metrics.jsonl").touch()
        raise RuntimeError
    assert names(tmp_path) == []


def test_two_runs_at_once_do_not_share_a_folder(tmp_path):
    chosen = config(tmp_path / "run")
    first, second = choose_workdir(chosen), choose_workdir(chosen)
    with run_in(first, chosen):
        (tmp_path / "run" / "metrics.jsonl").write_text("first")
        with pytest.raises(UserError, match="another run"), run_in(second, chosen):
            raise AssertionError
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == "first"


def test_overwrite_spares_what_is_of_no_run(tmp_path):
    (tmp_path / "config.json").write_text('{"name": "a web site"}')
    with pytest.raises(UserError, match="something else"):
        choose_workdir(config(tmp_path, overwrite=True))
    assert (tmp_path / "config.json").read_text() == '{"name": "a web site"}'


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
