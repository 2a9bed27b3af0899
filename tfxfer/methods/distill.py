"""`--mode=distill`: a student learns what a teacher says, beside one that learns labels alone."""

import contextlib
import os
from pathlib import Path
from typing import Any

from tfxfer.backbones.hub import parsed
from tfxfer.backbones.scratch import from_scratch
from tfxfer.config import RunConfig
from tfxfer.data.arrays import open_inputs
from tfxfer.data.base import DataSource
from tfxfer.files import written_whole
from tfxfer.methods.backbone import with_usual
from tfxfer.methods.data import configured_source, naming_bad_examples
from tfxfer.methods.losses import losses_for
from tfxfer.methods.opening import config_for, opened
from tfxfer.methods.students import SELF, with_own_kind
from tfxfer.methods.teacher_files import check_teacher
from tfxfer.methods.teachers import split_teachers
from tfxfer.methods.teaching import Teaching
from tfxfer.methods.tuner import check_devices, share_unfinished
from tfxfer.methods.unlabelled import unlabelled_part
from tfxfer.report import workdir
from tfxfer.report.card import card_markdown
from tfxfer.report.console import Console
from tfxfer.report.result import Result


def run(
    config: RunConfig,
    path: Path,
    console: Console,
    source: DataSource | None = None,
    unlabeled: DataSource | None = None,
) -> Result | None:
    """Distils, compares with labels alone, exports the student, and checks what was exported.

    Of the students of all seeds, the one with the least validation loss is exported.

    Args:
        config: The settings.
        path: The folder to write to, as `workdir.choose_workdir` returned it.
        console: Where to say what happens.
        source: The data, if not what the config names.
        unlabeled: The examples without labels, if not what the config names.

    Returns:
        The result, as written to `results.json`; `None` for a dry run.

    Raises:
        UserError: If dataset, teacher or student cannot be used, or training diverges. Whatever is
            raised, the workdir is left as it was, unless there is something to go on from.
    """
    source = source or configured_source(config)
    inputs = source.info.inputs
    given, config = config, with_usual(with_own_kind(config, inputs), inputs)
    specs, _ = split_teachers(config.teacher)
    for spec in specs:
        check_teacher(parsed(spec))
    with contextlib.ExitStack() as named:
        named.enter_context(naming_bad_examples(config, source))
        shared = opened(_for_student(config), source)
        check_devices(shared)
        share_unfinished(shared, path, given)
        terms = losses_for(config.loss, shared.task, shared.data.splits[0].train.labels)
        rest = unlabelled_part(config, shared, unlabeled)
        if rest is not None:
            named.enter_context(naming_bad_examples(config, rest.source))
        job = Teaching(
            **vars(shared), path=path, console=console, settings=config, terms=terms, rest=rest
        )
        teachers = job.given_teachers()
        console.lines(job.start_lines(job.check(teachers)))
        if config.dry_run:
            return None
        console.workdir(path, workdir.goes_on(path, given))
        with workdir.run_in(path, given, job.identity):
            result = job.run(teachers if specs else job.fine_tuned_teacher(source))
            assert result.card is not None
            with written_whole(path / workdir.CARD) as unfinished:
                unfinished.write_text(card_markdown(result.card), encoding="utf-8")
            workdir.write_json(path / workdir.RESULTS, result.to_dict())
        console.close(result, path)
    return result


def distill(source: DataSource, *, unlabeled: Any = "", **settings: Any) -> Result | None:
    """Does in Python what `--mode=distill` does, on data that Python holds.

    Args:
        source: What `open_dataset` returned, for example of arrays.
        unlabeled: What `--unlabeled` takes; or what `open_dataset` returned; or inputs alone, an
            array such as uint8 `[n, h, w, 3]` or strings `[n]`, or a `tf.data.Dataset` of single
            inputs, finite and always in the same order.
        **settings: Those of `RunConfig`, such as `teacher="runs/1", student="tiny", epochs=50`.

    Returns:
        The result, as written to `results.json`; `None` with `dry_run=True`.

    Raises:
        UserError: As `run`; or if the source is none, or a setting is one of `open_dataset`.
    """
    more = None
    if not isinstance(unlabeled, str | os.PathLike):
        more = unlabeled if isinstance(unlabeled, DataSource) else open_inputs(unlabeled)
    named = more.info.name if more else unlabeled
    config = config_for("distill", source, {**settings, "unlabeled": named})
    return run(config, workdir.choose_workdir(config), Console(), source, more)


def _for_student(config: RunConfig) -> RunConfig:
    """Returns the settings with the student for a backbone."""
    if config.student == SELF:
        return config
    bn = "train" if from_scratch(config.student) else config.bn
    of_teacher = {"teacher": "", "assistant": "", "stages": "", "value_range": ""}
    return config.replace(backbone=config.student, bn=bn, **of_teacher)
