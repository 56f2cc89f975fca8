"""The store of measurements: files in the user's cache folder, each named by what it answers."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from phiquant.texts import bytes_text

_log = logging.getLogger("phiquant")

#: Environment variable that names another folder than the platform's own.
VARIABLE = "PHIQUANT_CACHE"
#: Bytes that a store holds at most; what was not used for longest goes first.
LIMIT = 10 * 10**9

# A store leaves so much of the disk to others.
_SPARE = 10**9
# What a killed process was writing is removed when nobody can be writing it any more.
_STALE_SECONDS = 24 * 3600.0
_SUFFIX, _PART = ".measurement", ".part"

# A file is this line, a line of JSON, the arrays' bytes, and the SHA-256 of all of that.
_MAGIC = b"phiquant measurement 1\n"
_MAX_HEADER = 1 << 26
_DIGEST = 32
_PIECE = 1 << 22
_DTYPES = ("<f4", "<f8", "<i8")

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, eq=False)
class Measurement:
    """What was measured: plain facts, and arrays of float32, float64 or int64."""

    facts: Mapping[str, Any]
    arrays: Arrays


@dataclass(frozen=True)
class Entry:
    """A measurement's file, as a list shows it.

    Attributes
    ----------
    key : str
    what : str
        Kind of measurement, or ``damaged``, which is never used.
    source : str
        What was measured, for people: the key alone decides.
    nbytes : int
    made, used : float
        When it was written, and used for the last time; seconds since 1970.
    """

    key: str
    what: str
    source: str
    nbytes: int
    made: float
    used: float

    def to_json(self) -> dict[str, Any]:
        """All of it as plain data."""
        return asdict(self)


def folder() -> Path | None:
    """Where measurements stand; None where the user has no home.

    ``PHIQUANT_CACHE``, or else ``phiquant`` in the platform's place for such files: that of
    ``XDG_CACHE_HOME``, ``~/.cache``, ``~/Library/Caches`` or ``%LOCALAPPDATA%``.
    """
    own = os.environ.get(VARIABLE)
    if own:
        return Path(own).absolute()
    try:
        home = Path.home()
    except RuntimeError:
        return None
    if sys.platform == "win32":
        place = Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local")
    elif sys.platform == "darwin":
        place = home / "Library" / "Caches"
    else:
        place = Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache")
        if not place.is_absolute():  # the specification says to take no notice of it
            place = home / ".cache"
    return place / "phiquant"


def address(what: str, **facts: Any) -> str:
    """The key of a measurement: a SHA-256 of what was measured, and of all that it depends on.

    Parameters
    ----------
    what : str
        Kind of measurement.
    facts
        Anything that JSON holds.
    """
    words = json.dumps([what, facts], sort_keys=True, allow_nan=False)
    return hashlib.sha256(words.encode()).hexdigest()


class Store:
    """Measurements on disk.

    Any number of processes may use it at once: a file is written under another name, and gets its
    own when it is whole; whoever reads has the old file or the new one. What is truncated or
    changed is not there: its checksum tells. A store that cannot be read or written costs a
    measurement, and not the run: then nothing is found, and nothing is kept.

    Parameters
    ----------
    place : Path, optional
        Its folder; :func:`folder` by default.
    limit : int
        Bytes that it holds at most.

    Attributes
    ----------
    place : Path or None
        Without one nothing is kept.
    kept : set of str
        Kinds of measurements that this object has written.
    """

    def __init__(self, place: Path | None = None, *, limit: int = LIMIT) -> None:
        self.place = folder() if place is None else place
        self.limit = limit
        self.kept: set[str] = set()
        self._warned = False

    def has(self, key: str) -> bool:
        """Whether there is a file of that key; :meth:`get` says whether it is sound."""
        return self.place is not None and self._path(key).is_file()

    def get(self, key: str) -> Measurement | None:
        """The measurement of that key; None where there is none, or it is damaged."""
        if self.place is None:
            return None
        path = self._path(key)
        try:
            with path.open("rb") as file:
                found = _read(file, key)
            if found is None:
                path.unlink(missing_ok=True)
            else:
                os.utime(path)  # used just now
        except OSError:
            return None
        return found

    def put(
        self, key: str, *, what: str, source: str, facts: Mapping[str, Any], arrays: Arrays
    ) -> bool:
        """Keep a measurement, in place of an older one; says whether that was possible.

        Parameters
        ----------
        what, source : str
            For the list of measurements.
        facts : mapping
            Anything that JSON holds.
        arrays : mapping of str to float32, float64 or int64 array
        """
        if self.place is None:
            return False
        try:
            self._put(key, what, source, facts, arrays)
        except OSError as error:
            if not self._warned:
                _log.warning("%s: measurements cannot be kept: %s", self.place, error)
            self._warned = True
            return False
        self.kept.add(what)
        return True

    def drop(self, key: str) -> None:
        """Remove the measurement of that key, if there is one."""
        if self.place is not None:
            with suppress(OSError):
                self._path(key).unlink(missing_ok=True)

    def entries(self) -> list[Entry]:
        """All measurements, the one last used first. Only the heads of files are read."""
        found = [_entry(path) for path in self._files(_SUFFIX)]
        return sorted((one for one in found if one), key=lambda one: -one.used)

    def clear(self, unused_for: float = 0.0) -> list[Entry]:
        """Remove what was not used for so many seconds; gives what was removed."""
        before = time.time() - unused_for
        removed = [one for one in self.entries() if unused_for <= 0 or one.used < before]
        for one in removed:
            self.drop(one.key)
        self._sweep(unused_for if unused_for > 0 else 0.0)
        return removed

    def _path(self, key: str) -> Path:
        assert self.place is not None
        return self.place / (key + _SUFFIX)

    def _files(self, suffix: str) -> list[Path]:
        if self.place is None:
            return []
        try:
            return sorted(path for path in self.place.iterdir() if path.suffix == suffix)
        except OSError:
            return []

    def _put(
        self, key: str, what: str, source: str, facts: Mapping[str, Any], arrays: Arrays
    ) -> None:
        assert self.place is not None
        whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        head = {
            "key": key,
            "what": what,
            "source": source,
            "made": time.time(),
            "facts": facts,
            "arrays": [[name, array.dtype.str, array.shape] for name, array in whole.items()],
        }
        lines = _MAGIC + json.dumps(head, allow_nan=False).encode() + b"\n"
        size = len(lines) + sum(array.nbytes for array in whole.values()) + _DIGEST
        self.place.mkdir(mode=0o700, parents=True, exist_ok=True)
        if size > self.limit:
            raise OSError(f"{bytes_text(size)} are more than its {bytes_text(self.limit)}")
        free = shutil.disk_usage(self.place).free
        if free < size + _SPARE:
            raise OSError(f"{bytes_text(size)} are too many where {bytes_text(free)} are free")
        number, name = tempfile.mkstemp(prefix=".", suffix=_PART, dir=self.place)
        try:
            with os.fdopen(number, "wb") as file:
                digest = hashlib.sha256(lines)
                file.write(lines)
                for array in whole.values():
                    raw = array.reshape(-1).view(np.uint8).data
                    digest.update(raw)
                    file.write(raw)
                file.write(digest.digest())
            Path(name).replace(self._path(key))
        except BaseException:
            with suppress(OSError):
                Path(name).unlink()
            raise
        self._sweep(_STALE_SECONDS)
        self._make_room(key)

    def _sweep(self, seconds: float) -> None:
        """Remove what processes that were killed had begun to write, so long ago."""
        for path in self._files(_PART):
            with suppress(OSError):
                if time.time() - path.stat().st_mtime >= seconds:
                    path.unlink(missing_ok=True)

    def _make_room(self, key: str) -> None:
        """Remove what was not used for longest, until the rest is within the limit."""
        found = []
        for path in self._files(_SUFFIX):
            with suppress(OSError):
                facts = path.stat()
                found.append((facts.st_mtime, facts.st_size, path))
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total <= self.limit:
                break
            if path != self._path(key):
                with suppress(OSError):
                    path.unlink(missing_ok=True)
                    total -= size


def _head(file: IO[bytes]) -> tuple[bytes, dict[str, Any]] | None:
    """The first two lines of a file, and what the second says; None if that is not sound."""
    lines = file.read(len(_MAGIC))
    if lines != _MAGIC:
        return None
    line = file.readline(_MAX_HEADER)
    try:
        head = json.loads(line)
        size = len(lines) + len(line) + _DIGEST
        for _, dtype, shape in head["arrays"]:
            if dtype not in _DTYPES or not all(isinstance(n, int) and n >= 0 for n in shape):
                return None
            count = np.dtype(dtype).itemsize
            for length in shape:
                count *= length
            size += count
        if size != os.fstat(file.fileno()).st_size or not isinstance(head["facts"], dict):
            return None
        float(head["made"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return lines + line, head


def _read(file: IO[bytes], key: str) -> Measurement | None:
    begin = _head(file)
    if begin is None or begin[1].get("key") != key:
        return None
    lines, head = begin
    digest = hashlib.sha256(lines)
    arrays = {}
    for name, dtype, shape in head["arrays"]:
        array = np.empty(shape, dtype)
        raw = array.reshape(-1).view(np.uint8).data
        for at in range(0, len(raw), _PIECE):
            piece = raw[at : at + _PIECE]
            if file.readinto(piece) != len(piece):  # type: ignore[attr-defined]
                return None
            digest.update(piece)
        arrays[name] = array
    if file.read(_DIGEST + 1) != digest.digest():
        return None
    return Measurement(head["facts"], arrays)


def _entry(path: Path) -> Entry | None:
    try:
        with path.open("rb") as file:
            facts = os.fstat(file.fileno())
            begin = _head(file)
    except OSError:  # removed meanwhile
        return None
    head = begin[1] if begin and begin[1].get("key") == path.stem else {}
    return Entry(
        key=path.stem,
        what=str(head.get("what", "damaged")),
        source=str(head.get("source", "")),
        nbytes=facts.st_size,
        made=float(head.get("made", facts.st_mtime)),
        used=facts.st_mtime,
    )
