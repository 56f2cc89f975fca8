"""Splits a GGUF into several files, as llama-gguf-split does: by size, metadata in the first."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from phiquant.errors import UsageError

_SIZE = re.compile(r"^(\d{1,9})\s*([MG])B?$", re.IGNORECASE)


def parse_size(text: str) -> int:
    """Bytes of a size such as ``500M`` or ``4G``, in decimal units as llama-gguf-split has them.

    Raises
    ------
    phiquant.UsageError
        It is no such size, or nothing.
    """
    match = _SIZE.match(text.strip())
    count = int(match[1]) * 1000 ** (2 if match[2] in "mM" else 3) if match else 0
    if count == 0:
        raise UsageError(f"'{text}' is no size of a file", remedy="Write it as 500M or 4G.")
    return count


def partition(sizes: Sequence[int], limit: int) -> list[range]:
    """Which tensors each file holds: as many in a row as fit, and at least one.

    Parameters
    ----------
    sizes : sequence of int
        Bytes of each tensor's data, padded to the alignment.
    limit : int
        Bytes of data a file; headers are not counted.
    """
    parts, begin, total = [], 0, 0
    for index, size in enumerate(sizes):
        if index > begin and total + size > limit:
            parts.append(range(begin, index))
            begin, total = index, 0
        total += size
    parts.append(range(begin, len(sizes)))
    return parts


def keys(index: int, count: int, tensors: int) -> list[tuple[str, str, Any]]:
    """The keys that tie the files together."""
    return [
        ("split.no", "uint16", index),
        ("split.tensors.count", "int32", tensors),
        ("split.count", "uint16", count),
    ]


def paths(path: Path, count: int) -> list[Path]:
    """Where the files stand: ``x.gguf`` becomes ``x-00001-of-00003.gguf`` and so on."""
    stem = path.name.removesuffix(".gguf")
    return [path.with_name(f"{stem}-{i + 1:05d}-of-{count:05d}.gguf") for i in range(count)]
