"""The command line as a user meets it: real processes."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tfxfer.config import RunConfig
from tfxfer.errors import UserError
from tfxfer.run import define_flags, parse


def tfxfer(*flags: str, cwd: Path, data_dir: str, timeout: float = 300, **environment: str):
    return subprocess.run(
        [sys.executable, "-m", "tfxfer.run", *flags],
        cwd=cwd,
        env={**os.environ, "TFDS_DATA_DIR": data_dir, **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
    )


@pytest.mark.parametrize("flag", ["--help", "--helpshort", "--help=true"])
def test_help_is_quick(flag, tmp_path, data_dir):
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        done = tfxfer(flag, cwd=tmp_path, data_dir=data_dir)
        seconds.append(time.perf_counter() - start)
        assert done.returncode == 0
        assert "--backbone" in done.stdout
    assert min(seconds) < 0.5


def test_help_imports_neither_tensorflow_nor_keras():
    code = (
        "import sys, tfxfer.run; tfxfer.run.main(['tfxfer', '--help']);"
        "sys.exit(bool({'tensorflow', 'keras', 'numpy', 'sklearn'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with things in it that a run must refuse."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "file").write_text("text")
    (folder / "empty").mkdir()
    (folder / "corrupt").mkdir()
    (folder / "corrupt" / "saved_model.pb").write_bytes(b"not a protocol buffer")
    (folder / "taken").mkdir()
    (folder / "taken" / "results.json").write_text("{}")
    (folder / "foreign").mkdir()
    (folder / "foreign" / "config.json").write_text("{}")
    (folder / "broken.json").write_text("{")
    (folder / "unknown.json").write_text('{"epoch": 3}')
    return folder


BAD = {
    "unknown flag": (["--epoch=3"], "epochs"),
    "unknown mode": (["--mode=fly"], "finetune"),
    "not a number": (["--epochs=many"], "many"),
    "out of range": (["--batch_size=0"], "at least 1"),
    "not a flag": (["digits"], "digits"),
    "unknown dataset": (["--dataset=no_such_data"], "no_such_data"),
    "missing backbone": (["--backbone=nowhere"], "nowhere"),
    "backbone without a SavedModel": (["--backbone=empty"], "saved_model.pb"),
    "unreadable backbone": (["--backbone=corrupt"], "readable"),
    "unreachable backbone": (["--backbone=http://127.0.0.1:9/a.tar.gz"], "downloaded"),
    "unwritable workdir": (["--workdir=file/run"], "written"),
    "workdir of another run": (["--workdir=taken"], "--overwrite"),
    "workdir with files of no run": (["--workdir=foreign", "--overwrite"], "something else"),
    "broken config": (["--config=broken.json"], "JSON"),
    "unknown setting": (["--config=unknown.json"], "epoch"),
}


@pytest.mark.parametrize("case", BAD)
def test_mistake_is_one_line_and_code_2(case, place, data_dir):
    flags, names = BAD[case]
    before = sorted(place.rglob("*"))
    done = tfxfer(*flags, cwd=place, data_dir=data_dir)
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith("tfxfer: error: ")
    assert names in done.stderr
    assert done.stdout == ""
    assert sorted(place.rglob("*")) == before


def test_debug_shows_the_traceback(place, data_dir):
    done = tfxfer("--config=broken.json", "--debug", cwd=place, data_dir=data_dir)
    assert done.returncode == 2
    assert "Traceback" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("tfxfer: error: ")


def test_flags_go_before_the_config_file_and_that_before_defaults(tmp_path):
    file = tmp_path / "settings.json"
    file.write_text('{"epochs": 3, "seed": 4, "learning_rate": 1, "versions": {}, "workdir": "x"}')
    config = parse(["tfxfer", f"--config={file}", "--seed=5"], define_flags())
    assert config == RunConfig(epochs=3, seed=5, learning_rate=1.0)


def test_config_file_with_a_wrong_type_is_refused(tmp_path):
    file = tmp_path / "settings.json"
    file.write_text('{"epochs": "3"}')
    with pytest.raises(UserError, match="epochs as int"):
        parse(["tfxfer", f"--config={file}"], define_flags())


def test_config_of_a_run_gives_the_same_run(tmp_path):
    import json

    config = RunConfig(epochs=2, batch_size=8, seed=3)
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**config.to_dict(), "versions": {"keras": "3"}}))
    assert parse(["tfxfer", f"--config={file}"], define_flags()) == config
