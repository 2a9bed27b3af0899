"""Shared parts: a small module in TF Hub format, and the digits prepared once."""

import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfxfer.backbones import Backbone, load_backbone
from tfxfer.data.sources import open_dataset
from tfxfer.export import save_hub_module
from tfxfer.models import FineTuner


@pytest.fixture(scope="session", autouse=True)
def two_cpus():
    """Two logical devices, so that strategies have something to distribute over."""
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    return [device.name for device in tf.config.list_logical_devices("CPU")]


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """A cache of these tests alone: features that older code has left must not be read."""
    patch = pytest.MonkeyPatch()
    patch.setenv("TFXFER_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
    yield
    patch.undo()


@pytest.fixture(scope="session")
def mirrored(two_cpus) -> tf.distribute.MirroredStrategy:
    """One for all tests: the collectives of two strategies in one process collide."""
    return tf.distribute.MirroredStrategy(two_cpus)


@pytest.fixture(autouse=True)
def seeded():
    keras.utils.set_random_seed(7)


def small_network(size: int = 16, channels: int = 3) -> keras.Model:
    """Two blocks with batch normalization, dropout and a regularizer; 8 features."""

    def block(name: str, filters: int) -> keras.Model:
        return keras.Sequential(
            [
                keras.layers.Conv2D(
                    filters, 3, strides=2, name="conv", kernel_regularizer=keras.regularizers.L2(1)
                ),
                keras.layers.BatchNormalization(momentum=0.5, name="bn"),
                keras.layers.ReLU(),
            ],
            name=name,
        )

    return keras.Sequential(
        [
            keras.Input((size, size, channels)),
            block("block1", 4),
            block("block2", 8),
            keras.layers.Dropout(0.5),
            keras.layers.GlobalAveragePooling2D(),
        ]
    )


def values(weights) -> list[bytes]:
    """The weights' values, to be compared bit by bit."""
    return [np.array(weight.numpy()).tobytes() for weight in weights]


def moved(before: list[bytes], weights) -> list[bool]:
    """Which weights are no longer as they were."""
    return [old != new for old, new in zip(before, values(weights), strict=True)]


@pytest.fixture(scope="session")
def hub_folder(tmp_path_factory) -> Path:
    keras.utils.set_random_seed(1)
    path = tmp_path_factory.mktemp("hub") / "small"
    save_hub_module(small_network(), path)
    return path


@pytest.fixture
def backbone(hub_folder) -> Backbone:
    return load_backbone(str(hub_folder), bn="stage")


@pytest.fixture
def model(backbone) -> FineTuner:
    return FineTuner(backbone, keras.layers.Dense(3))


@pytest.fixture(scope="session")
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (24, 12, 12, 1), dtype=np.uint8)


@pytest.fixture(scope="session")
def labels() -> np.ndarray:
    return np.arange(24) % 3


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory) -> str:
    return str(tmp_path_factory.mktemp("tfds"))


@pytest.fixture(scope="session")
def digits(data_dir):
    return open_dataset("digits", data_dir)
