"""Transfer learning from the command line.

Fine-tune the embedded backbone on the embedded digits, and write what comes of it under runs/:

    python -m tfxfer.run --mode=finetune

The same of embedded texts:

    python -m tfxfer.run --mode=finetune --dataset=docstrings

Which backbone suits, and is fine-tuning it worth it?

    python -m tfxfer.run --mode=select --backbones='glyphs, tiny, keras:ResNet50' --budget=18
    python -m tfxfer.run --mode=compare

Your own: any TensorFlow Datasets name of labelled images or texts, files of your own, and any
pretrained network:

    python -m tfxfer.run --mode=finetune --dataset=cats_vs_dogs --backbone=keras:ResNet50
    python -m tfxfer.run --mode=finetune --dataset='csv:reviews.csv(text=review,label=stars)'
    python -m tfxfer.run --mode=inspect --backbone=/models/mine.keras

    --backbone=glyphs                                  embedded, for images; for texts words
    --backbone='keras:MobileNetV2(alpha=0.35)'         a network of keras.applications;
                                                       weights=imagenet, none or FILE
    --backbone='mine.keras(layer=NAME)'                a Keras model, cut below its classifier or
                                                       at a layer; a .h5 of Keras 2 or 3 too
    --backbone=/models/resnet_50                       a SavedModel: folder, .tar.gz or URL, such
                                                       as https://tfhub.dev/...
    --backbone=kaggle://OWNER/MODEL/tensorFlow2/NAME   through kagglehub
    --backbone='/models/bert(preprocess=HANDLE)'       a text encoder with its preprocessing
    --backbone=keras_hub:resnet_50_imagenet            a preset of KerasHub, or its folder
    --backbone='transformer(layers=2)'                 for texts, random weights; so is bag
    --backbone='glyphs(random=all)'                    any of these with weights drawn anew; or
                                                       those of a stage, random=block4
"""

import contextlib
import dataclasses
import importlib
import logging
import os
import shutil
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from tfxfer.config import CHOICES, RunConfig, settings_from_file
from tfxfer.errors import UserError
from tfxfer.spec import parse_spec
from tfxfer.workers import Worker, this_worker

_WRONG_EXPORT = 1
_USER_MISTAKE = 2
_LOST_WORKER = 3
_INTERRUPTED = 130
_ENDED = 143
_GRACE = 20.0  # Seconds for a process that was told to end to tidy up.
_HELP = ("help", "helpshort")
_WITH_WORKDIR = ("finetune", "distill", "extract", "embed", "lr_find", "select", "compare")


_DEFINE = {
    str: flags.DEFINE_string,
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    bool: flags.DEFINE_bool,
}


def define_flags() -> flags.FlagValues:
    """Defines a flag for every setting, and `--config` and `--help`."""
    values = flags.FlagValues()
    for field in dataclasses.fields(RunConfig):
        text = field.metadata["help"]
        if field.name in CHOICES:
            default, choices = str(field.default), CHOICES[field.name]
            flags.DEFINE_enum(field.name, default, choices, text, flag_values=values)
        else:
            define = _DEFINE[type(field.default)]
            define(field.name, field.default, text, flag_values=values)
    flags.DEFINE_string(
        "config",
        "",
        "JSON file of settings, such as the config.json of an earlier run; flags override it.",
        flag_values=values,
    )
    for name in _HELP:
        flags.DEFINE_bool(name, False, "Print this help.", flag_values=values)
    return values


def parse(argv: Sequence[str], values: flags.FlagValues) -> RunConfig:
    """Turns command-line arguments into a config.

    Args:
        argv: Program name and arguments.
        values: What `define_flags` returned.

    Returns:
        The config; flags go before `--config`, which goes before the defaults.

    Raises:
        UserError: If a flag or a value is not known.
    """
    try:
        rest = values(argv)[1:]
    except flags.Error as error:
        raise UserError(str(error), "See --help.") from error
    if rest:
        raise UserError(f"Expected flags only, received {' '.join(rest)!r}", "See --help.")
    settings: dict[str, Any] = settings_from_file(values.config) if values.config else {}
    for field in dataclasses.fields(RunConfig):
        if values[field.name].present:
            settings[field.name] = values[field.name].value
    return RunConfig(**settings)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one mode.

    Args:
        argv: Program name and arguments; those of the process if `None`.

    Returns:
        The exit code: 0; 1 if the exported model does not answer as the trained one does; 2 for a
        mistake of the user's, which is told in one line; 3 if another worker was lost; 130 if
        interrupted, 143 if ended.
    """
    argv = list(sys.argv if argv is None else argv)
    _heed_sigterm()
    values = define_flags()
    named = [argument.lstrip("-").split("=")[0] for argument in argv[1:] if argument[:1] == "-"]
    try:
        if set(_HELP) & set(named):
            print(f"{__doc__}\nFlags:{values.get_help(include_special_flags=False)}")
            return 0
        return _run(parse(argv, values))
    except UserError as error:
        if "debug" in named:
            traceback.print_exc()
        print(f"tfxfer: error: {' '.join(str(error).split())}", file=sys.stderr)
        return _USER_MISTAKE
    except KeyboardInterrupt as error:
        told = str(error) or "the workdir is as it was before"
        print(f"tfxfer: interrupted; {told}", file=sys.stderr)
        return _INTERRUPTED


def _heed_sigterm() -> None:
    if threading.current_thread() is threading.main_thread():
        # As an interrupt, so that a run that is ended tidies up.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(_ENDED))


def _run(config: RunConfig) -> int:
    os.environ["KERAS_BACKEND"] = "tensorflow"
    from tfxfer.report import workdir

    if config.strategy == "multiworker":
        _start_tensorflow(config)  # Which reads the place of this process from SLURM, too.
    worker = this_worker(config.strategy)
    if worker.count > 1:
        return _run_with_others(config, worker)
    path = workdir.choose_workdir(config) if config.mode in _WITH_WORKDIR else None
    _check_dataset(config)
    _start_tensorflow(config)
    return _call(config, path)


def _end_when_told() -> None:
    """Ends the process some seconds after SIGTERM, even while it waits for another worker.

    Python handles no signal while TensorFlow waits; a thread learns of it all the same.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    told, tell = os.pipe()
    os.set_blocking(tell, False)
    if signal.set_wakeup_fd(tell, warn_on_full_buffer=False) != -1:
        return  # Somebody listens already.

    def wait() -> None:
        while os.read(told, 1) != bytes([signal.SIGTERM]):
            pass
        threading.Event().wait(_GRACE)
        os._exit(_ENDED)

    threading.Thread(target=wait, daemon=True).start()


def _call(config: RunConfig, path: Path | None, quiet: bool = False) -> int:
    from tfxfer.report.console import Console

    method = importlib.import_module(f"tfxfer.methods.{config.mode}")
    result = method.run(config, path, Console(quiet))
    return 0 if result is None or result.passed else _WRONG_EXPORT


def _run_with_others(config: RunConfig, worker: Worker) -> int:
    """Runs as one of several workers; if another one is lost, so is this one."""
    from tfxfer.report import workdir

    _start_tensorflow(config)
    import tensorflow as tf

    from tfxfer.distribute import all_agree, pick_strategy

    _end_when_told()
    strategy = pick_strategy(config.strategy, config.num_logical_devices)
    path, told = None, ""
    try:
        path = workdir.choose_workdir(config) if config.mode in _WITH_WORKDIR else None
    except UserError as error:
        told = str(error)
    if not all_agree(strategy, int(not told)):
        if told:
            print(f"tfxfer: error: {told}", file=sys.stderr)
        return _USER_MISTAKE
    errors = tf.errors
    try:
        return _call(config, path, quiet=not worker.is_chief)
    except (
        *(errors.UnavailableError, errors.AbortedError, errors.CancelledError),
        errors.DeadlineExceededError,
    ):
        goes_on = config.mode in ("finetune", "distill")
        print(
            f"tfxfer: error: worker {worker.index} of {worker.count} has lost another one, which "
            "may say why; start all of them again with the same command"
            + (", which goes on where training was" if goes_on else ""),
            file=sys.stderr,
            flush=True,
        )
        if path is not None and not worker.is_chief:
            shutil.rmtree(path, ignore_errors=True)
        # What TensorFlow would still wait for does not come.
        os._exit(_LOST_WORKER)


def _start_tensorflow(config: RunConfig) -> None:
    with contextlib.nullcontext() if config.debug else _quiet_tensorflow():
        import tensorflow as tf

        several = this_worker(config.strategy).count > 1 or config.num_logical_devices
        if several or config.strategy != "auto":
            from tfxfer.distribute import pick_strategy

            pick_strategy(config.strategy, config.num_logical_devices)  # Before any operation.
            _heed_sigterm()  # TensorFlow has put a handler of its own there.
        else:
            tf.config.list_logical_devices()


def _check_dataset(config: RunConfig) -> None:
    """Asks for a dataset that cannot be had before TensorFlow takes its seconds to start."""
    from tfxfer.data.availability import check_available
    from tfxfer.data.kinds import TFDS, kind_of

    spec = parse_spec(config.dataset)
    if config.mode != "cache" and kind_of(spec) == TFDS and not Path(spec.name).is_file():
        check_available(spec.name, config.data_dir, config.download, config.tfds_manual_dir)


@contextlib.contextmanager
def _quiet_tensorflow() -> Iterator[None]:
    """Keeps what TensorFlow notes as it starts off the screen, unless it fails to start."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # What matters comes as an error too.
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    # Some of it comes from C++ before any log level is read.
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            held.seek(0)
            os.write(stderr, held.read())
            raise
        finally:
            sys.stderr.flush()
            os.dup2(stderr, 2)
            os.close(stderr)


if __name__ == "__main__":
    sys.exit(main())
