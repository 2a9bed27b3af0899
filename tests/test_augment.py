"""Augmentation: of the same size and range, and a function of the key alone."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfxfer.data.augment import AUGMENTS, augmenter, mixer, resize
from tfxfer.errors import UserError

RANDOM = [policy for policy in AUGMENTS if policy != "none"]


def image(channels: int = 3, size: tuple[int, int] = (12, 10), seed: int = 0) -> tf.Tensor:
    values = np.random.default_rng(seed).integers(0, 256, (*size, channels), np.uint8)
    return tf.constant(values)


def keys(count: int) -> tf.Tensor:
    return tf.stack([tf.range(count, dtype=tf.int64), tf.ones(count, tf.int64)], axis=1)


def augmented(augment, inputs: tf.Tensor, count: int, threads: int = 4) -> np.ndarray:
    """One image by several keys, in a parallel map as the pipeline has it."""
    data = tf.data.Dataset.from_tensor_slices(keys(count))
    data = data.map(lambda key: augment(inputs, key), num_parallel_calls=threads)
    return np.stack(list(data.as_numpy_iterator()))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("policy", AUGMENTS)
def test_size_type_and_range_are_kept(policy, channels):
    augment = augmenter(policy, (12, 10), channels)
    found = augmented(augment, image(channels), 20)
    assert found.shape == (20, 12, 10, channels)
    assert found.dtype == np.float32
    assert found.min() >= 0
    assert 100 < found.max() <= 255
    assert np.isfinite(found).all()


@pytest.mark.parametrize("policy", AUGMENTS)
def test_images_of_any_size_and_number_type_come_out_at_the_size(policy):
    augment = augmenter(policy, (8, 6), 3)
    for size in ((3, 5), (8, 6), (40, 30), (1, 1)):
        whole = augment(image(size=size), keys(1)[0])
        floats = augment(tf.cast(image(size=size), tf.float32), keys(1)[0])
        assert whole.shape == (8, 6, 3)
        np.testing.assert_array_equal(whole, floats)


def test_none_is_the_resize_of_backbones():
    resized = augmenter("none", (5, 4), 3)(image(), keys(1)[0])
    np.testing.assert_array_equal(resized, resize(image(), (5, 4)))
    np.testing.assert_array_equal(augmenter("none", (12, 10), 3)(image(), keys(1)[0]), image())


@pytest.mark.parametrize("policy", RANDOM)
def test_the_key_alone_decides(policy):
    augment = augmenter(policy, (12, 10), 3)
    once, again = (augmented(augment, image(), 12, threads) for threads in (1, 8))
    other = augmented(augmenter(policy, (12, 10), 3), image(), 12)
    np.testing.assert_array_equal(once, again)
    np.testing.assert_array_equal(once, other)
    assert len({found.tobytes() for found in once}) > 6


def test_light_mirrors_half_of_the_images_and_moves_them():
    ramp = tf.tile(tf.linspace(0.0, 255.0, 64)[None, :, None], (64, 1, 1))
    found = augmented(augmenter("light", (64, 64), 1), ramp, 200)
    rising = found[:, 0, -1, 0] > found[:, 0, 0, 0]
    assert 70 < rising.sum() < 130
    # 72 pixels wide before the crop: 9 places where it may begin, left to right.
    assert len(np.unique(found[rising][:, 0, 0, 0].round(2))) == 9


def test_light_keeps_what_is_uniform():
    found = augmented(augmenter("light", (9, 9), 3), tf.fill((9, 9, 3), 100), 4)
    np.testing.assert_allclose(found, 100, rtol=1e-6)


def test_randaugment_changes_colour_and_place():
    half = tf.concat([tf.fill((16, 8, 3), 40), tf.fill((16, 8, 3), 200)], axis=1)
    found = augmented(augmenter("randaugment", (16, 16), 3), half, 60)
    levels = [set(np.unique(one.round())) for one in found]
    assert any(level != {40.0, 200.0} for level in levels)
    places = found.mean(axis=-1) > found.mean(axis=(1, 2, 3))[:, None, None]
    assert len({place.tobytes() for place in places}) > 5


def test_grey_images_get_what_colour_images_of_equal_channels_get():
    grey = image(1)
    one = augmented(augmenter("randaugment", (12, 10), 1), grey, 8)
    three = augmented(augmenter("randaugment", (12, 10), 3), tf.tile(grey, (1, 1, 3)), 8)
    np.testing.assert_array_equal(one[..., 0], three[..., 0])


@pytest.mark.parametrize("policy", RANDOM)
def test_mixed_precision_of_the_model_does_not_reach_the_images(policy):
    expected = augmented(augmenter(policy, (12, 10), 3), image(), 4)
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        found = augmented(augmenter(policy, (12, 10), 3), image(), 4)
        images, _ = mixer("mixup")(image()[None], tf.ones((1, 2)), keys(1)[0])
    finally:
        keras.config.set_dtype_policy(before)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose(images[0], image(), atol=1e-3)


@pytest.mark.parametrize("name", ["flip", "", "mixup"])
def test_unknown_policies_are_refused(name):
    with pytest.raises(UserError, match="none, light, randaugment"):
        augmenter(name, (8, 8), 3)


def test_images_of_many_channels_are_refused():
    with pytest.raises(UserError, match="1 or 3 channels, not 4"):
        augmenter("light", (8, 8), 4)


def batch(count: int, channels: int = 3) -> tuple[tf.Tensor, tf.Tensor]:
    """Images, each of a class of its own, so that labels say what is mixed of which."""
    images = tf.stack([image(channels, seed=i) for i in range(count)])
    return images, tf.eye(count)


@pytest.mark.parametrize("channels", [1, 3])
def test_mixup_mixes_images_as_labels_say(channels):
    images, labels = batch(16, channels)
    mixed, y = mixer("mixup")(images, labels, keys(1)[0])
    assert mixed.dtype == y.dtype == tf.float32
    np.testing.assert_allclose(tf.reduce_sum(y, axis=1), 1, rtol=1e-6)
    expected = tf.einsum("bc,chwk->bhwk", y, tf.cast(images, tf.float32))
    np.testing.assert_allclose(mixed, expected, rtol=1e-4, atol=1e-3)
    others = (y.numpy() > 0.01).sum(axis=1)
    assert others.max() == 2
    assert len(np.unique(y.numpy().max(axis=1).round(4))) > 4


@pytest.mark.parametrize("channels", [1, 3])
def test_cutmix_labels_are_shares_of_the_area(channels):
    for key in keys(5):
        images, labels = batch(16, channels)
        mixed, y = (t.numpy() for t in mixer("cutmix")(images, labels, key))
        for i in range(16):
            others = [c for c in range(16) if y[i, c] > 0 and c != i]
            assert len(others) <= 1
            own = (mixed[i] == images[i].numpy()).all(axis=-1)
            if others:
                other = (mixed[i] == images[others[0]].numpy()).all(axis=-1)
                assert (own | other).all()
                rows, columns = np.nonzero(~own)
                # What was pasted is a rectangle, but for pixels that are equal in both images.
                area = (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
                np.testing.assert_allclose(y[i, others[0]], area / own.size, rtol=1e-5)
            else:
                assert own.all()
        np.testing.assert_allclose(y.sum(axis=1), 1, rtol=1e-6)


@pytest.mark.parametrize("mix", ["mixup", "cutmix"])
def test_a_batch_of_one_is_mixed_with_itself(mix):
    images, labels = batch(1)
    mixed, y = mixer(mix)(images, labels, keys(1)[0])
    np.testing.assert_allclose(mixed, images, atol=1e-3)
    np.testing.assert_allclose(y, labels, rtol=1e-6)


@pytest.mark.parametrize("mix", ["mixup", "cutmix"])
def test_mixtures_follow_the_key(mix):
    images, labels = batch(6)

    def run(threads):
        mixed = mixer(mix)
        data = tf.data.Dataset.from_tensor_slices(keys(6))
        data = data.map(lambda key: mixed(images, labels, key), num_parallel_calls=threads)
        return [y.tobytes() for _, y in data.as_numpy_iterator()]

    once, again = run(1), run(8)
    assert once == again
    assert len(set(once)) == 6


def test_mixup_takes_several_labels_and_numbers():
    images, _ = batch(4)
    y = tf.constant([[0.0, 1.0, 1.0], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0], [-3.0, 7.5, 0.0]])
    _, mixed = mixer("mixup")(images, y, keys(1)[0])
    _, weights = mixer("mixup")(images, tf.eye(4), keys(1)[0])
    np.testing.assert_allclose(mixed, weights @ y, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["none", "blend"])
def test_unknown_mixtures_are_refused(name):
    with pytest.raises(UserError, match="mixup, cutmix"):
        mixer(name)
