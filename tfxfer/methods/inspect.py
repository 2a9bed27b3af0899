"""`--mode=inspect`: what a dataset holds; what a backbone wants, consists of and costs."""

from tfxfer.backbones.cost import measure_cost
from tfxfer.backbones.self_check import check_features, check_value_range
from tfxfer.config import RunConfig
from tfxfer.methods.backbone import configured_backbone
from tfxfer.methods.data import configured_source, ready_data
from tfxfer.report.console import Console

_ANY_SIZE = (64, 64)


def run(config: RunConfig, path: None, console: Console) -> None:
    """Looks at the dataset, at the backbone, or at both, and prints what they are.

    Args:
        config: The settings. If one of `dataset` and `backbone` is the default alone, only the
            other is looked at.
        path: Not used: nothing is written.
        console: Where to print.

    Raises:
        UserError: If dataset or backbone cannot be used, or the value range looks wrong.
    """
    usual = RunConfig()
    data_asked = config.dataset != usual.dataset
    backbone_asked = config.backbone != usual.backbone
    if data_asked or not backbone_asked:
        console.data(ready_data(config, configured_source(config)))
    if backbone_asked or not data_asked:
        _inspect_backbone(config, console)


def _inspect_backbone(config: RunConfig, console: Console) -> None:
    backbone = configured_backbone(config)
    checked = False
    if config.self_check:
        check_features(backbone, backbone.contract.noise(2, _ANY_SIZE))
        checked = check_value_range(backbone)
    console.inspect(
        backbone, measure_cost(backbone), range_checked=checked, list_weights=config.list_weights
    )
