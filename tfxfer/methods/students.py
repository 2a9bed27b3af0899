"""Students by name: a small network, any backbone, or one of the teacher's own kind."""

from tfxfer import heads
from tfxfer.backbones.hub import exists
from tfxfer.backbones.precision import set_precision
from tfxfer.backbones.tiny import TINY
from tfxfer.data.parts import Part
from tfxfer.methods.backbone import configured_backbone
from tfxfer.methods.opening import Opened
from tfxfer.models import FineTuner
from tfxfer.spec import Spec, parse_spec

SELF = "self"
"""The student that is of the kind of `--backbone`, with its pretrained weights again."""


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


def from_scratch(spec: str) -> bool:
    """Tells whether a backbone has no pretrained weights: `tiny`, or one with `weights=none`.

    Args:
        spec: What `load_backbone` takes.
    """
    found = Spec(spec) if exists(spec) else parse_spec(spec)
    return found.name == TINY or ("weights" in found.options and found.options["weights"] is None)
