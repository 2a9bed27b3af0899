"""`--mode=finetune`: pretrained weights as the start, unfrozen stage by stage."""

from pathlib import Path

import keras
import numpy as np
from scipy.special import softmax

from tfxfer import distribute, heads
from tfxfer.backbones import load_backbone
from tfxfer.config import RunConfig
from tfxfer.data import batches, open_dataset, split_data
from tfxfer.evaluate import predict, score
from tfxfer.export import save_classifier, save_keras_model, served_probabilities
from tfxfer.models import FineTuner
from tfxfer.plan import gradual
from tfxfer.report import workdir
from tfxfer.report.console import Console
from tfxfer.report.result import ExportCheck, Result
from tfxfer.timing import Stopwatch
from tfxfer.training.callbacks import MetricsLog
from tfxfer.training.loop import train

# A served model that differs more than this from the trained one is not the same model.
_EXPORT_TOLERANCE = 1e-3


def run(config: RunConfig, path: Path, console: Console) -> Result | None:
    """Fine-tunes, evaluates, exports, and checks what was exported.

    Args:
        config: The settings.
        path: The folder to write to, as `workdir.choose_workdir` returned it.
        console: Where to say what happens.

    Returns:
        The result, as written to `results.json`; `None` for a dry run, which writes nothing.

    Raises:
        UserError: If dataset or backbone cannot be used; nothing is written then.
        RuntimeError: If the exported model does not answer as the trained one does.
    """
    timed = Stopwatch()
    with timed("loading"):
        strategy = distribute.pick_strategy()
        with strategy.scope():
            backbone = load_backbone(config.backbone)
        source = open_dataset(config.dataset, config.data_dir)
        splits = split_data(source, config.seed)
        # Only now: what preparing a dataset takes from the global generators must not matter.
        keras.utils.set_random_seed(config.seed)
        with strategy.scope():
            model = FineTuner(backbone, heads.linear(len(source.info.label_names)))
        plan = gradual(model.stages, config.epochs, config.learning_rate)
        size = backbone.contract.size
        train_data = batches(
            splits.train, config.batch_size, image_size=size, shuffle_seed=config.seed
        )
        validation_data = batches(splits.validation, config.batch_size, image_size=size)
        test_data = batches(splits.test, config.batch_size, image_size=size)
    device = distribute.describe(strategy)
    console.start(config, source.info, splits, backbone, plan, device)
    console.plan(plan, model)
    if config.dry_run:
        return None

    workdir.start_run(path, config)
    with timed("training"), strategy.scope():
        phases = train(
            model,
            plan,
            train_data,
            validation_data,
            on_phase=console.phase,
            callbacks=lambda phase: [MetricsLog(path / workdir.METRICS, phase)],
            verbose=console.verbose,
        )
    with timed("evaluation"):
        validation = score(*predict(model, validation_data))
        test_logits, test_labels = predict(model, test_data)
        test = score(test_logits, test_labels)
    with timed("export"):
        served = path / workdir.SAVED_MODEL / "1"
        save_classifier(model, served, source.info.label_names, source.info.image_shape[-1])
        save_keras_model(model, path / workdir.KERAS_MODEL)
        difference = np.abs(served_probabilities(served, test_data) - softmax(test_logits, axis=-1))
    result = Result(
        metrics={"validation": validation, "test": test},
        phases=phases,
        export=ExportCheck(float(difference.max()), test.examples),
        parameters={
            "total": model.count_params(),
            "backbone": backbone.count_params(),
            "head": model.head.count_params(),
        },
        timings=timed.seconds,
        fingerprints={"data": source.fingerprint, "backbone": backbone.fingerprint},
    )
    workdir.write_json(path / workdir.RESULTS, result.to_dict())
    console.close(result, path)
    if result.export.max_difference > _EXPORT_TOLERANCE:
        raise RuntimeError(
            f"The exported model differs from the trained one by {result.export.max_difference} "
            f"in a probability, expected at most {_EXPORT_TOLERANCE}: do not serve {served}."
        )
    return result
