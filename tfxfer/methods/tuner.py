"""From a config to a fine-tuner, its plan, and how it takes steps."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import tensorflow as tf

from tfxfer import heads
from tfxfer.backbones import HEAD, ImageContract
from tfxfer.backbones.adapters import adapt
from tfxfer.backbones.scratch import from_scratch
from tfxfer.config import AUTO, RunConfig
from tfxfer.data.base import IMAGE, TEXT, DataInfo
from tfxfer.data.parts import Part, Splits
from tfxfer.data.pipeline import train_batches
from tfxfer.distribute import agreed, share_folder, share_weights
from tfxfer.errors import UserError
from tfxfer.features import Features, covering, extract
from tfxfer.methods.opening import Opened
from tfxfer.models import FineTuner
from tfxfer.plan import (
    Plan,
    is_file,
    leaves_choice,
    make_plan,
    with_layer_decay,
    with_patience,
    with_schedule,
)
from tfxfer.report import workdir
from tfxfer.rules import BitRule, bert, bit
from tfxfer.task import REGRESSION, SINGLE_LABEL
from tfxfer.training.epochs import Batches
from tfxfer.training.gradient_norms import relative_gradient_norms, surgical_choice
from tfxfer.training.objective import Objective, objective
from tfxfer.training.settings import Settings

GRADUAL = "gradual"
"""The plan where none is given."""

_EPOCHS = 8
_OF_PLAN = ("layer_decay", "schedule", "warmup", "learning_rate", "epochs", "patience")
_RULED = ("plan", *_OF_PLAN, "optimizer", "batch_size", "mix", "augment", "views")
_OF_CYCLE = ("schedule", "warmup", "patience")
_LOOKED_AT = 8  # Batches that choose the stages of `surgical`.
_SOUP = 5  # Epochs whose weights are candidates for a soup.


def ruled(config: RunConfig, data: DataInfo) -> RunConfig:
    """Sets what `--rule` leaves open: batch size, optimizer, mixture, and the size of the images.

    Args:
        config: The settings.
        data: How many examples there are, and of which size.

    Returns:
        The settings, as they are if there is no rule.

    Raises:
        UserError: If a setting that the rule sets is given too.
    """
    if config.rule != "bit":
        return config
    for name in config.given(_RULED):
        raise UserError(
            f"--rule={config.rule} sets {name} itself", f"Leave --{name} or --rule out."
        )
    rule = _bit(config, data)
    open_size = not config.image_size and config.backbone.startswith("keras:")
    # Only images have a size, and only some networks leave it open.
    return config.replace(
        optimizer=rule.optimizer,
        learning_rate=rule.learning_rate,
        batch_size=rule.batch_size,
        augment="light" if data.inputs == IMAGE else "none",
        mix="mixup" if rule.mixup and data.inputs == IMAGE else "none",
        image_size=str(rule.crop) if open_size else config.image_size,
    )


def with_recipe(shared: Opened) -> Opened:
    """Sets what `--rule=bert` leaves open, and `auto` for a pretrained text encoder.

    What is given stays as it is; so does what a plan in a file, or one that has a schedule of its
    own, says itself.

    Args:
        shared: Data, backbone and settings.
    """
    config, backbone = shared.config, shared.backbone
    encoder = backbone.tokenizer is not None and not from_scratch(backbone.source)
    if config.rule == AUTO:
        config = config.replace(rule="bert" if encoder else "none")
    if config.rule == "bert":
        train = shared.data.splits[0].train
        found = bert(train.examples, config.batch_size, config.adapt != "none")
        own = set(config.given(list(found)))
        own |= set(_OF_PLAN) if config.plan != AUTO and is_file(config.plan) else set()
        own |= set(_OF_CYCLE) if config.plan.startswith("fastai") else set()
        config = config.replace(**{k: value for k, value in found.items() if k not in own})
    return replace(shared, config=with_plan(config))


def with_plan(config: RunConfig) -> RunConfig:
    """Names the plan where the settings leave it open."""
    return config.replace(plan=GRADUAL) if config.plan == AUTO else config


def _bit(config: RunConfig, data: DataInfo) -> BitRule:
    height, width = data.shape[:2] if data.inputs == IMAGE else (None, None)
    return bit(_examples(config, data), (height, width) if height and width else None)


def _examples(config: RunConfig, data: DataInfo) -> int:
    """Returns how many examples will be trained on, at most."""
    if config.protocol == "vtab1k":
        return 1000
    most = [data.examples.get("train", max(data.examples.values()))]
    if config.max_examples:
        most.append(config.max_examples)
    if config.shots:
        most.append(config.shots * data.task.units)
    return min(most)


def new_model(shared: Opened, train: Part) -> FineTuner:
    """Puts a new head on the backbone, of which the stages and the weights that may train are set.

    Args:
        shared: Data and backbone; the backbone holds no low-rank additions yet.
        train: Training examples.
    """
    config = shared.config
    with shared.strategy.scope():
        adapt(shared.backbone, config.adapt, config.lora_rank)
        head = heads.linear(shared.task, train.labels, config.dropout)
        model = FineTuner(shared.backbone, head)
        if config.rule == "bit":  # Its head starts at zero.
            model.head.set_weights([np.zeros_like(each) for each in model.head.get_weights()])
    return model


def check_devices(shared: Opened) -> None:
    """Checks that steps can be taken as a config asks, on the devices that there are.

    Raises:
        UserError: If XLA is to compile for several, or texts.
    """
    replicas = shared.strategy.num_replicas_in_sync
    if shared.config.jit and shared.backbone.contract.inputs == TEXT:
        raise UserError("--jit is for images: XLA compiles no strings", "Leave it out.")
    if shared.config.jit and replicas > 1:
        raise UserError(
            f"--jit compiles steps for one device, and there are {replicas}",
            "Leave it out, or show TensorFlow one device.",
        )


def share_unfinished(shared: Opened, path: Path, config: RunConfig) -> None:
    """Gives all workers what the chief has of an unfinished run that is to go on.

    Args:
        shared: The devices.
        path: The workdir, of this worker.
        config: The settings as they were given.
    """
    if agreed(shared.strategy, workdir.goes_on(path, config)):
        share_folder(shared.strategy, path)


def plan_of(shared: Opened, model: FineTuner) -> Plan:
    """Returns the plan that a config asks for.

    Args:
        shared: Data and backbone.
        model: What is to be trained; it stays as it is.

    Raises:
        UserError: If the plan does not fit the model.
    """
    config, stages = shared.config, model.stage_names
    if config.rule == "bit":
        return _bit(config, shared.data.source.info).plan(stages)
    chosen: Sequence[str] = ()
    if leaves_choice(config.plan):
        chosen = _chosen(shared, model)
    plan = make_plan(config.plan, stages, config.epochs or _EPOCHS, config.learning_rate, chosen)
    if is_file(config.plan) and (given := config.given(_OF_PLAN)):
        raise UserError(
            f"--plan={config.plan} says by itself how its phases are trained, and "
            f"{', '.join(f'--{name}' for name in given)} would say it again",
            "Leave that out, and edit the file.",
        )
    if config.plan.startswith("fastai") and (given := config.given(_OF_CYCLE)):
        raise UserError(
            f"--plan=fastai is one cycle, and has its own {given[0]}", f"Leave --{given[0]} out."
        )
    if config.adapt != "none" and all(phase.stages == (HEAD,) for phase in plan.phases):
        raise UserError(
            f"--adapt={config.adapt} is for the backbone, and --plan={config.plan} freezes it",
            "Leave one of them out.",
        )
    if is_file(config.plan):
        return plan
    phases = with_layer_decay(plan.phases, stages, config.layer_decay)
    if config.schedule != "constant" or config.warmup:
        phases = with_schedule(phases, config.schedule, config.warmup)
    return Plan(with_patience(phases, config.patience), plan.frozen)


def _chosen(shared: Opened, model: FineTuner) -> tuple[str, ...]:
    """Chooses a stage by its gradients, under a head that knows the task."""
    name = ", or name the stages, as in --plan='surgical(stages=block1)'."
    if shared.config.adapt == "lora":
        raise UserError(
            "--plan=surgical chooses a stage by its gradient, and low-rank additions have none at "
            "the start",
            f"Leave --adapt out{name}",
        )
    splits, *others = shared.data.splits
    if others:
        raise UserError(
            "--plan=surgical chooses a stage by training examples, and with --folds these are "
            "tested on too",
            f"Leave --folds out{name}",
        )
    train, before = splits.train, model.head.get_weights()
    solve_head(shared, model, splits)
    # Shuffled, since batches of one class each, as folders are read, have other gradients.
    drawn = train_batches(
        train,
        shared.config.batch_size,
        seed=shared.config.seed,
        image_size=model.backbone.contract.size,
    )
    aim = objective(shared.task, train.labels)
    norms = relative_gradient_norms(model, drawn.epoch(0).take(_LOOKED_AT), aim.loss())
    model.head.set_weights(before)
    return tuple(agreed(shared.strategy, surgical_choice(norms)))


def solve_head(
    shared: Opened, model: FineTuner, splits: Splits, whole: Part | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Gives a model the best linear head on the features of its backbone as it is.

    Args:
        shared: Data, backbone and cache.
        model: The model.
        splits: Training examples, and those that choose the strength of the penalty.
        whole: Training examples for the head, if not those of `splits`, by which the strength is
            chosen in any case: no example may judge a head that has learned it.

    Returns:
        Outputs of the model and `y` of the training examples.
    """
    name = "ridge" if shared.task.kind == REGRESSION else "logistic"

    def arrays(part: Part) -> tuple[np.ndarray, np.ndarray]:
        found = features_of(shared, part)
        rows = found.positions(part)
        return found.first[rows], found.y[rows]

    train, validation = arrays(splits.train), arrays(splits.validation)
    fitted = heads.fit_head(name, shared.task, train, validation)
    if whole is not None:
        train = arrays(whole)
        fitted = heads.fit_head(name, shared.task, train, validation, strength=fitted.strength)
    share_weights(shared.strategy, fitted.layer)
    kernel, bias = fitted.layer.get_weights()
    heads.assign_linear(model.head, kernel, bias)
    x, y = train
    return x @ kernel + bias, y


def features_of(shared: Opened, part: Part) -> Features:
    """Returns features of the examples of a part and of all like it, folds and validation."""
    return extract(
        shared.backbone,
        covering([part, *shared.sharing(part.split)]),
        shared.cache,
        strategy=shared.strategy,
    )


@dataclass(frozen=True)
class Resized:
    """Batches whose images are of the network's size, since XLA has no antialiased resize.

    Attributes:
        batches: Their images are of any size.
        contract: What the network takes.
    """

    batches: Batches
    contract: ImageContract

    @property
    def steps(self) -> int:
        """Batches in an epoch."""
        return self.batches.steps

    def of_worker(self, index: int, count: int) -> "Resized | None":
        """Returns the shares of a worker, as `TrainBatches.of_worker`."""
        own = getattr(self.batches, "of_worker", lambda *_: None)(index, count)
        return own and Resized(own, self.contract)

    def epochs(self, first: int = 0) -> tf.data.Dataset:
        """Returns the batches of all epochs from one on."""
        return self.batches.epochs(first).map(
            lambda images, *rest: (self.contract.resize(images), *rest)
        )


def training_batches(shared: Opened, part: Part) -> Batches:
    """Batches a part of the data as a config has it."""
    config, more = shared.config, {}
    if config.rule == "bit":
        rule = _bit(config, shared.data.source.info)
        more = {"margin": rule.resize / rule.crop, "alpha": rule.mixup}
    found = train_batches(
        part,
        config.batch_size,
        image_size=shared.backbone.contract.size,
        augment=config.augment,
        views=config.views,
        mix=config.mix,
        seed=config.seed,
        balance=config.balance,
        replicas=shared.strategy.num_replicas_in_sync,
        one_hot=is_soft(shared),
        **more,
    )
    return Resized(found, shared.backbone.contract) if config.jit else found


def is_soft(shared: Opened) -> bool:
    """Whether labels of one class are given as shares of each."""
    config = shared.config
    spread = config.mix != "none" or config.label_smoothing > 0
    return spread and shared.task.kind == SINGLE_LABEL


def training_objective(shared: Opened, part: Part) -> Objective:
    """Returns what training on a part makes small."""
    return objective(
        shared.task,
        part.labels,
        soft=is_soft(shared),
        label_smoothing=shared.config.label_smoothing,
    )


def training_settings(config: RunConfig) -> Settings:
    """Returns how steps are taken."""
    return Settings(
        optimizer=config.optimizer,
        weight_decay=config.weight_decay,
        l2_sp=config.l2_sp,
        ema=config.ema,
        clip_norm=config.clip_norm,
        accumulate=config.accumulate,
        loss_scaling=config.precision == "mixed_float16",
        jit=config.jit,
        keep_epochs=_SOUP if config.average == "soup" else 0,
    )
