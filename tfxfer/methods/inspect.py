"""`--mode=inspect`: what a backbone wants, consists of and costs. It reads no data."""

import numpy as np

from tfxfer.backbones.cost import measure_cost
from tfxfer.backbones.self_check import check_features, check_value_range
from tfxfer.config import RunConfig
from tfxfer.methods.backbone import configured_backbone
from tfxfer.report.console import Console

_ANY_SIZE = (64, 64)


def run(config: RunConfig, path: None, console: Console) -> None:
    """Loads a backbone, checks it on noise, and prints what it is.

    Args:
        config: The settings.
        path: Not used: nothing is written.
        console: Where to print.

    Raises:
        UserError: If the backbone cannot be used, or its value range looks wrong.
    """
    backbone = configured_backbone(config)
    if config.self_check:
        shape = (2, *(backbone.contract.size or _ANY_SIZE), backbone.contract.channels)
        check_features(backbone, np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))
        check_value_range(backbone)
    console.inspect(backbone, measure_cost(backbone), list_weights=config.list_weights)
