"""The cache: whole entries or none, whatever happens to the processes and files behind them."""

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tfxfer.cache import Cache, default_folder, entry_key
from tfxfer.config import RunConfig
from tfxfer.errors import UserError
from tfxfer.methods import cache as cache_mode

KIND = "features"
PARTS = {"data": "digits", "rows": 3}
SHAPES = {"x": ((4, 3), np.float32), "y": ((4,), np.int64)}
UNLIMITED = 10**12


def write(cache: Cache, parts: Any = PARTS, value: float = 1.0) -> dict[str, np.memmap]:
    with cache.write(KIND, parts, SHAPES) as draft:
        draft.arrays["x"][...] = value
        draft.arrays["y"][...] = np.arange(4)
    return draft.finished


def folder_of(cache: Cache, parts: Any = PARTS) -> Path:
    return cache.folder / KIND / entry_key(KIND, parts)


def used_at(cache: Cache, parts: Any, seconds: int) -> None:
    os.utime(folder_of(cache, parts) / "meta.json", (seconds, seconds))


@pytest.fixture
def cache(tmp_path) -> Cache:
    return Cache(tmp_path / "cache", UNLIMITED)


def test_what_was_written_is_read(cache):
    assert cache.read(KIND, PARTS) is None
    finished = write(cache)
    again = cache.read(KIND, PARTS)
    assert again is not None
    for arrays in (finished, again):
        assert all(isinstance(array, np.memmap) for array in arrays.values())
        assert not any(array.flags.writeable for array in arrays.values())
        np.testing.assert_array_equal(arrays["x"], np.ones((4, 3), np.float32))
        np.testing.assert_array_equal(arrays["y"], np.arange(4))
        assert arrays["x"].dtype == np.float32


def test_an_entry_is_plain_files(cache):
    write(cache)
    folder = folder_of(cache)
    assert sorted(path.name for path in folder.iterdir()) == ["meta.json", "x.npy", "y.npy"]
    np.testing.assert_array_equal(np.load(folder / "y.npy"), np.arange(4))
    meta = json.loads((folder / "meta.json").read_text())
    assert (meta["kind"], meta["parts"]) == (KIND, PARTS)
    assert meta["arrays"]["x"]["shape"] == [4, 3]
    assert meta["bytes"] == sum((folder / name).stat().st_size for name in ("x.npy", "y.npy"))
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


@pytest.mark.parametrize(
    "parts",
    [{**PARTS, "rows": 4}, {**PARTS, "rows": "3"}, {**PARTS, "seed": 0}, {"data": "digits"}, {}],
)
def test_every_part_is_in_the_key(cache, parts):
    write(cache)
    assert cache.read(KIND, parts) is None
    assert entry_key(KIND, parts) != entry_key(KIND, PARTS)


def test_the_kind_is_in_the_key_and_the_order_of_parts_is_not():
    assert entry_key("logits", PARTS) != entry_key(KIND, PARTS)
    assert entry_key(KIND, dict(reversed(PARTS.items()))) == entry_key(KIND, PARTS)


@pytest.mark.parametrize("value", [float("nan"), None, [1], np.int64(1)])
def test_parts_are_strings_and_numbers(value):
    with pytest.raises(ValueError, match=r"Expected part 'a'|JSON compliant"):
        entry_key(KIND, {"a": value})


@pytest.mark.parametrize("kind", ["", "..", "a/b", "Features", ".unfinished"])
def test_kinds_are_plain_names(cache, kind):
    with pytest.raises(ValueError, match="Expected a kind"):
        cache.read(kind, PARTS)


def test_names_of_arrays_are_identifiers(cache):
    with (
        pytest.raises(ValueError, match="Expected identifiers"),
        cache.write(KIND, PARTS, {"../x": ((1,), np.float32)}),
    ):
        pass


def test_a_negative_limit_is_refused(tmp_path):
    with pytest.raises(ValueError, match="limit_bytes"):
        Cache(tmp_path, -1)


def test_an_exception_leaves_nothing(cache):
    with pytest.raises(KeyError), cache.write(KIND, PARTS, SHAPES) as draft:
        draft.arrays["x"][...] = 1
        raise KeyError
    assert cache.read(KIND, PARTS) is None
    assert list((cache.folder / KIND).iterdir()) == []


# Real processes. They stop where they are told to, and go on when they are told to.

CHILD = """
import os, shutil, sys
from pathlib import Path
from tfxfer.cache import Cache

def stop(*args, **kwargs):
    print("stopped", flush=True)
    sys.stdin.readline()

folder, where, value = sys.argv[1], sys.argv[2], float(sys.argv[3])
cache = Cache(folder, 10**12)
rename = Path.rename
if where == "publishing":
    Path.rename = lambda path, target: (stop(), rename(path, target))[1]
if where == "clearing":
    shutil.rmtree = stop
    cache.clear()
with cache.write("features", {"data": "digits", "rows": 3},
                 {"x": ((4, 3), "float32"), "y": ((4,), "int64")}) as draft:
    draft.arrays["x"][:2] = value
    draft.arrays["x"].flush()
    if where == "recorded":
        draft.record(2)
        draft.arrays["x"][2] = -1
        draft.arrays["x"].flush()
    if where in ("filling", "recorded"):
        stop()
    draft.arrays["x"][2:] = value
    draft.arrays["y"][...] = range(4)
    if where == "filled":
        stop()
print(draft.finished["x"].tolist(), flush=True)
"""


@contextlib.contextmanager
def child(cache: Cache, where: str, value: float = 2.0):
    """Runs another process up to where it stops; it is killed at the end if it is not done."""
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, str(cache.folder), where, str(value)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "stopped\n"
            yield process
        finally:
            process.kill()


def leftovers(cache: Cache) -> list[str]:
    return [path.name for path in cache.folder.glob("*/.*")]


@pytest.mark.parametrize("where", ["filling", "filled", "publishing"])
def test_a_killed_writer_leaves_nothing_that_is_read(cache, where):
    with child(cache, where) as process:
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert len(leftovers(cache)) == 1
    assert cache.read(KIND, PARTS) is None
    assert cache.entries() == []
    np.testing.assert_array_equal(write(cache)["x"], np.ones((4, 3)))
    assert leftovers(cache) == []


def test_a_killed_clearing_leaves_nothing_that_is_read(cache):
    write(cache)
    with child(cache, "clearing") as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert cache.read(KIND, PARTS) is None
    assert len(leftovers(cache)) == 1
    assert cache.clear() == (0, 0)
    assert leftovers(cache) == []


@pytest.mark.parametrize("where", ["filling", "filled", "publishing"])
def test_the_slower_writer_takes_what_the_faster_has_written(cache, where):
    with child(cache, where) as process:
        write(cache)  # Which must not take the other's draft for that of a dead process, either.
        output, _ = process.communicate("go\n")
        assert process.returncode == 0
    assert json.loads(output) == np.ones((4, 3)).tolist()
    assert leftovers(cache) == []
    assert len(cache.entries()) == 1


def test_writers_that_race_agree(cache):
    with child(cache, "publishing", 2.0) as one, child(cache, "publishing", 3.0) as other:
        for process in (one, other):
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        written = [json.loads(process.communicate()[0]) for process in (one, other)]
    entry = cache.read(KIND, PARTS)
    assert entry is not None
    assert written == [entry["x"].tolist()] * 2
    assert leftovers(cache) == []


def test_what_was_recorded_is_found_again_and_the_rest_is_not_trusted(cache):
    with child(cache, "recorded") as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert cache.read(KIND, PARTS) is None
    write(cache, {"data": "other"})  # Which must leave it to whoever goes on with it.
    with cache.write(KIND, PARTS, SHAPES) as draft:
        assert draft.done == 2
        np.testing.assert_array_equal(draft.arrays["x"][:2], np.full((2, 3), 2.0))
        draft.arrays["x"][2:] = 3.0
        draft.arrays["y"][...] = np.arange(4)
    np.testing.assert_array_equal(draft.finished["x"][:, 0], [2, 2, 3, 3])
    assert leftovers(cache) == []
    files = sorted(path.name for path in folder_of(cache).iterdir())
    assert files == ["meta.json", "x.npy", "y.npy"]


def test_what_another_process_is_writing_is_not_taken_over(cache):
    with child(cache, "recorded") as process:
        with cache.write(KIND, PARTS, SHAPES) as draft:
            assert draft.done == 0
            assert len(leftovers(cache)) == 2
            draft.arrays["x"][...] = 1.0
        cache.clear()
        assert len(leftovers(cache)) == 1
        output, _ = process.communicate("go\n")
        assert process.returncode == 0
    assert json.loads(output) == np.full((4, 3), 2.0).tolist()
    assert leftovers(cache) == []


def interrupt(cache: Cache, done: int = 2) -> Path:
    """Leaves an entry of which the first two rows are recorded."""
    with pytest.raises(KeyboardInterrupt), cache.write(KIND, PARTS, SHAPES) as draft:
        draft.arrays["x"][:2] = 2.0
        draft.record(1)
        draft.record(done)
        raise KeyboardInterrupt
    (left,) = (cache.folder / KIND).glob(".unfinished-*")
    return left


def test_an_exception_leaves_what_was_recorded(cache):
    interrupt(cache)
    with cache.write(KIND, PARTS, SHAPES) as draft:
        assert draft.done == 2


def test_what_nobody_goes_on_with_goes_after_a_week(cache):
    left = interrupt(cache)
    for days, stays in ((6, True), (8, False)):
        then = time.time() - days * 24 * 60 * 60
        os.utime(left / "progress", (then, then))
        write(cache, {"data": str(days)})
        assert left.exists() == stays


def test_what_is_left_of_an_entry_that_is_there_goes(cache):
    left = interrupt(cache)
    folder_of(cache).mkdir()
    write(cache, {"data": "other"})
    assert not left.exists()


def test_clear_removes_what_was_left(cache):
    interrupt(cache)
    assert cache.clear() == (0, 0)
    assert leftovers(cache) == []


def truncate(folder: Path) -> None:
    with (folder / "x.npy").open("r+b") as file:
        file.truncate(130)


def lengthen(folder: Path) -> None:
    with (folder / "x.npy").open("ab") as file:
        file.write(b"0")


def other_type(folder: Path) -> None:
    np.save(folder / "x.npy", np.ones((4, 3), np.int32))


def other_shape(folder: Path) -> None:
    np.save(folder / "x.npy", np.ones((3, 4), np.float32))


def no_array(folder: Path) -> None:
    size = (folder / "x.npy").stat().st_size
    (folder / "x.npy").write_bytes(b"\0" * size)


def zipped(folder: Path) -> None:
    size = (folder / "x.npy").stat().st_size
    (folder / "x.npy").write_bytes(b"PK\x03\x04" + b"\0" * (size - 4))


def missing(folder: Path) -> None:
    (folder / "y.npy").unlink()


def half_a_meta(folder: Path) -> None:
    text = (folder / "meta.json").read_text()
    (folder / "meta.json").write_text(text[: len(text) // 2])


def meta_of_another_kind(folder: Path) -> None:
    (folder / "meta.json").write_text("[1]")


def meta_without_arrays(folder: Path) -> None:
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps({**meta, "arrays": []}))


def meta_of_another_entry(folder: Path) -> None:
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps({**meta, "parts": {"data": "mnist"}}))


DAMAGE = [
    truncate,
    lengthen,
    other_type,
    other_shape,
    no_array,
    zipped,
    missing,
    half_a_meta,
    meta_of_another_kind,
    meta_without_arrays,
    meta_of_another_entry,
]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_entry_is_removed_and_never_read(cache, damage):
    write(cache)
    damage(folder_of(cache))
    assert cache.read(KIND, PARTS) is None
    assert not folder_of(cache).exists()
    assert leftovers(cache) == []
    write(cache)
    assert cache.read(KIND, PARTS) is not None


def break_progress(left: Path) -> None:
    (left / "progress").write_bytes(b"-1 or so")


@pytest.mark.parametrize(
    "damage", [truncate, other_type, other_shape, no_array, missing, break_progress]
)
def test_what_is_not_as_it_was_recorded_is_begun_anew(cache, damage):
    damage(interrupt(cache))
    with cache.write(KIND, PARTS, SHAPES) as draft:
        assert draft.done == 0
        assert not draft.arrays["x"].any()
        assert len(leftovers(cache)) == 1


def test_a_damaged_entry_is_replaced_by_a_writer_that_did_not_look(cache):
    write(cache)
    truncate(folder_of(cache))
    np.testing.assert_array_equal(write(cache, value=5.0)["x"], np.full((4, 3), 5.0))
    assert len(cache.entries()) == 1


@pytest.mark.parametrize("damage", [half_a_meta, meta_of_another_kind])
def test_a_damaged_entry_is_not_listed_and_goes_with_the_next(cache, damage):
    write(cache)
    damage(folder_of(cache))
    assert cache.entries() == []
    write(cache, {"data": "other"})
    assert not folder_of(cache).exists()


def test_the_least_recently_used_goes_first(cache):
    names = [{"data": name} for name in "abc"]
    for i, parts in enumerate(names):
        write(cache, parts)
        used_at(cache, parts, 1000 + i)
    assert [entry.parts["data"] for entry in cache.entries()] == ["c", "b", "a"]
    cache.read(KIND, names[0])
    assert [entry.parts["data"] for entry in cache.entries()] == ["a", "c", "b"]
    limited = Cache(cache.folder, int(3.5 * cache.entries()[0].bytes))
    write(limited, {"data": "d"})
    assert [entry.parts["data"] for entry in cache.entries()] == ["d", "a", "c"]
    assert sum(entry.bytes for entry in cache.entries()) <= limited.limit_bytes


def test_an_entry_above_the_limit_stays_until_the_next(tmp_path):
    cache = Cache(tmp_path, 0)
    np.testing.assert_array_equal(write(cache, {"data": "a"})["x"], np.ones((4, 3)))
    assert cache.read(KIND, {"data": "a"}) is not None
    write(cache, {"data": "b"})
    assert [entry.parts["data"] for entry in cache.entries()] == ["b"]


def test_the_limit_counts_every_kind(tmp_path):
    cache = Cache(tmp_path, 0)
    write(cache)
    with cache.write("logits", PARTS, SHAPES):
        pass
    assert [entry.kind for entry in cache.entries()] == ["logits"]


def test_an_evicted_entry_stays_readable_for_whoever_has_it(cache):
    arrays = write(cache)
    cache.clear()
    np.testing.assert_array_equal(arrays["x"], np.ones((4, 3)))


def test_clear_removes_entries_and_nothing_else(cache):
    write(cache)
    write(cache, {"data": "other"})
    size = sum(entry.bytes for entry in cache.entries())
    foreign = [
        cache.folder / "notes.txt",
        cache.folder / KIND / "notes.txt",
        cache.folder / "photos" / "cat.jpg",
        cache.folder / ("0" * 64) / "saved_model.pb",
    ]
    for path in foreign:
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    assert cache.clear() == (2, size)
    assert all(path.read_text() == "mine" for path in foreign)
    assert cache.clear() == (0, 0)


def test_no_folder_is_an_empty_cache(cache):
    assert cache.entries() == []
    assert cache.clear() == (0, 0)
    assert not cache.folder.exists()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize(("place", "name"), [(os, "posix_fallocate"), (np.memmap, "flush")])
def test_a_full_disk_is_a_user_error(cache, monkeypatch, code, place, name):
    def full(*args):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(place, name, full)
    with pytest.raises(UserError, match=r"cache .*is full\. .*--cache_dir") as caught:
        write(cache)
    assert str(cache.folder) in str(caught.value)
    assert list((cache.folder / KIND).iterdir()) == []


def test_room_is_taken_before_anything_is_computed(cache):
    with cache.write(KIND, PARTS, {"x": ((2**20,), np.float32)}):
        (file,) = cache.folder.glob("*/.unfinished*/x.npy")
        assert file.stat().st_blocks * 512 >= 4 * 2**20


def test_a_file_in_the_place_of_the_folder_is_a_user_error(tmp_path):
    (tmp_path / "cache").write_text("")
    cache = Cache(tmp_path / "cache", UNLIMITED)
    for use in (lambda: write(cache), cache.entries, cache.clear):
        with pytest.raises(UserError, match=r"cache must be one .*--cache_dir"):
            use()


def test_a_folder_that_cannot_be_written_is_a_user_error(cache, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(UserError, match=r"cache must be one .*Permission denied.*--cache_dir"):
        write(cache)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_read_and_not_written(cache):
    write(cache)
    folders = [cache.folder, cache.folder / KIND, folder_of(cache)]
    for folder in folders:
        folder.chmod(0o500)
    try:
        assert cache.read(KIND, PARTS) is not None
        for use in (lambda: write(cache, {"data": "other"}), cache.clear):
            with pytest.raises(UserError, match="Permission denied"):
                use()
    finally:
        for folder in folders:
            folder.chmod(0o700)


def test_an_entry_of_somebody_else_is_read(cache, monkeypatch):
    write(cache)

    def refuse(*args, **kwargs):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "utime", refuse)
    assert cache.read(KIND, PARTS) is not None


PEAK = """
import re, sys
from pathlib import Path
from tfxfer.cache import Cache
rows = int(sys.argv[2])
with Cache(sys.argv[1], 10**12).write("features", {}, {"x": ((rows, 1024), "float32")}) as draft:
    for row in range(0, rows, 64):
        draft.arrays["x"][row : row + 64] = row
        draft.release()
assert draft.finished["x"][rows - 1, 0] == (rows - 1) // 64 * 64
print(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells the peak")
def test_memory_does_not_grow_with_the_entry(tmp_path):
    peaks = [
        int(subprocess.check_output([sys.executable, "-c", PEAK, str(tmp_path / rows), rows]))
        for rows in ("1024", "32768")
    ]
    assert peaks[1] - peaks[0] < 16 * 1024  # KiB, of 124 MiB more.


def test_default_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("TFXFER_CACHE_DIR", str(tmp_path))
    assert default_folder() == tmp_path / "computed"
    monkeypatch.delenv("TFXFER_CACHE_DIR")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_folder() == tmp_path / ".cache" / "tfxfer" / "computed"


def test_the_mode_lists_and_clears(tmp_path, monkeypatch):
    monkeypatch.setenv("TFXFER_CACHE_DIR", str(tmp_path / "default"))
    said: list[tuple] = []
    console: Any = SimpleNamespace(
        cache=lambda *args: said.append(("cache", *args)),
        cleared=lambda *args: said.append(("cleared", *args)),
    )
    config = RunConfig(mode="cache", cache_dir=str(tmp_path), cache_gb=0.5)
    cache = cache_mode.configured_cache(config)
    write(cache)
    (entry,) = cache.entries()
    cache_mode.run(config, None, console)
    cache_mode.run(config.replace(clear=True), None, console)
    cache_mode.run(config.replace(cache_dir=""), None, console)
    assert said == [
        ("cache", tmp_path, [entry], 500_000_000),
        ("cleared", tmp_path, 1, entry.bytes),
        ("cache", tmp_path / "default" / "computed", [], 500_000_000),
    ]
    assert not folder_of(cache).exists()
