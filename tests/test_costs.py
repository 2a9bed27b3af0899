"""What a whole model costs."""

import itertools
import subprocess
import sys

import keras
import pytest

from tests.conftest import small_network
from tfxfer import costs
from tfxfer.backbones import load_backbone
from tfxfer.backbones.cost import measure_cost
from tfxfer.costs import ModelCost, model_cost, summed
from tfxfer.export import save_predictor
from tfxfer.models import FineTuner
from tfxfer.task import SINGLE_LABEL, Task


def network(dtype: str = "float32") -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((8, 8, 2)),
            keras.layers.Conv2D(4, 3, use_bias=False, dtype=dtype),
            keras.layers.Flatten(),
            keras.layers.Dense(5, use_bias=False, dtype=dtype),
        ]
    )


def test_weights_and_operations_are_counted():
    found = model_cost(network(), (8, 8, 2))
    assert found.parameters == 3 * 3 * 2 * 4 + 6 * 6 * 4 * 5
    assert found.bytes == 4 * found.parameters
    # A convolution multiplies and adds each weight at 6x6 places, a dense layer each once.
    assert found.flops == 2 * (36 * 3 * 3 * 2 * 4 + 144 * 5)
    assert 0 < found.latency_ms < 1000


def test_half_precision_takes_half_the_bytes():
    assert model_cost(network("bfloat16"), (8, 8, 2)).bytes == 2 * network().count_params()


class Odd(keras.Model):
    """Written by hand, not yet built, with several outputs and statistics that do not train."""

    def __init__(self):
        super().__init__()
        self.conv = keras.layers.Conv2D(4, 3)
        self.bn = keras.layers.BatchNormalization()
        self.pool = keras.layers.GlobalAveragePooling2D()

    def call(self, inputs, training=False):
        maps = self.bn(self.conv(inputs), training=training)
        return {"maps": maps, "pooled": self.pool(maps)}


def test_any_model_can_be_measured_and_is_left_as_it_was():
    model = Odd()
    found = model_cost(model, (None, 16, 1))
    assert found.parameters == (9 * 4 + 4) + 4 * 4
    assert (model.bn.moving_mean.numpy() == 0).all()


def test_a_head_comes_on_top_of_its_backbone(model, backbone):
    height, width = backbone.contract.size
    found = model_cost(model, (height, width, 3), "uint8")
    assert found.parameters == model.count_params()
    assert 0 < found.flops - measure_cost(backbone).flops < 100


@pytest.mark.parametrize("kind", ["hub", "keras"])
def test_disk_is_what_a_saved_model_takes(model, tmp_path, kind):
    if kind == "keras":
        small_network().save(tmp_path / "small.keras")
        model = FineTuner(load_backbone(str(tmp_path / "small.keras")), keras.layers.Dense(3))
    found = model_cost(model, (16, 16, 3), "uint8")
    save_predictor(model, tmp_path / "1", Task(SINGLE_LABEL, ("a", "b", "c")), (16, 16, 3))
    size = sum(file.stat().st_size for file in (tmp_path / "1").rglob("*") if file.is_file())
    assert found.disk_bytes == pytest.approx(size, rel=0.15)


def test_each_weight_takes_disk_once():
    large = keras.Sequential([keras.Input((8, 8, 2)), keras.layers.Flatten()])
    large.add(keras.layers.Dense(10_000))
    found = model_cost(large, (8, 8, 2))
    assert found.bytes < found.disk_bytes < 1.02 * found.bytes


def test_memory_is_weights_and_what_a_batch_needs():
    maps = 100 * 100 * 16 * 4
    wide = keras.Sequential([keras.Input((100, 100, 1)), keras.layers.Conv2D(16, 1)])
    wide.add(keras.layers.GlobalAveragePooling2D())
    found = model_cost(wide, (100, 100, 1))
    assert found.memory_bytes is not None
    assert 32 * maps < found.memory_bytes - found.bytes < 3 * 32 * maps


FIRST = """
from tfxfer.backbones import load_backbone
from tfxfer.costs import model_cost
for _ in range(2):
    print(model_cost(load_backbone("glyphs"), (32, 32, 3), "uint8").memory_bytes)
"""


def test_memory_of_the_first_model_of_a_process_is_its_own():
    done = subprocess.run([sys.executable, "-c", FIRST], capture_output=True, text=True, check=True)
    first, second = map(int, done.stdout.split())
    assert first == pytest.approx(second, rel=0.5)  # Twice and a half of it without a warm-up.


def test_memory_may_be_unknown(monkeypatch):
    monkeypatch.setattr(costs, "peak_bytes", lambda run: None)
    assert model_cost(network(), (8, 8, 2)).memory_bytes is None


def test_the_clock_ends_the_measurement(monkeypatch):
    runs = []
    ticks = itertools.count()
    monkeypatch.setattr(costs.time, "perf_counter", lambda: float(next(ticks)))
    assert costs._median_seconds(lambda: runs.append(1)) == 1.0
    assert len(runs) == 3 + 5, "slow runs are not repeated more than is needed"


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, None), (1, 8, 8, 2)])
def test_shapes_are_checked(shape):
    with pytest.raises(ValueError, match="height, width and channels"):
        model_cost(network(), shape)


def test_models_in_a_row_cost_the_sum():
    one, other = ModelCost(1, 4, 10, 0.5, 6, 50), ModelCost(2, 8, 30, 1.0, 9, 70)
    assert summed([one, other]) == ModelCost(3, 12, 40, 1.5, 15, 120)
    unknown = ModelCost(2, 8, 30, 1.0, 9, None)
    assert summed([one, unknown]) == ModelCost(3, 12, 40, 1.5, 15, None)
