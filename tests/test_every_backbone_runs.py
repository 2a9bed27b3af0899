"""`--mode=inspect` and `--mode=finetune`, as a user runs them, for every kind of backbone."""

import json
import os
import subprocess
import sys

import pytest

from tests.backbone_sources import (
    archive,
    http,
    hub,
    keras_2_h5,
    keras_file,
    preset,
    signature,
    tf1_hub,
)

KINDS = {
    "glyphs": lambda folder: "glyphs",
    "hub folder": hub,
    "tar.gz": archive,
    "http": http,
    "keras file": keras_file,
    "Keras 2 h5": keras_2_h5,
    "MobileNetV2": lambda folder: "keras:MobileNetV2(weights=none)",
    "ResNet50": lambda folder: "keras:ResNet50(weights=none)",
    "VGG16": lambda folder: "keras:VGG16(weights=none)",
    "signature": signature,
    "TF1 hub format": tf1_hub,
    "KerasHub preset": preset,
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_inspected_and_fine_tuned(kind, tmp_path, data_dir):
    spec = KINDS[kind](tmp_path)
    environment = {
        **os.environ,
        "TFDS_DATA_DIR": data_dir,
        "TFHUB_CACHE_DIR": str(tmp_path / "cache"),
    }

    def tfxfer(*flags: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "tfxfer.run", f"--backbone={spec}", *flags],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    shown = tfxfer("--mode=inspect", "--list_weights")
    for line in ("images", "features", "parameters", "GFLOPs", "fingerprint", "stage"):
        assert line in shown
    said = tfxfer("--mode=finetune", "--epochs=1", "--workdir=run")
    print(said.splitlines()[-7])
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    frozen_only = kind in ("signature", "TF1 hub format")
    assert (len(results["phases"]) == 1) == frozen_only
    assert results["export"]["max_difference"] <= results["export"]["tolerance"]
    assert ("stays frozen" in said) == frozen_only


@pytest.mark.slow
@pytest.mark.timed
def test_frozen_prefix_is_free():
    """A step with all but the last stage frozen, against a full one, in alternation."""
    import time

    import keras
    import numpy as np
    import tensorflow as tf

    from tfxfer.backbones import load_backbone
    from tfxfer.models import FineTuner

    data = np.random.default_rng(0)
    images = tf.constant(data.integers(0, 256, (16, 96, 96, 3), dtype=np.uint8))
    labels = tf.constant(np.arange(16) % 5)

    def stepper(stages):
        backbone = load_backbone("keras:MobileNetV2(weights=none)", image_size=(96, 96))
        model = FineTuner(backbone, keras.layers.Dense(5))
        names = model.stage_names
        model.unfreeze(names[-2:] if stages == "last" else names)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.SGD(0.01), loss, jit_compile=False)
        return lambda: model.train_on_batch(images, labels)

    steps = {stages: stepper(stages) for stages in ("last", "all")}
    seconds: dict[str, list[float]] = {stages: [] for stages in steps}
    for _ in range(15):
        for stages, step in steps.items():
            start = time.perf_counter()
            step()
            seconds[stages].append(time.perf_counter() - start)
    last, whole = (np.median(seconds[stages][3:]) for stages in ("last", "all"))
    print(f"one step: {last * 1000:.0f} ms with a frozen prefix, {whole * 1000:.0f} ms in full")
    print(f"ratio {last / whole:.2f}")
    assert last <= 0.6 * whole


def test_nothing_frozen_is_watched(backbone, images):
    import keras
    import numpy as np
    import tensorflow as tf

    from tfxfer.models import FineTuner

    class Watching(tf.GradientTape):
        def __exit__(self, *args):
            seen.update(variable.name for variable in self.watched_variables())
            super().__exit__(*args)

    seen: set[str] = set()
    model = FineTuner(backbone, keras.layers.Dense(3))
    model.unfreeze(["block2", "head"])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss, run_eagerly=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tf, "GradientTape", Watching)
        model.train_on_batch(images[:8], np.zeros(8))
    assert seen == {weight.value.name for weight in model.trainable_weights}
