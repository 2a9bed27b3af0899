"""Students by name: a small network, any backbone, or one of the teacher's own kind."""

from pathlib import Path

from tfxfer import heads
from tfxfer.backbones.hub import parsed
from tfxfer.backbones.precision import set_precision
from tfxfer.backbones.scratch import from_scratch
from tfxfer.config import RunConfig, settings_from_file
from tfxfer.data.base import IMAGE
from tfxfer.data.parts import Part
from tfxfer.errors import UserError
from tfxfer.methods.backbone import configured_backbone, with_usual
from tfxfer.methods.opening import Opened
from tfxfer.methods.teacher_files import run_of
from tfxfer.methods.teachers import split_teachers
from tfxfer.models import FineTuner
from tfxfer.report.workdir import CONFIG
from tfxfer.spec import split_specs

SELF = "self"
"""The student that is of the teacher's kind: its backbone, with its pretrained weights again."""

_OF_KIND = ("backbone", "image_size", "value_range", "stages")


def assistants(config: RunConfig) -> list[str]:
    """Returns the students that are to be taught between teacher and student, by name."""
    return list(split_specs(config.assistant))


def with_own_kind(config: RunConfig, inputs: str = IMAGE) -> RunConfig:
    """Sets what `self` is, the backbone, as the run has it that is given as the teacher.

    Args:
        config: The settings. Without `self`, or without a teacher, or with a backbone that is
            given, they stay as they are.
        inputs: As `DataInfo` has them; a run on such has them for its usual student.

    Raises:
        UserError: If there are several teachers, or one that is no run.
    """
    asked = SELF in (config.student, *assistants(config))
    if not (asked and config.teacher) or config.given(("backbone",)):
        return config
    specs, _ = split_teachers(config.teacher)
    run = run_of(Path(parsed(specs[0]).name).expanduser()) if len(specs) == 1 else None
    if run is None or not (run / CONFIG).is_file():
        raise UserError(
            f"A student of the teacher's kind, self, must have one teacher that is a run, and "
            f"--teacher is {config.teacher}",
            "Name the backbone of that kind with --backbone.",
        )
    of_run = RunConfig(**settings_from_file(str(run / CONFIG)))
    if of_run.mode == "distill":
        of_run = with_usual(with_own_kind(of_run, inputs), inputs)
        if of_run.student != SELF:
            of_run = of_run.replace(
                backbone=of_run.student, teacher="", assistant="", stages="", value_range=""
            )
    left = set(_OF_KIND) - set(config.given(_OF_KIND))
    return config.replace(**{name: getattr(of_run, name) for name in left})


def new_student(shared: Opened, spec: str, seed: int, train: Part | None = None) -> FineTuner:
    """Builds a student: a backbone and a new linear head.

    Args:
        shared: Data, settings and devices. Image size and precision are those of the settings;
            `value_range` and `stages` only where the student is the backbone of the settings.
        spec: What `load_backbone` takes, such as `tiny`; or `self` for the backbone of the
            settings, loaded anew. The classifier of a whole model is cut off.
        seed: Of the new weights, in [0, 2**32). The same seed gives the same weights, to the bit.
        train: Training examples, whose targets a regression starts from; those of the first fold
            if `None`.

    Returns:
        The student, whose backbone is frozen. Batch normalization of one without pretrained
        weights goes by the batch.

    Raises:
        UserError: If there is no such backbone, or it cannot be used.
    """
    config, train = shared.config, train or shared.data.splits[0].train
    spec = config.backbone if spec == SELF else spec
    own = {} if spec == config.backbone else {"backbone": spec, "stages": "", "value_range": ""}
    bn = "train" if from_scratch(spec) else config.bn
    with shared.strategy.scope():
        settings = config.replace(**own, seed=seed, bn=bn)
        backbone = configured_backbone(settings, shared.data.source.info)
        set_precision(backbone, config.precision)
        head = heads.linear(shared.task, train.labels, config.dropout)
        return FineTuner(backbone, head)
