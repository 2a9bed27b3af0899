"""A fine-tuning that only asks what a backbone reaches: no workdir, no export, no test examples."""

import numpy as np

from tfxfer.backbones.adapters import merge
from tfxfer.data.pipeline import batches
from tfxfer.evaluate import predict
from tfxfer.methods.opening import Opened
from tfxfer.methods.tuner import (
    is_soft,
    new_model,
    plan_of,
    solve_head,
    training_batches,
    training_objective,
    training_settings,
)
from tfxfer.training.loop import Data, train


def short_tuning(shared: Opened) -> tuple[np.ndarray, np.ndarray]:
    """Fine-tunes a backbone by the plan of the settings, and writes nothing.

    Args:
        shared: Data, backbone and settings; the backbone is trained.

    Returns:
        Outputs `[examples, units]` and `y` of the validation examples, which chose the epoch.

    Raises:
        UserError: If training diverges, or the plan does not fit.
    """
    splits, config = shared.data.splits[0], shared.config
    model = new_model(shared, splits.train)

    def validation(one_hot: bool = False):
        size = shared.backbone.contract.size
        return batches(splits.validation, config.batch_size, image_size=size, one_hot=one_hot)

    train(
        model,
        plan_of(shared, model).phases,
        Data(training_batches(shared, splits.train), validation(is_soft(shared))),
        training_objective(shared, splits.train),
        settings=training_settings(config),
        solve_head=lambda model: solve_head(shared, model, splits),
    )
    merge(shared.backbone)
    return predict(model, validation())
