"""Handles: archives, downloads and caches."""

import io
import sys
import tarfile

import pytest

from tests.backbone_sources import pack
from tests.served import Served
from tfxfer.backbones import load_backbone
from tfxfer.backbones.hub import resolve
from tfxfer.errors import UserError


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TFHUB_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_archive_is_unpacked_once_into_the_cache(hub_folder, backbone, cache, tmp_path):
    archive = pack(str(hub_folder), tmp_path / "small.tar.gz")
    folder = resolve(str(archive))
    assert folder.parent == cache
    assert load_backbone(str(archive)).fingerprint == backbone.fingerprint
    (folder / "mark").touch()
    assert (resolve(str(archive)) / "mark").is_file()
    assert sorted(cache.iterdir()) == [folder]


def test_archive_may_hold_its_folder(hub_folder, backbone, cache, tmp_path):
    with tarfile.open(tmp_path / "small.tgz", "w:gz") as tar:
        tar.add(hub_folder, arcname="small")
    assert load_backbone(str(tmp_path / "small.tgz")).fingerprint == backbone.fingerprint


def test_bad_archives_are_refused_and_leave_nothing(cache, tmp_path):
    (tmp_path / "text.tar.gz").write_text("no archive")
    with tarfile.open(tmp_path / "other.tar.gz", "w:gz") as tar:
        tar.add(__file__, arcname="text.py")
    with tarfile.open(tmp_path / "out.tar.gz", "w:gz") as tar:
        entry = tarfile.TarInfo("../out.txt")
        entry.size = 3
        tar.addfile(entry, io.BytesIO(b"out"))
    whole = (tmp_path / "other.tar.gz").read_bytes()
    (tmp_path / "half.tar.gz").write_bytes(whole[: len(whole) // 2])
    for name, message in {
        "text": "must be a tar archive",
        "other": "no saved_model",
        "out": "must be a tar archive",
        "half": "must be a tar archive",
        "missing": "no file",
    }.items():
        with pytest.raises(UserError, match=message):
            resolve(str(tmp_path / f"{name}.tar.gz"))
    assert not (tmp_path / "out.txt").exists()
    assert list(cache.iterdir()) == []


def test_downloads_go_to_the_cache_of_the_project(hub_folder, tmp_path, monkeypatch):
    monkeypatch.delenv("TFHUB_CACHE_DIR", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    pack(str(hub_folder), tmp_path / "small.tar.gz")
    served = Served(tmp_path)
    try:
        folder = resolve(f"{served.url}/small.tar.gz")
    finally:
        served.close()
    assert folder.parent == tmp_path / ".cache" / "tfxfer"


def test_download_that_is_no_saved_model_does_not_stay(hub_folder, cache, tmp_path):
    www = tmp_path / "www"
    www.mkdir()
    with tarfile.open(www / "small.tar.gz", "w:gz") as tar:
        tar.add(__file__, arcname="./text.py")
    served = Served(www)
    handle = f"{served.url}/small.tar.gz"
    try:
        with pytest.raises(UserError, match="no saved_model"):
            resolve(handle)
        pack(str(hub_folder), www / "small.tar.gz")
        assert (resolve(handle) / "saved_model.pb").is_file()
    finally:
        served.close()


@pytest.fixture
def kaggle(hub_folder, tmp_path, monkeypatch):
    """kagglehub's own cache, with a model that was downloaded before."""
    import shutil

    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path))
    model = tmp_path / "models" / "google" / "small" / "tensorFlow2" / "feature-vector"
    shutil.copytree(hub_folder, model / "2")
    (model / "2.complete").touch()


def test_kaggle_handle_goes_through_kagglehub(kaggle, backbone):
    handle = "kaggle://google/small/tensorFlow2/feature-vector/2"
    assert load_backbone(handle).fingerprint == backbone.fingerprint


def test_kaggle_handle_that_is_none_is_refused(kaggle):
    with pytest.raises(UserError, match="could not be downloaded"):
        resolve("kaggle://google/small")


@pytest.mark.parametrize(
    ("package", "spec", "extra"),
    [
        ("kagglehub", "kaggle://google/small/tensorFlow2/feature-vector/2", r"tfxfer\[kaggle\]"),
        ("keras_hub", "keras_hub:resnet_50_imagenet", r"tfxfer\[keras-hub\]"),
    ],
)
def test_missing_extra_is_named(package, spec, extra, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=extra):
        load_backbone(spec)


def test_preset_that_is_none_is_refused(tmp_path):
    with pytest.raises(UserError, match="could not be loaded by KerasHub"):
        load_backbone(f"keras_hub:{tmp_path}")
