"""What students are trained on: batches, and what the teachers say of them, kept if that can be."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from tfxfer.backbones import ImageContract
from tfxfer.cache import Cache, Parts
from tfxfer.config import RunConfig
from tfxfer.data.augment import NONE
from tfxfer.data.joined import joined, same_steps, taught, unlabelled
from tfxfer.data.parts import Part
from tfxfer.data.pipeline import train_batches
from tfxfer.feature_data import feature_batches
from tfxfer.features import Features, compute_once
from tfxfer.methods.tuner import Resized
from tfxfer.models.teachers import Teachers
from tfxfer.task import SINGLE_LABEL
from tfxfer.training.epochs import Batches


@dataclass(frozen=True)
class TaughtData:
    """What students of one teacher are trained on.

    Attributes:
        config: The settings.
        teachers: Who teaches.
        parts: What tells these teachers from others.
        cache: Where it is kept what they say.
        strategy: Whose replicas share a batch.
        image_size: Height and width that images are brought to where theirs vary.
        labelled: Training examples.
        unlabelled: Examples to learn from without their labels; `None` if there are none.
        soft: Whether labels of one class are given as shares of each.
        contract: What images are resized to ahead of the step; `None` if the step does.
    """

    config: RunConfig
    teachers: Teachers
    parts: Parts
    cache: Cache
    strategy: tf.distribute.Strategy
    image_size: tuple[int, int] | None
    labelled: Part
    unlabelled: Part | None
    soft: bool
    contract: ImageContract | None = None

    @property
    def steps(self) -> int:
        """Batches in an epoch, for students of labels alone too."""
        return self._joined(self._batches, 0).steps

    @property
    def kept(self) -> bool:
        """Whether each image is seen in few enough ways to ask the teachers once of each.

        With a mixture of images it is not, nor with augmentation that is new in every epoch; then
        the teachers are asked of what the student sees (Beyer et al. 2022, "Knowledge
        distillation: A good teacher is patient and consistent").
        """
        return self.config.mix == "none" and (self.config.augment == NONE or self.config.views > 0)

    def distilled(self, seed: int) -> Batches:
        """Returns the batches of a distilled student.

        With unlabelled examples, half of each batch are such, and an epoch is a pass over the more
        numerous ones.

        Args:
            seed: Of order and augmentation.
        """
        return self._joined(self._taught, seed)

    def _joined(self, batches: Callable[[Part, int, int], Batches], seed: int) -> Batches:
        size = self.config.batch_size
        if self.unlabelled is None:
            return batches(self.labelled, size, seed)
        half = size // 2
        return joined(
            batches(self.labelled, size - half, seed),
            unlabelled(
                batches(self.unlabelled, half, seed),
                self.labelled.source.info.task,
                one_hot=self.soft,
            ),
            replicas=self.strategy.num_replicas_in_sync,
        )

    def alone(self, seed: int) -> Batches:
        """Returns the batches of a student that learns from labels alone.

        Args:
            seed: Of order and augmentation.
        """
        return same_steps(self._batches(self.labelled, self.config.batch_size, seed), self.steps)

    def _batches(self, part: Part, batch_size: int, seed: int) -> Batches:
        config = self.config
        balanced = part is self.labelled
        found = train_batches(
            part,
            batch_size,
            image_size=self.image_size,
            augment=config.augment,
            views=config.views,
            mix=config.mix,
            seed=seed,
            balance=config.balance if balanced else "none",
            replicas=self.strategy.num_replicas_in_sync,
            one_hot=self.soft and part.source.info.task.kind == SINGLE_LABEL,
        )
        return found if self.contract is None else Resized(found, self.contract)

    def _taught(self, part: Part, batch_size: int, seed: int) -> Batches:
        data = self._batches(part, batch_size, seed)
        if not self.kept:
            return data
        balance = self.config.balance if part is self.labelled else "none"
        answers = feature_batches(
            self._answers(part, seed, self.config.augment),
            part,
            batch_size,
            seed=seed,
            balance=balance,
            replicas=self.strategy.num_replicas_in_sync,
            one_hot=self.soft and part.source.info.task.kind == SINGLE_LABEL,
        )
        return taught(data, answers)

    def _answers(self, part: Part, seed: int, augment: str) -> Features:
        """Returns all that the teachers say of a part, computed once."""
        return compute_once(
            self.teachers.packed,
            part,
            self.cache,
            kind="teacher",
            source=" and ".join(each.name for each in self.teachers.teachers),
            parts={**self.parts, "layers": ", ".join(self.teachers.names)},
            image_size=self.image_size,
            augment=augment,
            views=1 if augment == NONE else self.config.views,
            seed=seed,
            strategy=self.strategy,
        )

    def outputs(self, part: Part) -> np.ndarray:
        """Returns the logits of the teachers for a part, `[examples, units]`.

        Args:
            part: Any examples of the dataset, as they are.
        """
        answers = self._answers(part, 0, NONE)
        return np.asarray(answers.first[:, : part.source.info.task.units])
