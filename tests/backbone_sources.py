"""One small network of every kind that a backbone is loaded from."""

import shutil
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from tests.conftest import small_network
from tests.served import Served
from tfxfer.backbones import Backbone, ImageContract
from tfxfer.export import save_hub_module


@dataclass(frozen=True)
class Source:
    """How a test makes a backbone.

    Attributes:
        make: Writes what is to be loaded into a folder, and returns the spec or the model.
        trains: Whether it can be unfrozen.
        options: More arguments of `load_backbone`.
        safe: Whether a `.keras` file of it loads in Keras' safe mode.
        inputs: `image` or `text`.
        replicas: Whether it runs on several devices of one kind.
    """

    make: Callable[[Path], Any]
    trains: bool = True
    options: tuple[tuple[str, Any], ...] = ()
    safe: bool = True
    inputs: str = "image"
    replicas: bool = True


def range_of(backbone: Backbone) -> tuple[float, float]:
    """What a backbone wants of black and of white."""
    assert isinstance(backbone.contract, ImageContract)
    return backbone.contract.value_range


def classifier() -> keras.Model:
    """`small_network` with a classifier on it, trained enough that its averages have moved."""
    network = small_network()
    model = keras.Sequential([network, keras.layers.Dense(3, "softmax", name="classes")])
    model(keras.random.uniform((8, 16, 16, 3)), training=True)
    return model


def hub(folder: Path) -> str:
    save_hub_module(small_network(), folder / "hub")
    return str(folder / "hub")


def pack(source: str, archive: Path) -> Path:
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(source, arcname=".")
    return archive


def archive(folder: Path) -> str:
    return str(pack(hub(folder), folder / "small.tar.gz"))


def http(folder: Path) -> str:
    served = Served(pack(hub(folder), folder / "small.tar.gz").parent)
    return f"{served.url}/small.tar.gz"


def keras_file(folder: Path) -> str:
    classifier().save(folder / "small.keras")
    return str(folder / "small.keras")


def keras_3_h5(folder: Path) -> str:
    save_quietly(classifier(), folder / "small.h5")
    return str(folder / "small.h5")


def keras_2_model(*, with_op: bool = False) -> Any:
    """A Keras 2 network with a layer that Keras 3 refuses, and with a classifier."""
    import tf_keras

    inputs = tf_keras.Input((16, 16, 3))
    x = tf_keras.layers.DepthwiseConv2D(3, strides=2, name="block1_depthwise")(inputs)
    x = tf_keras.layers.BatchNormalization(momentum=0.5, name="block1_bn")(x)
    if with_op:
        x = tf.nn.relu(x) * 2.0
    x = tf_keras.layers.SeparableConv2D(8, 3, strides=2, name="block2_conv")(x)
    x = tf_keras.layers.BatchNormalization(momentum=0.5, name="block2_bn")(x)
    x = tf_keras.layers.GlobalAveragePooling2D()(x)
    model = tf_keras.Model(inputs, tf_keras.layers.Dense(3, name="classes")(x))
    model(tf.random.uniform((8, 16, 16, 3)), training=True)
    return model


def keras_2_h5(folder: Path) -> str:
    save_quietly(keras_2_model(), folder / "keras2.h5")
    return str(folder / "keras2.h5")


def keras_2_op_h5(folder: Path) -> str:
    save_quietly(keras_2_model(with_op=True), folder / "keras2.h5")
    return str(folder / "keras2.h5")


def save_quietly(model: Any, path: Path) -> None:
    import warnings

    with warnings.catch_warnings():  # Keras calls HDF5 legacy.
        warnings.simplefilter("ignore")
        model.save(path)


def signature(folder: Path) -> str:
    """A SavedModel with a serving signature alone, as Keras 3 exports it."""
    small_network().export(str(folder / "plain"), verbose=False)
    shutil.copytree(folder / "plain", folder / "served")
    return str(folder / "served")


def uint8_signature(folder: Path) -> str:
    """A SavedModel that takes uint8 and gives several outputs."""
    module = tf.Module()
    module.kernel = tf.Variable(tf.random.normal((3, 5)))

    @tf.function(input_signature=[tf.TensorSpec((None, 8, 8, 3), tf.uint8, name="images")])
    def serve(images):
        features = tf.reduce_mean(tf.cast(images, tf.float32), (1, 2)) @ module.kernel
        return {"features": features, "labels": tf.argmax(features, -1)}

    tf.saved_model.save(module, str(folder / "uint8"), signatures={"serving_default": serve})
    return str(folder / "uint8")


def tf1_hub(folder: Path) -> str:
    """A module in TF Hub's TF1 format, written in TF1's way."""
    v1 = tf.compat.v1
    path = folder / "tf1"
    with tf.Graph().as_default(), v1.Session() as session:
        images = v1.placeholder(tf.float32, (None, 8, 8, 3))
        kernel = v1.get_variable("conv/kernel", (3, 3, 3, 4), use_resource=True)
        features = tf.reduce_mean(tf.nn.relu(tf.nn.conv2d(images, kernel, 1, "SAME")), (1, 2))
        session.run(v1.global_variables_initializer())
        signature = v1.saved_model.signature_def_utils.build_signature_def(
            {"images": v1.saved_model.utils.build_tensor_info(images)},
            {"default": v1.saved_model.utils.build_tensor_info(features)},
            "tensorflow/serving/predict",
        )
        builder = v1.saved_model.Builder(str(path))
        builder.add_meta_graph_and_variables(session, [], {"default": signature})
        builder.save()
    (path / "tfhub_module.pb").write_bytes(b"\x08\x03")
    return str(path)


def preset(folder: Path) -> str:
    import keras_hub

    network = keras_hub.models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[3],
        stackwise_num_filters=[64, 64],
        stackwise_num_blocks=[1, 1],
        stackwise_num_strides=[1, 2],
        block_type="basic_block",
        image_shape=(16, 16, 3),
    )
    network.save_to_preset(str(folder / "preset"))
    converter = keras_hub.layers.ResNetImageConverter(image_size=(16, 16), scale=1 / 255)
    converter.save_to_preset(str(folder / "preset"))
    return f"keras_hub:{folder / 'preset'}"


@keras.saving.register_keras_serializable(package="tests")
class Subclassed(keras.Model):
    """A model that is no graph of layers."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.conv = keras.layers.Conv2D(6, 3, name="conv")
        self.bn = keras.layers.BatchNormalization(momentum=0.5, name="bn")

    def call(self, inputs, training=False):
        return self.bn(self.conv(inputs), training=training)


SOURCES = {
    "glyphs": Source(lambda folder: "glyphs"),
    "tiny": Source(lambda folder: "tiny"),
    "hub folder": Source(hub, safe=False),
    "tar.gz": Source(archive, safe=False),
    "http": Source(http, safe=False),
    "keras file": Source(keras_file),
    "h5": Source(keras_3_h5),
    "Keras 2 h5": Source(keras_2_h5),
    "Keras 2 h5 that Keras 3 refuses": Source(keras_2_op_h5, safe=False),
    "keras:NAME": Source(
        lambda folder: "keras:MobileNet(alpha=0.25, weights=none)",
        options=(("image_size", (32, 32)),),
    ),
    "functional model": Source(lambda folder: classifier()),
    "subclassed model": Source(lambda folder: Subclassed(), options=(("image_size", (16, 16)),)),
    "KerasHub preset": Source(preset),
    "signature": Source(signature, trains=False, safe=False),
    "uint8 signature": Source(uint8_signature, trains=False, safe=False),
    "TF1 hub format": Source(tf1_hub, trains=False, safe=False),
}
