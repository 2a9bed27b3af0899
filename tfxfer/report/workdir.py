"""The folder that a run writes to; another run in it is never lost unasked."""

import contextlib
import errno
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

from tfxfer.config import RunConfig
from tfxfer.errors import UserError

CONFIG = "config.json"
RESULTS = "results.json"
METRICS = "metrics.jsonl"
SAVED_MODEL = "saved_model"
KERAS_MODEL = "model.keras"
EMBEDDINGS = "embeddings"

_ALL = (CONFIG, RESULTS, METRICS, SAVED_MODEL, KERAS_MODEL, EMBEDDINGS)
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
    _check_free(path, config.overwrite)
    return path


@contextlib.contextmanager
def run_in(path: Path, config: RunConfig) -> Iterator[None]:
    """Claims the folder of a run, and writes `config.json` with the versions of the packages.

    If the run fails, what it wrote is removed, and the run that it was to replace is put back.

    Args:
        path: What `choose_workdir` returned.
        config: The settings.

    Raises:
        UserError: If another run has claimed the folder since.
    """
    _check_free(path, config.overwrite)
    created = _make_folders(path)
    replaced = path / f".replaced-{os.getpid()}"
    for name in _present(path):
        replaced.mkdir(exist_ok=True)
        (path / name).rename(replaced / name)
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    settings = {**config.to_dict(), "workdir": str(path), "versions": versions}
    try:
        with (path / CONFIG).open("x", encoding="utf-8") as file:
            file.write(_json(settings))
        yield
    except BaseException:
        for name in _present(path):
            _remove(path / name)
        if replaced.is_dir():
            for old in replaced.iterdir():
                old.rename(path / old.name)
            replaced.rmdir()
        for folder in reversed(created):
            with contextlib.suppress(OSError):  # Somebody else may have put a file there.
                folder.rmdir()
        raise
    _remove(replaced)


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


def _check_free(path: Path, overwrite: bool) -> None:
    found = _present(path)
    if found and not overwrite:
        raise UserError(
            f"--workdir={path} must not hold another run, and has {', '.join(found)}",
            "Name another folder, or replace the run with --overwrite.",
        )
    if found and not _is_run(path):
        raise UserError(
            f"--workdir={path} must hold a run for --overwrite, and its {', '.join(found)} "
            "is of something else",
            "Name another folder.",
        )


def _is_run(path: Path) -> bool:
    try:
        return "tfxfer" in json.loads((path / CONFIG).read_text(encoding="utf-8"))["versions"]
    except (OSError, ValueError, KeyError, TypeError):
        return False


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
