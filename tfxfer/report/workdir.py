"""The folder that a run writes to; another run in it is never lost unasked."""

import contextlib
import json
import os
import platform
import shutil
import tempfile
import time
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

_ALL = (CONFIG, RESULTS, METRICS, SAVED_MODEL, KERAS_MODEL)
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
    """Names the folder of a run and checks that it can be written, without creating it.

    Args:
        config: Its `workdir`, or a new folder under `runs/` if that is empty.

    Returns:
        The folder.

    Raises:
        UserError: If the folder cannot be written, or holds another run and `overwrite` is off.
    """
    if config.workdir:
        path = Path(config.workdir).expanduser()
    else:
        dataset, backbone = (
            "".join(c if c.isalnum() else "-" for c in Path(name).name)
            for name in (config.dataset, config.backbone)
        )
        stamp = time.strftime("%Y%m%d-%H%M%S")
        path = Path("runs") / f"{config.mode}-{dataset}-{backbone}-{stamp}-{os.getpid()}"
    existing = path
    while not os.path.lexists(existing):
        existing = existing.parent
    try:
        with tempfile.TemporaryDirectory(dir=existing, prefix=".tfxfer-"):
            pass
    except OSError as error:
        raise UserError(
            f"--workdir={path} must be a folder that can be written: "
            f"{existing}: {error.strerror or error}",
            "Name another folder.",
        ) from error
    found = [name for name in _ALL if os.path.lexists(path / name)]
    if found and not config.overwrite:
        raise UserError(
            f"--workdir={path} must not hold another run, and has {', '.join(found)}",
            "Name another folder, or replace the run with --overwrite.",
        )
    return path


def start_run(path: Path, config: RunConfig) -> None:
    """Creates the folder of a run, clears what an earlier one left, and writes `config.json`.

    Args:
        path: What `choose_workdir` returned.
        config: The settings, written with the versions of the packages.
    """
    path.mkdir(parents=True, exist_ok=True)
    for name in _ALL:
        if (path / name).is_dir() and not (path / name).is_symlink():
            shutil.rmtree(path / name)
        else:
            (path / name).unlink(missing_ok=True)
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    write_json(path / CONFIG, {**config.to_dict(), "workdir": str(path), "versions": versions})


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file that appears whole or not at all."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    unfinished.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    unfinished.replace(path)
