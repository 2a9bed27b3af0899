r"""Pretrains the backbone `glyphs`, a small convolutional network, on printed characters.

The characters are the digits and the upper and lower case letters of freely licensed fonts. Each
is bent, scaled, slanted, thickened or thinned, scanned at a random resolution and drawn in random
colors; the network has to tell which character it was. Some font families are held out to measure
how well it does. What is saved is the network without its classifier, as a TF2 SavedModel in
TensorFlow Hub's format.

`pretrain_glyphs_fonts.json` pins the fonts as the dependencies of an npm package, with the license
of each. To make the backbone again:

    mkdir fonts && cp examples/pretrain_glyphs_fonts.json fonts/package.json
    npm install --prefix fonts
    python examples/pretrain_glyphs.py --fonts=fonts --output=glyphs

It needs Pillow, whose wheels read the fonts' WOFF2 files. On two CPU cores it takes about a quarter
of an hour. The same seed gives the same batches and, on the same CPU, the same weights.
"""

import collections
import pathlib
import string

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags
from PIL import Image, ImageFont

from tfxfer import export

_FONTS = flags.DEFINE_string("fonts", None, "Folder with the fonts in node_modules.", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "Folder for the SavedModel.", required=True)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the held-out fonts, the batches and the weights.")
_STEPS = flags.DEFINE_integer("steps", 6000, "Optimizer steps.")

CHARACTERS = string.digits + string.ascii_uppercase + string.ascii_lowercase
# Lower case letters that hardly anything but their size tells from an upper case one.
MERGED: dict[str, str] = {c: c.upper() for c in "ckopsuvwxyz"} | {"l": "I"}
CLASSES = [c for c in CHARACTERS if c not in MERGED]

FONT_FILES = ("latin-400-normal", "latin-400-italic", "latin-700-normal")
HELD_OUT_FAMILIES = 15
BITMAP = 64  # Side of the stored bitmaps, in pixels.
GLYPH = 48  # Longer side of a character in its bitmap.
SIDE = 32  # Side of the images that the network sees.

BATCH = 256
SAME_RESOLUTION = 32  # So many images in a batch are scanned at the same resolution.


def render(font: ImageFont.FreeTypeFont, character: str) -> np.ndarray:
    """Returns `character` as a uint8 bitmap, white on black, centered and of a fixed size."""
    mask, _ = font.getmask2(character, mode="L")
    if all(mask.size):
        image = Image.frombytes("L", mask.size, bytes(mask))  # pyright: ignore  (Pillow can)
    else:
        image = Image.new("L", (1, 1))
    image = image.crop(image.getbbox())
    scale = GLYPH / max(image.size)
    image = image.resize([max(1, round(scale * side)) for side in image.size], Image.Resampling.BOX)
    bitmap = Image.new("L", (BITMAP, BITMAP))
    bitmap.paste(image, ((BITMAP - image.width) // 2, (BITMAP - image.height) // 2))
    return np.asarray(bitmap)


def render_font(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Returns the bitmaps of a font by character, or nothing if the font lacks some of them."""
    font = ImageFont.truetype(path, size=2 * BITMAP)
    glyphs = {c: render(font, c) for c in CHARACTERS}
    distinct = {glyphs[c].tobytes() for c in string.digits + string.ascii_uppercase}
    if len(distinct) < 36 or not all(glyph.any() for glyph in glyphs.values()):
        return {}
    small_capitals = [c for c in string.ascii_lowercase if (glyphs[c] == glyphs[c.upper()]).all()]
    return {c: glyph for c, glyph in glyphs.items() if c not in small_capitals}


def load_families(fonts: pathlib.Path) -> dict[str, list[dict[str, np.ndarray]]]:
    """Returns the fonts of each usable family, each as bitmaps by character."""
    families = collections.defaultdict(list)
    for folder in sorted(fonts.glob("node_modules/@fontsource/*")):
        for name in FONT_FILES:
            path = folder / "files" / f"{folder.name}-{name}.woff2"
            if path.exists() and (glyphs := render_font(path)):
                families[folder.name].append(glyphs)
    return dict(families)


def split_families(families, seed: int):
    """Returns the families to train on and the held-out ones."""
    names = np.random.default_rng(seed).permutation(sorted(families))
    return (
        {name: families[name] for name in names[HELD_OUT_FAMILIES:]},
        {name: families[name] for name in names[:HELD_OUT_FAMILIES]},
    )


def to_arrays(families):
    """Returns bitmaps, class indices and probabilities: each family is drawn equally often."""
    bitmaps, labels, weights = [], [], []
    for fonts in families.values():
        for glyphs in fonts:
            for character, bitmap in glyphs.items():
                bitmaps.append(bitmap)
                labels.append(CLASSES.index(MERGED.get(character) or character))
                weights.append(1 / sum(map(len, fonts)))
    return np.stack(bitmaps), np.array(labels), np.array(weights) / np.sum(weights)


class Draw:
    """Random numbers that depend only on a seed and on how many draws came before."""

    def __init__(self, seed: tf.Tensor):
        self._seed = seed
        self._draws = 0

    def _next_seed(self):
        self._draws += 1
        return tf.random.experimental.stateless_fold_in(self._seed, self._draws)

    def uniform(self, shape, low=0.0, high=1.0):
        """Returns numbers spread evenly over [low, high)."""
        return tf.random.stateless_uniform(shape, self._next_seed(), low, high)

    def normal(self, shape, scale=1.0):
        """Returns normally distributed numbers of mean 0 and standard deviation `scale`."""
        return tf.random.stateless_normal(shape, self._next_seed(), stddev=scale)


def change_stroke(images, draw):
    """Makes the strokes of white-on-black images thicker or thinner."""
    thick = tf.nn.max_pool2d(images, 7, 1, "SAME")
    thin = -tf.nn.max_pool2d(-images, 3, 1, "SAME")
    amount = draw.uniform([tf.shape(images)[0], 1, 1, 1], -0.8, 1.0)
    return images + tf.nn.relu(amount) * (thick - images) + tf.nn.relu(-amount) * (thin - images)


def bend(images, draw):
    """Scales, rotates, slants, shifts and bends images, and samples them at `SIDE`."""
    n = tf.shape(images)[0]
    angle = draw.normal([n], 0.2)
    slant = draw.normal([n], 0.25)
    scale = draw.uniform([n], 0.85, 1.5)
    aspect = tf.exp(draw.normal([n], 0.2))
    cos, sin = tf.cos(angle), tf.sin(angle)
    rotation = tf.reshape(tf.stack([cos, -sin, sin, cos], -1), [n, 2, 2])
    zeros = tf.zeros([n])
    slanting = tf.reshape(tf.stack([1 / aspect, slant, zeros, aspect], -1), [n, 2, 2])
    matrix = tf.matmul(slanting, rotation) / scale[:, None, None]

    line = tf.linspace(-1.0, 1.0, SIDE)
    grid = tf.stack(tf.meshgrid(line, line), -1)
    bending = tf.image.resize(draw.normal([n, 4, 4, 2], 0.08), [SIDE, SIDE], "bicubic")
    shift = draw.normal([n, 1, 1, 2], 0.07)
    points = tf.einsum("nij,hwj->nhwi", matrix, grid) + bending + shift
    return interpolate(images, (points + 1) * (BITMAP - 1) / 2)


def interpolate(images, points):
    """Returns the gray values of `images` between pixels, at `points` given as x and y."""
    corner = tf.clip_by_value(tf.floor(points), 0, BITMAP - 2)
    fraction = tf.clip_by_value(points - corner, 0, 1)
    x, y = fraction[..., :1], fraction[..., 1:]
    column, row = tf.unstack(tf.cast(corner, tf.int32), axis=-1)
    flat = tf.reshape(images, [tf.shape(images)[0], BITMAP * BITMAP, 1])

    def pixel(dx, dy):
        return tf.gather(flat, (row + dy) * BITMAP + column + dx, axis=1, batch_dims=1)

    top = pixel(0, 0) * (1 - x) + pixel(1, 0) * x
    return top * (1 - y) + (pixel(0, 1) * (1 - x) + pixel(1, 1) * x) * y


def scan(images, draw):
    """Reduces all images to one random resolution, adds noise, and enlarges them again."""
    side = tf.cast(7 * (SIDE / 7) ** draw.uniform([]), tf.int32)
    images = tf.image.resize(images, [side, side], "area")
    noise = draw.uniform([tf.shape(images)[0], 1, 1, 1], 0.0, 0.08)
    images += noise * draw.normal(tf.shape(images))
    return tf.image.resize(images, [SIDE, SIDE], "bilinear")


def colorize(images, draw):
    """Draws gray images in two colors, light on dark as often as dark on light."""
    n = tf.shape(images)[0]
    contrast = draw.uniform([n, 1, 1, 1], 0.5, 1.0)
    darkest = draw.uniform([n, 1, 1, 1]) * (1 - contrast)
    images = tf.where(draw.uniform([n, 1, 1, 1]) < 0.5, images, 1 - images)
    tint = draw.normal([n, 1, 1, 3], 0.05)
    return tf.clip_by_value(darkest + contrast * images + tint, 0, 1)


def make_dataset(families, batches: int, seed: int, distort: bool = True) -> tf.data.Dataset:
    """Returns `batches` batches of random images in [0, 1] and their class indices."""
    bitmaps, labels, probabilities = to_arrays(families)
    bitmaps, labels = tf.constant(bitmaps[..., None]), tf.constant(labels)
    thresholds = tf.constant(np.cumsum(probabilities)[:-1], tf.float32)

    def sample(step):
        draw = Draw(tf.stack([tf.cast(seed, tf.int64), step]))
        indices = tf.searchsorted(thresholds, draw.uniform([SAME_RESOLUTION]))
        images = tf.cast(tf.gather(bitmaps, indices), tf.float32) / 255
        if distort:
            for change in (change_stroke, bend, scan, colorize):
                images = change(images, draw)
        else:
            images = tf.repeat(tf.image.resize(images, [SIDE, SIDE], "area"), 3, axis=-1)
        return tf.ensure_shape(images, [SAME_RESOLUTION, SIDE, SIDE, 3]), tf.gather(labels, indices)

    def flatten(images, labels):
        return tf.reshape(images, [BATCH, SIDE, SIDE, 3]), tf.reshape(labels, [BATCH])

    parts = BATCH // SAME_RESOLUTION
    dataset = tf.data.Dataset.range(batches * parts)
    dataset = dataset.map(sample, num_parallel_calls=tf.data.AUTOTUNE)
    return dataset.batch(parts, drop_remainder=True).map(flatten).prefetch(4)


def convolution(filters: int, suffix: str = "", stride: int = 1, padding: str = "same") -> list:
    """Returns the layers of a 3x3 convolution with batch normalization and ReLU."""
    return [
        keras.layers.Conv2D(
            filters,
            3,
            stride,
            padding,
            use_bias=False,
            kernel_regularizer=keras.regularizers.L2(1e-4),
            name=f"conv{suffix}",
        ),
        keras.layers.BatchNormalization(momentum=0.9, name=f"bn{suffix}"),
        keras.layers.ReLU(name=f"relu{suffix}"),
    ]


def make_backbone() -> keras.Sequential:
    """Returns the network, from images [batch, 32, 32, 3] to features [batch, 128]."""
    stages = {
        "stem": convolution(16, stride=2),
        "block1": convolution(24),
        "block2": [*convolution(40, "1", stride=2), *convolution(40, "2")],
        "block3": [*convolution(96, "1", stride=2), *convolution(96, "2")],
        "block4": [
            *convolution(128, padding="valid"),
            keras.layers.GlobalAveragePooling2D(name="pool"),
        ],
    }
    return keras.Sequential(
        [keras.Input([SIDE, SIDE, 3])]
        + [keras.Sequential(layers, name=name) for name, layers in stages.items()],
        name="glyphs",
    )


def pretrain(backbone: keras.Model, dataset: tf.data.Dataset, steps: int) -> keras.Model:
    """Trains `backbone` with a linear classifier on top, and returns both together."""
    classifier = keras.layers.Dense(len(CLASSES), name="classifier")
    model = keras.Sequential([backbone, keras.layers.Dropout(0.2), classifier])
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0, steps, warmup_target=4e-3, warmup_steps=steps // 20
    )
    model.compile(
        optimizer=keras.optimizers.Adam(schedule),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    model.fit(dataset, shuffle=False, steps_per_epoch=max(1, steps // 10), epochs=10, verbose=2)
    return model


def main(argv):
    """Renders the fonts, trains the network, and saves its backbone."""
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {argv[1:]}")
    keras.utils.set_random_seed(_SEED.value)
    families = load_families(pathlib.Path(_FONTS.value))
    training, held_out = split_families(families, _SEED.value)
    print(f"{len(training)} font families to train on, {len(held_out)} held out:", *held_out)

    backbone = make_backbone()
    dataset = make_dataset(training, _STEPS.value, seed=2 * _SEED.value)
    model = pretrain(backbone, dataset, _STEPS.value)
    for distort in (True, False):
        test = make_dataset(held_out, 80, seed=2 * _SEED.value + 1, distort=distort)
        accuracy = model.evaluate(test, verbose=0, return_dict=True)["accuracy"]
        kind = "distorted" if distort else "plain"
        print(f"Accuracy on {kind} characters of the held-out families: {accuracy:.4f}")
    export.save_hub_module(backbone, _OUTPUT.value)


if __name__ == "__main__":
    app.run(main)
