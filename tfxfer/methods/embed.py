"""`--mode=embed`: features as a product, with ids and labels, and how well they tell apart."""

from pathlib import Path

import keras
import numpy as np

from tfxfer import distribute
from tfxfer.config import RunConfig
from tfxfer.data.base import DataSource
from tfxfer.data.pipeline import batches
from tfxfer.data.splits import TEST, TRAIN, VALIDATION, given_parts
from tfxfer.embeddings import part_ids, write_embeddings
from tfxfer.errors import UserError
from tfxfer.export import save_backbone
from tfxfer.features import extract
from tfxfer.methods.backbone import check_backbone, configured_backbone, with_usual
from tfxfer.methods.cache import configured_cache
from tfxfer.methods.data import (
    configured_source,
    looked_at,
    naming_bad_examples,
)
from tfxfer.report import workdir
from tfxfer.report.console import Console
from tfxfer.report.result import EmbedResult
from tfxfer.task import SINGLE_LABEL
from tfxfer.timing import Stopwatch
from tfxfer.verification import (
    Retrieval,
    Verification,
    cosine_similarity,
    retrieve,
    sample_pairs,
    verify,
)

_PAIRS = 20_000
_FALSE_ACCEPTS = (1e-2, 1e-3)


def run(
    config: RunConfig, path: Path, console: Console, source: DataSource | None = None
) -> EmbedResult | None:
    """Writes the features of every split that the data has, and measures those of one.

    Measured are those of `test`, else of `validation`, else of `train`: whether pairs of one class
    are more alike than pairs of two, and whether each example finds its like.

    Args:
        config: The settings.
        path: The folder to write to, as `workdir.choose_workdir` returned it.
        console: Where to say what happens.
        source: The data, if not what the config names.

    Returns:
        The result, as written to `results.json`; `None` for a dry run.

    Raises:
        UserError: If dataset or backbone cannot be used. Whatever is raised, the workdir is left
            as it was.
    """
    source = source or configured_source(config)
    config = with_usual(config, source.info.inputs)
    with naming_bad_examples(config, source):
        return _run(config, path, console, source)


def _run(config: RunConfig, path: Path, console: Console, source: DataSource) -> EmbedResult | None:
    timed = Stopwatch()
    with timed("loading"):
        strategy = distribute.pick_strategy(config.strategy, config.num_logical_devices)
        with strategy.scope():
            backbone = configured_backbone(config, source.info)
        bad, _ = looked_at(config, source)
        parts = given_parts(source, bad)
        keras.utils.set_random_seed(config.seed)
        if config.self_check:
            size = backbone.contract.size
            check_backbone(backbone, batches(parts[TRAIN], config.batch_size, image_size=size))
    console.embedding(source.info, backbone, {name: p.examples for name, p in parts.items()}, bad)
    if config.dry_run:
        return None
    with workdir.run_in(path, config):
        cache = configured_cache(config)
        with timed("features"):
            features = {
                name: extract(backbone, part, cache, strategy=strategy)
                for name, part in parts.items()
            }
        with timed("writing"):
            for name, found in features.items():
                write_embeddings(
                    path / workdir.EMBEDDINGS / name,
                    found.first,
                    part_ids(found.part),
                    found.y,
                    source.info.task,
                    format=config.format,
                )
            served = path / workdir.SAVED_MODEL / "1"
            save_backbone(backbone, served, source.info.shape)
        measured = next(name for name in (TEST, VALIDATION, TRAIN) if name in parts)
        with timed("measuring"):
            figures = (None, None)
            if source.info.task.kind == SINGLE_LABEL:
                figures = _measure(features[measured].first, features[measured].y, config.seed)
        result = EmbedResult(
            examples={name: part.examples for name, part in parts.items()},
            units=backbone.units,
            verification=figures[0],
            retrieval=figures[1],
            measured=measured,
            timings=timed.seconds,
            fingerprints={"data": source.fingerprint, "backbone": backbone.fingerprint},
            skipped=bad,
        )
        workdir.write_json(path / workdir.RESULTS, result.to_dict())
    console.embedded(result, path)
    return result


def _measure(
    features: np.ndarray, identities: np.ndarray, seed: int
) -> tuple[Verification | None, Retrieval | None]:
    try:
        left, right, same = sample_pairs(identities, _PAIRS, seed)
    except UserError:  # One class, or one example of each: nothing to measure.
        return None, None
    similar = cosine_similarity(features, left, right)
    return verify(similar, same, _FALSE_ACCEPTS), retrieve(features, identities)
