"""What a checkpoint holds, as digests of its tensors, which need not be read for it each time."""

from __future__ import annotations

import hashlib
import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from phiquant.checkpoint import Checkpoint, PlaneEntry, SourceFile, TensorEntry
from phiquant.errors import ChangedError, FormatError, IoError
from phiquant.measure.store import Store, address
from phiquant.memory import ArraySource

# Times of files are this coarse at worst (FAT), and a file may be written twice within one.
_SETTLED_SECONDS = 2.0
_PIECE = 1 << 22

#: What a list of measurements calls what is known of a file's tensors.
DIGESTS = "digests"


def tensor_digests(checkpoint: Checkpoint, store: Store | None, *, threads: int) -> dict[str, str]:
    """The SHA-256 of each tensor's bytes, by name; of one in several places, of their digests.

    All bytes are read once. After that the store knows them by the file's path, device, inode,
    size, and times of change, down to nanoseconds. A file that is changed, in whatever way, gets a
    later time of change from the system, which no program can set; and one that was changed less
    than two seconds ago is not trusted to have a time of its own, and is read again.

    Raises
    ------
    phiquant.ChangedError
        A file is not the one whose header was read.
    phiquant.FormatError
        It ends within a tensor.
    """
    places = {entry.name: _places(entry) for entry in checkpoint.entries.values()}
    found = _place_digests(checkpoint, [p for ps in places.values() for p in ps], store, threads)
    digests = {name: [found[place.name] for place in own] for name, own in places.items()}
    return {
        name: own[0] if len(own) == 1 else hashlib.sha256("".join(own).encode()).hexdigest()
        for name, own in digests.items()
    }


def _places(entry: TensorEntry) -> list[TensorEntry]:
    """Where all bytes of a tensor are: planes and parts stand apart, in several files even."""
    found: list[TensorEntry | PlaneEntry] = []
    for part in entry.parts or (entry,):
        found += part.planes or (part,)
    if entry.column_scale is not None:
        found.append(entry.column_scale)
    names = [entry.name] + [f"{entry.name} #{number}" for number in range(1, len(found))]
    return [
        replace(
            entry,
            name=name,
            file=one.file,
            offset=one.offset,
            nbytes=one.nbytes,
            planes=(),
            parts=(),
        )
        for name, one in zip(names, found, strict=True)
    ]


def _place_digests(
    checkpoint: Checkpoint, wanted: list[TensorEntry], store: Store | None, threads: int
) -> dict[str, str]:
    found: dict[str, str] = {}
    for index, source in enumerate(checkpoint.files):
        entries = [entry for entry in wanted if entry.file == index]
        if not entries:
            continue
        if isinstance(source, ArraySource):  # memory, which nothing is known of the next time
            found |= {entry.name: _digest(source, entry) for entry in entries}
            continue
        identity, settled = _identity(source)
        # Where tensors stand is the header's say.
        places = [[entry.name, entry.offset, entry.nbytes] for entry in entries]
        key = address("digests", file=identity, places=places)
        known = store.get(key) if store is not None else None
        if known is None:
            with ThreadPoolExecutor(threads) as pool:
                digests = list(pool.map(partial(_digest, source), entries))
            facts = dict(zip((entry.name for entry in entries), digests, strict=True))
            if _identity(source)[0] != identity:
                raise _changed(source)
            if store is not None and settled:
                store.put(key, what=DIGESTS, source=str(checkpoint.path), facts=facts, arrays={})
            found |= facts
        else:
            found |= known.facts
    return found


def content(checkpoint: Checkpoint, store: Store | None, *, threads: int) -> str:
    """A SHA-256 of all tensors: names, types, shapes and bytes, wherever their files stand."""
    digests = tensor_digests(checkpoint, store, threads=threads)
    facts = sorted(
        (entry.name, entry.type, entry.shape, digests[entry.name])
        for entry in checkpoint.entries.values()
    )
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _identity(source: SourceFile) -> tuple[list[Any], bool]:
    """What tells this file from another and from itself at another time; whether it is settled."""
    now = time.time()
    if not source.is_as_opened():
        raise _changed(source)
    try:
        facts = source.path.stat()
    except OSError as error:
        raise IoError(f"cannot be opened: {error.strerror}", file=source.path) from error
    times = [facts.st_mtime_ns, facts.st_ctime_ns]
    path = str(Path(source.path).resolve())
    identity = [path, facts.st_dev, facts.st_ino, facts.st_size, *times]
    return identity, now - max(times) / 1e9 > _SETTLED_SECONDS


def _digest(source: SourceFile, entry: TensorEntry) -> str:
    digest = hashlib.sha256()
    end = entry.offset + entry.nbytes
    for at in range(entry.offset, end, _PIECE):
        piece = source.read(at, min(_PIECE, end - at))
        if len(piece) != min(_PIECE, end - at):
            raise FormatError("ends within the tensor", file=source.path, tensor=entry.name)
        digest.update(piece)
    return digest.hexdigest()


def _changed(source: SourceFile) -> ChangedError:
    return ChangedError("changed since it was opened", file=source.path, remedy="Open it again.")
