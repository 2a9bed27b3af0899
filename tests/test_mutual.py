"""`MutualLearner`: students that teach each other."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy.special import log_softmax, softmax

import tfxfer
from tests.test_distiller import CE, IMAGES, LABELS, kd, network, outputs
from tfxfer import MutualLearner


def learner(**options) -> MutualLearner:
    made = MutualLearner([network(4, 1), network(6, 2), network(4, 3)], **options)
    made.compile(keras.optimizers.SGD(0.1), CE, metrics=["accuracy"], jit_compile=False)
    return made


def test_the_loss_is_that_of_the_paper():
    made = learner(weight=0.5, temperature=2.0)
    said = [outputs(each) for each in made.students]
    truth = [-log_softmax(each, -1)[np.arange(24), LABELS].mean() for each in said]
    others = [
        np.mean([kd(own, other, 2.0).mean() for other in said if other is not own]) for own in said
    ]
    logs = made.train_on_batch(IMAGES, LABELS, return_dict=True)
    np.testing.assert_allclose(logs["loss"], sum(truth) + 0.5 * sum(others), rtol=1e-5)


def test_regularisers_count_once():
    made = learner()
    plain = made.train_on_batch(IMAGES, LABELS, return_dict=True)["loss"]
    made = learner()
    kernel = made.students[1].get_layer("logits").kernel
    kernel.regularizer = keras.regularizers.L2(0.5)
    penalty = 0.5 * float(np.sum(np.square(kernel.numpy())))
    logs = made.train_on_batch(IMAGES, LABELS, return_dict=True)
    np.testing.assert_allclose(logs["loss"] - plain, penalty, rtol=1e-3)


def test_students_come_closer():
    apart, together = learner(weight=0.0), learner(weight=5.0)
    for each in (apart, together):
        each.compile(keras.optimizers.Adam(0.02), CE, jit_compile=False)
        each.fit(IMAGES, LABELS, batch_size=8, epochs=30, verbose=0)

    def distance(made: MutualLearner) -> float:
        one, other, _ = (outputs(each) for each in made.students)
        return kd(one, other, 1.0).mean()

    assert distance(together) < 0.5 * distance(apart)


def test_its_output_is_the_mean_of_probabilities():
    made = learner()
    expected = np.mean([softmax(outputs(each), -1) for each in made.students], axis=0)
    np.testing.assert_allclose(np.exp(outputs(made)), expected, rtol=1e-5)


def test_weights_may_stand_in_a_column():
    weight = np.linspace(0, 2, 24)
    flat, column = (
        learner().train_on_batch(IMAGES, LABELS, sample_weight=each)[0]
        for each in (weight, weight[:, None])
    )
    np.testing.assert_allclose(flat, column, rtol=1e-6)


def test_it_is_kept_in_files(tmp_path):
    made = learner(weight=0.3)
    made.fit(IMAGES, LABELS, verbose=0)
    made.save(tmp_path / "peers.keras")
    loaded = tfxfer.load_model(tmp_path / "peers.keras")
    np.testing.assert_allclose(outputs(loaded), outputs(made), rtol=1e-6)
    for each in (made, loaded):
        each.fit(IMAGES, LABELS, batch_size=24, epochs=2, verbose=0)
    np.testing.assert_allclose(outputs(loaded), outputs(made), rtol=1e-4)


def test_what_is_wrong_is_told():
    with pytest.raises(ValueError, match="two students"):
        MutualLearner([network(4, 1)])
    same = network(4, 1)
    with pytest.raises(ValueError, match="weights of their own"):
        MutualLearner([same, same])
    with pytest.raises(ValueError, match="Expected a list of students, received <Sequential"):
        MutualLearner(network(4, 1), network(4, 2))  # pyright: ignore
    with pytest.raises(ValueError, match="at least 0"):
        MutualLearner([network(4, 1), network(4, 2)], weight=-1)


def test_two_replicas_are_one(mirrored):
    def trained(strategy: tf.distribute.Strategy) -> list[np.ndarray]:
        with strategy.scope():
            made = learner()
        data = tf.data.Dataset.from_tensor_slices((IMAGES, LABELS)).batch(12).repeat()
        made.fit(data, steps_per_epoch=20, shuffle=False, verbose=0)
        return made.get_weights()

    one = trained(tf.distribute.get_strategy())
    two = trained(mirrored)
    for a, b in zip(one, two, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
