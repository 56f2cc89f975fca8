"""Importance matrices in llama.cpp's files: GGUF and the older ``.dat``, read and written."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from phiquant import gguf
from phiquant.checkpoint import Checkpoint, SourceFile
from phiquant.errors import FormatError, UnsupportedError

_SUMS, _COUNTS = ".in_sum2", ".counts"
_DATASETS, _CHUNKS, _CHUNK = "imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size"

# ggml's limit for names (GGML_MAX_NAME), less the suffix; the old format has the same names.
_MAX_NAME = 128
_MAX_DATASET = 1 << 16
# A 405B model's file has 30 MB; this bounds what a hostile one makes us read.
_MAX_FILE = 1 << 31


@dataclass(frozen=True, eq=False)
class Activations:
    """What went into one matrix.

    Attributes
    ----------
    sums : float32 array, shape (matrices, columns)
        Sum of the squares of each column's activations; more than one matrix for experts.
    counts : float32 array, shape (matrices,)
        How many tokens were summed.
    """

    sums: NDArray[np.float32]
    counts: NDArray[np.float32]

    def mean_squares(self) -> NDArray[np.float32]:
        """``sums / counts`` in float32, shape (columns,), or (matrices, columns) of experts.

        Experts that no token chose get ones, as llama-quantize gives them.
        """
        counts = self.counts[:, None]
        seen = counts > 0
        means = np.where(seen, self.sums / np.where(seen, counts, np.float32(1)), np.float32(1))
        return means[0] if len(means) == 1 else means


@dataclass(frozen=True, eq=False)
class Importance(Mapping[str, NDArray[np.float32]]):
    """An importance matrix: mean squared activations by GGUF tensor name.

    A mapping to float32 arrays of shape (columns,), or (experts, columns): the very numbers that
    llama-quantize makes of the file.

    Attributes
    ----------
    activations : dict of str to Activations
    datasets : tuple of str
        Texts that it was computed from.
    chunks : int
        How many windows of text.
    chunk_size : int
        Tokens of each; 0 where the file does not say (``.dat``).
    """

    activations: Mapping[str, Activations]
    datasets: tuple[str, ...] = ()
    chunks: int = 0
    chunk_size: int = 0

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        return self.activations[name].mean_squares()

    def __iter__(self) -> Iterator[str]:
        return iter(self.activations)

    def __len__(self) -> int:
        return len(self.activations)

    def __contains__(self, name: object) -> bool:
        return name in self.activations


def read_importance(path: str | os.PathLike[str]) -> Importance:
    """Read an importance matrix of llama.cpp: GGUF, or the older ``.dat``.

    Parameters
    ----------
    path : str or path

    Returns
    -------
    Importance

    Raises
    ------
    phiquant.FormatError
        The file is damaged or made to deceive, or holds numbers that are negative, NaN or infinite.
    phiquant.UnsupportedError
        A GGUF of another kind, such as a model.
    phiquant.IoError
        It cannot be read.
    """
    path = Path(path)
    source = SourceFile.look_at(path)
    if source.size > _MAX_FILE:
        raise FormatError(f"has {source.size} bytes: no importance matrix is so large", file=path)
    if source.read(0, 4) == b"GGUF":
        found = _from_gguf(gguf.open_file(path))
    else:
        found = _from_dat(source.read(0, source.size), path)
    for name, activations in found.activations.items():
        _check(name, activations, path)
    return found


def write_importance(
    path: str | os.PathLike[str], importance: Importance, *, overwrite: bool = False
) -> Path:
    """Write an importance matrix as llama-imatrix does: GGUF, tensors sorted by name.

    Raises
    ------
    phiquant.UsageError
        The file exists.
    """
    tensors: dict[str, NDArray[np.float32]] = {}
    for name in sorted(importance.activations):
        activations = importance.activations[name]
        # ggml drops axes of length one at the end, which NumPy has at the beginning.
        sums, counts = activations.sums, activations.counts[:, None]
        if len(sums) == 1:
            sums, counts = sums[0], counts[0]
        tensors[name + _SUMS] = np.ascontiguousarray(sums, np.float32)
        tensors[name + _COUNTS] = np.ascontiguousarray(counts, np.float32)
    metadata = {
        "general.type": "imatrix",
        _DATASETS: ("array:string", list(importance.datasets)),
        _CHUNKS: ("uint32", importance.chunks),
        _CHUNK: ("uint32", importance.chunk_size),
    }
    return gguf.write(path, tensors, metadata, overwrite=overwrite)


def _check(name: str, activations: Activations, path: Path) -> None:
    for what, values in (("sums", activations.sums), ("counts", activations.counts)):
        if not np.isfinite(values).all():
            raise FormatError(
                f"has {what} that are NaN or infinite",
                file=path,
                tensor=name,
                remedy="Make the importance matrix again.",
            )
        if (values < 0).any():
            raise FormatError(f"has negative {what}", file=path, tensor=name)


def _from_gguf(file: Checkpoint) -> Importance:
    path = file.path
    kind = file.metadata.get("general.type")
    if kind != "imatrix":
        shown = repr(kind)[:40]
        raise UnsupportedError(
            f"is a GGUF with the general.type {shown}, not 'imatrix'",
            file=path,
            remedy="Give a file that llama-imatrix or 'phiquant calibrate' wrote.",
        )
    pairs: dict[str, dict[str, str]] = {}
    for name in file:
        for suffix in (_SUMS, _COUNTS):
            if name.endswith(suffix) and len(name) > len(suffix):
                pairs.setdefault(name[: -len(suffix)], {})[suffix] = name
    if not pairs:
        raise FormatError("holds no sums of activations", file=path)
    activations = {}
    for name, pair in pairs.items():
        if len(pair) != 2:
            missing = _COUNTS if _SUMS in pair else _SUMS
            raise FormatError(f"its '{name}{missing}' is missing", file=path, tensor=name)
        sums, counts = (_floats(file, pair[suffix]) for suffix in (_SUMS, _COUNTS))
        matrices = counts.size
        if not matrices or not sums.size or sums.size % matrices:
            raise FormatError(f"has {sums.size} sums for {matrices} counts", file=path, tensor=name)
        # llama.cpp rounds counts to whole tokens before it divides.
        activations[name] = Activations(sums.reshape(matrices, -1), np.rint(counts).ravel())
    return Importance(
        activations,
        _datasets(file),
        _number(file, _CHUNKS),
        _number(file, _CHUNK),
    )


def _floats(file: Checkpoint, name: str) -> NDArray[np.float32]:
    entry = file.entries[name]
    if entry.type != "f32":
        raise FormatError(f"is of type {entry.type}, not f32", file=file.path, tensor=name)
    raw = file.files[entry.file].read(entry.offset, entry.nbytes)
    if len(raw) != entry.nbytes:
        raise FormatError("ends within the tensor", file=file.path, tensor=name)
    return np.frombuffer(raw, "<f4").astype(np.float32)


def _number(file: Checkpoint, key: str) -> int:
    value: Any = file.metadata.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 32:
        # llama-quantize refuses a file without these keys, too.
        raise FormatError(f"{key} is {repr(value)[:40]}, no sensible number", file=file.path)
    return value


def _datasets(file: Checkpoint) -> tuple[str, ...]:
    value: Any = file.metadata.get(_DATASETS)
    if not isinstance(value, list) or not all(isinstance(item, (str, bytes)) for item in value):
        raise FormatError(f"{_DATASETS} is no array of strings", file=file.path)
    return tuple(_text(item) for item in value)


def _text(item: str | bytes) -> str:
    return item.decode("utf-8", "replace") if isinstance(item, bytes) else item


class _Reader:
    """Little-endian numbers from bytes, each checked against what is left."""

    def __init__(self, raw: bytes, path: Path) -> None:
        self._raw = raw
        self._at = 0
        self._path = path

    @property
    def left(self) -> int:
        return len(self._raw) - self._at

    def bytes(self, count: int, what: str) -> bytes:
        if not 0 <= count <= self.left:
            raise FormatError(
                f"{what} asks for {count} bytes at byte {self._at}, and {self.left} are left",
                file=self._path,
                remedy="It is damaged, or no importance matrix.",
            )
        self._at += count
        return self._raw[self._at - count : self._at]

    def number(self, what: str) -> int:
        value: int = struct.unpack("<i", self.bytes(4, what))[0]
        return value


def _from_dat(raw: bytes, path: Path) -> Importance:
    """The old format: a count of entries; of each its name, calls, number of values and values.

    The values are sums over tokens, brought to ``calls`` as if each call were one token, so that
    ``value / calls`` is the mean square (llama.cpp tools/imatrix, ``save_imatrix_legacy``).
    """
    reader = _Reader(raw, path)
    entries = reader.number("the number of entries")
    # An entry has 16 bytes at least: a name of one letter would have a value.
    if not 0 < entries <= reader.left // 16:
        raise FormatError(
            f"says that it has {entries} entries in {len(raw)} bytes",
            file=path,
            remedy="It is damaged, or no importance matrix.",
        )
    activations: dict[str, Activations] = {}
    for number in range(entries):
        length = reader.number(f"the name of entry {number}")
        if not 0 < length <= _MAX_NAME:
            raise FormatError(f"the name of entry {number} has {length} bytes", file=path)
        try:
            name = reader.bytes(length, f"the name of entry {number}").decode()
        except UnicodeDecodeError:
            raise FormatError(f"the name of entry {number} is no UTF-8", file=path) from None
        if name in activations:
            raise FormatError("stands there twice", file=path, tensor=name)
        calls = reader.number("its number of calls")
        count = reader.number("its number of values")
        if calls < 0 or count < 1:
            raise FormatError(f"has {count} values of {calls} calls", file=path, tensor=name)
        values = np.frombuffer(reader.bytes(4 * count, f"'{name}'"), "<f4").astype(np.float32)
        # Without calls llama-quantize takes the values as they are.
        activations[name] = Activations(values[None], np.array([max(calls, 1)], np.float32))
    chunks, datasets = 0, []
    if reader.left:  # llama.cpp of 2023 wrote no more
        chunks = max(0, reader.number("the number of chunks"))
        if reader.left:
            length = reader.number("the dataset's name")
            if not 0 <= length <= _MAX_DATASET:
                raise FormatError(f"the dataset's name has {length} bytes", file=path)
            datasets.append(_text(reader.bytes(length, "the dataset's name")))
    if reader.left:
        raise FormatError(f"has {reader.left} bytes after its end", file=path)
    return Importance(activations, tuple(filter(None, datasets)), chunks, 0)
