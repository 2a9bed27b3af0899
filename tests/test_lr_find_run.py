"""`--mode=lr_find` from the command line and from Python."""

import json
from typing import Any

import pytest
from PIL import Image

from tests.backbone_sources import signature
from tests.memory import Memory
from tests.test_cli import tfxfer as run
from tfxfer.errors import UserError
from tfxfer.methods.lr_find import lr_find
from tfxfer.plan import Plan, full, write_plan


def test_it_finds_a_sensible_rate_and_says_how_to_use_it(tmp_path, data_dir):
    done = run("--mode=lr_find", "--workdir=run", cwd=tmp_path, data_dir=data_dir)
    assert done.returncode == 0, done.stderr
    files = sorted(path.name for path in (tmp_path / "run").iterdir())
    assert files == ["config.json", "lr_find.png", "results.json"]
    found = json.loads((tmp_path / "run" / "results.json").read_text())
    rate, curve = found["recommended"], found["curve"]
    # The digits learn well at any of these.
    assert 1e-3 < rate < 5e-2
    assert rate == curve["suggestions"]["valley"]
    assert f"use --learning_rate={rate:.1e}" in done.stdout
    for name in ("valley", "slide", "steepest", "minimum / 10"):
        assert f"│ {name} " in done.stdout
    assert min(curve["smoothed"]) < 0.8 * curve["smoothed"][0]
    assert len(curve["losses"]) == len(curve["rates"]) <= 100
    # The last phase of gradual unfreezing trains all at a tenth.
    assert set(found["scales"].values()) == {0.1}
    assert list(found["scales"])[-1] == "head"
    with Image.open(tmp_path / "run" / "lr_find.png") as image:
        assert image.size == (1350, 720)


def small(**settings) -> Any:
    return lr_find(Memory(train=60, test=6), self_check=False, scan=False, **settings)


def test_the_plan_says_what_trains_and_how_fast(tmp_path, hub_folder, capsys):
    workdir = str(tmp_path / "run")
    settings = {"backbone": str(hub_folder), "workdir": workdir, "overwrite": True}
    alone = small(plan="head", **settings)
    assert alone.scales == {"head": 1}
    assert "--learning_rate (head at 1 times that)" in capsys.readouterr().out
    decayed = small(plan="full", layer_decay=0.5, **settings)
    assert decayed.scales == pytest.approx({"block1": 0.025, "block2": 0.05, "head": 0.1})
    assert "3 stages from block1 at 0.025 to head at 0.1 times" in capsys.readouterr().out
    some = small(plan="last_k(k=1)", **settings)
    assert some.scales == pytest.approx({"block2": 0.1, "head": 0.1})
    assert "2 stages from block2 to head at 0.1 times" in capsys.readouterr().out


def test_a_loss_that_does_not_fall_is_told(tmp_path, hub_folder, capsys):
    still = {"plan": "head", "optimizer": "sgd", "clip_norm": 1e-6}
    small(backbone=str(hub_folder), workdir=str(tmp_path / "run"), **still)
    said = capsys.readouterr().out
    assert "none of these can be relied on" in said
    assert "use --learning_rate" not in said


def test_dry_run_writes_nothing(tmp_path, hub_folder):
    assert small(backbone=str(hub_folder), workdir=str(tmp_path / "run"), dry_run=True) is None
    assert list(tmp_path.iterdir()) == []


def test_a_failure_leaves_the_workdir_as_it_was(tmp_path, hub_folder, monkeypatch):
    def fails(*args):
        raise OSError("no space left")

    monkeypatch.setattr("tfxfer.methods.lr_find.lr_curve", fails)
    with pytest.raises(OSError, match="no space"):
        small(backbone=str(hub_folder), workdir=str(tmp_path / "run"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rate": 0.1}, "--learning_rate is of a whole training"),
        ({"epochs": 2}, "--epochs"),
        ({"folds": 5}, "--folds"),
        ({"protocol": "vtab1k"}, "--protocol"),
        ({"average": "soup"}, "--average"),
        ({"schedule": "cosine"}, "--schedule"),
        ({"plan": "surgical"}, "chooses stages as it trains"),
    ],
)
def test_what_it_would_not_heed_is_refused(tmp_path, settings, message):
    with pytest.raises(UserError, match=message):
        small(workdir=str(tmp_path / "run"), **settings)
    assert list(tmp_path.iterdir()) == []


def test_plans_without_a_rate_to_find(tmp_path, hub_folder):
    settings = {"workdir": str(tmp_path / "run"), "backbone": str(hub_folder)}
    write_plan(Plan(full(["block1", "block2", "head"], 1, 1.0)), tmp_path / "plan.json")
    with pytest.raises(UserError, match="says its rates itself"):
        small(plan=str(tmp_path / "plan.json"), **settings)
    with pytest.raises(UserError, match="Did you mean gradual"):
        small(plan="gradul", **settings)
    settings["backbone"] = signature(tmp_path)  # It cannot be unfrozen: there is only a head.
    with pytest.raises(UserError, match="solves the head"):
        small(plan="lp_ft", **settings)
    assert not (tmp_path / "run").exists()
