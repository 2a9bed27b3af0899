"""What training leaves on the disk."""

import errno

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfxfer.errors import CheckpointError, UserError
from tfxfer.training.checkpoints import Checkpoints, can_go_on, read_weights


@pytest.fixture
def dense():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    keras.utils.set_random_seed(0)
    return model


def test_state_and_variables_come_back_to_the_bit(tmp_path, dense):
    checkpoints = Checkpoints(tmp_path / "run", {"seed": 1}, seconds=0)
    assert checkpoints.state() is None
    assert checkpoints.due
    before = dense.get_weights()
    state = {"loss": 0.1 + 0.2, "epoch": 3, "none": None, "list": [1e-300, 1e300]}
    checkpoints.write({"model": dense.weights}, state)
    dense.set_weights([each + 1 for each in before])
    again = Checkpoints(tmp_path / "run", {"seed": 1}, seconds=1000)
    assert not again.due
    assert again.state() == state
    again.restore({"model": dense.weights})
    for ours, theirs in zip(dense.get_weights(), before, strict=True):
        assert np.array_equal(ours, theirs)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "int64", "bool"])
def test_weights_of_any_type_come_back(dtype, tmp_path):
    checkpoints = Checkpoints(tmp_path / "run", {})
    given = [np.array([[0, 1]]).astype(dtype), np.array(1).astype(dtype)]
    checkpoints.write_arrays("some", given)
    for ours, theirs in zip(checkpoints.read_weights("some"), given, strict=True):
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
        assert np.array_equal(ours, theirs)


def test_the_last_checkpoint_counts_and_is_the_only_one(tmp_path, dense):
    checkpoints = Checkpoints(tmp_path / "run", {}, seconds=0)
    for epoch in range(4):
        checkpoints.write({"model": dense.weights}, {"epoch": epoch})
    assert checkpoints.state() == {"epoch": 3}
    assert len(list((tmp_path / "run" / "step").glob("*.index"))) == 1


def test_one_that_was_cut_short_does_not_count(tmp_path, dense, monkeypatch):
    """As a killed process leaves it: new files, and a list that does not name them."""
    checkpoints = Checkpoints(tmp_path / "run", {}, seconds=0)
    checkpoints.write({"model": dense.weights}, {"epoch": 0})
    step = tmp_path / "run" / "step"
    (step / "ckpt-2.data-00000-of-00001").write_bytes(b"half")
    assert checkpoints.state() == {"epoch": 0}
    checkpoints.restore({"model": dense.weights})
    checkpoints.write({"model": dense.weights}, {"epoch": 1})
    assert checkpoints.state() == {"epoch": 1}


def test_other_variables_are_refused(tmp_path, dense):
    checkpoints = Checkpoints(tmp_path / "run", {}, seconds=0)
    checkpoints.write({"model": dense.weights}, {})
    more = keras.layers.Dense(3)
    more.build((None, 4))
    with pytest.raises(AssertionError):
        checkpoints.restore({"model": dense.weights, "more": more.weights})


def test_what_changed_is_named(tmp_path, dense):
    begun = {"plan": {"stages": ("head",)}, "data": "0", "backbone": "1"}
    first = Checkpoints(tmp_path / "run", begun)
    first.write_weights("start", dense, np.array([1.0, 2.0]))
    same = Checkpoints(tmp_path / "run", begun)
    assert same.has_weights("start")
    assert same.read_losses("start") is not None
    for other, names in (
        ({"data": "2"}, "data"),
        ({"plan": {"stages": ("head", "block1")}, "backbone": "2"}, "plan and backbone"),
    ):
        with pytest.raises(UserError, match=f"another {names}. Replace it with --overwrite"):
            Checkpoints(tmp_path / "run", {**begun, **other})
    assert same.has_weights("start"), "kept"


def test_weights_by_name(tmp_path, dense):
    checkpoints = Checkpoints(tmp_path / "run", {})
    checkpoints.write_weights("phase-1", dense)
    found = read_weights(checkpoints.weights_file("phase-1"))
    for ours, theirs in zip(found, dense.get_weights(), strict=True):
        assert np.array_equal(ours, theirs)
    assert checkpoints.read_losses("phase-1") is None
    checkpoints.remove_weights("phase-1")
    checkpoints.remove_weights("phase-1")
    assert not checkpoints.has_weights("phase-1")


def test_what_is_done_says_so(tmp_path, dense):
    checkpoints = Checkpoints(tmp_path / "run", {}, seconds=0)
    checkpoints.write({"model": dense.weights}, {})
    assert checkpoints.finished() is None
    checkpoints.finish(dense, {"results": []})
    assert Checkpoints(tmp_path / "run", {}).finished() == {"results": []}
    assert checkpoints.state() is None, "steps are of no use any more"
    assert checkpoints.has_weights("final")


def test_only_what_says_where_training_stands_can_be_gone_on_with(tmp_path, dense):
    assert not can_go_on(tmp_path / "run")
    checkpoints = Checkpoints(tmp_path / "run", {}, seconds=0)
    checkpoints.write_weights("phase-1", dense)
    assert not can_go_on(tmp_path / "run")
    checkpoints.write({"model": dense.weights}, {})
    assert can_go_on(tmp_path / "run")
    checkpoints.finish(dense, {})
    assert can_go_on(tmp_path / "run")


@pytest.mark.parametrize(
    ("pattern", "read"),
    [
        ("identity.json", lambda held, dense: Checkpoints(held, {"seed": 1})),
        ("done.json", lambda held, dense: Checkpoints(held, {"seed": 1}).finished()),
        ("step/checkpoint", lambda held, dense: Checkpoints(held, {"seed": 1}).state()),
        ("step/*.index", lambda held, dense: Checkpoints(held, {"seed": 1}).state()),
        (
            "step/*.data*",
            lambda held, dense: Checkpoints(held, {"seed": 1}).restore({"model": dense.weights}),
        ),
        ("weights/*.npz", lambda held, dense: Checkpoints(held, {"seed": 1}).read_weights("a")),
        ("weights/*.npy", lambda held, dense: Checkpoints(held, {"seed": 1}).read_losses("a")),
    ],
)
@pytest.mark.parametrize("damage", [b"", b"garbage", b"null", bytes(8), b"\xff"])
def test_damage_is_told_and_nothing_is_removed(pattern, read, damage, tmp_path, dense):
    held = tmp_path / "run"
    checkpoints = Checkpoints(held, {"seed": 1}, seconds=0)
    checkpoints.write_weights("a", dense, np.array([1.0]))
    checkpoints.write({"model": dense.weights}, {"epoch": 1})
    (held / "done.json").write_text("{}")
    (file,) = held.glob(pattern)
    file.write_bytes(damage)
    with pytest.raises(CheckpointError, match=r"run must be whole, and cannot be read: .*Remove"):
        read(held, dense)
    assert file.read_bytes() == damage


def test_full_disk_leaves_what_was_there(tmp_path, dense, monkeypatch):
    checkpoints = Checkpoints(tmp_path / "run", {}, seconds=0)
    checkpoints.write_weights("phase-1", dense)
    checkpoints.write({"model": dense.weights}, {"epoch": 0})
    before = checkpoints.read_weights("phase-1")
    files = sorted((tmp_path / "run").rglob("*"))

    def half(file, **arrays):
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "savez", half)
    with pytest.raises(OSError, match="No space"):
        checkpoints.write_weights("phase-1", dense)

    def save(self, checkpoint_number):
        tf.io.write_file("/dev/full", "x" * 2**16)  # What TensorFlow itself says of it.

    monkeypatch.setattr(tf.train.CheckpointManager, "save", save)
    with pytest.raises(OSError, match="No space") as told:
        checkpoints.write({"model": dense.weights}, {"epoch": 1})
    assert told.value.errno == errno.ENOSPC
    assert sorted((tmp_path / "run").rglob("*")) == files
    for ours, theirs in zip(checkpoints.read_weights("phase-1"), before, strict=True):
        assert np.array_equal(ours, theirs)
    assert checkpoints.state() == {"epoch": 0}
