"""The folder of a run."""

import json

import pytest

from tfxfer.config import RunConfig
from tfxfer.errors import UserError
from tfxfer.report.workdir import choose_workdir, start_run


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


@pytest.mark.parametrize("name", ["config.json", "results.json", "saved_model", "model.keras"])
def test_another_run_is_refused_and_left_alone(tmp_path, name):
    (tmp_path / name).write_text("precious")
    with pytest.raises(UserError, match=f"{name}.*--overwrite"):
        choose_workdir(config(tmp_path))
    assert (tmp_path / name).read_text() == "precious"


def test_overwrite_replaces_the_run_and_nothing_else(tmp_path):
    (tmp_path / "saved_model" / "1").mkdir(parents=True)
    (tmp_path / "results.json").write_text("old")
    (tmp_path / "notes.txt").write_text("mine")
    chosen = config(tmp_path, overwrite=True)
    path = choose_workdir(chosen)
    assert (tmp_path / "results.json").exists(), "kept until the new run starts"
    start_run(path, chosen)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "notes.txt"]


def test_config_holds_every_setting_and_the_versions(tmp_path):
    chosen = config(tmp_path / "run", seed=5)
    start_run(choose_workdir(chosen), chosen)
    written = json.loads((tmp_path / "run" / "config.json").read_text())
    versions = written.pop("versions")
    assert written == chosen.to_dict()
    assert {"python", "tensorflow", "keras", "tensorflow-datasets"} <= set(versions)


def test_file_in_the_way_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(UserError, match="must be a folder"):
            choose_workdir(config(path))
