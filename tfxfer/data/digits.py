"""The embedded dataset: scikit-learn's handwritten digits as a TFDS builder."""

from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds

_DESCRIPTION = """
1,797 scans of digits written by 43 people, 8x8 pixels, 10 classes: the test set of the UCI
"Optical Recognition of Handwritten Digits", as scikit-learn bundles it. One example in five is
the test split, stratified by class and the same for everyone.
"""

_CITATION = """
@misc{alpaydin1998optical,
  author = {Alpaydin, E. and Kaynak, C.},
  title = {Optical Recognition of Handwritten Digits},
  year = {1998},
  howpublished = {UCI Machine Learning Repository},
  doi = {10.24432/C50P49}
}
"""


class Digits(tfds.core.GeneratorBasedBuilder):
    """Prepares the digits that come inside the scikit-learn wheel; nothing is downloaded."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "Stratified train (1,437) and test (360) splits."}

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=_DESCRIPTION,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(8, 8, 1)),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://doi.org/10.24432/C50P49",
            citation=_CITATION,
        )

    def _split_generators(self, dl_manager):
        del dl_manager  # Nothing to download.
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        images, labels = load_digits(return_X_y=True)
        # Ink is counted 0..16; as grey levels, 0..255. No two counts share a level.
        images = np.rint(images.reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
        train, test = train_test_split(
            np.arange(len(labels)), test_size=360, stratify=labels, random_state=0
        )
        return {
            "train": self._generate_examples(images, labels, np.sort(train)),
            "test": self._generate_examples(images, labels, np.sort(test)),
        }

    def _generate_examples(self, images, labels, rows):
        for row in rows:
            yield int(row), {"image": images[row], "label": int(labels[row])}
