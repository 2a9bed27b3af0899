"""What replicas have in common, and what each has for itself."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfxfer import FineTuner, distribute, load_backbone
from tfxfer.distribute import describe, pick_strategy
from tfxfer.errors import UserError
from tfxfer.training.moving_average import moving
from tfxfer.training.replicas import average_statistics, separate_dropout


def model(strategy) -> keras.Model:
    with strategy.scope():
        return keras.Sequential(
            [
                keras.Input((3,)),
                keras.layers.BatchNormalization(momentum=0.5),
                keras.layers.Dropout(0.5),
            ]
        )


def run(strategy, network: keras.Model, batch: np.ndarray) -> np.ndarray:
    """Runs a network in training on a batch, half on each replica."""
    (shares,) = strategy.experimental_distribute_dataset(tf.data.Dataset.from_tensors(batch))
    outputs = strategy.run(lambda share: network(share, training=True), (shares,))
    return np.concatenate(
        [np.asarray(each) for each in strategy.experimental_local_results(outputs)]
    )


def held(strategy, variable: keras.Variable) -> list[np.ndarray]:
    return [np.asarray(each) for each in strategy.experimental_local_results(variable.value)]


def test_statistics_are_the_same_on_all_replicas(mirrored):
    network = model(mirrored)
    norm = network.layers[0]
    batch = np.arange(24, dtype=np.float32).reshape(8, 3)
    run(mirrored, network, batch)
    one, other = held(mirrored, norm.moving_mean)
    assert not np.allclose(one, other)
    average_statistics(network, mirrored)
    for each in held(mirrored, norm.moving_mean):
        np.testing.assert_allclose(each, batch.mean(axis=0) / 2, rtol=1e-6)
    one, other = held(mirrored, norm.moving_variance)
    np.testing.assert_array_equal(one, other)


def test_frozen_statistics_stay_to_the_bit(mirrored):
    network = model(mirrored)
    norm = network.layers[0]
    norm.moving_mean.assign(np.array([0.1, 0.2, 0.3], np.float32))
    norm.trainable = False
    average_statistics(network, mirrored)
    for each in held(mirrored, norm.moving_mean):
        np.testing.assert_array_equal(each, np.array([0.1, 0.2, 0.3], np.float32))


def test_each_replica_draws_its_own_dropout(mirrored):
    network = model(mirrored)
    network.layers[0].trainable = False
    ones = np.ones((200, 3), np.float32)
    before = [tf.identity(each) for each in held(mirrored, network.layers[1].seed_generator.state)]
    same = run(mirrored, network, ones) > 0
    np.testing.assert_array_equal(same[:100], same[100:])  # Keras' own.
    for _ in range(2):  # As a phase begins, or goes on: it follows from the first replica's.
        for state, value in zip(
            mirrored.experimental_local_results(network.layers[1].seed_generator.state.value),
            before,
            strict=True,
        ):
            state.assign(value)
        separate_dropout(network, mirrored)
        mask = run(mirrored, network, ones) > 0
        np.testing.assert_array_equal(mask[:100], same[:100])
        assert 0.4 < np.mean(mask[:100] == mask[100:]) < 0.6


def test_strategies_by_name(two_cpus):
    assert pick_strategy("none").num_replicas_in_sync == 1
    assert pick_strategy().num_replicas_in_sync == 1  # A CPU is split to try things out alone.
    assert describe(pick_strategy("none")) == "1 CPU"


@pytest.mark.parametrize(
    ("name", "message"),
    [("multiworker", "TF_CONFIG is not set"), ("tpu", "must have a TPU, and there is none")],
)
def test_devices_that_are_not_there_are_told_at_once(name, message, monkeypatch):
    for variable in ("TF_CONFIG", "SLURM_PROCID", "TPU_NAME"):
        monkeypatch.delenv(variable, raising=False)
    with pytest.raises(UserError, match=message):
        pick_strategy(name)


def test_workers_of_a_slurm_step(monkeypatch):
    for name, value in {
        "SLURM_PROCID": "1",
        "SLURM_STEP_NODELIST": "n[1-2]",
        "SLURM_STEP_NUM_NODES": "2",
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("shutil.which", lambda program: None)
    assert distribute._from_slurm() == {
        "cluster": {"worker": ["n1:8888", "n2:8888"]},
        "task": {"type": "worker", "index": 1},
    }


def test_batch_normalization_by_the_whole_batch(mirrored):
    """Each replica normalizes by all of it, and has its averages."""
    with mirrored.scope():
        network = keras.Sequential(
            [keras.Input((3,)), keras.layers.BatchNormalization(momentum=0.5)]
        )
        network.layers[0].synchronized = True
    batch = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
    found = run(mirrored, network, batch)
    wanted = (batch - batch.mean(axis=0)) / np.sqrt(batch.var(axis=0) + 1e-3)
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    one, other = held(mirrored, network.layers[0].moving_mean)
    np.testing.assert_array_equal(one, other)


def test_one_strategy_a_process():
    assert pick_strategy("none") is pick_strategy("none", 0)
    with pytest.raises(UserError, match="is of others"):
        pick_strategy("multiworker", 2)


def test_an_average_leaves_statistics_to_the_replicas(mirrored):
    with mirrored.scope():
        backbone = load_backbone("tiny", data_size=(16, 16), image_size=(16, 16), bn="train")
        student = FineTuner(backbone, keras.layers.Dense(2))
    student.unfreeze(student.stage_names)
    averaged = {id(each) for each in moving(student)}
    statistics = {id(each) for stage in student.stages for each in stage.statistics}
    assert statistics
    assert averaged == {id(each) for each in student.weights} - statistics
