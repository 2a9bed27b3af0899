"""What frozen stages make of the data, kept, so that a phase trains on that: where it pays.

Within a phase, all that comes before the first stage that trains gives the same for an image in
every epoch. It can be computed once, and the epochs run the rest alone.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tfxfer.backbones import HEAD
from tfxfer.backbones.boundary import Boundary, find_boundary
from tfxfer.cache import Cache
from tfxfer.config import BOUNDARY
from tfxfer.data.augment import NONE
from tfxfer.data.parts import Part
from tfxfer.feature_data import feature_batches, ordered_feature_batches
from tfxfer.features import Features, covering, extract
from tfxfer.models import FineTuner
from tfxfer.models.suffix import Suffix
from tfxfer.plan import Phase
from tfxfer.training.boundary_cost import Cost, Speed, Timed, time_boundaries
from tfxfer.training.epochs import Data

AUTO, _, OFF = BOUNDARY

_GAIN = 0.8  # Most share of the time without, so that an estimate may be wrong by a fifth.
_ROOM = 0.5  # Of the cache, and of the disk, that one entry may take.


@dataclass(frozen=True)
class Choice:
    """What a phase trains on.

    Attributes:
        where: Name of the layer whose output is kept, or `features`; empty for images.
        reason: Why, in words.
        row_bytes: What is kept of an image; 0 if nothing is.
        boundary: The same as `where`; `None` for features, and for images.
        since: Of another phase, an earlier boundary from which this one is computed.
    """

    where: str
    reason: str
    row_bytes: int = 0
    boundary: Boundary | None = None
    since: "Choice | None" = None


@dataclass(frozen=True)
class BoundaryCache:
    """Keeps what frozen stages make of the training and the validation part.

    Attributes:
        model: The fine-tuner.
        cache: Where it is kept.
        train: Training examples.
        validation: Validation examples; `None` if phases run to their last epoch.
        sharing: More parts, such as those of other folds, whose examples are kept in the same
            entries.
        mode: `auto`, where it pays; `on`, wherever it can be done; `off`.
        augment: Policy of augmentation of the training examples.
        views: How many augmented views the epochs take in turn; endless new ones if 0.
        mix: Mixture of images.
        seed: Of order and augmentation.
    """

    model: FineTuner
    cache: Cache
    train: Part
    validation: Part | None = None
    sharing: Sequence[Part] = ()
    mode: str = AUTO
    augment: str = NONE
    views: int = 0
    mix: str = NONE
    seed: int = 0

    def choose(self, plan: Sequence[Phase], batch_size: int) -> dict[str, Choice]:
        """Decides for each phase, by its name, before any of them runs.

        A phase that trains the head alone gets features wherever they are fixed. For others, the
        beginning of the network is timed on a few images, and the disk by some megabytes. Without,
        each epoch runs it over all images; with, it runs once, its output is written, and each
        epoch reads that. Epochs are those that run for certain, since a phase may stop early. That
        must leave at most 0.8 of the time: estimates err. What else is saved, such as decoded
        images and a smaller graph, is not counted.

        Args:
            plan: The phases.
            batch_size: Examples a batch, at least 1.
        """
        choices: dict[str, Choice] = {}
        boundaries: dict[tuple[int, ...], Boundary] = {}
        candidates: list[tuple[Phase, Boundary]] = []
        for phase in plan:
            if unfit := self._unfit(phase):
                choices[phase.name] = Choice("", unfit)
            elif phase.stages == (HEAD,):
                size = 4 * self.model.backbone.units
                choices[phase.name] = Choice("features", "the whole backbone is frozen", size)
            elif (found := find_boundary(self.model.backbone, phase.stages, phase.bn)) is None:
                reason = "nothing that is frozen gives the same in every epoch"
                choices[phase.name] = Choice("", reason)
            elif self.mode == AUTO and self._epochs(phase, batch_size) * self._each <= self._once:
                choices[phase.name] = Choice("", "too few epochs are certain to run")
            else:
                candidates.append((phase, boundaries.setdefault(found.place, found)))
        if candidates:
            speed = Speed.of(self.cache.folder)
            timed = time_boundaries(
                [boundaries[place] for place in sorted(boundaries)],
                self.train,
                augmented=self.augment != NONE,
            )
            for phase, boundary in candidates:
                epochs = self._epochs(phase, batch_size)
                choices[phase.name] = self._by_cost(boundary, timed[boundary.place], epochs, speed)
        return self._chained(plan, choices)

    def data(self, choice: Choice, batch_size: int, **options: Any) -> Data:
        """Computes what is to be kept, or reads it, and batches it.

        Args:
            choice: One that keeps something.
            batch_size: Examples a batch, at least 1.
            **options: More of `train_batches`: `balance`, `replicas`, `one_hot`.

        Returns:
            Batches in the order in which the images themselves would come.

        Raises:
            UserError: If the disk is full, or the data cannot be read.
        """
        kept = self._kept(choice, self.train, self.augment)
        batches = feature_batches(kept, self.train, batch_size, seed=self.seed, **options)
        if self.validation is None:
            return Data(batches, None)
        options.pop("balance", None)
        kept = self._kept(choice, self.validation, NONE)
        return Data(batches, ordered_feature_batches(kept, self.validation, batch_size, **options))

    def shortcut(
        self, choices: Mapping[str, Choice], batch_size: int, **options: Any
    ) -> Callable[[Phase], tuple[Suffix, Data] | None]:
        """Returns what `training.loop.train` takes as `shortcut`.

        Args:
            choices: What `choose` returned.
            batch_size: Examples a batch, at least 1.
            **options: As in `data`.
        """

        def shorter(phase: Phase) -> tuple[Suffix, Data] | None:
            choice = choices[phase.name]
            if not choice.where:
                return None
            data = self.data(choice, batch_size, **options)
            with self.model.distribute_strategy.scope():
                return Suffix(self.model, choice.boundary), data

        return shorter

    def _kept(self, choice: Choice, part: Part, augment: str) -> Features:
        since, start = choice.since, None
        if since is not None and since.boundary is not None:
            start = since.boundary, lambda: self._kept(since, part, augment)
        shared = [each for each in self.sharing if each.split == part.split]
        return extract(
            self.model.backbone,
            covering([part, *shared]),
            self.cache,
            augment=augment,
            views=1 if augment == NONE else self.views,
            seed=self.seed,
            strategy=self.model.distribute_strategy,
            boundary=choice.boundary,
            start=start,
        )

    def _unfit(self, phase: Phase) -> str:
        """Says why nothing can be kept in a phase; empty if it can."""
        if self.mode == OFF:
            return "it is turned off"
        if self.augment != NONE and not self.views:
            return "images are augmented anew in every epoch"
        if self.mix != NONE:
            return "images are mixed anew in every epoch"
        if (phase.bn or self.model.backbone.bn) == "train":
            return "batch normalization goes by the batch everywhere"
        return ""

    def _by_cost(self, boundary: Boundary, timed: Timed, epochs: float, speed: Speed) -> Choice:
        row_bytes = 4 * int(np.prod(timed.shape))
        cost = Cost(self._once, self._each, epochs, timed.seconds, row_bytes, speed)
        about = f"{'x'.join(map(str, timed.shape))} numbers an image"
        if self._once * row_bytes > _ROOM * min(self.cache.limit_bytes, speed.free_bytes):
            return Choice("", f"{about} need more than half of the cache or of the disk")
        about = f"{about}, in {cost.share:.0%} of the time that the frozen stages would take"
        if self.mode == AUTO and cost.share > _GAIN:
            return Choice("", about)
        return Choice(boundary.name, about, row_bytes, boundary)

    def _chained(self, plan: Sequence[Phase], choices: dict[str, Choice]) -> dict[str, Choice]:
        """Lets each go on from the last before it that is needed anyway, in whatever phase.

        So that a gradual plan, which goes from the output side to the input side, runs each image
        through the network once. Not from one whose weights train before it is needed.
        """
        trained: set[int] = set()
        untouched: list[Choice] = []
        for phase in plan:
            choice = choices[phase.name]
            if choice.boundary is not None and not trained & set(map(id, choice.boundary.weights)):
                untouched.append(choice)
            stages = [stage for stage in self.model.stages if stage.name in phase.stages]
            trained |= {id(weight) for stage in stages for weight in stage.weights}
        untouched.sort(key=lambda choice: choice.boundary.place if choice.boundary else ())
        return {
            name: _linked(choice, untouched) if choice.where else choice
            for name, choice in choices.items()
        }

    @property
    def _once(self) -> int:
        """How many images run through the network to be kept, views counted."""
        return (self.views or 1) * self.train.examples + self._validated

    @property
    def _each(self) -> int:
        """How many do in an epoch if nothing is kept."""
        return self.train.examples + self._validated

    @property
    def _validated(self) -> int:
        return self.validation.examples if self.validation else 0

    def _epochs(self, phase: Phase, batch_size: int) -> float:
        """How many are certain: the first is the best so far, and `patience` more may be worse."""
        if phase.steps:
            return phase.steps * batch_size / self.train.examples
        stops = phase.patience and self.validation is not None
        return min(phase.epochs, phase.patience + 1) if stops else phase.epochs


def _linked(choice: Choice, earlier: Sequence[Choice]) -> Choice:
    """Links a choice with the last of others, input side first, that it can go on from."""
    for i in range(len(earlier) - 1, -1, -1):
        other = earlier[i].boundary
        if other and (choice.boundary is None or choice.boundary.follows(other)):
            return replace(choice, since=_linked(earlier[i], earlier[:i]))
    return choice
