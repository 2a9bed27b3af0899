"""`FineTuner` as a plain Keras model."""

import keras
import numpy as np
import pytest

from tfxfer.errors import UserError
from tfxfer.models import FineTuner, load_model


def compiled(model: FineTuner) -> FineTuner:
    model.compile(
        "adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"]
    )
    return model


def test_it_has_the_stages_of_its_parts(model):
    assert model.stage_names == ("block1", "block2", "head")
    assert [len(stage.weights) for stage in model.stages] == [6, 6, 2]
    in_stages = [id(weight) for stage in model.stages for weight in stage.weights]
    assert sorted(in_stages) == sorted(id(weight) for weight in model.weights)


def test_unfreeze_is_exact(model):
    for stages, trained in (
        (["head"], 2),
        (["block2", "head"], 6),
        (["block1"], 4),
        ([], 0),
        (model.stage_names, 10),
        (["head"], 2),
    ):
        model.unfreeze(stages)
        assert len(model.trainable_weights) == trained


def test_unknown_stage_is_refused(model):
    with pytest.raises(ValueError, match="received \\['block9'\\]"):
        model.unfreeze(["block9"])


def test_fit_evaluate_predict(model, images, labels):
    compiled(model).fit(images, labels, epochs=2, verbose=0)
    loss, accuracy = model.evaluate(images, labels, verbose=0)
    logits = model.predict(images, verbose=0)
    assert logits.shape == (24, 3)
    assert accuracy == pytest.approx(np.mean(logits.argmax(-1) == labels))
    assert np.isfinite(loss)


def test_functional_models_may_contain_it(model, images):
    inputs = keras.Input((12, 12, 1), dtype="uint8")
    outer = keras.Model(inputs, keras.layers.Softmax()(model(inputs)))
    np.testing.assert_allclose(outer.predict(images, verbose=0).sum(-1), 1, atol=1e-6)


def test_head_may_be_a_model(backbone, images, labels):
    head = keras.Sequential([keras.layers.Dropout(0.5), keras.layers.Dense(3)])
    model = compiled(FineTuner(backbone, head))
    model.unfreeze(["head"])
    assert len(compiled(model).trainable_weights) == 2
    model.fit(images, labels, verbose=0)


def test_unfreeze_undoes_what_was_frozen_by_hand(backbone):
    head = keras.Sequential([keras.layers.Dense(4), keras.layers.Dense(3)])
    model = FineTuner(backbone, head)
    head.layers[0].trainable = False
    model.unfreeze(["head"])
    assert len(model.trainable_weights) == 4


def test_load_model_wants_a_keras_file(tmp_path):
    for path in (tmp_path, tmp_path / "none.keras", tmp_path / "model.h5"):
        with pytest.raises(UserError, match=r"\.keras file"):
            load_model(path)


def test_weights_file_round_trip(hub_folder, images, labels, tmp_path):
    from tfxfer.backbones import load_backbone

    def make():
        return FineTuner(load_backbone(str(hub_folder)), keras.layers.Dense(3))

    model = make()
    model.unfreeze(model.stage_names)
    compiled(model).fit(images, labels, verbose=0)
    model.save_weights(tmp_path / "model.weights.h5")
    other = make()
    other.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_array_equal(
        other.predict(images, verbose=0), model.predict(images, verbose=0)
    )
