"""From a handle to the folder of a SavedModel: downloads, archives, the cache."""

import hashlib
import os
import shutil
import tarfile
import tempfile
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tfxfer.errors import UserError, first_line
from tfxfer.spec import Spec, parse_spec

GLYPHS, WORDS = EMBEDDED = ("glyphs", "words")
"""The embedded backbones: for images, and for texts."""
NO_BACKBONE = "A backbone must be 'glyphs', 'words', a file, a folder or a handle"
_ARCHIVES = (".tar.gz", ".tgz", ".tar")
_KAGGLE = "kaggle://"
_CACHE = "TFHUB_CACHE_DIR"


def resolve(handle: str) -> Path:
    """Finds the folder of a SavedModel, downloading or unpacking it first if need be.

    Downloads and archives are kept in `TFHUB_CACHE_DIR`, or in `~/.cache/tfxfer` if that is not
    set; what kagglehub downloads, in its own cache.

    Args:
        handle: `glyphs` or `words`; the path of a folder or of a `.tar.gz` of one; a URL that TF
            Hub resolves, such as `https://tfhub.dev/...`, `https://www.kaggle.com/models/...` or
            that of a `.tar.gz`; or `kaggle://owner/model/framework/variation`, with `/version` or
            without.

    Returns:
        A folder that holds a SavedModel.

    Raises:
        UserError: If there is none.
    """
    if handle in EMBEDDED:
        return Path(__file__).parent / handle
    if handle.startswith(_KAGGLE):
        folder = _from_kaggle(handle)
    elif "://" in handle:
        folder = _download(handle)
    elif handle.endswith(_ARCHIVES):
        folder = _unpack(Path(handle).expanduser(), handle)
    elif exists(handle):
        folder = Path(handle).expanduser()
    else:
        raise UserError(f"{NO_BACKBONE}, and there is no {handle!r}", path_advice(handle))
    if folder.is_file():
        raise UserError(
            f"Backbone {handle!r} is a file of no kind that is known here",
            "Give a .keras or .h5 file, or a .tar.gz or the folder of a SavedModel.",
        )
    if not is_saved_model(folder):
        raise UserError(
            f"Backbone {handle!r} must hold a SavedModel, and has no saved_model.pb",
            _instead(folder, handle),
        )
    return folder


def exists(path: str) -> bool:
    """Whether there is such a file or folder; what can be no path is none."""
    try:
        return Path(path).expanduser().exists()
    except (OSError, RuntimeError):  # Too long, or of a user that there is not.
        return False


def parsed(source: str) -> Spec:
    """Reads a spec; but what is there is a path, which may hold anything, parentheses too."""
    return Spec(source, text=source) if exists(source) else parse_spec(source)


def path_advice(path: str) -> str:
    """Says what to do about a path that leads nowhere."""
    if path.endswith(")"):
        return 'Check the path; commas of an option stand in quotes, as (value_range="0,255").'
    return "Check the path; see --help for the kinds of handles."


def _instead(folder: Path, handle: str) -> str:
    """Says what to give instead of a folder that holds no SavedModel."""
    if (folder / "config.json").is_file() and (folder / "metadata.json").is_file():
        return f"It looks like a preset of KerasHub: give keras_hub:{handle}."
    if (folder / "model.keras").is_file():
        return f"For the model of a run give {handle.rstrip('/')}/model.keras."
    inside = [path.name for path in sorted(folder.iterdir()) if is_saved_model(path)]
    if inside:
        return f"Give the folder inside: {handle.rstrip('/')}/{inside[-1]}."
    return "Give the folder that contains saved_model.pb and variables/."


def is_saved_model(folder: Path) -> bool:
    """Whether a folder holds a SavedModel."""
    return (folder / "saved_model.pb").is_file()


def _cache() -> Path:
    return Path(os.environ.get(_CACHE) or "~/.cache/tfxfer").expanduser()


def _download(handle: str) -> Path:
    """Downloads through TF Hub; what is no SavedModel does not stay in the cache."""
    try:
        with _cache_set():
            folder = Path(_tensorflow_hub().resolve(handle))
    except Exception as error:  # Resolvers raise what their transport raises.
        raise UserError(
            f"Backbone {handle!r} could not be downloaded: {first_line(error)}",
            "Check the handle and the network, or give the path of a downloaded folder.",
        ) from error
    if folder.is_relative_to(_cache()) and not is_saved_model(folder):
        shutil.rmtree(folder, ignore_errors=True)
        folder.with_name(f"{folder.name}.descriptor.txt").unlink(missing_ok=True)
        raise UserError(
            f"Backbone {handle!r} must be an archive of a SavedModel, and has no saved_model.pb "
            "at its top",
            "Check the URL.",
        )
    return folder


@contextmanager
def _cache_set() -> Iterator[None]:
    """Tells TF Hub where to keep downloads, which it would else keep in /tmp."""
    before = os.environ.get(_CACHE)
    os.environ[_CACHE] = str(_cache())
    try:
        yield
    finally:
        if before is None:
            del os.environ[_CACHE]
        else:
            os.environ[_CACHE] = before


def _tensorflow_hub() -> Any:
    """Imports tensorflow_hub, which takes a second, and only a remote handle needs it."""
    with warnings.catch_warnings():
        # It imports pkg_resources, which warns of its own end in setuptools 82.
        warnings.filterwarnings("ignore", "pkg_resources is deprecated", UserWarning)
        import tensorflow_hub
    return tensorflow_hub


def _from_kaggle(handle: str) -> Path:
    try:
        import kagglehub
    except ImportError as error:
        raise UserError(
            "A kaggle:// backbone needs the package kagglehub, which is not installed",
            "Install it with pip install 'tfxfer[kaggle]'.",
        ) from error
    try:
        return Path(kagglehub.model_download(handle.removeprefix(_KAGGLE)))
    except Exception as error:
        raise UserError(
            f"Backbone {handle!r} could not be downloaded: {first_line(error)}",
            "Check the handle, the network and your Kaggle credentials.",
        ) from error


def _unpack(archive: Path, handle: str) -> Path:
    """Unpacks an archive into the cache, by its contents, whole or not at all."""
    if not archive.is_file():
        raise UserError(f"There is no file {handle!r}", "Check the path.")
    with archive.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    folder = _cache() / digest
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"The cache {folder.parent} cannot be written: {first_line(error)}",
            f"Set {_CACHE} to a folder of yours.",
        ) from error
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".unfinished-") as unfinished:
        try:
            with tarfile.open(archive) as tar:
                tar.extractall(unfinished, filter="data")
                # To the end, where the checksum is: a header that is damaged looks like the end.
                while tar.fileobj.read(2**20):
                    pass
        except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
            raise UserError(
                f"Backbone {handle!r} must be a tar archive: {first_line(error)}",
                "Download it again.",
            ) from error
        found = [Path(unfinished), *sorted(path for path in Path(unfinished).iterdir())]
        top = next((path for path in found if is_saved_model(path)), None)
        if top is None:
            raise UserError(
                f"Backbone {handle!r} must be an archive of a SavedModel, and has no "
                "saved_model.pb at its top",
                "Pack the contents of the folder that holds saved_model.pb.",
            )
        # A folder of its own, since the temporary one is removed.
        whole = Path(unfinished) / ".whole"
        whole.mkdir()
        for path in list(top.iterdir()):
            if path != whole:
                path.rename(whole / path.name)
        try:
            whole.rename(folder)
        except OSError:  # Another process was faster.
            if not folder.is_dir():
                raise
    return folder
