"""`--mode=finetune`: pretrained weights as the start, unfrozen stage by stage."""

import functools
from pathlib import Path

import keras
import numpy as np
from scipy.special import softmax

from tfxfer import distribute, heads
from tfxfer.config import RunConfig
from tfxfer.data import DataInfo, Part, batches, open_dataset, split_data
from tfxfer.evaluate import predict, score
from tfxfer.export import save_classifier, save_keras_model, served_probabilities
from tfxfer.methods.backbone import check_backbone, configured_backbone
from tfxfer.models import FineTuner
from tfxfer.plan import gradual
from tfxfer.report import workdir
from tfxfer.report.console import Console
from tfxfer.report.result import ExportCheck, Result
from tfxfer.timing import Stopwatch
from tfxfer.training.callbacks import MetricsLog
from tfxfer.training.loop import train

# A SavedModel may run fused kernels where the trained model did not, and round differently; more
# than this is another model.
_EXPORT_TOLERANCE = 1e-3
_EXPORT_EXAMPLES = 1000


def run(config: RunConfig, path: Path, console: Console) -> Result | None:
    """Fine-tunes, evaluates, exports, and checks what was exported.

    Args:
        config: The settings.
        path: The folder to write to, as `workdir.choose_workdir` returned it.
        console: Where to say what happens.

    Returns:
        The result, as written to `results.json`; `None` for a dry run, which writes no files of
        a run, though it prepares the dataset.

    Raises:
        UserError: If dataset or backbone cannot be used, or training diverges. Whatever is
            raised, the workdir is left as it was.
    """
    timed = Stopwatch()
    with timed("loading"):
        strategy = distribute.pick_strategy()
        source = open_dataset(config.dataset, config.data_dir)
        with strategy.scope():
            backbone = configured_backbone(config, source.info)
        splits = split_data(source, config.seed)
        # Only now: what preparing a dataset takes from the global generators must not matter.
        keras.utils.set_random_seed(config.seed)
        with strategy.scope():
            model = FineTuner(backbone, heads.linear(len(source.info.label_names)))
        plan = gradual(model.stage_names, config.epochs, config.learning_rate)
        batched = functools.partial(
            batches, batch_size=config.batch_size, image_size=backbone.contract.size
        )
        replicas = strategy.num_replicas_in_sync
        train_data = batched(splits.train, shuffle_seed=config.seed, replicas=replicas)
        validation_data = batched(splits.validation, replicas=replicas)
        if config.self_check:
            check_backbone(backbone, train_data)
    device = distribute.describe(strategy)
    console.start(config, source.info, splits, backbone, plan, device)
    console.plan(plan, model)
    if config.dry_run:
        return None

    with workdir.run_in(path, config):
        with timed("training"):
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
            validation = score(*predict(model, batched(splits.validation)))
            logits, labels = predict(model, batched(splits.test))
            test = score(logits, labels)
        with timed("export"):
            served = path / workdir.SAVED_MODEL / "1"
            save_classifier(model, served, source.info.label_names, source.info.image_shape[-1])
            save_keras_model(model, path / workdir.KERAS_MODEL)
            check = _check_export(served, splits.test, source.info, logits)
        result = Result(
            label_names=source.info.label_names,
            metrics={"validation": validation, "test": test},
            phases=phases,
            export=check,
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
    return result


def _check_export(served: Path, test: Part, info: DataInfo, logits: np.ndarray) -> ExportCheck:
    """Gives the exported model test images as they are, and compares with the trained model."""
    examples = min(test.examples, _EXPORT_EXAMPLES)
    images = test.dataset.take(examples).map(lambda example_id, image, label: image)
    images = images.batch(1 if None in info.image_shape else 32)
    expected = softmax(logits[:examples].astype(np.float64), axis=-1)
    difference = np.abs(served_probabilities(served, images) - expected).max()
    return ExportCheck(float(difference), _EXPORT_TOLERANCE, examples)
