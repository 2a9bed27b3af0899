"""The folder that a run writes to; another run in it is never lost unasked."""

import atexit
import contextlib
import errno
import json
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from tfxfer.config import AUTO, INVOCATION, RunConfig
from tfxfer.data.kinds import FOLDER, kind_of
from tfxfer.errors import CheckpointError, TrainingError, UserError
from tfxfer.files import UNFINISHED, remove, remove_unfinished, written_whole
from tfxfer.locks import lock
from tfxfer.report.replacing import Place
from tfxfer.spec import parse_spec
from tfxfer.workers import this_worker

CONFIG = "config.json"
RESULTS = "results.json"
METRICS = "metrics.jsonl"
SAVED_MODEL = "saved_model"
KERAS_MODEL = "model.keras"
EMBEDDINGS = "embeddings"
LR_CURVE = "lr_find.png"
CURVES = "curves.png"
PARETO = "pareto.png"
PREDICTIONS = "predictions.npz"
RUNGS = "rungs"
PLAN = "plan.json"
TEACHER = "teacher"
CARD = "transfer_card.md"
CHECKPOINTS = "checkpoints"
PLACES = f"{CHECKPOINTS}/places.json"

_ALL = (
    *(CONFIG, METRICS, PLAN, CHECKPOINTS, TEACHER, RUNGS, CARD, SAVED_MODEL, KERAS_MODEL),
    *(EMBEDDINGS, LR_CURVE, CURVES, PARETO, PREDICTIONS, RESULTS),
)
# What a run that goes on needs of the process that was killed; the rest it makes again.
_OF_TRAINING = (CONFIG, METRICS, PLAN, CHECKPOINTS, TEACHER, RUNGS)
_HARMLESS = ("checkpoint_seconds",)  # Settings that a run may go on with another value of.
_RESUMABLE = ("finetune", "distill", "compare")
_LOCK = ".lock"
_NAMED = 3  # Files that a message names.
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_PACKAGES = (
    "tfxfer",
    "tensorflow",
    "keras",
    "tensorflow-hub",
    "tensorflow-datasets",
    "scikit-learn",
    "numpy",
)


def choose_workdir(config: RunConfig) -> Path:
    """Names the folder of a run and checks that it can be written, without leaving anything there.

    What another process left half-done there, killed as it replaced a run, is put in order.

    Args:
        config: Its `workdir`, or a new folder under `runs/` if that is empty.

    Returns:
        The folder; of a worker that is not the chief, a temporary one.

    Raises:
        UserError: If the folder cannot be written, holds another run and `overwrite` is off, or
            holds folders, or files of the same names, that are of no run. If it is in the folder
            of the dataset, or if a run is going on in it.
    """
    if config.workdir:
        path = Path(config.workdir).expanduser()
    else:
        trained = {"distill": config.student, "select": "several"}.get(config.mode, config.backbone)
        words = (
            "".join(c if c.isalnum() else "-" for c in Path(name).name)[:40].strip("-")
            for name in (config.dataset, trained)
            if name != AUTO
        )
        stamp = time.strftime("%Y%m%d-%H%M%S")
        path = Path("runs") / "-".join([config.mode, *words, stamp, str(os.getpid())])
    _check_apart(path, config)
    if not this_worker(config.strategy).is_chief:
        return _of_this_process()
    created = []
    try:
        created = _make_folders(path)
        with tempfile.TemporaryDirectory(dir=path, prefix=UNFINISHED):
            pass
    except OSError as error:
        raise UserError(
            f"--workdir={path} must be a folder that can be written: {error.strerror or error}",
            "Name another folder.",
        ) from error
    finally:
        for folder in reversed(created):
            folder.rmdir()
    if not _place(path).settled:
        with _locked(path):
            _place(path).settle()
    if (path / _LOCK).exists() and not config.dry_run:
        with _locked(path):  # So that it is told at once if a run is going on.
            pass
    if not goes_on(path, config):
        _check_free(path, config)
    return path


def _of_this_process() -> Path:
    """Makes a folder for a worker that is not the chief, which is gone when the process ends."""
    path = Path(tempfile.mkdtemp(prefix="tfxfer-worker-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


def goes_on(path: Path, config: RunConfig) -> bool:
    """Whether the folder holds an unfinished run of the same settings, which training goes on with.

    Args:
        path: The folder.
        config: The settings.
    """
    return _is_unfinished(path) and not _changed(path, config)


@contextlib.contextmanager
def run_in(
    path: Path, config: RunConfig, identity: Mapping[str, Any] | None = None
) -> Iterator[None]:
    """Claims the folder of a run, and writes `config.json` with the versions of the packages.

    If the run fails or is interrupted, what it wrote is removed, and the run that it was to replace
    is put back. But once there are checkpoints to go on from, of this process or of an earlier
    one, all of it stays, and the message says so; of a `TrainingError` only if runs within it, of
    teachers or rungs, are whole.

    Args:
        path: What `choose_workdir` returned.
        config: The settings.
        identity: What training depends on besides, as given to `Checkpoints`.

    Raises:
        UserError: If another run has claimed the folder since; if an unfinished run of these
            settings is of another identity, unless it is to be overwritten; or if the disk is full.
    """
    with _removed_if_empty(_make_folders(path)), _locked(path):
        place = _place(path)
        place.settle()
        if goes_on(path, config) and _is_same(path, config, identity or {}):
            # Of a run without checkpoints nothing can be used, metrics neither.
            kept = _OF_TRAINING if _can_go_on(path) else (CONFIG,)
            for name in set(place.present) - set(kept):
                remove(path / name)
        else:
            _check_free(path, config)
            with _disk_full_told(path), place.claimed():
                write_json(path / CONFIG, _stated(path, config))
        for folder in (path, *(path / CHECKPOINTS).glob("*/weights")):
            remove_unfinished(folder)
        with _going_on_told(path), _disk_full_told(path):
            yield
        place.finish()


def _is_same(path: Path, config: RunConfig, identity: Mapping[str, Any]) -> bool:
    """Whether checkpoints are of an identity; it is an error if they are not to be replaced."""
    if not identity or not _can_go_on(path):
        return True
    from tfxfer.training.checkpoints import changed

    try:
        names = next(filter(None, (changed(each, identity) for each in _models(path))), "")
    except CheckpointError:
        if not config.overwrite:
            raise
        return False
    if names and not config.overwrite:
        raise UserError(
            f"--workdir={path} must not hold another run, and has an unfinished one whose {names} "
            "changed since",
            "Replace it with --overwrite, or name another folder.",
        )
    return not names


def _can_go_on(path: Path) -> bool:
    """Whether a run left checkpoints that another process can go on from."""
    if _has_inner(path):
        return True
    if not (models := [model for each in (path, *_inner(path)) for model in _models(each)]):
        return False
    from tfxfer.training.checkpoints import can_go_on  # Not before: it brings TensorFlow.

    return any(map(can_go_on, models))


def _inner(path: Path) -> list[Path]:
    """Returns the folders of teachers and rungs, which are trained by runs of their own."""
    return [path / TEACHER, *(path / RUNGS).glob("*")]


def _has_inner(path: Path) -> bool:
    return any((each / RESULTS).is_file() for each in _inner(path))


def _models(path: Path) -> list[Path]:
    """Returns the folders of checkpoints, of each model that a run trains."""
    return sorted(each for each in (path / CHECKPOINTS).glob("*") if each.is_dir())


@contextlib.contextmanager
def _going_on_told(path: Path) -> Iterator[None]:
    """Undoes a run that fails, or says that another process can go on with it."""
    try:
        yield
    except CheckpointError:  # It is neither to be removed unasked nor to be gone on with.
        raise
    except BaseException as error:
        if isinstance(error, TrainingError) or not _can_go_on(path):
            if not _has_inner(path):
                _place(path).undo()
            elif isinstance(error, UserError):
                error.args = (f"{error} Runs within {path} are kept; --overwrite replaces them.",)
            raise
        again = f"the same command with --workdir={path} goes on where it was"
        if isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt(again) from error
        if isinstance(error, UserError):
            error.args = (f"{str(error).rstrip('.')}; {again}.",)
        raise


@contextlib.contextmanager
def _disk_full_told(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_SPACE:
            raise
        raise UserError(
            f"The disk of --workdir={path} must have room, and is full", "Make some."
        ) from error


@contextlib.contextmanager
def _removed_if_empty(folders: list[Path]) -> Iterator[None]:
    """Removes folders, outermost first, that are of no use after a failure."""
    try:
        yield
    except BaseException:
        for folder in reversed(folders):
            with contextlib.suppress(OSError):  # Somebody may have put a file there.
                folder.rmdir()
        raise


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds the folder for this process; the system lets go of it when the process ends."""
    file = path / _LOCK
    held = None
    while held is None:
        # Not there, if a run ended in between.
        with _lock_told(path), contextlib.suppress(FileNotFoundError):
            path.mkdir(parents=True, exist_ok=True)
            held = lock(file, "w")
    with held:
        try:
            yield
        finally:
            file.unlink(missing_ok=True)


@contextlib.contextmanager
def _lock_told(path: Path) -> Iterator[None]:
    try:
        yield
    except BlockingIOError as error:
        raise UserError(
            f"--workdir={path} must not hold another run, and one is going on in it",
            "Name another folder, or wait.",
        ) from error
    except OSError as error:
        raise UserError(
            f"--workdir={path} must be a folder that can be locked: {error.strerror or error}",
            "Name another folder.",
        ) from error


def _place(path: Path) -> Place:
    return Place(path, _ALL, passing=(CHECKPOINTS,))


def _stated(path: Path, config: RunConfig) -> dict[str, Any]:
    """Returns what `config.json` says of a run."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return {**config.to_dict(), "workdir": str(path), "versions": versions}


def _make_folders(path: Path) -> list[Path]:
    """Creates a folder and its parents; returns those that were not there, outermost first."""
    created = []
    try:
        for folder in [*path.parents[::-1], path]:
            if not os.path.lexists(folder):
                folder.mkdir(exist_ok=True)
                created.append(folder)
        if not path.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
    except OSError:
        for folder in reversed(created):
            folder.rmdir()
        raise
    return created


def _check_apart(path: Path, config: RunConfig) -> None:
    """Checks that a folder is not one of images, where what a run writes would be another class."""
    for flag in ("dataset", "unlabeled"):
        name = getattr(config, flag)
        if not name or kind_of(spec := parse_spec(name)) != FOLDER:
            continue
        images = Path(spec.name.removeprefix(f"{FOLDER}:")).expanduser().resolve()
        if path.resolve().is_relative_to(images):
            raise UserError(
                f"--workdir={path} must not be in the folder of --{flag}, which is {images}",
                "Name another folder.",
            )


def _check_free(path: Path, config: RunConfig) -> None:
    found = _place(path).present
    if not found and (others := _folders_in(path)):
        such = ", ".join(others[:_NAMED]) + (", ..." if others[_NAMED:] else "")
        raise UserError(
            f"--workdir={path} must be a folder for one run, and holds other folders: {such}",
            "Name a new folder, such as one in it.",
        )
    if found and not config.overwrite:
        if _is_unfinished(path) and (changed := _changed(path, config)):
            raise UserError(
                f"--workdir={path} must not hold another run, and has an unfinished one "
                f"with {changed}",
                "Give the same settings to go on with it, or replace it with --overwrite.",
            )
        raise UserError(
            f"--workdir={path} must not hold another run, and has {', '.join(found)}",
            "Name another folder, or replace the run with --overwrite.",
        )
    if found and _settings(path) is None:
        raise UserError(
            f"--workdir={path} must hold a run for --overwrite, and its {', '.join(found)} "
            "is of something else",
            "Name another folder.",
        )


def _folders_in(path: Path) -> list[str]:
    """Names the folders in one, as of classes or of a project; not those that are hidden."""
    if not path.is_dir():
        return []
    return sorted(each.name for each in path.iterdir() if each.is_dir() and each.name[:1] != ".")


def _settings(path: Path) -> dict[str, Any] | None:
    """Returns the settings of the run in a folder; `None` if there is none."""
    try:
        settings = json.loads((path / CONFIG).read_text(encoding="utf-8"))
        return settings if "tfxfer" in settings["versions"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _is_unfinished(path: Path) -> bool:
    settings = _settings(path)
    resumable = settings is not None and settings.get("mode") in _RESUMABLE
    return resumable and not (path / RESULTS).exists()


def _changed(path: Path, config: RunConfig) -> str:
    """Names the first setting that differs from those of the run in a folder."""
    held, given = _settings(path) or {}, config.to_dict()
    for name in given:
        if name not in (*INVOCATION, *_HARMLESS) and held.get(name) != given[name]:
            return f"--{name}={held.get(name)}, not {given[name]}"
    return ""


def places_before(path: Path, config: RunConfig) -> dict[str, str] | None:
    """Returns what the run that is gone on with kept of each phase; `None` if there is none."""
    if not (goes_on(path, config) and (path / PLACES).is_file()):
        return None
    from tfxfer.training.checkpoints import read_object  # Not before: it brings TensorFlow.

    return read_object(path / CHECKPOINTS, path / PLACES)


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file that appears whole or not at all; NaN is a `ValueError`."""
    with written_whole(path) as unfinished:
        unfinished.write_text(_json(value), encoding="utf-8")


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, allow_nan=False) + "\n"
