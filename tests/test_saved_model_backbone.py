"""The Keras layer around a SavedModel in TF Hub format."""

import shutil
import tarfile

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.conftest import moved, small_network, values
from tests.served import Served
from tfxfer.backbones import load_backbone
from tfxfer.backbones.graph import variables_by_depth
from tfxfer.backbones.hub import resolve
from tfxfer.errors import UserError
from tfxfer.export import save_hub_module
from tfxfer.models import FineTuner, load_model


def fit(model, images, labels, **kwargs):
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model.fit(images, labels, batch_size=8, verbose=0, **kwargs)


def test_weights_are_the_variables_of_the_module(backbone):
    assert [stage.name for stage in backbone.stages] == ["block1", "block2"]
    assert [len(stage.learned) for stage in backbone.stages] == [4, 4]
    assert [len(stage.statistics) for stage in backbone.stages] == [2, 2]
    assert len(backbone.weights) == 12
    assert backbone.weights[0].path == "block1/conv/kernel"
    in_stages = [id(weight) for stage in backbone.stages for weight in stage.weights]
    assert sorted(in_stages) == sorted(id(weight) for weight in backbone.weights)


def test_contract_is_read_from_the_signature(backbone):
    assert backbone.contract.size == (16, 16)
    assert backbone.contract.channels == 3
    assert backbone.units == 8
    assert backbone.compute_output_shape((5, 9, 9, 1)) == (5, 8)


def test_features_are_those_of_the_network_itself(hub_folder, backbone, images):
    features = backbone(images)
    prepared = tf.image.resize(tf.cast(np.repeat(images, 3, -1), tf.float32), (16, 16)) / 255
    expected = tf.saved_model.load(str(hub_folder))(prepared)
    assert features.dtype == "float32"
    np.testing.assert_allclose(features, expected, atol=1e-5)


def test_images_of_any_size_and_channels_are_taken(backbone):
    rng = np.random.default_rng(0)
    for shape in ((2, 40, 30, 3), (1, 5, 7, 1), (3, 16, 16, 3)):
        assert backbone(rng.integers(0, 256, shape, dtype=np.uint8)).shape == (shape[0], 8)


@pytest.mark.parametrize("shape", [(8, 8), (16, 16, 3), (2, 16, 16, 2), (2, 16, 16, 4)])
def test_images_of_another_rank_or_channels_are_refused(backbone, shape):
    with pytest.raises(ValueError, match=r"Expected images \[batch, height, width, 1 or 3\]"):
        backbone(np.zeros(shape, np.uint8))


def test_colour_becomes_grey_for_a_grey_network(tmp_path):
    save_hub_module(small_network(channels=1), tmp_path / "grey")
    grey = load_backbone(str(tmp_path / "grey"))
    assert grey(np.zeros((2, 16, 16, 3), np.uint8)).shape == (2, 8)


def test_it_starts_frozen_and_stays_bit_identical(model, images, labels):
    assert model.backbone.unfrozen == ()
    before = values(model.backbone.weights)
    fit(model, images, labels, epochs=2)
    assert moved(before, model.backbone.weights) == [False] * 12
    assert model.backbone.losses == []


def test_unfrozen_it_trains_and_its_statistics_move(model, images, labels):
    model.unfreeze(model.stage_names)
    before = values(model.backbone.weights)
    fit(model, images, labels)
    assert moved(before, model.backbone.weights) == [True] * 12


def test_partly_frozen_only_the_unfrozen_stage_moves(model, images, labels):
    model.unfreeze(["block2", "head"])
    block1, block2 = model.backbone.stages
    frozen, learned, statistics = map(values, (block1.weights, block2.learned, block2.statistics))
    fit(model, images, labels)
    assert not any(moved(frozen, block1.weights))
    assert all(moved(learned, block2.learned))
    assert not any(moved(statistics, block2.statistics))


def test_evaluation_changes_nothing(model, images, labels):
    model.unfreeze(model.stage_names)
    fit(model, images, labels)
    before = values(model.weights)
    model.evaluate(images, labels, verbose=0)
    model.predict(images, verbose=0)
    assert not any(moved(before, model.weights))


def test_unfreezing_again_and_again_is_exact(backbone):
    for stages in (["block2"], ["block1", "block2"], [], ["block1"], ["block2"]):
        backbone.unfreeze(stages)
        assert list(backbone.unfrozen) == stages
        assert len(backbone.trainable_weights) == 4 * len(stages)
    backbone.freeze_below("block1")
    assert backbone.unfrozen == ("block1", "block2")
    backbone.freeze_below("block2")
    assert backbone.unfrozen == ("block2",)
    backbone.unfreeze("block1")
    assert backbone.unfrozen == ("block1",)
    backbone.trainable = False
    assert backbone.unfrozen == ()


def test_unknown_stage_is_refused(backbone):
    with pytest.raises(ValueError, match=r"\['block1', 'block2'\], received \['block3'\]"):
        backbone.unfreeze(["block3"])
    with pytest.raises(ValueError, match="block3"):
        backbone.freeze_below("block3")


def test_regularization_losses_count_in_training_alone(model, images):
    model.unfreeze(["block1"])
    model(images, training=True)
    kernels = [w for w in model.backbone.weights if w.path.endswith("kernel")]
    expected = sum(float(np.sum(np.square(kernel.numpy()))) for kernel in kernels)
    assert float(sum(model.losses)) == pytest.approx(expected, rel=1e-5)
    model(images, training=False)
    assert model.losses == []


def test_training_and_inference_differ_only_when_all_is_unfrozen(backbone, images):
    inference = backbone(images, training=False).numpy()
    for stages in ([], ["block2"]):
        backbone.unfreeze(stages)
        np.testing.assert_array_equal(backbone(images, training=True), inference)
    backbone.unfreeze(["block1", "block2"])
    assert np.abs(backbone(images, training=True) - inference).max() > 0.01


@pytest.mark.parametrize("stages", [(), ("block2",), ("block1", "block2")])
def test_under_a_strategy_it_trains_and_freezes_as_without(
    hub_folder, images, labels, mirrored, stages
):
    with mirrored.scope():
        model = FineTuner(load_backbone(str(hub_folder), bn="stage"), keras.layers.Dense(3))
        model.unfreeze([*stages, "head"])
        before = [values(stage.learned) for stage in model.backbone.stages]
        statistics = [values(stage.statistics) for stage in model.backbone.stages]
        fit(model, images, labels)
    whole = len(stages) == 2
    for stage, learned, averages in zip(model.backbone.stages, before, statistics, strict=True):
        assert all(moved(learned, stage.learned)) == (stage.name in stages)
        assert any(moved(learned, stage.learned)) == (stage.name in stages)
        assert all(moved(averages, stage.statistics)) == whole
        assert any(moved(averages, stage.statistics)) == whole


def test_made_outside_the_scope_it_says_so(backbone, images, mirrored):
    with mirrored.scope(), pytest.raises(RuntimeError, match=r"with strategy\.scope"):
        backbone(images)


@pytest.fixture
def served(tmp_path, hub_folder, monkeypatch):
    folder = tmp_path / "www"
    folder.mkdir()
    with tarfile.open(folder / "small.tar.gz", "w:gz") as archive:
        archive.add(hub_folder, arcname=".")
    (folder / "empty.tar.gz").touch()
    with tarfile.open(folder / "other.tar.gz", "w:gz") as archive:
        archive.add(__file__, arcname="./text.py")
    monkeypatch.setenv("TFHUB_CACHE_DIR", str(tmp_path / "cache"))
    served = Served(folder)
    yield served
    served.close()


def test_handle_is_downloaded_once_through_tf_hub(served, backbone, images):
    remote = load_backbone(f"{served.url}/small.tar.gz")
    np.testing.assert_array_equal(remote(images), backbone(images))
    assert remote.fingerprint == backbone.fingerprint
    asked = len(served.requests)
    load_backbone(f"{served.url}/small.tar.gz")
    assert asked >= 1
    assert len(served.requests) == asked


@pytest.mark.parametrize("name", ["missing.tar.gz", "empty.tar.gz", "other.tar.gz"])
def test_bad_download_is_one_error(served, name):
    with pytest.raises(UserError, match=name):
        load_backbone(f"{served.url}/{name}")


def test_incomplete_or_foreign_folders_are_refused(hub_folder, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(hub_folder, broken)
    shutil.rmtree(broken / "variables")
    with pytest.raises(UserError, match="readable SavedModel"):
        load_backbone(str(broken))
    module = tf.Module()
    module.f = tf.function(lambda x, y: x, input_signature=[tf.TensorSpec([None, 2])] * 2)
    tf.saved_model.save(module, str(tmp_path / "module"))
    with pytest.raises(UserError, match="one tensor of images or texts, in its __call__ or in"):
        load_backbone(str(tmp_path / "module"))


class Module(tf.Module):
    """A reusable SavedModel with the variables and the calls that a test wants."""

    variables: list = []  # noqa: RUF012  (hides a property of tf.Module)
    trainable_variables: list = []  # noqa: RUF012

    def __init__(self, names=("kernel",), trainable=True, batch=None):
        super().__init__()
        made = [tf.Variable(tf.random.normal((3, 3)), name=name) for name in names]
        self.layers = made
        self.variables = [*made, *made[:1]]  # A variable may be listed twice.
        self.trainable_variables = list(made) if trainable else []
        self.regularization_losses = []
        for free in (batch, None):
            self.__call__.get_concrete_function(tf.TensorSpec((free, 4, 4, 3)), training=False)

    @tf.function
    def __call__(self, inputs, training=False):
        features = tf.reduce_mean(inputs, (1, 2))
        for variable in self.layers:
            features = tf.matmul(features, variable)
        return features


def saved(module, path) -> str:
    tf.saved_model.save(module, str(path))
    return str(path)


@pytest.mark.parametrize(
    ("names", "stages"),
    [
        (["net/conv1/w", "net/conv1/b", "net/block/a/w", "net/block/b/w"], ["conv1", "block"]),
        (["kernel", "bias", "kernel"], ["kernel", "bias", "kernel_2"]),
        (["kernel"], ["kernel"]),
        (["conv1_conv/w", "conv2_block1_1_bn/w", "conv2_block2_out/w"], ["conv1", "conv2"]),
        (["block_1_expand/w", "block_1_project/w", "block_2_expand/w"], ["block_1", "block_2"]),
        (["stem/w", "net_stage_0_block_0/w", "net_stage_0_block_1/w"], ["stem", "net_stage_0"]),
        (["body/w", "head/w"], ["body", "head_1"]),
        (["net/same/w", "net/same/b"], ["w", "b"]),
    ],
)
def test_stages_come_from_names_and_from_the_order_in_the_graph(names, stages, tmp_path):
    backbone = load_backbone(saved(Module(names), tmp_path / "hub"))
    assert [stage.name for stage in backbone.stages] == stages
    in_order = [id(weight) for stage in backbone.stages for weight in stage.weights]
    assert in_order == [id(weight) for weight in backbone.weights]


def test_stages_follow_the_graph_and_not_the_list(tmp_path):
    module = Module(["a/w", "b/w", "c/w"])
    module.variables = module.variables[::-1]  # Now the graph's input side stands last.
    path = saved(module, tmp_path / "hub")
    listed = [v.name for v in tf.saved_model.load(path).variables]
    assert listed == ["a/w:0", "c/w:0", "b/w:0", "a/w:0"]
    assert [stage.name for stage in load_backbone(path).stages] == ["a", "b", "c"]


def test_stages_of_a_deep_network_follow_its_layers(tmp_path):
    network = keras.applications.MobileNetV2(
        alpha=0.35, weights=None, include_top=False, pooling="avg", input_shape=(32, 32, 3)
    )
    save_hub_module(network, tmp_path / "hub")
    module = tf.saved_model.load(str(tmp_path / "hub"))
    trace = next(
        trace
        for trace in module.__call__.concrete_functions
        if trace.structured_input_signature[0][1] is False
    )
    order = variables_by_depth(trace, module.variables)
    correlation = np.corrcoef(order, range(len(order)))[0, 1]  # Both are ranks already.
    print(f"rank correlation of graph order and layer order: {correlation:.4f}")
    assert correlation > 0.99


def test_module_without_trainable_variables_is_frozen_for_good(tmp_path, images, labels):
    backbone = load_backbone(saved(Module(trainable=False), tmp_path / "hub"))
    assert backbone.stages == ()
    model = FineTuner(backbone, keras.layers.Dense(3))
    assert model.stage_names == ("head",)
    before = values(backbone.weights)
    model.unfreeze(["head"])
    fit(model, images, labels)
    assert not any(moved(before, backbone.weights))


def test_module_without_variables_is_taken(tmp_path):
    backbone = load_backbone(saved(Module([]), tmp_path / "hub"))
    assert backbone.weights == []
    assert backbone(np.zeros((2, 4, 4, 3), np.uint8)).shape == (2, 3)


def test_trace_with_a_free_batch_is_the_contract(tmp_path):
    backbone = load_backbone(saved(Module(batch=2), tmp_path / "hub"))
    assert backbone(np.zeros((5, 4, 4, 3), np.uint8)).shape == (5, 3)


def test_module_without_a_trace_is_refused(tmp_path):
    class Untraced(Module):
        def __init__(self):
            tf.Module.__init__(self)
            self.variables = self.trainable_variables = self.regularization_losses = []

        @tf.function
        def __call__(self, *, images):
            return images

    module = Untraced()
    module.__call__.get_concrete_function(images=tf.TensorSpec((None, 4, 4, 3)))
    with pytest.raises(UserError, match="one tensor of images"):
        load_backbone(saved(module, tmp_path / "hub"))


def test_xla_is_left_off(model):
    # Keras turns it on by itself on a GPU, where the antialiased resize has no kernel.
    model.compile("adam", "mse")
    assert not model.jit_compile
    assert not model.backbone.supports_jit


def test_network_that_takes_no_images_is_refused(tmp_path):
    network = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    save_hub_module(network, tmp_path / "tabular")
    with pytest.raises(UserError, match="must take images"):
        load_backbone(str(tmp_path / "tabular"))


def test_maps_and_dicts_become_features(tmp_path):
    inputs = keras.Input((8, 8, 3))
    maps = keras.layers.Conv2D(5, 3, name="conv")(inputs)
    network = keras.Model(inputs, {"default": maps, "other": keras.layers.Flatten()(maps)})
    save_hub_module(network, tmp_path / "maps")
    backbone = load_backbone(str(tmp_path / "maps"))
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    assert backbone.units == 5
    expected = network(images / np.float32(255))["default"]
    np.testing.assert_allclose(backbone(images), np.mean(expected, axis=(1, 2)), atol=1e-5)


def test_stages_are_few_and_cover_every_weight(tmp_path):
    network = keras.Sequential(
        [keras.Input((8, 8, 3))]
        + [keras.layers.Conv2D(4, 1, name=f"conv{i}") for i in range(20)]
        + [keras.layers.GlobalAveragePooling2D()]
    )
    save_hub_module(network, tmp_path / "deep")
    backbone = load_backbone(str(tmp_path / "deep"))
    assert len(backbone.stages) == 8
    assert backbone.stages[0].name == "conv0..conv1"
    in_order = [id(weight) for stage in backbone.stages for weight in stage.weights]
    assert in_order == [id(weight) for weight in backbone.weights]


def test_fingerprint_changes_with_the_weights(hub_folder, backbone, tmp_path):
    save_hub_module(small_network(), tmp_path / "other")
    assert load_backbone(str(tmp_path / "other")).fingerprint != backbone.fingerprint
    copy = shutil.copytree(hub_folder, tmp_path / "copy")
    assert load_backbone(str(copy)).fingerprint == backbone.fingerprint


def test_keras_file_comes_back_exact_and_trains_on(model, images, labels, tmp_path):
    model.unfreeze(["block2", "head"])
    fit(model, images, labels)
    model.save(tmp_path / "model.keras")
    again = load_model(tmp_path / "model.keras", safe_mode=False)
    assert values(again.weights) == values(model.weights)
    assert again.backbone.unfrozen == ("block2",)
    np.testing.assert_array_equal(
        again.predict(images, verbose=0), model.predict(images, verbose=0)
    )
    frozen = values(again.backbone.stages[0].weights)
    again.fit(images, labels, verbose=0)
    assert not any(moved(frozen, again.backbone.stages[0].weights))


def test_safe_mode_runs_no_foreign_saved_model(model, hub_folder, tmp_path):
    model.save(tmp_path / "model.keras")
    with pytest.raises(ValueError, match="safe_mode=False"):
        load_model(tmp_path / "model.keras")


class TestGlyphs:
    """The embedded backbone."""

    def test_it_is_a_tf_hub_module(self):
        import tensorflow_hub as hub

        module = hub.load(str(resolve("glyphs")))
        features = module(tf.random.uniform((2, 32, 32, 3)), training=False)
        assert features.shape == (2, load_backbone("glyphs").units)
        assert len(module.variables) > len(module.trainable_variables) > 0
        assert all(np.isfinite(loss()) for loss in module.regularization_losses)

    def test_it_is_small(self):
        files = [path for path in resolve("glyphs").rglob("*") if path.is_file()]
        assert sum(path.stat().st_size for path in files) < 1.5e6

    def test_it_loads_again_in_safe_mode(self, tmp_path, images):
        model = FineTuner(load_backbone("glyphs"), keras.layers.Dense(3))
        model.save(tmp_path / "model.keras")
        again = load_model(tmp_path / "model.keras")
        np.testing.assert_array_equal(again(images), model(images))
