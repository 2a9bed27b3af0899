"""The folder that a run writes to; another run in it is never lost unasked."""

import contextlib
import errno
import fcntl
import json
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from tfxfer.config import INVOCATION, RunConfig
from tfxfer.errors import UserError

CONFIG = "config.json"
RESULTS = "results.json"
METRICS = "metrics.jsonl"
SAVED_MODEL = "saved_model"
KERAS_MODEL = "model.keras"
EMBEDDINGS = "embeddings"
LR_CURVE = "lr_find.png"
CURVES = "curves.png"
PLAN = "plan.json"
CHECKPOINTS = "checkpoints"

_ALL = (
    CONFIG,
    RESULTS,
    METRICS,
    PLAN,
    CHECKPOINTS,
    SAVED_MODEL,
    KERAS_MODEL,
    EMBEDDINGS,
    LR_CURVE,
    CURVES,
)
# What a run that goes on needs of the process that was killed; the rest it makes again.
_OF_TRAINING = (CONFIG, METRICS, PLAN, CHECKPOINTS)
_LOCK, _REPLACED = ".lock", ".replaced"
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

    Args:
        config: Its `workdir`, or a new folder under `runs/` if that is empty.

    Returns:
        The folder.

    Raises:
        UserError: If the folder cannot be written, holds another run and `overwrite` is off, or
            holds files of the same names that are of no run.
    """
    if config.workdir:
        path = Path(config.workdir).expanduser()
    else:
        dataset, backbone = (
            "".join(c if c.isalnum() else "-" for c in Path(name).name)[:40].strip("-")
            for name in (config.dataset, config.backbone)
        )
        stamp = time.strftime("%Y%m%d-%H%M%S")
        path = Path("runs") / f"{config.mode}-{dataset}-{backbone}-{stamp}-{os.getpid()}"
    created = []
    try:
        created = _make_folders(path)
        with tempfile.TemporaryDirectory(dir=path, prefix=".tfxfer-"):
            pass
    except OSError as error:
        raise UserError(
            f"--workdir={path} must be a folder that can be written: {error.strerror or error}",
            "Name another folder.",
        ) from error
    finally:
        for folder in reversed(created):
            folder.rmdir()
    if not goes_on(path, config):
        _check_free(path, config)
    return path


def goes_on(path: Path, config: RunConfig) -> bool:
    """Whether the folder holds an unfinished run of the same settings, which training goes on with.

    Args:
        path: The folder.
        config: The settings.
    """
    return _is_unfinished(path) and not _changed(path, config)


@contextlib.contextmanager
def run_in(path: Path, config: RunConfig) -> Iterator[None]:
    """Claims the folder of a run, and writes `config.json` with the versions of the packages.

    If the run fails, what it wrote is removed, and the run that it was to replace is put back. But
    once it trains, what it wrote stays if it is interrupted or killed, or ends for anything but a
    mistake of the user's: the same settings go on from there.

    Args:
        path: What `choose_workdir` returned.
        config: The settings.

    Raises:
        UserError: If another run has claimed the folder since.
    """
    with _removed_if_empty(_make_folders(path)), _locked(path):
        if goes_on(path, config):
            for name in set(_present(path)) - set(_OF_TRAINING):
                _remove(path / name)
        else:
            _check_free(path, config)
            _claim(path, config)
        try:
            yield
        except BaseException as error:
            if isinstance(error, UserError) or not (path / CHECKPOINTS).is_dir():
                _undo(path)
            elif isinstance(error, KeyboardInterrupt):
                raise KeyboardInterrupt("the same command goes on where it was") from error
            raise
        for name in (CHECKPOINTS, _REPLACED):
            shutil.rmtree(path / name, ignore_errors=True)


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
    """Holds the folder for this process; the kernel lets go of it when the process ends."""
    lock = path / _LOCK
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(
                f"--workdir={path} must not hold another run, and one is going on in it",
                "Name another folder, or wait.",
            ) from error
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def _claim(path: Path, config: RunConfig) -> None:
    """Puts another run aside, and writes the settings of this one."""
    for name in _present(path):
        (path / _REPLACED).mkdir(exist_ok=True)
        (path / name).rename(path / _REPLACED / name)
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    settings = {**config.to_dict(), "workdir": str(path), "versions": versions}
    unfinished = path / f".unfinished-{CONFIG}"
    unfinished.write_text(_json(settings), encoding="utf-8")
    unfinished.replace(path / CONFIG)


def _undo(path: Path) -> None:
    """Removes what a run wrote, and puts back what it replaced."""
    for name in _present(path):
        _remove(path / name)
    replaced = path / _REPLACED
    if replaced.is_dir():
        for old in replaced.iterdir():
            old.rename(path / old.name)
        replaced.rmdir()


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


def _present(path: Path) -> list[str]:
    return [name for name in _ALL if os.path.lexists(path / name)]


def _check_free(path: Path, config: RunConfig) -> None:
    found = _present(path)
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


def _settings(path: Path) -> dict[str, Any] | None:
    """Returns the settings of the run in a folder; `None` if there is none."""
    try:
        settings = json.loads((path / CONFIG).read_text(encoding="utf-8"))
        return settings if "tfxfer" in settings["versions"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _is_unfinished(path: Path) -> bool:
    settings = _settings(path)
    resumable = settings is not None and settings.get("mode") == "finetune"
    return resumable and not (path / RESULTS).exists()


def _changed(path: Path, config: RunConfig) -> str:
    """Names the first setting that differs from those of the run in a folder."""
    held, given = _settings(path) or {}, config.to_dict()
    for name in given:
        if name not in INVOCATION and held.get(name) != given[name]:
            return f"--{name}={held.get(name)}, not {given[name]}"
    return ""


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file that appears whole or not at all; NaN is a `ValueError`."""
    unfinished = path.with_name(f".unfinished-{os.getpid()}-{path.name}")
    unfinished.write_text(_json(value), encoding="utf-8")
    unfinished.replace(path)


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, allow_nan=False) + "\n"
