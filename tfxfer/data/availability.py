"""Whether a TensorFlow Datasets name can be had: answered before TensorFlow is imported.

Without a network TFDS tries each of its downloads eleven times, over 205 seconds, before it gives
up. Here a single attempt to connect decides.
"""

import difflib
import os
import queue
import socket
import threading
import urllib.request
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import tensorflow_datasets as tfds
from tensorflow_datasets.core import naming
from tensorflow_datasets.core.community import community_register
from tensorflow_datasets.core.utils.file_utils import list_data_dirs

import tfxfer.data.digits  # TFDS knows a builder once its class is defined.
import tfxfer.data.docstrings  # noqa: F401
from tfxfer.errors import UserError, first_line

_INFO = "dataset_info.json"
_PATIENCE = 1.0  # Seconds.
_NAMED = 6  # Files that a message lists.
_PORTS = {"http": 80, "https": 443, "ftp": 21}
_STORE = "storage.googleapis.com"  # Of gs:// addresses, and of most that TFDS has no record of.
_NAMESPACES = {"huggingface": "huggingface.co"}


def check_available(
    name: str, data_dir: str = "", download: bool = True, manual_dir: str = ""
) -> None:
    """Checks that a dataset is prepared already, or that preparing it has a chance.

    Args:
        name: A TFDS name, with config and version if need be, or the folder of a prepared dataset.
        data_dir: Folder of prepared datasets; TFDS's own default if empty.
        download: Whether files may be downloaded.
        manual_dir: Folder with files that would be downloaded otherwise.

    Raises:
        UserError: If TFDS knows no such dataset, if it is not prepared and may not be downloaded,
            or if the host of its files cannot be reached within about a second.
    """
    if manual_dir and not Path(manual_dir).expanduser().is_dir():
        raise UserError(
            f"--tfds_manual_dir={manual_dir} must be a folder with files of {name!r}",
            "Correct the path.",
        )
    if prepared_folder(name) or "://" in data_dir:  # Only TensorFlow can look into gs://.
        return
    try:
        reference, choice = naming.parse_builder_name_kwargs(name)
    except (ValueError, TypeError) as error:
        raise cannot_be_opened(name, first_line(error), data_dir) from error
    if reference.namespace:
        _check_namespace(name, reference.namespace, data_dir, download)
        return
    try:
        cls: Any = tfds.builder_cls(reference.name)
    except Exception as error:  # Unknown, or in need of a module that is not there.
        if next(_prepared(data_dir, reference.name, choice, None), None):
            return
        raise cannot_be_opened(name, first_line(error), data_dir) from error
    found = next(_prepared(data_dir, reference.name, choice, cls), None)
    if found and ("version" in choice or _is_prepared(name, data_dir)):
        return
    if not _is_variant(cls, choice):
        open_builder(name, data_dir)  # TFDS says it best.
    _check_files(cls, name, data_dir, download, manual_dir, found)


def prepared_folder(name: str) -> Path | None:
    """Returns the folder of a prepared dataset, if that is what the name is.

    Raises:
        UserError: If it is plainly a path, and no prepared dataset is there.
    """
    folder = Path(name).expanduser()
    if (folder / _INFO).is_file():
        return folder
    if name.startswith(("~", ".", os.sep)):
        raise UserError(
            f"Dataset {name!r} must be the folder of a prepared TFDS dataset, which holds {_INFO}, "
            f"and it {'holds none' if folder.is_dir() else 'does not exist'}",
            f"For a folder of images write folder:{name}; a prepared dataset ends in its version, "
            "such as mnist/3.0.1.",
        )
    return None


def open_builder(name: str, data_dir: str = "") -> tfds.core.DatasetBuilder:
    """Opens what `check_available` has let pass; nothing is downloaded.

    Raises:
        UserError: If TFDS knows no such dataset, or no such version or config of it.
    """
    folder = prepared_folder(name)
    try:
        if folder:
            return tfds.builder_from_directory(folder)
        return tfds.builder(name, data_dir=data_dir or None)
    except Exception as error:  # Unknown names, versions and hosts fail each in their way.
        raise cannot_be_opened(name, first_line(error), data_dir) from error


def can_download(builder: tfds.core.DatasetBuilder) -> bool:
    """Says whether the host of a dataset's files, where TFDS knows one, can be reached."""
    host = _host(builder.url_infos or {})
    return not builder.url_infos or _has_proxy(host[0]) or is_reachable(*host)


def cannot_be_opened(name: str, reason: str, data_dir: str) -> UserError:
    """Returns the error for a name that TFDS cannot make a dataset of."""
    bare = name.split("/")[0].split(":")[0]
    known = set(tfds.list_builders(with_community_datasets=False))
    for root in map(Path, list_data_dirs(data_dir or None)):
        known |= {folder.parent.name for folder in root.expanduser().glob("*/*")}
    close = [] if bare in known else difflib.get_close_matches(bare, sorted(known), n=3)
    return UserError(
        f"Dataset {name!r} cannot be opened by TensorFlow Datasets: {reason.rstrip(' .:')}",
        (f"Did you mean {' or '.join(close)}? " if close else "")
        + (f"For a folder of images write folder:{name}. " if Path(name).is_dir() else "")
        + "Use 'digits' or 'docstrings', a name from https://www.tensorflow.org/datasets/catalog, "
        "or a name with the folder it is prepared in as --data_dir, which "
        f"{f'is {data_dir!r} now' if data_dir else 'is not given'}.",
    )


def is_reachable(host: str, port: int) -> bool:
    """Says whether a host takes a connection, within about a second, name lookup and all."""
    answers: queue.SimpleQueue[bool] = queue.SimpleQueue()

    def attempt():
        try:
            socket.create_connection((host, port), timeout=_PATIENCE).close()
            answers.put(True)
        except OSError:
            answers.put(False)

    # A name lookup takes no timeout: a thread that is left behind does.
    threading.Thread(target=attempt, daemon=True).start()
    try:
        return answers.get(timeout=_PATIENCE)
    except queue.Empty:
        return False


def _check_namespace(name: str, namespace: str, data_dir: str, download: bool) -> None:
    """Checks that a dataset of a community can be asked for: all of it is elsewhere."""
    host, reason = _NAMESPACES.get(namespace, _STORE), ""
    if not community_register().has_namespace(namespace):
        reason = f"there is no namespace {namespace!r}"
    elif not download:
        reason = f"it is read from {host}, and --download is off"
    elif not _has_proxy(host) and not is_reachable(host, _PORTS["https"]):
        reason = f"it is read from {host}, which cannot be reached"
    if reason:
        raise cannot_be_opened(name, reason, data_dir)


def _check_files(
    cls: Any, name: str, data_dir: str, download: bool, manual_dir: str, other: Path | None
) -> None:
    """Checks that the files of a dataset that is not prepared are there, or can be downloaded."""
    urls = cls.url_infos or {}
    if not urls and (
        cls.MANUAL_DOWNLOAD_INSTRUCTIONS or not cls.__module__.startswith("tensorflow_datasets.")
    ):
        return  # Put there by hand, which TFDS looks for first, or generated, such as `digits`.
    files = sorted(info.filename for info in urls.values() if info.filename)
    if _has_files(cls, files, data_dir, manual_dir):
        return
    where = data_dir or ", ".join(map(str, list_data_dirs()))
    if other:
        where += f" (version {other.name} is: {name}:{other.name})"
    missing = f" and {manual_dir} holds none of its files," if manual_dir else ""
    listed = ", ".join(files[:_NAMED]) + (", ..." if len(files) > _NAMED else "")
    by_hand = f"--tfds_manual_dir=DIR with {listed or 'its files'}, or "
    if not files and not cls.MANUAL_DOWNLOAD_INSTRUCTIONS:
        by_hand = ""  # TFDS would not know them.
    if not download:
        raise UserError(
            f"Dataset {name!r} is not prepared in {where},{missing} and --download is off",
            f"Use --download, give {by_hand}--data_dir of a folder where it is prepared, or run "
            f"`tfds build {name} --data_dir=DIR` on another machine and copy DIR.",
        )
    host = _host(urls)
    if not _has_proxy(host[0]) and not is_reachable(*host):
        raise UserError(
            f"Dataset {name!r} is not prepared in {where},{missing} and the network is not there: "
            f"{host[0]} cannot be reached",
            f"With a network it is downloaded; without one, give {by_hand}--data_dir of a prepared "
            "copy.",
        )


def _has_proxy(host: str) -> bool:
    proxies = urllib.request.getproxies()
    return bool({"http", "https", "all"} & set(proxies)) and not urllib.request.proxy_bypass(host)


def _host(urls: Collection[str]) -> tuple[str, int]:
    """Returns the host of most of the addresses, and its port."""
    hosts = Counter(
        (parts.hostname, parts.port or _PORTS[parts.scheme])
        for parts in map(urlsplit, urls)
        if parts.scheme in _PORTS and parts.hostname
    )
    return hosts.most_common(1)[0][0] if hosts else (_STORE, _PORTS["https"])


def _has_files(cls: Any, files: list[str], data_dir: str, manual_dir: str) -> bool:
    """Says whether any file is there already: put by hand, or left by an earlier attempt."""
    downloads = [Path(root).expanduser() / "downloads" for root in list_data_dirs(data_dir or None)]
    by_hand = [Path(manual_dir).expanduser()] if manual_dir else [d / "manual" for d in downloads]
    if any((folder / file).exists() for folder in by_hand for file in files):
        return True
    # What must be put there by hand may have any name.
    free = by_hand if cls.MANUAL_DOWNLOAD_INSTRUCTIONS else []
    left = [path for d in downloads for path in (d / cls.name).rglob("*")]
    return any(folder.is_dir() and any(folder.iterdir()) for folder in free) or any(
        path.is_file() and ".tmp." not in str(path) for path in left
    )


def _prepared(data_dir: str, name: str, choice: dict[str, Any], cls: Any) -> Iterator[Path]:
    """Gives the folders of prepared versions that a name admits."""
    config, version = choice.get("config"), choice.get("version")
    if config is None and cls is not None and cls.default_builder_config:
        config = cls.default_builder_config.name
    for root in map(Path, list_data_dirs(data_dir or None)):
        home = root.expanduser() / name
        for info in (*home.glob(f"*/{_INFO}"), *home.glob(f"*/*/{_INFO}")):
            folder = info.parent
            if not tfds.core.Version.is_valid(folder.name):
                continue
            if version and not tfds.core.Version(folder.name).match(version):
                continue
            in_config = folder.parent != home
            if config is None or (in_config and folder.parent.name == config):
                yield folder


def _is_prepared(name: str, data_dir: str) -> bool:
    """Says whether the version is there that TFDS takes where the name gives none."""
    return (Path(open_builder(name, data_dir).data_dir) / _INFO).is_file()


def _is_variant(cls: Any, choice: dict[str, Any]) -> bool:
    """Says whether a class has the config and version; constructing it may import TensorFlow."""
    configs = {config.name: config for config in cls.BUILDER_CONFIGS}
    if choice.get("config") is not None and choice["config"] not in configs:
        return False
    versions = [cls.VERSION, *cls.SUPPORTED_VERSIONS]
    for config in configs.values():
        versions += [config.version, *(config.supported_versions or [])]
    version = choice.get("version")
    return version is None or any(
        tfds.core.Version(known).match(version) for known in versions if known
    )
