"""`--mode=finetune` with every plan, rule, adapter and average, on a small Keras network."""

import json
from dataclasses import replace
from itertools import product
from types import SimpleNamespace

import keras
import numpy as np
import pytest

import tfxfer
from tests.memory import Memory
from tfxfer import heads
from tfxfer.config import RunConfig
from tfxfer.data.pipeline import train_batches
from tfxfer.errors import UserError
from tfxfer.methods.tuner import training_settings
from tfxfer.plan import Plan, read_plan, write_plan
from tfxfer.rules import BitRule
from tfxfer.task import REGRESSION, Task
from tfxfer.training.gradient_norms import relative_gradient_norms
from tfxfer.training.settings import Settings


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TFXFER_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def network(tmp_path_factory) -> str:
    """Three blocks, one with batch normalization, that know nothing yet."""
    keras.utils.set_random_seed(1)
    network = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            keras.layers.Rescaling(1 / 127.5, -1),
            keras.layers.Conv2D(8, 3, padding="same", activation="relu", name="block1_conv"),
            keras.layers.Conv2D(12, 3, strides=2, activation="relu", name="block2_conv"),
            keras.layers.BatchNormalization(momentum=0.8, name="block2_bn"),
            keras.layers.Conv2D(16, 2, activation="relu", name="block3_conv"),
            keras.layers.GlobalAveragePooling2D(),
        ]
    )
    path = tmp_path_factory.mktemp("network") / "small.keras"
    network.save(path)
    return str(path)


class Bright(Memory):
    """Dark images and bright ones, in noise."""

    def image(self, row):
        rng = np.random.default_rng(row)
        label = np.ravel(self._labels["train"][row % len(self._labels["train"])])[0]
        image = 60 + 120 * label + rng.normal(0, 15, (8, 8))
        return np.clip(image, 0, 255).astype(np.uint8)[..., None]


@pytest.fixture
def source() -> Bright:
    return Bright(side=8, train=60, test=20)


@pytest.fixture
def finetune(source, network, tmp_path):
    def run(source=source, **settings):
        settings = {"backbone": network, "epochs": 2, "batch_size": 16, **settings}
        workdir = str(tmp_path / "run")
        result = tfxfer.finetune(source, workdir=workdir, overwrite=True, **settings)
        assert result is not None
        assert result.passed
        return result

    return run


@pytest.mark.parametrize(
    ("plan", "phases"),
    [
        ("gradual", ["head", "+block3", "+block2", "+block1"]),
        ("lp_ft", ["head", "all"]),
        ("full", ["all"]),
        ("head", ["head"]),
        ("last_k(k=2)", ["head", "+block2"]),
        ("surgical(stages=block1|block3)", ["head", "+block1+block3"]),
        ("fastai", ["head", "all"]),
    ],
)
def test_every_plan_runs_and_is_written(finetune, tmp_path, plan, phases):
    result = finetune(plan=plan)
    assert [phase.name for phase in result.phases] == phases
    written = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert [phase["name"] for phase in written["phases"]] == phases
    again = finetune(plan=str(tmp_path / "run" / "plan.json"), epochs=0)
    assert again.metrics == result.metrics, "what was written is what was done"


def test_the_head_of_lp_ft_is_that_of_extraction(source, network, finetune, tmp_path):
    solved, _ = finetune(plan="lp_ft").phases
    extracted = tfxfer.extract(source, backbone=network, workdir=str(tmp_path / "extract"))
    assert extracted is not None
    assert solved.val_loss == pytest.approx(extracted.metrics["validation"].loss, rel=1e-3)
    assert (solved.epochs, solved.best_epoch) == (0, 0)
    assert 0 < solved.loss < 0.7


def test_the_head_of_a_regression_is_solved_too(finetune):
    y = np.linspace(0, 1, 60, dtype=np.float32)[:, None]
    source = Bright(Task(REGRESSION, ("level",)), side=8, train=y, test=y[::3])
    solved, _ = finetune(source, plan="lp_ft").phases
    assert solved.val_metric < 0.1


def test_surgical_chooses_a_stage_by_examples_of_all_classes(finetune, monkeypatch):
    measured = []

    def norms(model, batches, loss):
        measured.extend(y for _, y in batches.as_numpy_iterator())
        measured.append(relative_gradient_norms(model, batches, loss))
        return measured[-1]

    monkeypatch.setattr("tfxfer.methods.tuner.relative_gradient_norms", norms)
    source = Bright(side=8, train=np.repeat([0, 1], 100), test=20)  # As folders are read.
    _, other = finetune(source, plan="surgical", batch_size=8).phases
    *labels, found = measured
    assert [len(y) for y in labels] == [8] * 8
    assert sum(0 < y.sum() < 8 for y in labels) > 6, "batches of both"
    del found["head"]
    assert other.name == f"+{max(found, key=found.get)}"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"plan": "surgical", "adapt": "lora"}, "low-rank additions have none"),
        ({"plan": "surgical", "folds": 2}, "tested on too"),
        ({"plan": "head", "adapt": "bitfit"}, "--plan=head freezes it"),
        ({"plan": "fastai", "patience": 5}, "has its own patience"),
    ],
)
def test_what_would_be_of_no_use_is_refused(finetune, settings, message):
    with pytest.raises(UserError, match=message):
        finetune(**settings)


def test_a_rule_leaves_alone_what_a_plan_says_itself(finetune):
    assert [phase.name for phase in finetune(plan="fastai", rule="bert").phases] == ["head", "all"]


def test_a_soup_of_epochs_that_were_undone_is_none(finetune, capsys):
    result = finetune(plan="lp_ft", average="soup", learning_rate=1e30)
    assert [phase.kept for phase in result.phases] == [True, False]
    assert result.averages == ()
    assert result.metrics["validation"].loss == pytest.approx(result.phases[0].val_loss, rel=1e-4)
    assert "no epochs are as good as the trained weights" in capsys.readouterr().out


def test_a_refit_takes_the_strength_that_validation_chose(source, network, tmp_path, monkeypatch):
    fits = []

    def fit_head(name, task, train, validation, strength=None):
        head = heads.fit_head(name, task, train, validation, strength=strength)
        fits.append((len(train[1]), len(validation[1]), strength, head.strength))
        return head

    monkeypatch.setattr(
        "tfxfer.methods.tuner.heads", SimpleNamespace(**{**vars(heads), "fit_head": fit_head})
    )
    tfxfer.finetune(
        Bright(side=8, train=1100, test=20),
        backbone=network,
        protocol="vtab1k",
        plan="lp_ft",
        epochs=1,
        scan=False,
        workdir=str(tmp_path / "run"),
    )
    first, again, refit = fits
    assert again == first == (800, 200, None, first[-1])
    assert refit == (1000, 200, first[-1], first[-1])


def test_every_fold_says_train_against_validation(finetune, capsys):
    finetune(folds=2, plan="lp_ft", scan=False)
    assert capsys.readouterr().out.count("train against validation, ") == 2


def test_the_rule_of_bit_sets_everything(finetune, tmp_path, monkeypatch):
    monkeypatch.setattr("tfxfer.rules._SMALL", 10)  # So that mixup is on; 500 steps would be long.
    whole = BitRule.plan

    def short(rule: BitRule, stages) -> Plan:
        (phase,) = whole(rule, stages).phases
        return Plan((replace(phase, steps=4),))

    monkeypatch.setattr(BitRule, "plan", short)
    seen = {}

    def settings_of(config):
        seen.update(config.to_dict())
        return training_settings(config)

    monkeypatch.setattr("tfxfer.methods.finetune.training_settings", settings_of)
    drawn = {}

    def batches(*args, **options):
        drawn.update(options)
        return train_batches(*args, **options)

    monkeypatch.setattr("tfxfer.methods.tuner.train_batches", batches)
    (phase,) = finetune(rule="bit", epochs=0, batch_size=32, accumulate=40).phases
    expected = {"optimizer": "sgd", "mix": "mixup", "augment": "light", "batch_size": 60}
    assert {name: seen[name] for name in expected} == expected
    assert phase.epochs == 4, "exactly 4 steps of one batch"
    assert (drawn["margin"], drawn["alpha"]) == (1.25, 0.1), "160 to 128, Beta(0.1, 0.1)"
    written = json.loads((tmp_path / "run" / "config.json").read_text())
    assert written["optimizer"] == "adam", "what was asked for"


def test_the_rule_suffers_no_other(finetune):
    with pytest.raises(UserError, match="sets plan itself"):
        finetune(rule="bit", plan="full", epochs=0, batch_size=32)


@pytest.mark.parametrize(
    "settings",
    [
        {"adapt": "lora", "lora_rank": 2},
        {"adapt": "bitfit"},
        {"average": "wise_ft"},
        {"average": "soup"},
        {"average": "soup", "adapt": "lora"},
        {"average": "wise_ft", "adapt": "lora"},
        {"ema": 0.9, "clip_norm": 1.0, "accumulate": 2},
        {"l2_sp": 0.01, "weight_decay": 0.01, "layer_decay": 0.5},
        {"label_smoothing": 0.1, "dropout": 0.2, "schedule": "cosine", "warmup": 0.1},
        {"schedule": "step", "optimizer": "sgd", "learning_rate": 0.1},
        {"schedule": "one_cycle", "boundary_cache": "on"},
        {"precision": "mixed_bfloat16"},
        {"precision": "mixed_float16", "clip_norm": 1.0},
        {"mix": "mixup", "augment": "light"},
        {"augment": "light", "views": 2, "boundary_cache": "on"},
        {"jit": True, "plan": "full", "schedule": "cosine"},
        {"folds": 2, "adapt": "lora", "average": "none"},
        {"folds": 2, "average": "soup", "plan": "last_k(k=1)"},
    ],
    ids=lambda settings: " ".join(f"{k}={v}" for k, v in settings.items()),
)
def test_every_way_to_take_steps_runs(finetune, settings, tmp_path):
    result = finetune(
        **{"plan": "last_k(k=2)", **settings}
    )  # The fewest phases that train all kinds.
    assert all(phase.epochs for phase in result.phases)
    assert len(result.averages) == (settings.get("average", "none") != "none") * max(
        1, settings.get("folds", 0)
    )
    assert (tmp_path / "run" / "curves.png").stat().st_size > 1000


def test_every_setting_reaches_the_steps():
    """Each has a value of its own here, so that none can stand in for another."""
    config = RunConfig(
        optimizer="sgd",
        weight_decay=0.1,
        l2_sp=0.2,
        ema=0.3,
        clip_norm=0.4,
        accumulate=5,
        precision="mixed_float16",
        jit=True,
        average="soup",
    )
    assert training_settings(config) == Settings(
        optimizer="sgd",
        weight_decay=0.1,
        l2_sp=0.2,
        ema=0.3,
        clip_norm=0.4,
        accumulate=5,
        loss_scaling=True,
        jit=True,
        keep_epochs=5,
    )
    assert training_settings(RunConfig()) == Settings()


def test_every_setting_reaches_the_plan(finetune, tmp_path):
    finetune(
        plan="last_k(k=2)",
        layer_decay=0.5,
        schedule="cosine",
        warmup=0.1,
        patience=7,
        learning_rate=1e-2,
    )
    head, other = read_plan(tmp_path / "run" / "plan.json").phases
    assert head.rates == (1e-2,)
    assert other.rates == pytest.approx((2.5e-4, 5e-4, 1e-3))
    assert {(p.schedule, p.warmup, p.patience) for p in (head, other)} == {("cosine", 0.1, 7)}


def test_a_plan_from_a_file_says_everything_itself(finetune, tmp_path):
    finetune(plan="head")
    for setting in ({"learning_rate": 0.1}, {"epochs": 3}, {"layer_decay": 0.5}):
        with pytest.raises(UserError, match="itself"):
            finetune(plan=str(tmp_path / "run" / "plan.json"), **{"epochs": 0, **setting})


def test_a_head_that_is_solved_may_be_all(finetune, tmp_path):
    finetune(plan="lp_ft")
    plan = read_plan(tmp_path / "run" / "plan.json")
    alone = Plan(plan.phases[:1], ("block1", "block2", "block3"))
    write_plan(alone, tmp_path / "alone.json")
    (phase,) = finetune(plan=str(tmp_path / "alone.json"), epochs=0).phases
    assert phase.epochs == 0
    assert not (tmp_path / "run" / "curves.png").exists()


def test_an_average_is_never_worse_on_validation(finetune):
    for kind, adapt in product(("wise_ft", "soup"), ("none", "lora")):
        result = finetune(average=kind, adapt=adapt, plan="full", learning_rate=3e-2)
        (averaged,) = result.averages
        (phase,) = result.phases
        assert averaged.val_loss <= phase.val_loss + 1e-6
        assert result.metrics["validation"].loss == pytest.approx(averaged.val_loss, rel=1e-4)


def test_what_is_cached_changes_nothing(finetune, tmp_path):
    def trained(cache):
        finetune(boundary_cache=cache, schedule="cosine", plan="last_k(k=1)")
        return tfxfer.load_model(tmp_path / "run" / "model.keras").get_weights()

    for ours, theirs in zip(trained("on"), trained("off"), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"plan": "gradul"}, "gradual"),
        ({"plan": "fastai", "warmup": 0.1}, "its own warmup"),
        ({"plan": "last_k(k=9)"}, "k from 1 to 3"),
        ({"plan": "surgical(stages=block9)"}, "no stage 'block9'"),
        ({"l2_sp": 0.1, "adapt": "lora"}, "pulls weights"),
        ({"lora_rank": 4}, "--adapt=lora"),
        ({"accumulate": 64}, "at most --batch_size=16"),
        ({"layer_decay": 0.0}, r"in \(0, 1\]"),
        ({"warmup": 1.0}, r"in \[0, 1\)"),
        ({"ema": float("nan")}, r"in \[0, 1\)"),
    ],
)
def test_mistakes_are_told(finetune, settings, says):
    with pytest.raises(UserError, match=says):
        finetune(**settings)


def test_what_others_do_not_heed_is_refused(source):
    with pytest.raises(UserError, match="trains none"):
        tfxfer.extract(source, plan="full")
