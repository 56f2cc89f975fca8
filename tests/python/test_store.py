"""The store of measurements: whole or absent, whoever writes at once, and never another file's."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cli_process import phiquant

import phiquant as pq
from phiquant.measure.content import content, tensor_digests
from phiquant.measure.store import Store, address, folder
from places import DATA

KEY = address("test", of="something")
ARRAYS = {
    "single": np.arange(12, dtype=np.float32).reshape(3, 4),
    "double": np.array([np.nan, np.inf, -0.0]),
    "whole": np.array([[1 << 40], [-3]]),
    "none": np.zeros((0, 7), np.float32),
}


def put(store: Store, key: str = KEY, **arrays: np.ndarray) -> bool:
    return store.put(
        key, what="test", source="a source", facts={"layers": 3}, arrays=arrays or ARRAYS
    )


def path_of(store: Store) -> Path:
    assert store.place is not None
    [path] = store.place.glob("*.measurement")
    return path


def age(store: Store, key: str, seconds: float) -> None:
    assert store.place is not None
    moment = time.time() - seconds
    os.utime(store.place / f"{key}.measurement", (moment, moment))


def test_what_was_kept_is_found(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    assert store.get(KEY) is None and not store.has(KEY)
    assert put(store)
    found = Store(tmp_path / "store").get(KEY)
    assert found is not None and found.facts == {"layers": 3}
    assert found.arrays.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert found.arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(found.arrays[name], array)
    assert store.get(address("test", of="another thing")) is None
    store.drop(KEY)
    assert store.get(KEY) is None
    assert list((tmp_path / "store").iterdir()) == []


def test_keys_tell_all_facts_apart() -> None:
    keys = [
        address("a", x=1), address("b", x=1), address("a", x=2), address("a", y=1),
        address("a", x="1"), address("a", x=1, y=None),
    ]  # fmt: skip
    assert len(set(keys)) == len(keys)
    assert address("a", x=1, y=2) == address("a", y=2, x=1)


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda raw: b"",
    "cut within the head": lambda raw: raw[:50],
    "cut within the arrays": lambda raw: raw[:-100],
    "cut within the checksum": lambda raw: raw[:-1],
    "longer": lambda raw: raw + b"x",
    "a changed bit of an array": lambda raw: raw[:-70] + bytes([raw[-70] ^ 1]) + raw[-69:],
    "a changed fact": lambda raw: raw.replace(b'"layers": 3', b'"layers": 4'),
    "another version": lambda raw: raw.replace(b"measurement 1", b"measurement 2"),
    "a shape beyond all memory": lambda raw: raw.replace(b"[3, 4]", b"[9999999999, 9999999999]"),
    "a shape that is none": lambda raw: raw.replace(b"[3, 4]", b"[3, -4]"),
    "a dtype that is none": lambda raw: raw.replace(b'"<f4", [3', b'"|O8", [3'),
    "no JSON": lambda raw: raw.replace(b'{"key"', b'["key"'),
    "nested lists": lambda raw: raw.split(b"\n")[0] + b"\n" + b"[" * 100_000 + b"\n",
    "another key's": lambda raw: raw.replace(KEY.encode(), address("other").encode()),
    "zeros": lambda raw: bytes(len(raw)),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_what_is_damaged_is_absent_and_can_be_measured_again(how: str, tmp_path: Path) -> None:
    store = Store(tmp_path)
    put(store)
    path = path_of(store)
    raw = path.read_bytes()
    path.write_bytes(DAMAGE[how](raw))
    assert path.read_bytes() != raw
    store.entries()  # a list raises nothing
    assert store.get(KEY) is None
    assert not path.exists()
    put(store)
    assert store.get(KEY) is not None


_WRITER = """
import sys
from pathlib import Path
import numpy as np
from phiquant.measure.store import Store
store, key = Store(Path(sys.argv[1])), sys.argv[2]
for number in range(int(sys.argv[3])):
    value = float(sys.argv[4]) + number
    array = np.full(50_000, value)
    assert store.put(key, what="test", source="", facts={"value": value}, arrays={"x": array})
    found = store.get(key)
    assert found is not None, "absent"
    assert (found.arrays["x"] == found.facts["value"]).all(), "torn"
"""


def test_several_processes_write_one_measurement_and_nobody_sees_a_half(tmp_path: Path) -> None:
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(tmp_path), KEY, "30", str(1000 * number)],
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(3)
    ]
    for writer in writers:
        _, errors = writer.communicate(timeout=120)
        assert writer.returncode == 0, errors
    assert [path.suffix for path in tmp_path.iterdir()] == [".measurement"]


def test_a_store_has_bounds_and_forgets_what_was_used_least(tmp_path: Path) -> None:
    store = Store(tmp_path, limit=100_000)
    keys = [address("test", of=number) for number in range(4)]
    for seconds, key in enumerate(keys[:3]):
        assert put(store, key, x=np.zeros(3000))
        age(store, key, 100 - seconds)
    assert store.get(keys[0]) is not None  # used just now: the second is the oldest
    assert put(store, keys[3], x=np.zeros(6500))
    assert [store.has(key) for key in keys] == [True, False, False, True]
    assert sum(one.nbytes for one in store.entries()) <= 100_000


def test_what_is_larger_than_the_store_is_not_kept(tmp_path: Path, caplog: object) -> None:
    assert isinstance(caplog, pytest.LogCaptureFixture)
    store = Store(tmp_path, limit=10_000)
    for _ in range(2):
        assert not put(store, x=np.zeros(3000))
    assert list(tmp_path.iterdir()) == []
    assert caplog.text.count("measurements cannot be kept") == 1
    assert store.kept == set()


def test_a_store_that_cannot_be_written_costs_no_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("no folder")
    store = Store(tmp_path / "file")
    with caplog.at_level(logging.WARNING):
        assert not put(store)
    assert "measurements cannot be kept" in caplog.text
    assert store.get(KEY) is None
    assert store.entries() == store.clear() == []


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    store = Store(tmp_path)
    (tmp_path / ".old.part").write_bytes(b"half")
    (tmp_path / ".new.part").write_bytes(b"half, by someone who is still writing")
    os.utime(tmp_path / ".old.part", (0, 0))
    put(store)
    assert not (tmp_path / ".old.part").exists()
    assert (tmp_path / ".new.part").exists()
    (tmp_path / "notes.txt").write_text("not ours")
    store.clear()
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_where_the_store_stands(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PHIQUANT_CACHE", str(tmp_path / "own"))
    assert folder() == tmp_path / "own"
    monkeypatch.delenv("PHIQUANT_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert folder() == tmp_path / ".cache" / "phiquant"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert folder() == tmp_path / "xdg" / "phiquant"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert folder() == tmp_path / ".cache" / "phiquant"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert folder() == tmp_path / "Library" / "Caches" / "phiquant"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A copy of phi3win, written just now."""
    copy = tmp_path / "model"
    shutil.copytree(DATA / "phi3win", copy)
    return copy


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """A minute has passed since whatever was written: its time of change cannot be set."""
    from phiquant.measure import content as module

    now = time.time
    monkeypatch.setattr(module.time, "time", lambda: now() + 60)


def address_of(model: Path, store: Store | None) -> str:
    return content(pq.open(model), store, threads=2)


def shard(model: Path) -> Path:
    return max(model.glob("*.safetensors"), key=lambda path: path.stat().st_size)


def test_tensors_digests_are_sha_256_of_their_bytes(tmp_path: Path) -> None:
    import hashlib

    checkpoint = pq.open(DATA / "phi35")
    found = tensor_digests(checkpoint, None, threads=2)
    assert found.keys() == checkpoint.entries.keys()
    for name, digest in found.items():
        assert digest == hashlib.sha256(checkpoint[name].tobytes()).hexdigest()


def test_a_copy_has_the_same_address_and_other_weights_another(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    copy = tmp_path / "copy"
    shutil.copytree(DATA / "phi3win", copy)
    assert address_of(copy, store) == address_of(DATA / "phi3win", store)
    assert address_of(DATA / "phi35", store) != address_of(copy, store)


@pytest.mark.usefixtures("later")
def test_unchanged_files_are_read_once(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from phiquant.measure import content as module

    store, calls = Store(tmp_path / "store"), []
    real = module._digest
    monkeypatch.setattr(module, "_digest", lambda *args: calls.append(1) or real(*args))
    first = address_of(model, store)
    assert len(calls) == len(pq.open(model))
    assert address_of(model, store) == first
    assert len(calls) == len(pq.open(model))


def test_files_that_were_just_written_are_read_once_for_a_run(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from phiquant.measure import content as module
    from phiquant.measure.layers import run_key
    from phiquant.reference import Decoder

    decoder, calls = Decoder(pq.open(model), threads=1), []
    real = module._digest
    monkeypatch.setattr(module, "_digest", lambda *args: calls.append(1) or real(*args))
    for first in range(3):  # as for chunks of a text
        run_key(decoder, np.arange(first, first + 8)[None], Store(tmp_path / "store"))
    assert len(calls) == len(decoder.checkpoint)


@pytest.mark.usefixtures("later")
def test_a_changed_byte_is_never_taken_for_the_old_one(model: Path, tmp_path: Path) -> None:
    """Not even by who sets size and time as they were: the time of change cannot be set."""
    store = Store(tmp_path / "store")
    before = address_of(model, store)
    path = shard(model)
    facts = path.stat()
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last ^ 1]))
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert (path.stat().st_mtime_ns, path.stat().st_size) == (facts.st_mtime_ns, facts.st_size)
    changed = address_of(model, store)
    assert changed != before
    assert changed == address_of(model, None)
    shutil.copy(DATA / "phi3win" / path.name, path)
    assert address_of(model, store) == before


def test_a_file_that_was_just_written_is_not_known_by_its_times(
    model: Path, tmp_path: Path
) -> None:
    """Two changes within a clock's tick would look alike."""
    store = Store(tmp_path / "store")
    address_of(model, store)
    assert store.entries() == []


def test_the_command_lists_and_clears(tmp_path: Path) -> None:
    place = tmp_path / "cache"
    options = {"PHIQUANT_CACHE": str(place)}
    done = phiquant("cache", **options)
    assert (done.returncode, done.stdout) == (0, f"{place}: 0 measurements, 0 bytes\n")
    store = Store(place)
    keys = [address("test", of=number) for number in range(3)]
    for number, key in enumerate(keys):
        put(store, key)
        age(store, key, 3600 * 24 * number + 60)
    (place / "x.measurement").write_bytes(b"damaged")
    shown = phiquant("cache", **options).stdout
    assert "4 measurements" in shown and "a source" in shown and "damaged" in shown
    listed = json.loads(phiquant("cache", "--json", "--older-than", "12h", **options).stdout)
    assert [one["key"] for one in listed["measurements"]] == keys[1:]
    assert (listed["folder"], listed["removed"]) == (str(place), False)
    assert listed["nbytes"] == sum(one["nbytes"] for one in listed["measurements"]) > 0
    first = listed["measurements"][0]
    assert (first["what"], first["source"]) == ("test", "a source")
    assert first["used"] == pytest.approx(time.time() - 24 * 3600, abs=300)
    done = phiquant("cache", "--clear", "--older-than", "36h", **options)
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.startswith("removed 1 measurements, ")
    assert [store.has(key) for key in keys] == [True, True, False]
    cleared = json.loads(phiquant("cache", "--clear", "--json", **options).stdout)
    assert (cleared["removed"], len(cleared["measurements"])) == (True, 3)
    assert list(place.iterdir()) == []
    for nonsense in ("30", "0d", "1w", "-1d"):
        refused = phiquant("cache", f"--older-than={nonsense}", **options)
        assert refused.returncode == 2 and "is no age" in refused.stderr
