"""Teachers by name: runs, exports and files, their classes found by name."""

import json
import shutil
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy.special import expit, log_softmax, softmax

from tests.backbone_sources import Subclassed, classifier
from tests.conftest import small_network
from tfxfer.backbones import load_backbone
from tfxfer.errors import UserError
from tfxfer.export import save_predictor
from tfxfer.methods.teachers import load_teacher, split_teachers, teacher_parts
from tfxfer.models import Distiller, FineTuner, Teacher
from tfxfer.models.teachers import Teachers
from tfxfer.task import MULTI_LABEL, REGRESSION, SINGLE_LABEL, Task

NAMES = ("ant", "bee", "cat")
TASK = Task(SINGLE_LABEL, NAMES)


@pytest.fixture(scope="module")
def colour() -> tf.Tensor:
    rng = np.random.default_rng(0)
    return tf.constant(rng.integers(0, 256, (6, 16, 16, 3), dtype=np.uint8))


def tuned(units: int = 3) -> FineTuner:
    keras.utils.set_random_seed(5)
    model = FineTuner(load_backbone(small_network()), keras.layers.Dense(units, name="head"))
    model.unfreeze(model.stage_names)
    return model


def write_run(folder: Path, task: Task) -> FineTuner:
    """What a run leaves that matters here."""
    model = tuned(task.units)
    save_predictor(model, folder / "saved_model" / "1", task, (None, None, 3))
    model.save(folder / "model.keras")
    results = {"task": task.kind, "label_names": list(task.names)}
    (folder / "results.json").write_text(json.dumps(results))
    return model


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, tuple[Path, FineTuner]]:
    place = tmp_path_factory.mktemp("runs")
    tasks = [Task(kind, NAMES) for kind in (SINGLE_LABEL, MULTI_LABEL, REGRESSION)]
    return {task.kind: (place / task.kind, write_run(place / task.kind, task)) for task in tasks}


@pytest.fixture
def run(runs) -> tuple[Path, FineTuner]:
    return runs[SINGLE_LABEL]


def logits(teacher: Teacher, images) -> np.ndarray:
    return Teachers([teacher])(images)["logits"].numpy()


@pytest.mark.parametrize("inside", ["", "model.keras"])
def test_a_run_is_its_model(run, colour, inside):
    folder, model = run
    teacher = load_teacher(str(folder / inside), TASK)
    assert (teacher.outputs, teacher.columns) == ("logits", None)
    np.testing.assert_allclose(logits(teacher, colour), model(colour), atol=1e-6)
    found = Teachers([teacher], names=["block1", "features"])(colour)
    np.testing.assert_allclose(found["features"], model.backbone(colour), atol=1e-6)
    assert found["block1"].shape == (6, 7, 7, 4)


@pytest.mark.parametrize("kind", [SINGLE_LABEL, MULTI_LABEL, REGRESSION])
@pytest.mark.parametrize("inside", ["", "saved_model/1"])
def test_what_a_run_exported_says_the_same(runs, colour, kind, inside, tmp_path):
    folder, model = runs[kind]
    shutil.copytree(folder, tmp_path / "run")
    (tmp_path / "run" / "model.keras").unlink()
    turned = Task(kind, NAMES[::-1])
    teacher = load_teacher(str(tmp_path / "run" / inside), turned)
    found, expected = logits(teacher, colour), model(colour).numpy()[:, ::-1]
    if kind == SINGLE_LABEL:  # Of probabilities, logits come back but for a constant.
        found, expected = log_softmax(found, -1), log_softmax(expected, -1)
    np.testing.assert_allclose(found, expected, atol=2e-4)


@pytest.mark.parametrize("kind", [MULTI_LABEL, REGRESSION])
def test_an_export_alone_tells_its_task_and_its_names(runs, colour, kind, tmp_path):
    folder, model = runs[kind]
    shutil.copytree(folder / "saved_model" / "1", tmp_path / "moved")
    teacher = load_teacher(str(tmp_path / "moved"), Task(kind, ("cat", "ant")))
    assert teacher.columns == (2, 0)
    expected = model(colour).numpy()[:, [2, 0]]
    np.testing.assert_allclose(logits(teacher, colour), expected, atol=2e-4)
    with pytest.raises(UserError, match="and the data has one class an example"):
        load_teacher(str(tmp_path / "moved"), TASK)


def test_an_export_of_one_class_takes_names_from_a_file(runs, colour, tmp_path):
    folder, model = runs[SINGLE_LABEL]
    moved = shutil.copytree(folder / "saved_model" / "1", tmp_path / "moved")
    assert load_teacher(str(moved), TASK).outputs == "softmax"
    labels = tmp_path / "labels.txt"
    labels.write_text("cat\nant \nbee\n\n")
    teacher = load_teacher(f"{moved}(labels={labels})", TASK)
    assert teacher.columns == (1, 2, 0)
    expected = softmax(model(colour).numpy(), -1)[:, [1, 2, 0]]
    np.testing.assert_allclose(softmax(logits(teacher, colour), -1), expected, atol=1e-5)


def test_under_a_strategy_an_export_says_the_same(runs, colour, mirrored):
    folder, model = runs[MULTI_LABEL]
    with mirrored.scope():
        teacher = load_teacher(str(folder / "saved_model" / "1"), Task(MULTI_LABEL, NAMES))
    teachers, expected = Teachers([teacher], task=MULTI_LABEL), expit(model(colour).numpy())
    every: Any = mirrored.run(tf.function(lambda: teachers(colour)["logits"]))
    for found in (teachers(colour)["logits"], *mirrored.experimental_local_results(every)):
        np.testing.assert_allclose(expit(found.numpy()), expected, atol=1e-5)


def test_classes_are_found_by_name(run, colour):
    folder, model = run
    teacher = load_teacher(str(folder), Task(SINGLE_LABEL, ("cat", "ant")))
    expected = model(colour).numpy()[:, [2, 0]]
    np.testing.assert_allclose(logits(teacher, colour), expected, atol=1e-6)


def test_classes_that_a_teacher_lacks_are_named(run):
    task = Task(SINGLE_LABEL, ("ant", *"uvwxyz"))
    with pytest.raises(UserError) as error:
        load_teacher(str(run[0]), task)
    assert "all 7 classes of the data, and lacks 6 such as 'u', 'v', 'w', 'x', 'y'. If" in str(
        error.value
    )
    with pytest.raises(UserError, match=r"lacks 1: 'dog'\. If"):
        load_teacher(str(run[0]), Task(SINGLE_LABEL, ("ant", "dog")))


@pytest.fixture(scope="module")
def keras_file(tmp_path_factory) -> tuple[Path, keras.Model]:
    keras.utils.set_random_seed(3)
    network = classifier()
    path = tmp_path_factory.mktemp("files") / "whole.keras"
    network.save(path)
    return path, network


def test_a_keras_file_is_a_whole_classifier(keras_file, colour):
    path, network = keras_file
    teacher = load_teacher(str(path), TASK)
    assert teacher.outputs == "softmax"
    inputs = tf.cast(colour, tf.float32) / 255
    found = Teachers([teacher], names=["features", "block1"])(colour)
    np.testing.assert_allclose(softmax(found["logits"], -1), network(inputs), atol=1e-5)
    # Features are what goes into the classifier, as in a model on a backbone.
    np.testing.assert_allclose(found["features"], network.layers[0](inputs), atol=1e-5)
    assert found["block1"].shape == (6, 7, 7, 4)


@pytest.mark.parametrize(
    ("end", "outputs"),
    [
        ([keras.layers.Dense(3)], "logits"),
        ([keras.layers.Dense(3, "sigmoid")], "sigmoid"),
        ([keras.layers.Dense(3), keras.layers.Softmax()], "softmax"),
        ([keras.layers.Dense(5, "relu"), keras.layers.Dense(3)], "logits"),
    ],
)
def test_the_last_layer_tells_what_is_returned(tmp_path, colour, end, outputs):
    network = keras.Sequential([small_network(), *end])
    network.save(tmp_path / "whole.keras")
    teacher = load_teacher(str(tmp_path / "whole.keras"), TASK)
    assert teacher.outputs == outputs
    expected = network(tf.cast(colour, tf.float32) / 255)
    found: Any = teacher.model(colour, training=False)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert load_teacher(f"{tmp_path / 'whole.keras'}(outputs=logits)", TASK).outputs == "logits"


def test_a_classifier_that_is_a_convolution_is_taken_whole(tmp_path, colour):
    layers = [
        keras.Input((16, 16, 3)),
        keras.layers.Conv2D(4, 3, name="conv1"),
        keras.layers.Conv2D(3, 1, name="classes"),
        keras.layers.GlobalAveragePooling2D(),
        keras.layers.Softmax(),
    ]
    network = keras.Sequential(layers)
    network.save(tmp_path / "conv.keras")
    teacher = load_teacher(str(tmp_path / "conv.keras"), TASK)
    found = Teachers([teacher], names=["conv1"])(colour)
    expected = network(tf.cast(colour, tf.float32) / 255)
    np.testing.assert_allclose(softmax(found["logits"], -1), expected, atol=1e-5)
    assert found["conv1"].shape == (6, 14, 14, 4)


def test_how_images_are_prepared_can_be_told(tmp_path, colour):
    inputs = keras.Input((None, None, 3))
    outputs = keras.layers.Dense(3)(keras.layers.GlobalAveragePooling2D()(inputs))
    network = keras.Model(inputs, outputs)
    network.export(str(tmp_path / "served"), verbose=False)
    options = 'value_range="-1,1",image_size=8'
    teacher = load_teacher(f"{tmp_path / 'served'}({options})", TASK)
    small = tf.image.resize(tf.cast(colour, tf.float32), (8, 8), antialias=True)
    expected = network(small / 127.5 - 1)
    np.testing.assert_allclose(logits(teacher, colour), expected, atol=1e-4)
    assert teacher.outputs == "logits"


def test_outputs_without_names_must_be_as_many(keras_file):
    path, _ = keras_file
    with pytest.raises(UserError, match=r"has 3 outputs without names, .*the 2 of the data"):
        load_teacher(str(path), Task(SINGLE_LABEL, ("ant", "bee")))


def test_names_must_fit_the_outputs(keras_file, tmp_path):
    path, _ = keras_file
    labels = tmp_path / "labels.txt"
    for text in ("ant\nbee", "ant\nbee\nbee", "ant\nbee\ncat\ndog"):
        labels.write_text(text)
        with pytest.raises(UserError, match="must have 3 names of classes"):
            load_teacher(f"{path}(labels={labels})", TASK)
    with pytest.raises(UserError, match="must be a text file"):
        load_teacher(f"{path}(labels={tmp_path / 'nothing'})", TASK)
    labels.write_text("cat\nbee\nant")
    assert load_teacher(f"{path}(labels={labels})", TASK).columns == (2, 1, 0)


def test_numbers_have_no_kind_of_probability(runs, tmp_path):
    task = Task(REGRESSION, NAMES)
    network = keras.Sequential([small_network(), keras.layers.Dense(3, "sigmoid")])
    network.save(tmp_path / "bounded.keras")
    assert load_teacher(str(tmp_path / "bounded.keras"), task).outputs == "logits"
    with pytest.raises(UserError, match="outputs=softmax"):
        load_teacher(f"{runs[REGRESSION][0]}(outputs=softmax)", task)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("glyphs", "features alone"),
        ("tiny(width=2)", "features alone"),
        ("keras:MobileNetV2", "features alone"),
        ("nowhere", "there is no 'nowhere'"),
        ("nowhere.keras", "no file 'nowhere.keras'"),
        ("RUN(outputs=logit)", "outputs=logit, which must be logits, softmax, sigmoid"),
        ("RUN(output=x)", "no option 'output'"),
        ("RUN/saved_model/1(image_size=tall)", "--image_size must be pixels"),
        ("EMBED", "a run that trained a model"),
        ("FOLDS", "a run that exported a model"),
        ("BROKEN", "a model that can be loaded"),
        ("DISTILLER", "is a Distiller"),
    ],
)
def test_what_is_no_teacher_is_refused_in_one_line(spec, says, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, results in {
        "EMBED": {"examples": {}},
        "FOLDS": {"task": SINGLE_LABEL, "label_names": NAMES},
        "BROKEN": {"task": SINGLE_LABEL, "label_names": NAMES},
    }.items():
        Path(name).mkdir()
        Path(name, "results.json").write_text(json.dumps(results))
    Path("BROKEN", "model.keras").write_bytes(b"no model")
    spec = spec.replace("RUN", str(run[0]))
    if spec == "DISTILLER":
        spec = "distiller.keras"
        Distiller(tuned(), tuned()).save(spec)
    with pytest.raises(UserError, match=says) as error:
        load_teacher(spec, TASK)
    assert "\n" not in str(error.value)


def test_a_run_of_another_task_is_refused(runs):
    for kind, other in [(SINGLE_LABEL, MULTI_LABEL), (REGRESSION, SINGLE_LABEL)]:
        with pytest.raises(UserError, match="Choose another teacher"):
            load_teacher(str(runs[kind][0]), Task(other, NAMES))


@pytest.mark.parametrize(
    ("text", "specs", "weights"),
    [
        ("", (), None),
        ("runs/a", ("runs/a",), None),
        (" runs/a ; b.keras;", ("runs/a", "b.keras"), None),
        ("0.7*runs/a;0.3 * b.keras", ("runs/a", "b.keras"), [0.7, 0.3]),
        ("2e-1*a;b", ("a", "b"), [0.2, 1.0]),
        ("a(labels='x;y.txt');b", ("a(labels='x;y.txt')", "b"), None),
        ("it's;b", ("it's", "b"), None),
    ],
)
def test_several_teachers_are_split(text, specs, weights):
    assert split_teachers(text) == (specs, weights)


@pytest.mark.parametrize("text", ["0*a;b", "-1*a", "1.2.3*a"])
def test_weights_are_above_zero(text):
    with pytest.raises(UserError, match="must be a number above 0"):
        split_teachers(text)


def test_what_answers_depend_on(run, keras_file):
    folder, _ = run
    specs = [str(folder), str(folder / "saved_model" / "1"), str(keras_file[0])]

    def parts(spec, task=TASK, change=None, **options) -> dict[str, str]:
        teacher = load_teacher(spec, task)
        if change:
            change(teacher.model)
        return teacher_parts(Teachers([teacher], **options))

    found = [parts(spec) for spec in specs]
    assert len({json.dumps(each) for each in found}) == 3
    small_network()  # Keras counts names up; that makes no other teacher.
    assert [parts(spec) for spec in specs] == found

    def moved(model: Any) -> None:
        model.head.bias.assign([0.0, 0.0, 1.0])

    def bent(model: Any) -> None:
        model.head.activation = keras.activations.relu

    others = [
        parts(specs[0], Task(SINGLE_LABEL, NAMES[::-1])),
        parts(f"{specs[0]}(outputs=sigmoid)"),
        parts(specs[0], change=moved),
        parts(specs[0], change=bent),
    ]
    for other in others:
        assert sum(value != other[key] for key, value in found[0].items()) == 1


def test_the_shares_of_several_count(run):
    two = [load_teacher(str(run[0]), TASK) for _ in range(2)]
    even, uneven = (teacher_parts(Teachers(two, weights)) for weights in (None, [1, 3]))
    assert even != uneven
    assert even == teacher_parts(Teachers(two, [2, 2]))
    assert len(even) == 2 * len(teacher_parts(Teachers(two[:1]))) + 1


def test_only_teachers_on_backbones_are_told():
    with pytest.raises(ValueError, match="on a backbone"):
        teacher_parts(Teachers([Teacher(small_network())]))
    with pytest.raises(ValueError, match="on a backbone"):
        teacher_parts(Teachers([Teacher(Subclassed())]))
