"""What every backbone must do, wherever it was loaded from."""

import shutil
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.backbone_sources import SOURCES, Source
from tests.conftest import moved, values
from tests.text_sources import EXAMPLES, TEXTS
from tfxfer.backbones import Backbone, load_backbone
from tfxfer.backbones.self_check import check_features, check_value_range
from tfxfer.export import save_predictor, served_outputs
from tfxfer.models import FineTuner, load_model
from tfxfer.task import SINGLE_LABEL, Task

KINDS = {**SOURCES, **TEXTS}


class Made:
    """A source, written once; `load` gives a new backbone of it each time."""

    def __init__(self, source: Source, folder: Path):
        self.source = source
        self.folder = folder
        keras.utils.set_random_seed(3)
        self.made = source.make(folder)

    def load(self, **options) -> Backbone:
        keras.utils.set_random_seed(3)
        # A model is shared with its backbone, so each test gets its own.
        made = self.made if isinstance(self.made, str) else self.source.make(self.folder)
        return load_backbone(made, **dict(self.source.options), **options)

    def model(self, **options) -> FineTuner:
        return FineTuner(self.load(**options), keras.layers.Dense(3))


@pytest.fixture(scope="module", params=KINDS)
def made(request, tmp_path_factory) -> Made:
    folder = tmp_path_factory.mktemp("source")
    patch = pytest.MonkeyPatch()
    patch.setenv("TFHUB_CACHE_DIR", str(folder / "cache"))
    request.addfinalizer(patch.undo)
    return Made(KINDS[request.param], folder)


@pytest.fixture(scope="module")
def inputs(made) -> np.ndarray | tf.Tensor:
    """Eight inputs images or texts."""
    if made.source.inputs == "text":
        return tf.constant(EXAMPLES)
    return np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), dtype=np.uint8)


def fit(model, inputs):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-2), loss)
    # Keras adds up arrays of several devices, which strings cannot be.
    data = tf.data.Dataset.from_tensor_slices((inputs, np.arange(len(inputs)) % 3))
    model.fit(data.batch(8), shuffle=False, verbose=0)


def of_any_kind(inputs) -> list:
    if isinstance(inputs, tf.Tensor):
        return [inputs, inputs[:1], tf.constant(["", "unheard-of", "☀ ", "good " * 99])]
    return [inputs, inputs[:, :9, :, :1], inputs.astype(np.float32)[:1]]


def test_inputs_of_any_kind_become_features(made, inputs):
    backbone = made.load()
    assert backbone.contract.inputs == made.source.inputs
    for each in of_any_kind(inputs):
        features = backbone(each)
        assert features.shape == (len(each), backbone.units)
        assert features.dtype == "float32"
        assert np.isfinite(features).all()
    assert backbone.compute_output_shape((5, *inputs.shape[1:])) == (5, backbone.units)
    assert backbone.contract.size is None or min(backbone.contract.size) >= 8
    check_features(backbone, inputs)
    check_value_range(backbone)


def test_stages_cover_every_weight_once(made):
    backbone = made.load()
    in_stages = [id(weight) for stage in backbone.stages for weight in stage.weights]
    assert len(set(in_stages)) == len(in_stages)
    if made.source.trains:
        assert sorted(in_stages) == sorted(id(weight) for weight in backbone.weights)
        assert all(stage.learned for stage in backbone.stages)
        assert not backbone.untrainable
        assert len({stage.name for stage in backbone.stages} - {"head"}) == len(backbone.stages)


def test_it_starts_frozen(made, inputs):
    model = made.model()
    backbone = model.backbone
    assert backbone.unfrozen == ()
    assert backbone.trainable_weights == []
    before = values(backbone.weights)
    fit(model, inputs)
    assert not any(moved(before, backbone.weights))
    if not made.source.trains:
        with pytest.raises(ValueError, match=f"cannot be unfrozen: {backbone.untrainable[:9]}"):
            backbone.unfreeze(["block1"])


def test_unfreezing_moves_what_it_should_and_nothing_else(made, inputs):
    model = made.model()
    names = [stage.name for stage in model.backbone.stages]
    for trained in [names[-1:], names] if names else []:
        model.unfreeze([*trained, "head"])
        assert list(model.backbone.unfrozen) == trained
        watched = {id(weight) for weight in model.trainable_weights}
        before = {stage.name: values(stage.weights) for stage in model.backbone.stages}
        fit(model, inputs)
        for stage in model.backbone.stages:
            assert all((id(w) in watched) == (stage.name in trained) for w in stage.learned)
            changed = moved(before[stage.name], stage.weights)
            assert any(changed) == (stage.name in trained), stage.name


def test_batch_norm_goes_by_the_policy(made, inputs):
    def averages_moved(bn, trained):
        model = made.model(bn=bn)
        names = [stage.name for stage in model.backbone.stages]
        model.unfreeze([*(names if trained else []), "head"])
        statistics = [w for stage in model.backbone.stages for w in stage.statistics]
        averages = [w for w in statistics if w.name.startswith("moving")]
        learned = [w for stage in model.backbone.stages for w in stage.learned]
        before, before_learned = values(averages), values(learned)
        fit(model, inputs)
        assert any(moved(before_learned, learned)) == trained
        return any(moved(before, averages)) if averages else None

    if not made.source.trains:
        return
    assert not averages_moved("freeze", True)
    assert averages_moved("train", False) in (True, None)
    assert averages_moved("stage", True) in (True, None)


def test_gradients_flow_to_the_unfrozen_alone(made, inputs):
    model = made.model()
    for trained in [[], *([stage.name] for stage in model.backbone.stages[-1:])]:
        model.unfreeze([*trained, "head"])
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            for weight in model.trainable_weights:
                tape.watch(weight.value)
            outputs = model(inputs, training=True)
        gradients = tape.gradient(outputs, model.trainable_weights)
        assert all(gradient is not None for gradient in gradients)


def test_keras_file_needs_nothing_else(made, inputs, tmp_path):
    model = made.model()
    stages = [stage.name for stage in model.backbone.stages]
    model.unfreeze([*stages[-1:], "head"])
    fit(model, inputs)
    model.save(tmp_path / "model.keras")
    hidden = made.folder.with_name(f"{made.folder.name}-away")
    shutil.move(made.folder, hidden)
    try:
        if not made.source.safe:
            with pytest.raises(ValueError, match="safe_mode=False"):
                load_model(tmp_path / "model.keras")
        again = load_model(tmp_path / "model.keras", safe_mode=made.source.safe)
        assert values(again.weights) == values(model.weights)
        assert again.backbone.unfrozen == model.backbone.unfrozen
        assert again.backbone.fingerprint == model.backbone.fingerprint
        assert again.backbone.contract == model.backbone.contract
        assert [stage.name for stage in again.backbone.stages] == stages
        np.testing.assert_allclose(again(inputs), model(inputs), rtol=1e-4, atol=1e-5)
        again.fit(inputs, np.zeros(8), batch_size=8, verbose=0)
        again.save(tmp_path / "again.keras")
        twice = load_model(tmp_path / "again.keras", safe_mode=made.source.safe)
        assert values(twice.weights) == values(again.weights)
    finally:
        shutil.move(hidden, made.folder)


def test_exported_it_answers_alike(made, inputs, tmp_path):
    model = made.model()
    shape = () if made.source.inputs == "text" else (None, None, 3)
    save_predictor(model, tmp_path / "1", Task(SINGLE_LABEL, ("a", "b", "c")), shape)
    served = served_outputs(tmp_path / "1", tf.data.Dataset.from_tensors(inputs))
    np.testing.assert_allclose(served, tf.nn.softmax(model(inputs)), rtol=1e-3, atol=1e-5)


def test_fingerprint_is_that_of_the_weights(made):
    backbone = made.load()
    assert len(backbone.fingerprint) == 64
    assert made.load().fingerprint == backbone.fingerprint


def test_under_a_strategy_it_freezes_and_trains(made, inputs, mirrored):
    if not made.source.replicas:
        pytest.skip("it runs on one CPU alone")
    with mirrored.scope():
        model = made.model()
    names = [stage.name for stage in model.backbone.stages]
    check_features(model.backbone, inputs)
    check_value_range(model.backbone)
    with mirrored.scope():
        for trained in [[], *([names[-1:], names] if names else [])]:
            model.unfreeze([*trained, "head"])
            before = {stage.name: values(stage.weights) for stage in model.backbone.stages}
            whole = values(model.backbone.weights)
            fit(model, inputs)
            if not trained:
                assert not any(moved(whole, model.backbone.weights))
            for stage in model.backbone.stages:
                changed = moved(before[stage.name], stage.weights)
                assert any(changed) == (stage.name in trained), stage.name
