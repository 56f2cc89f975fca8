"""Weights as float32, read strip by strip: only what was asked for is ever in memory."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from phiquant.checkpoint import Checkpoint, TensorEntry
from phiquant.codecs import Codec, find_codec
from phiquant.errors import ChangedError, FormatError, UnsupportedError, UsageError
from phiquant.tensor import QuantizedTensor, check_threads

# Weights of a strip: 4 MiB as float32, which a core's cache mostly holds while they are copied.
_STRIP = 1 << 20


# Rows at which every plane begins a whole byte.
_STEP = 32


class Weights:
    """A checkpoint's tensors as float32 arrays, quantized ones decoded.

    Files are read, not mapped: mapped pages would count as this process's memory until the whole
    model stood there.

    Parameters
    ----------
    checkpoint : Checkpoint
    threads : int, optional
        For decoding; one a processor by default.
    """

    def __init__(self, checkpoint: Checkpoint, *, threads: int | None = None) -> None:
        self.checkpoint = checkpoint
        self.threads = check_threads(threads)

    def whole(self, name: str) -> NDArray[np.float32]:
        """A whole tensor in its own shape.

        Raises
        ------
        phiquant.UnsupportedError
            It is of a type that is not decoded.
        phiquant.FormatError
            The file ends before the tensor does.
        phiquant.ChangedError
            The file is not the one whose header was read.
        """
        entry = self.checkpoint.entries[name]
        if len(entry.shape) < 2:
            return self._read(entry, 0, 1).reshape(entry.shape)
        out = np.empty((_rows(entry), entry.shape[-1]), np.float32)
        step = max(1, _STRIP // max(1, entry.shape[-1]))
        for begin in range(0, len(out), step):
            end = min(len(out), begin + step)
            out[begin:end] = self._read(entry, begin, end)
        return out.reshape(entry.shape)

    def rows(self, name: str, begin: int, end: int) -> NDArray[np.float32]:
        """Rows ``begin`` to ``end`` of a matrix, shape (end - begin, columns)."""
        return self._read(self.checkpoint.entries[name], begin, end)

    def gather(self, name: str, ids: NDArray[np.integer]) -> NDArray[np.float32]:
        """The rows ``ids`` of a matrix, shape (\\*ids.shape, columns); each is read once.

        Raises
        ------
        phiquant.UsageError
            An id has no row.
        """
        entry = self.checkpoint.entries[name]
        rows, columns = _rows(entry), entry.shape[-1]
        wanted, place = np.unique(ids, return_inverse=True)
        if wanted.size and not 0 <= int(wanted[0]) <= int(wanted[-1]) < rows:
            odd = wanted[0] if wanted[0] < 0 else wanted[-1]
            raise UsageError(f"token {odd} has no row: there are {rows}", tensor=name)
        table = np.empty((wanted.size, columns), np.float32)
        # Runs of strips that hold a wanted row: a read is cheaper than many seeks.
        step = max(1, _STRIP // max(1, columns))
        at = 0
        while at < wanted.size:
            first = int(wanted[at])
            stop = int(np.searchsorted(wanted, first + step))
            strip = self._read(entry, first, int(wanted[stop - 1]) + 1)
            table[at:stop] = strip[wanted[at:stop] - first]
            at = stop
        found: NDArray[np.float32] = table[place.reshape(ids.shape)]
        return found

    def _read(self, entry: TensorEntry, begin: int, end: int) -> NDArray[np.float32]:
        if entry.parts:
            return self._read_parts(entry, begin, end)
        codec = self._codec(entry)
        if codec.has_planes:
            return self._read_planes(entry, codec, begin, end)
        columns = entry.shape[-1]
        row_bytes = codec.bytes_of(1, columns)
        count = (end - begin) * row_bytes
        raw = self._bytes(entry, entry.file, entry.offset + begin * row_bytes, count)
        blocks = np.frombuffer(raw, np.uint8).reshape(end - begin, row_bytes)
        values: NDArray[np.float32] = QuantizedTensor(
            blocks, (end - begin, columns), codec
        ).dequantize(threads=self.threads)
        return values

    def _read_parts(self, entry: TensorEntry, begin: int, end: int) -> NDArray[np.float32]:
        found = np.empty((end - begin, entry.shape[-1]), np.float32)
        first = 0
        for part in entry.parts:
            low, high = max(begin, first), min(end, first + _rows(part))
            if low < high:
                found[low - begin : high - begin] = self._read(part, low - first, high - first)
            first += _rows(part)
        return found

    def _read_planes(
        self, entry: TensorEntry, codec: Codec, begin: int, end: int
    ) -> NDArray[np.float32]:
        rows, columns = _rows(entry), entry.shape[-1]
        # Planes begin whole bytes at every thirty-second row.
        low, high = begin // _STEP * _STEP, min(rows, -(-end // _STEP) * _STEP)
        pieces = []
        whole = codec.planes(rows, columns)
        for index, (plane, place) in enumerate(zip(whole, entry.planes, strict=True)):
            if codec.transposed:
                lines = self.checkpoint.planes_of(entry)[index].reshape(plane.row_elements, -1)
                columns_of = slice(low * plane.bits // 8, high * plane.bits // 8)
                pieces.append(np.ascontiguousarray(lines[:, columns_of]).reshape(-1))
                continue
            first = codec.planes(low, columns)[index].nbytes if low else 0
            count = codec.planes(high - low, columns)[index].nbytes
            raw = self._bytes(entry, place.file, place.offset + first, count)
            pieces.append(np.frombuffer(raw, np.uint8))
        values: NDArray[np.float32] = QuantizedTensor(
            pieces[0], (high - low, columns), codec, tuple(pieces)
        ).dequantize(threads=self.threads)
        if entry.column_scale is not None:
            place = entry.column_scale
            values *= np.frombuffer(
                self._bytes(entry, place.file, place.offset, place.nbytes), np.float32
            )
        return values[begin - low : end - low]

    def _bytes(self, entry: TensorEntry, file: int, offset: int, count: int) -> bytes:
        source = self.checkpoint.files[file]
        if not source.is_as_opened():
            raise ChangedError(
                "changed since it was opened", file=source.path, remedy="Open it again."
            )
        raw = source.read(offset, count)
        if len(raw) != count:
            raise FormatError("ends within the tensor", file=source.path, tensor=entry.name)
        return raw

    def _codec(self, entry: TensorEntry) -> Codec:
        try:
            return find_codec(entry.type)
        except UsageError as error:
            raise UnsupportedError(
                f"is of type {entry.type}, which this version does not decode",
                file=self.checkpoint.files[entry.file].path,
                tensor=entry.name,
            ) from error


def _rows(entry: TensorEntry) -> int:
    return int(np.prod(entry.shape[:-1], dtype=np.int64))
