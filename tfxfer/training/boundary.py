"""What frozen stages make of the data, kept, so that a phase trains on that: where it pays.

Within a phase, all that comes before the first stage that trains gives the same for an image in
every epoch. It can be computed once, and the epochs run the rest alone.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tfxfer.backbones import HEAD
from tfxfer.backbones.boundary import Boundary, find_boundary
from tfxfer.cache import Cache
from tfxfer.config import BOUNDARY
from tfxfer.data.augment import NONE
from tfxfer.data.parts import Part, Splits
from tfxfer.feature_data import feature_batches, ordered_feature_batches
from tfxfer.features import Features, covering, extract
from tfxfer.models import FineTuner
from tfxfer.models.suffix import Suffix
from tfxfer.plan import Phase
from tfxfer.training.boundary_cost import (
    Cost,
    Speed,
    noise_images,
    prefix_seconds,
    slow_enough,
)
from tfxfer.training.epochs import Data

AUTO, _, OFF = BOUNDARY

_LEAST = 0.15  # Of a step must be frozen: less is lost again in reading and batching.
_GAIN = 0.8  # Most share of the time without, so that an estimate may be wrong by a fifth.
_FEW = "too few epochs are certain to run"
_ROOM = 0.5  # Of the cache, and of the disk, that one entry may take.


@dataclass(frozen=True)
class Choice:
    """What a phase trains on.

    Attributes:
        where: Name of the layer whose output is kept, or `features`; empty for images.
        reason: Why, in words.
        boundary: The same as `where`; `None` for features, and for images.
        since: Of another phase, an earlier boundary from which this one is computed.
        shared: Whether other models ask for the same, as no phase trained what is before it.
        solved: Whether the head is solved, which takes features of images as they are.
    """

    where: str
    reason: str
    boundary: Boundary | None = None
    since: "Choice | None" = None
    shared: bool = True
    solved: bool = False


def places(choices: Mapping[str, Choice]) -> dict[str, str]:
    """Returns where each phase begins, as JSON can hold it; what `choose` takes as `before`."""
    return {name: choice.where for name, choice in choices.items()}


@dataclass(frozen=True)
class BoundaryCache:
    """Keeps what frozen stages make of the training and the validation part.

    Attributes:
        model: The fine-tuner.
        cache: Where it is kept.
        train: Training examples.
        validation: Validation examples; `None` if phases run to their last epoch.
        sharing: The splits of all models, such as those of folds, whose examples are kept in the
            same entries.
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
    sharing: Sequence[Splits] = ()
    mode: str = AUTO
    augment: str = NONE
    views: int = 0
    mix: str = NONE
    seed: int = 0

    def choose(
        self, plan: Sequence[Phase], batch_size: int, before: Mapping[str, str] | None = None
    ) -> dict[str, Choice]:
        """Decides for each phase, by its name, before any of them runs.

        A phase that trains the head alone gets features wherever they are fixed and fewer images
        run through the network for that. For others, the beginning of the network is timed on a
        few images, and the disk by some megabytes. Without, each epoch runs it over all images;
        with, it runs once, its output is written, and each epoch reads that. Epochs are those that
        run for certain, since a phase may stop early. That must leave at most 0.8 of the time:
        estimates err. Where no time could make up for the rest, nothing is timed. What else is
        saved, such as decoded images and a smaller graph, is not counted.

        Another time the clock may say otherwise, and the last bits of what is kept may depend on
        how many images run at once: who wants the same training again gives `before`.

        Args:
            plan: The phases.
            batch_size: Examples a batch, at least 1.
            before: What `places` returned of a choice for the same phases, of this model or of
                one like it, in this process or another. It is kept to, wherever it can be, and
                nothing is timed for the phases in it.
        """
        before = before or {}
        choices: dict[str, Choice] = {}
        unsure: list[tuple[Phase, Choice]] = []
        boundaries: dict[tuple[int, ...], Boundary] = {}
        trained = self._trained_before(plan)
        for phase in plan:
            choice = self._widest(phase, trained[phase.name])
            if choice.boundary is not None:
                found = boundaries.setdefault(choice.boundary.place, choice.boundary)
                choice = replace(choice, boundary=found)
            choices[phase.name] = choice
            if phase.name in before:
                if not before[phase.name]:
                    choices[phase.name] = Choice("", "it was chosen before")
            elif choice.boundary is not None:
                unsure.append((phase, choice))
            elif self.mode == AUTO and choice.where and not choice.solved:
                epochs = self._epochs(phase, batch_size)
                if epochs * self._each <= self._held(choice) / self._models(choice):
                    choices[phase.name] = Choice("", _FEW)
        choices |= self._by_cost(unsure, batch_size)
        return _chained(choices, trained)

    def data(self, choice: Choice, batch_size: int, **options: Any) -> Data:
        """Computes what is to be kept, or reads it, and batches it.

        Args:
            choice: One that keeps something.
            batch_size: Examples a batch, at least 1.
            **options: More of `train_batches`: `balance`, `replicas`, `one_hot`.

        Returns:
            Batches in the order in which the images themselves would come; all examples for
            validation, whatever the number of replicas.

        Raises:
            UserError: If the disk is full, or the data cannot be read.
        """
        kept = self._kept(choice, self.train)
        batches = feature_batches(kept, self.train, batch_size, seed=self.seed, **options)
        if self.validation is None:
            return Data(batches, None)
        kept = self._kept(choice, self.validation)
        one_hot = options.get("one_hot", False)
        return Data(
            batches, ordered_feature_batches(kept, self.validation, batch_size, one_hot=one_hot)
        )

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

    def _kept(self, choice: Choice, part: Part) -> Features:
        since, start = choice.since, None
        if since is not None and since.boundary is not None:
            start = since.boundary, lambda: self._kept(since, part)
        augment = self._augment(choice, part)
        return extract(
            self.model.backbone,
            self._entry(choice, part),
            self.cache,
            augment=augment,
            views=1 if augment == NONE else self.views,
            seed=self.seed,
            strategy=self.model.distribute_strategy,
            boundary=choice.boundary,
            start=start,
        )

    def _augment(self, choice: Choice, part: Part) -> str:
        return self.augment if part is self.train and not choice.solved else NONE

    def _entry(self, choice: Choice, part: Part) -> Part:
        """Returns the examples that are kept together with those of a part."""
        sharing = self.sharing if choice.shared else ()
        parts = [part]
        # Views are of training examples alone; else one entry has those of both.
        apart = self.augment != NONE and not choice.solved
        if part is self.train or not apart:
            parts += [splits.train for splits in sharing]
        if part is self.validation or not apart:
            parts += [splits.validation for splits in sharing]
        return covering([each for each in parts if each.split == part.split])

    def _held(self, choice: Choice) -> int:
        """Returns how many images entries hold, views counted; each runs through the network."""
        train = self._entry(choice, self.train)
        held = train.examples
        if self.augment != NONE:
            held *= self.views
        if self.validation is None:
            return held
        validation = self._entry(choice, self.validation)
        same = validation.split == train.split and np.array_equal(validation.rows, train.rows)
        return held if same and self.augment == NONE else held + validation.examples

    def _models(self, choice: Choice) -> int:
        """Returns how many models make use of an entry."""
        return max(1, len(self.sharing)) if choice.shared else 1

    def _widest(self, phase: Phase, trained: frozenset[int]) -> Choice:
        """Returns the most that can be kept in a phase, after some weights were trained."""

        def shared(weights: Sequence[Any]) -> bool:
            return len(self.sharing) < 2 or trained.isdisjoint(map(id, weights))

        if phase.solved and phase.stages == (HEAD,) and self.mode != OFF:
            return Choice("features", "the head is solved from them", solved=True)
        if unfit := self._unfit(phase):
            return Choice("", unfit)
        backbone = self.model.backbone
        if phase.stages == (HEAD,):
            reason = "the whole backbone is frozen"
            return Choice("features", reason, shared=shared(backbone.weights))
        if (found := find_boundary(backbone, phase.stages, phase.bn)) is None:
            return Choice("", "nothing that is frozen gives the same in every epoch")
        reason = "it can be kept"
        return Choice(found.name, reason, found, shared=shared(found.weights))

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

    def _by_cost(
        self, unsure: Sequence[tuple[Phase, Choice]], batch_size: int
    ) -> dict[str, Choice]:
        """Gives up, of some choices with a boundary, those that do not pay or do not fit."""
        found: dict[str, Choice] = {}
        if not unsure:
            return found
        costs: list[tuple[Phase, Choice, Boundary, str, Cost]] = []
        speed, size = Speed.of(self.cache.folder), self.model.backbone.contract.size
        images = noise_images(self.train, size, augmented=self.augment != NONE)
        for phase, choice in unsure:
            assert choice.boundary is not None
            shape = choice.boundary.shape(images.shape[1:3])
            about = f"{'x'.join(map(str, shape))} numbers an image"
            held, row_bytes = self._held(choice), 4 * math.prod(shape)
            epochs = self._epochs(phase, batch_size)
            cost = Cost(held, self._models(choice), self._each, epochs, row_bytes, speed)
            if self.mode == AUTO and self._frozen_share(phase) < _LEAST:
                found[phase.name] = Choice("", "what is frozen takes little of a step")
            elif held * row_bytes > _ROOM * min(self.cache.limit_bytes, speed.free_bytes):
                reason = f"{about} need more than half of the cache or of the disk"
                found[phase.name] = Choice("", reason)
            elif self.mode != AUTO:
                found[phase.name] = replace(choice, reason=about)
            elif not np.isfinite(cost.least_seconds(_GAIN)):
                found[phase.name] = Choice("", _FEW)
            else:
                costs.append((phase, choice, choice.boundary, about, cost))
        costs.sort(key=lambda each: each[2].place)
        verdicts = slow_enough(
            [cost.least_seconds(_GAIN) for *_, cost in costs],
            lambda i: prefix_seconds(costs[i][2], images),
        )
        for (phase, choice, _, about, cost), (pays, seconds) in zip(costs, verdicts, strict=True):
            bound = f"at {'most' if pays else 'least'} {cost.share(seconds):.0%}"
            reason = f"{about}, in {bound} of the time that the frozen stages would take"
            found[phase.name] = replace(choice, reason=reason) if pays else Choice("", reason)
        return found

    def _frozen_share(self, phase: Phase) -> float:
        """Estimates how much of a training step the stages before all that train take.

        As if all stages took as long, and a gradient twice as long as the way forward.
        """
        names = [stage.name for stage in self.model.backbone.stages]
        frozen = min(names.index(name) for name in phase.stages if name != HEAD)
        return frozen / (frozen + 3 * (len(names) - frozen))

    def _trained_before(self, plan: Sequence[Phase]) -> dict[str, frozenset[int]]:
        """Returns the ids of the weights that the phases before each phase train."""
        trained: frozenset[int] = frozenset()
        found = {}
        for phase in plan:
            found[phase.name] = trained
            stages = [stage for stage in self.model.stages if stage.name in phase.stages]
            trained |= {id(weight) for stage in stages for weight in stage.weights}
        return found

    @property
    def _each(self) -> int:
        """How many images run through the network in an epoch if nothing is kept."""
        return self.train.examples + (self.validation.examples if self.validation else 0)

    def _epochs(self, phase: Phase, batch_size: int) -> float:
        """How many are certain: the first is the best so far, and `patience` more may be worse."""
        if phase.steps:
            return phase.steps * batch_size / self.train.examples
        stops = phase.patience and self.validation is not None
        return min(phase.epochs, phase.patience + 1) if stops else phase.epochs


def _chained(
    choices: Mapping[str, Choice], trained: Mapping[str, frozenset[int]]
) -> dict[str, Choice]:
    """Lets each go on from the last before it that is needed anyway, in whatever phase.

    So that a gradual plan, which goes from the output side to the input side, runs each image
    through the network once. Not from one whose weights train before it is needed, and a head is
    solved from features as all that solves heads computes them.
    """
    untouched = [
        choice
        for name, choice in choices.items()
        if choice.boundary and trained[name].isdisjoint(map(id, choice.boundary.weights))
    ]
    untouched.sort(key=lambda choice: choice.boundary.place if choice.boundary else ())
    return {
        name: _linked(choice, untouched) if choice.where and not choice.solved else choice
        for name, choice in choices.items()
    }


def _linked(choice: Choice, earlier: Sequence[Choice]) -> Choice:
    """Links a choice with the last of others, input side first, that it can go on from."""
    for i in range(len(earlier) - 1, -1, -1):
        other = earlier[i].boundary
        further = other and (choice.boundary is None or choice.boundary.follows(other))
        if further and choice.shared == earlier[i].shared:
            return replace(choice, since=_linked(earlier[i], earlier[:i]))
    return choice
