"""Distils a network into a smaller one on images that Python holds, and prints the card.

    python examples/distillation.py --data=cifar10.npz --teacher='resnet8.h5(labels=classes.txt)'

`--data` is an `.npz` file of `x_train`, `y_train`, `x_test`, `y_test`: images uint8
`[n, height, width, channels]`, and classes from 0; `classes` may hold their names. Each seed trains
the student twice, with the same weights at first, on the same batches, for the same number of
steps: once on labels and on what the teacher says, once on labels alone.
"""

import numpy as np
from absl import app, flags

import tfxfer

DATA = flags.DEFINE_string("data", None, "An .npz file of images and classes.", required=True)
TEACHER = flags.DEFINE_string("teacher", "", "As --teacher of the command line.")
STUDENT = flags.DEFINE_string("student", "tiny", "As --student.")
LOSS = flags.DEFINE_string("loss", "auto", "As --loss.")
SEEDS = flags.DEFINE_integer("seeds", 3, "Students of each kind.")
EPOCHS = flags.DEFINE_integer("epochs", 40, "Of each student.")
AUGMENT = flags.DEFINE_enum("augment", "light", ["none", "light", "randaugment"], "Of images.")
VIEWS = flags.DEFINE_integer("views", 0, "Augmented versions that are kept; new ones if 0.")
WORKDIR = flags.DEFINE_string("workdir", "", "Where to write; a new folder if empty.")


def main(argv) -> None:
    """Distils; the card is printed and written."""
    del argv
    with np.load(DATA.value) as held:
        splits = {
            name: (held[f"x_{name}"], held[f"y_{name}"].ravel()) for name in ("train", "test")
        }
        names = tuple(map(str, held["classes"])) if "classes" in held else None
    tfxfer.distill(
        tfxfer.open_dataset(splits, label_names=names),
        teacher=TEACHER.value,
        student=STUDENT.value,
        loss=LOSS.value,
        seeds=SEEDS.value,
        epochs=EPOCHS.value,
        augment=AUGMENT.value,
        views=VIEWS.value,
        workdir=WORKDIR.value,
    )


if __name__ == "__main__":
    app.run(main)
