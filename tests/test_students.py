"""Students by name: `tiny`, any backbone, and the teacher's own kind; the same seed, the same."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.backbone_sources import keras_file
from tests.conftest import moved, values
from tests.memory import Memory
from tfxfer.backbones import load_backbone
from tfxfer.backbones.self_check import check_features, check_value_range
from tfxfer.config import RunConfig
from tfxfer.errors import UserError
from tfxfer.methods.opening import Opened, opened
from tfxfer.methods.students import from_scratch, new_student
from tfxfer.models import FineTuner, load_model
from tfxfer.models.taps import Taps
from tfxfer.task import REGRESSION, Task

STAGES = ["block1", "block2", "block3", "block4"]
GLYPHS = 256_784


@pytest.fixture(scope="module")
def teacher_file(tmp_path_factory) -> str:
    keras.utils.set_random_seed(3)
    return keras_file(tmp_path_factory.mktemp("teacher"))


def shared(source=None, **settings) -> Opened:
    source = source or Memory(side=8, train=40, test=6)
    config = RunConfig(mode="finetune", dataset="memory", scan=False, **settings)
    return opened(config, source)


@pytest.fixture(scope="module")
def usual(teacher_file) -> Opened:
    return shared(backbone=teacher_file)


def test_tiny_is_a_tenth_of_the_embedded_teacher():
    backbone = load_backbone("tiny", data_size=(8, 8))
    model = FineTuner(backbone, keras.layers.Dense(10))
    assert backbone.count_params() == 16_024
    assert model.count_params() <= GLYPHS / 10
    assert [stage.name for stage in backbone.stages] == STAGES
    assert backbone.unfrozen == ()


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (28, 28), (32, 32), (33, 47), (128, 128)])
def test_tiny_takes_images_of_any_size(size):
    images = np.random.default_rng(0).integers(0, 256, (4, *size, 3), dtype=np.uint8)
    free, made = load_backbone("tiny"), load_backbone("tiny", data_size=size)
    assert free.contract.size is None
    assert made.contract.size == size
    assert made.count_params() == free.count_params()
    for backbone in (free, made):
        assert backbone(images).shape == (4, 64)
        check_features(backbone, images)
        check_value_range(backbone)


@pytest.mark.parametrize(("size", "maps"), [(8, 4), (16, 4), (28, 4), (32, 4), (64, 4), (128, 8)])
def test_tiny_halves_as_often_as_the_images_stand(size, maps):
    student = FineTuner(load_backbone("tiny", data_size=(size, size)), keras.layers.Dense(2))
    taps = Taps(student, ["block1", "block4", "maps"])
    _, found = taps(np.zeros((1, size, size, 3), np.uint8), training=False)
    assert found["block4"].shape == found["maps"].shape == (1, maps, maps, 64)
    assert found["block1"].shape[1] == (size if size <= 32 else size // 2)


def test_tiny_is_scaled_by_its_width():
    def channels(spec):
        return [stage.learned[-1].shape[0] for stage in load_backbone(spec).stages]

    assert channels("tiny") == [16, 24, 40, 64]
    assert channels("tiny(width=0.5)") == [8, 12, 20, 32]
    assert channels("tiny(width=2)") == [32, 48, 80, 128]
    assert channels("tiny(width=0.01)") == [4, 4, 4, 4]


@pytest.mark.parametrize("width", ["0", "-1", "none", "wide", "true", "inf", "nan"])
def test_a_width_is_a_number_above_zero(width):
    with pytest.raises(UserError, match="a number above 0"):
        load_backbone(f"tiny(width={width})")


def test_other_options_and_names_are_refused():
    with pytest.raises(UserError, match="has no option 'alpha'"):
        load_backbone("tiny(alpha=0.5)")
    with pytest.raises(UserError, match="Did you mean tiny"):
        load_backbone("tinny")


def test_tiny_learns_digits_from_scratch_and_is_kept(digits, tmp_path):
    examples = digits.split("train").take(1000).as_numpy_iterator()
    x, y = (np.stack(each) for each in list(zip(*examples, strict=True))[1:])
    backbone = load_backbone("tiny", data_size=x.shape[1:3], bn="train")
    model = FineTuner(backbone, keras.layers.Dense(10))
    model.unfreeze(model.stage_names)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(3e-3), loss, metrics=["accuracy"])
    model.fit(x[:800], y[:800], batch_size=32, epochs=8, verbose=0)
    assert model.evaluate(x[800:], y[800:], verbose=0)[1] > 0.9
    check_value_range(backbone)  # Its averages tell of the range now.
    model.save(tmp_path / "tiny.keras")
    again = load_model(tmp_path / "tiny.keras")
    assert again.stage_names == model.stage_names
    np.testing.assert_allclose(again(x[:4]), model(x[:4]), atol=1e-5)
    onward = load_backbone(str(tmp_path / "tiny.keras"))
    assert values(onward.weights) == values(backbone.weights)


@pytest.mark.parametrize(
    "spec", ["tiny", "keras:MobileNetV2(alpha=0.35, weights=none)", "glyphs", "self"]
)
def test_the_same_seed_gives_the_same_student(usual, spec):
    first, second = (new_student(usual, spec, 4) for _ in range(2))
    assert values(first.weights) == values(second.weights)
    second.head.bias.assign([1.0, 1.0])
    assert moved(values(first.weights), second.weights)[-1], "weights of its own"
    other = new_student(usual, spec, 5)
    assert any(moved(values(first.head.weights), other.head.weights))
    drawn = any(moved(values(first.backbone.weights), other.backbone.weights))
    assert drawn == from_scratch(spec)


def test_self_starts_where_the_teacher_started(usual):
    before = values(usual.backbone.weights)
    student = new_student(usual, "self", 0)
    assert values(student.backbone.weights) == before
    assert student.backbone.fingerprint == usual.backbone.fingerprint
    student.unfreeze(student.stage_names)
    for weight in student.weights:
        weight.assign(tf.zeros_like(weight))
    assert values(usual.backbone.weights) == before
    assert usual.backbone.unfrozen == ()


def test_a_whole_classifier_gets_a_new_head(usual, teacher_file):
    student = new_student(usual, teacher_file, 0)
    assert student.head.units == 2
    assert student.backbone.units == 8  # What went into its three classes.


def test_batch_norm_goes_by_the_batch_without_pretrained_weights(usual):
    assert new_student(usual, "tiny", 0).backbone.bn == "train"
    assert new_student(usual, "self", 0).backbone.bn == "freeze"


def test_settings_of_the_backbone_stay_with_it(teacher_file):
    settings = {"stages": "block1;block2", "value_range": "-1,1"}
    own = shared(backbone=teacher_file, self_check=False, **settings)
    assert new_student(own, "self", 0).backbone.contract.value_range == (-1, 1)
    student = new_student(own, "tiny", 0)
    assert student.backbone.contract.value_range == (0, 1)
    assert student.backbone.contract.size == (8, 8)
    assert student.stage_names == (*STAGES, "head")


def test_precision_dropout_and_targets_are_those_of_the_run(teacher_file):
    y = np.stack([np.linspace(90, 110, 40), np.linspace(-1, 1, 40)], -1).astype(np.float32)
    source = Memory(Task(REGRESSION, ("far", "near")), side=8, train=y, test=y[:6])
    run = shared(source, backbone=teacher_file, precision="mixed_bfloat16", dropout=0.25)
    student = new_student(run, "tiny", 0)
    assert student.backbone.dtype_policy.name == "mixed_bfloat16"
    assert student.backbone.network.get_layer("block2_conv").compute_dtype == "bfloat16"
    dropout, _, scale = student.head.layers
    assert dropout.rate == 0.25
    train = run.data.splits[0].train
    np.testing.assert_allclose(scale.offset, train.labels.mean(axis=0), rtol=1e-5)
    few = new_student(run, "tiny", 0, train.keep(np.arange(train.examples) < 5))
    assert few.head.layers[-1].offset[0] != scale.offset[0]


def test_under_a_strategy_it_is_the_same_student(usual, mirrored):
    alone = new_student(usual, "tiny", 4)
    both = new_student(Opened(**{**vars(usual), "strategy": mirrored}), "tiny", 4)
    assert values(both.weights) == values(alone.weights)
    assert both.distribute_strategy is mirrored


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("tiny", True),
        (" tiny(width=0.5)", True),
        ("keras:ResNet50(weights=none)", True),
        ("keras:ResNet50", False),
        ("keras:ResNet50(weights=imagenet, layer=x)", False),
        ("self", False),
        ("glyphs", False),
        ("runs/tiny", False),
        ("model.keras", False),
    ],
)
def test_what_has_no_pretrained_weights(spec, expected):
    assert from_scratch(spec) == expected
