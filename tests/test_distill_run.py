"""`--mode=distill`, from data to a card and a student that serves."""

import json
import shutil
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfxfer
from tests.test_cli import tfxfer as run
from tests.test_extract_run import gratings
from tfxfer.config import RunConfig
from tfxfer.errors import UserError
from tfxfer.methods.losses import losses_for
from tfxfer.methods.students import with_own_kind
from tfxfer.methods.taught import TaughtData
from tfxfer.task import MULTI_LABEL, REGRESSION, Task
from tfxfer.training.callbacks import MetricsLog


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """One a test: sources in memory are all of one fingerprint."""
    monkeypatch.setenv("TFXFER_CACHE_DIR", str(tmp_path / "cache"))


def network(width: int) -> keras.Model:
    keras.utils.set_random_seed(1)
    return keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            keras.layers.Conv2D(width, 3, strides=2, name="block1_conv"),
            keras.layers.LeakyReLU(name="block1_relu"),
            keras.layers.Conv2D(width, 3, padding="same", activation="relu", name="block2_conv"),
            keras.layers.GlobalAveragePooling2D(),
        ]
    )


@pytest.fixture(scope="module")
def networks(tmp_path_factory) -> dict[str, str]:
    """Files of networks by the number of their filters."""
    place = tmp_path_factory.mktemp("networks")
    for width in (4, 6, 32):
        network(width).save(place / f"{width}.keras")
    return {name: str(place / f"{name}.keras") for name in ("4", "6", "32")}


@pytest.fixture(scope="module")
def of_gratings(networks, tmp_path_factory):
    """The run of a teacher that knows gratings."""
    place = tmp_path_factory.mktemp("teacher")
    settings = {"backbone": networks["32"], "cache_dir": str(place / "cache")}
    tfxfer.extract(gratings(), workdir=str(place / "run"), **settings)
    return place / "run"


@pytest.fixture
def distil(networks, of_gratings, tmp_path):
    """Distils on gratings, or on another source with a teacher that is made first."""

    def run(source: Any = None, teacher: Any = True, name="run", **settings) -> Any:
        if teacher is True:
            teacher = tmp_path / "teacher"
            if teacher.exists():
                pass
            elif source is None:
                shutil.copytree(of_gratings, teacher)
            else:
                tfxfer.extract(source, backbone=networks["32"], workdir=str(teacher))
        source = source or gratings()
        usual = {} if teacher else {"backbone": networks["32"]}
        usual |= {"student": networks["4"], "epochs": 2, "seeds": 1}
        usual |= {"batch_size": 16, "learning_rate": 0.01, "workdir": str(tmp_path / name)}
        return tfxfer.distill(source, teacher=str(teacher or ""), **{**usual, **settings})

    return run


def lines(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def weights(folder) -> list[np.ndarray]:
    return tfxfer.load_model(folder / "model.keras").get_weights()


def test_it_teaches_and_says_what_that_was_worth(distil, tmp_path):
    result = distil(seeds=2, epochs=3)
    card = result.card
    assert result.passed
    assert [len(arm.best) for arm in (card.distilled, card.alone)] == [2, 2]
    # 90 images, of which 18 test and 7 validate: 65 to train on in batches of 16.
    assert card.distilled.steps == card.alone.steps == 15
    assert card.verdict.by in ("seeds", "examples")
    assert 0 <= card.distilled.best[0].agreement <= 1
    assert card.costs["student"].parameters < 0.2 * card.costs["teacher"].parameters
    assert result.metrics["test"].examples == 18
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "config.json",
        "metrics.jsonl",
        "model.keras",
        "predictions.npz",
        "results.json",
        "saved_model",
        "transfer_card.md",
    ]
    saved = json.loads((tmp_path / "run" / "results.json").read_text())
    assert saved["card"]["verdict"]["word"] == card.verdict.word
    assert card.verdict.word in (tmp_path / "run" / "transfer_card.md").read_text()
    names = {line["model"] for line in lines(tmp_path / "run")}
    assert names == {f"seed {i} {arm}" for i in (0, 1) for arm in ("distilled", "labels alone")}


def test_the_rate_falls_in_steps_if_so_asked(distil, tmp_path):
    distil(schedule="step", epochs=4, learning_rate=0.01)
    found = lines(tmp_path / "run")
    rates = [each["learning_rate"] for each in found if each["model"] == "seed 0 distilled"]
    np.testing.assert_allclose(rates, [1e-2, 1e-3, 1e-4, 1e-5])


def test_what_is_served_is_the_student_alone(distil, tmp_path):
    result = distil()
    served = tmp_path / "run" / "saved_model" / "1"
    student = tfxfer.load_model(tmp_path / "run" / "model.keras")
    assert isinstance(student, tfxfer.FineTuner)
    found = tf.saved_model.load(str(served))
    held = sum(int(np.prod(each.shape)) for each in found.weights)
    assert held == student.count_params() == result.card.costs["student"].parameters
    variables = tf.train.list_variables(str(served / "variables" / "variables"))
    stored = sum(int(np.prod(shape)) for name, shape in variables if "weights" in name)
    assert stored == held


def test_the_student_of_labels_alone_is_the_same_at_first(distil, tmp_path, monkeypatch):
    starts = {}

    def note(log, logs=None):
        starts[log._named["model"]] = log.model.get_weights()

    monkeypatch.setattr(MetricsLog, "on_train_begin", note)
    distil(epochs=1)
    distilled, alone = starts["seed 0 distilled"], starts["seed 0 labels alone"]
    shapes = [each.shape for each in alone]
    same = [each for each in distilled if each.shape != ()]  # Without alpha and its like.
    assert [each.shape for each in same] == shapes
    for one, other in zip(same, alone, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_teacher_is_fine_tuned_if_none_is_given(distil, tmp_path):
    result = distil(teacher=None, loss="0.9*kd+0.1*hint(student=block2,teacher=block1)")
    teacher = json.loads((tmp_path / "run" / "teacher" / "results.json").read_text())
    assert result.metrics["teacher"].accuracy == teacher["metrics"]["test"]["accuracy"]
    assert teacher["phases"]
    assert (tmp_path / "run" / "teacher" / "model.keras").is_file()


@pytest.mark.parametrize("options", [{}, {"augment": "light", "views": 2}])
def test_outputs_that_are_kept_are_those_of_each_step(options, distil, tmp_path, monkeypatch):
    loss = "0.9*kd+0.2*hint(student=block1,teacher=block1)"
    distil(name="kept", loss=loss, **options)
    monkeypatch.setattr(TaughtData, "kept", property(lambda data: False))
    distil(name="asked", loss=loss, **options)
    for one, other in zip(weights(tmp_path / "kept"), weights(tmp_path / "asked"), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_mixed_images_are_shown_to_the_teacher_too(distil, tmp_path):
    result = distil(mix="mixup", augment="light", epochs=3)
    assert all(np.isfinite(line["kd"]) for line in lines(tmp_path / "run") if "kd" in line)
    assert result.card.distilled.steps == 15


def test_the_rest_is_learned_from_without_its_labels(distil, tmp_path, capsys):
    result = distil(shots=4, unlabeled="rest", epochs=2)
    # Half of each batch of 16 has labels; 65 - 12 have none: 7 batches of 8.
    assert "without labels: 53 examples, rest of train" in capsys.readouterr().out
    assert result.card.distilled.steps == result.card.alone.steps == 14
    found = [line for line in lines(tmp_path / "run") if line["model"] == "seed 0 distilled"]
    assert all(0 <= line["accuracy"] <= 1 for line in found)


@pytest.mark.parametrize("kind", [MULTI_LABEL, REGRESSION])
def test_other_tasks(kind, distil):
    source = gratings(kind)
    result = distil(source, max_examples=30, unlabeled="rest", epochs=2)
    assert result.passed
    assert (result.card.distilled.best[0].agreement is None) == (kind == REGRESSION)


def test_an_assistant_teaches_between(distil, networks, tmp_path):
    distil(assistant=networks["6"], epochs=1)
    names = [line["model"] for line in lines(tmp_path / "run")]
    assert names == ["assistant 1", "seed 0 distilled", "seed 0 labels alone"]


def test_generations_of_the_teachers_own_kind(distil, tmp_path):
    result = distil(student="self", generations=2, epochs=1)
    names = [line["model"] for line in lines(tmp_path / "run")]
    assert names == ["generation 1", "seed 0 distilled", "seed 0 labels alone"]
    costs = result.card.costs
    assert costs["student"].parameters == costs["teacher"].parameters


def test_the_card_is_of_the_teacher_not_of_an_assistant(distil, networks):
    plain, between = distil(name="plain"), distil(assistant=networks["6"])
    costs = plain.card.costs["teacher"], between.card.costs["teacher"]
    assert costs[0].parameters == costs[1].parameters
    assert plain.metrics["teacher"] == between.metrics["teacher"]


def shapes(folder, count: int, side: int = 40) -> None:
    """Writes images of noise around three levels, in a folder each, sorted as folders are."""
    for label in range(3):
        (folder / f"{label}").mkdir(parents=True)
        for i in range(count):
            rng = np.random.default_rng(100 * label + i)
            image = np.clip(40 + 80 * label + rng.normal(0, 25, (side, side, 3)), 0, 255)
            png = tf.io.encode_png(image.astype(np.uint8)).numpy()
            (folder / f"{label}" / f"{i}.png").write_bytes(png)


def test_nothing_held_out_is_learned_from(tmp_path, distil, capsys):
    shapes(tmp_path / "own", 20)
    source = tfxfer.open_dataset(f"folder:{tmp_path / 'own'}")
    result = distil(source, unlabeled=f"folder:{tmp_path / 'own'}", epochs=1)
    kept = 60 - result.metrics["test"].examples - result.metrics["validation"].examples
    assert f"without labels: {kept} examples" in capsys.readouterr().out


def test_arrays_are_learned_from_without_labels(distil, capsys):
    noise = np.random.default_rng(0).integers(0, 256, (9, 8, 8), np.uint8)
    for name, more in (
        ("array", noise),
        ("opened", tfxfer.open_dataset((noise, np.arange(9) % 2))),
    ):
        assert distil(name=name, unlabeled=more, epochs=1).passed
        assert "without labels: 9 examples" in capsys.readouterr().out


def test_images_of_any_shape_and_folder_go_without_labels(tmp_path, distil, networks, capsys):
    flat = tmp_path / "flat"
    flat.mkdir()
    for i in range(9):
        noise = np.random.default_rng(i).integers(0, 256, (48, 40 + i, 1), np.uint8)
        (flat / f"{i}.png").write_bytes(tf.io.encode_png(noise).numpy())
    (flat / "bad.png").write_bytes((flat / "0.png").read_bytes()[:60])
    for looked_at in (True, False):
        with pytest.raises(UserError, match=r"bad\.png"):
            distil(unlabeled=f"folder:{flat}", epochs=1, scan=looked_at)
        assert not (tmp_path / "run").exists()
    assert distil(unlabeled=f"folder:{flat}", epochs=1, skip_bad=True).passed
    assert "without labels: 9 examples" in capsys.readouterr().out


def test_a_wrong_teacher_of_data_in_the_order_of_classes_is_refused(tmp_path, distil):
    shapes(tmp_path / "own", 20)
    source = tfxfer.open_dataset(f"folder:{tmp_path / 'own'}")
    distil(source, epochs=1, name="fine")
    model = tfxfer.load_model(tmp_path / "teacher" / "model.keras")
    kernel, bias = model.head.get_weights()
    model.head.set_weights([np.roll(kernel, 1, axis=1), np.roll(bias, 1)])
    model.save(tmp_path / "teacher" / "model.keras")
    with pytest.raises(UserError, match="chance"):
        distil(source, epochs=1)


@pytest.mark.parametrize(
    ("stop", "given"),
    [
        ("seed 0 distilled", True),
        pytest.param("seed 0 labels alone", True, marks=pytest.mark.slow),
        pytest.param("seed 0 distilled", False, marks=pytest.mark.slow),
        pytest.param("seed 0 labels alone", False, marks=pytest.mark.slow),
    ],
)
def test_a_run_that_was_stopped_goes_on(stop, given, distil, tmp_path, monkeypatch):
    settings = {"teacher": given, "checkpoint_seconds": 0.0}
    distil(name="whole", **settings)
    write = MetricsLog.on_epoch_end

    def stopped(log, epoch, logs=None):
        if log._named.get("model") == stop and epoch == 1:
            raise KeyboardInterrupt
        write(log, epoch, logs)

    with monkeypatch.context() as patch:
        patch.setattr(MetricsLog, "on_epoch_end", stopped)
        with pytest.raises(KeyboardInterrupt, match="goes on where it was"):
            distil(**settings)
    before = len(lines(tmp_path / "run"))
    distil(**settings)
    for one, other in zip(weights(tmp_path / "run"), weights(tmp_path / "whole"), strict=True):
        np.testing.assert_array_equal(one, other)
    found, whole = lines(tmp_path / "run"), lines(tmp_path / "whole")
    assert len(found) == len(whole) == 4
    assert before < 4
    assert [{**line, "seconds": 0} for line in found] == [{**line, "seconds": 0} for line in whole]


def test_a_dry_run_says_all_and_writes_nothing(distil, tmp_path, capsys):
    assert distil(dry_run=True) is None
    assert not (tmp_path / "run").exists()
    assert "0.9*kd(temperature=4)" in capsys.readouterr().out


def test_a_loss_is_missed_before_the_teacher_is_fine_tuned(distil, tmp_path):
    with pytest.raises(UserError, match="no layer or stage 'blok1'"):
        distil(teacher=None, loss="hint(student=block1,teacher=blok1)")
    assert not (tmp_path / "run").exists()


def test_self_is_of_the_kind_of_the_teacher(distil, networks, tmp_path):
    distil(name="first", student=networks["6"], epochs=1)
    for teacher, backbone in (("first", networks["6"]), ("teacher", networks["32"])):
        config = RunConfig(mode="distill", teacher=str(tmp_path / teacher), student="self")
        assert with_own_kind(config).backbone == backbone
    network(4).save(tmp_path / "whole.keras")
    with pytest.raises(UserError, match="one teacher that is a run"):
        distil(teacher=tmp_path / "whole.keras", student="self")


def test_losses_of_numbers_count_in_their_deviations():
    y = np.random.default_rng(0).normal(0, 1000.0, (50, 1)).astype(np.float32)
    (term,) = losses_for("auto", Task(REGRESSION, ("metres",)), y)
    value = term.function(tf.constant(y), tf.zeros_like(y))
    assert (term.weight, str(term)) == (0.9, "0.9*logit_mse")
    np.testing.assert_allclose(tf.reduce_mean(value), np.mean(y**2) / np.var(y), rtol=1e-5)


def test_another_teacher_is_another_run(distil, tmp_path, monkeypatch):
    def interrupted(log, epoch, logs=None):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(MetricsLog, "on_epoch_end", interrupted)
        with pytest.raises(KeyboardInterrupt):
            distil(checkpoint_seconds=0.0)
    model = tfxfer.load_model(tmp_path / "teacher" / "model.keras")
    model.head.set_weights([1.1 * each for each in model.head.get_weights()])
    model.save(tmp_path / "teacher" / "model.keras")
    with pytest.raises(UserError, match="unfinished one whose teacher changed since"):
        distil(checkpoint_seconds=0.0)
    assert distil(checkpoint_seconds=0.0, overwrite=True).passed


def test_images_of_any_size_are_seen_as_they_will_be_served(distil, tmp_path):
    shapes(tmp_path / "own", 12, side=13)
    source = tfxfer.open_dataset(f"folder:{tmp_path / 'own'}")
    image = tf.zeros((20, 9, 3), tf.uint8)
    (tmp_path / "own" / "0" / "other.png").write_bytes(tf.io.encode_png(image).numpy())
    keras.utils.set_random_seed(0)
    large = tmp_path / "large.keras"
    keras.Sequential(
        [
            keras.Input((16, 16, 3)),
            keras.layers.Conv2D(8, 3, activation="relu"),
            keras.layers.GlobalAveragePooling2D(),
        ]
    ).save(large)
    tfxfer.extract(source, backbone=str(large), workdir=str(tmp_path / "teacher"))
    assert distil(source, epochs=1).passed
    with pytest.raises(UserError, match="8x8 and 16x16"):
        distil(source, name="jit", jit=True)


def test_compiled_steps(distil):
    assert distil(jit=True, epochs=1).passed


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": "kdd"}, "Did you mean kd"),
        ({"loss": "hint(student=blok1,teacher=block1)"}, "no layer or stage 'blok1'"),
        ({"loss": "hint(student=block1,teacher=blok1)"}, "no layer or stage 'blok1'"),
        ({"loss": "multi_label_kd"}, "not for data of one of 3 classes"),
        ({"loss": "attention_transfer"}, "does not fit student and teacher.*Name layers"),
        ({"assistant": "keras:Nothing"}, "no network 'Nothing'"),
        ({"value_range": "0,255"}, "--value_range is of the backbone that is fine-tuned"),
        ({"seed": 2**32 - 1, "seeds": 2}, "leave room for --seeds=2"),
        ({"teacher": "tiny"}, "must classify"),
        ({"teacher": "no.h5(value_range=0,255)"}, "commas of an option stand in quotes"),
        ({"unlabeled": "rest"}, "--shots or --max_examples"),
        ({"plan": "full"}, "--plan is not for --mode=distill"),
        ({"folds": 3}, "--folds is not for --mode=distill"),
        ({"generations": 2, "assistant": "tiny"}, "--generations and --assistant"),
        ({"teacher": "nowhere"}, "There is no teacher 'nowhere'"),
        ({"seeds": 0}, "--seeds must be at least 1"),
    ],
)
def test_mistakes_are_told_before_anything_is_trained(settings, message, distil, tmp_path):
    with pytest.raises(UserError, match=message) as told:
        distil(dry_run=True, **settings)
    assert "\n" not in str(told.value)
    assert not (tmp_path / "run").exists()


def test_a_teacher_is_text_also_in_python(distil, tmp_path):
    with pytest.raises(UserError, match=r"must be str, not Sequential.*path of its file"):
        tfxfer.distill(gratings(), teacher=network(4))
    distil(dry_run=True)
    assert tfxfer.distill(gratings(), teacher=tmp_path / "teacher", dry_run=True) is None


def test_settings_of_distillation_are_for_that_mode_alone():
    with pytest.raises(UserError, match="--student is for --mode=distill, not finetune"):
        tfxfer.finetune(gratings(), student="self")


@pytest.mark.slow
def test_alone_it_runs_on_the_embedded_data(tmp_path, data_dir):
    flags = ("--mode=distill", "--workdir=run")
    done = run(*flags, cwd=tmp_path, data_dir=data_dir, timeout=1200)  # Minutes, on two cores.
    assert done.returncode == 0, done.stderr
    saved = json.loads((tmp_path / "run" / "results.json").read_text())
    costs = saved["card"]["costs"]
    assert costs["student"]["parameters"] <= 0.1 * costs["teacher"]["parameters"]
    assert saved["card"]["verdict"]["word"] in done.stdout
    assert saved["metrics"]["test"]["accuracy"] > 0.95
