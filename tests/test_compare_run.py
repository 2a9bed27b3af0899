"""`--mode=compare`: every way to use a backbone, and which one suffices."""

import json
from types import SimpleNamespace
from typing import Any

import pytest

import tfxfer
from tests.backbone_sources import uint8_signature
from tests.test_cli import tfxfer as run
from tests.test_extract_run import gratings
from tfxfer.config import RunConfig
from tfxfer.errors import CheckpointError
from tfxfer.methods import compare as compare_method
from tfxfer.methods import extract as extract_method
from tfxfer.methods import finetune as finetune_method
from tfxfer.report.console import Console

RUNGS = ["knn", "probe", "lp_ft", "gradual", "scratch", "distilled"]


def compare(source, tmp_path, **settings) -> Any:
    usual = {"workdir": str(tmp_path / "run"), "cache_dir": str(tmp_path / "cache")}
    return tfxfer.compare(source, **{**usual, **settings})


@pytest.fixture(scope="module")
def frozen(tmp_path_factory) -> str:
    """A backbone that cannot be trained, which has two rungs."""
    return uint8_signature(tmp_path_factory.mktemp("frozen"))


def test_a_backbone_that_stays_frozen_has_two_rungs(frozen, tmp_path, capsys):
    result = compare(gratings(), tmp_path, backbone=frozen)
    ladder = result.ladder
    assert [each.name for each in ladder.rungs] == ["knn", "probe"]
    assert ladder.pretraining is None
    assert ladder.recommended in ("knn", "probe")
    assert result.passed
    assert json.loads((tmp_path / "run" / "results.json").read_text())["ladder"]["recommended"]
    assert (tmp_path / "run" / "pareto.png").read_bytes()[:4] == b"\x89PNG"
    said = capsys.readouterr().out
    assert f"recommended: {ladder.recommended}" in said
    assert f"rungs/{ladder.recommended}/saved_model/1" in said


def test_what_was_killed_or_is_of_other_data_is_run_anew(frozen, tmp_path, monkeypatch):
    fit, calls = extract_method.run, []

    def counted(config, *rest):
        calls.append(config.head)
        return fit(config, *rest)

    monkeypatch.setattr(extract_method, "run", counted)
    compare(gratings(), tmp_path, backbone=frozen)
    # As a process leaves it that is killed in the second rung.
    (tmp_path / "run" / "results.json").unlink()
    (tmp_path / "run" / "rungs" / "probe" / "results.json").unlink()
    assert compare(gratings(), tmp_path, backbone=frozen).passed
    assert calls == ["knn", "auto", "auto"]
    (tmp_path / "run" / "results.json").unlink()
    other = gratings()
    other.fingerprint = "another"
    assert compare(other, tmp_path, backbone=frozen).passed
    assert calls[3:] == ["knn", "auto"]


def test_a_run_that_was_interrupted_goes_on(frozen, tmp_path, monkeypatch):
    fit, calls = extract_method.run, []

    def interrupted(config, *rest):
        calls.append(config.head)
        if config.head == "auto" and calls.count("auto") == 1:
            raise KeyboardInterrupt
        return fit(config, *rest)

    monkeypatch.setattr(extract_method, "run", interrupted)
    with pytest.raises(KeyboardInterrupt, match="goes on where it was"):
        compare(gratings(), tmp_path, backbone=frozen)
    assert compare(gratings(), tmp_path, backbone=frozen).passed
    assert calls == ["knn", "auto", "auto"]


def test_what_cannot_be_read_of_a_rung_is_no_reason_to_leave_it_out(tmp_path, monkeypatch):
    def damaged(*_):
        raise CheckpointError(tmp_path / "scratch", ValueError("half"))

    monkeypatch.setattr(finetune_method, "run", damaged)
    monkeypatch.setattr(compare_method, "_settings", lambda *_: RunConfig())
    (tmp_path / "scratch").mkdir()
    shared: Any = SimpleNamespace(data=SimpleNamespace(source=None))
    running = compare_method._Running(shared, tmp_path, Console(quiet=True))
    with pytest.raises(CheckpointError):
        running._run_one("scratch", tmp_path / "scratch", "")
    assert (tmp_path / "scratch").is_dir()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--loss=kdd",), "kd"),
        (("--student=tinny",), "tiny"),
        (("--backbone=tiny",), "has none"),
        (("--plan=full",), "each way to use the backbone has its own"),
        (("--head=knn",), "--head=knn is for --mode=extract"),
        (("--folds=5",), "--folds is not for --mode=compare"),
        (("--teacher=runs/1",), "--teacher is not for --mode=compare"),
    ],
)
def test_mistakes_are_told_in_one_line(flags, message, data_dir, tmp_path):
    done = run("--mode=compare", *flags, "--noscan", cwd=tmp_path, data_dir=data_dir)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_digits_have_a_ladder(digits, tmp_path, capsys):
    result = compare(digits, tmp_path, max_examples=400, epochs=3)
    ladder = result.ladder
    assert [each.name for each in ladder.rungs] == RUNGS
    assert result.passed
    by_name = {each.name: each for each in ladder.rungs}
    assert all(by_name[name].test.accuracy > 0.95 for name in RUNGS[:4])
    assert by_name["knn"].seconds < by_name["lp_ft"].seconds < by_name["distilled"].seconds
    assert by_name["distilled"].cost.parameters < 0.1 * by_name["gradual"].cost.parameters
    assert not by_name[ladder.recommended].beaten_by
    assert ladder.pretraining is not None
    for name in RUNGS:
        assert (tmp_path / "run" / "rungs" / name / "saved_model" / "1").is_dir()
    assert "recommended: " in capsys.readouterr().out
