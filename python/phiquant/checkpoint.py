"""Checkpoints: any format that is read, as a mapping from names to tensors, headers first."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

from phiquant.codecs import find_codec, stored_codec
from phiquant.errors import FormatError, IoError, PhiquantError, UnsupportedError, UsageError
from phiquant.tensor import QuantizedTensor

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Types whose values NumPy (with ml_dtypes) has a name for.
_DTYPES: dict[str, np.dtype[Any]] = {
    "f64": np.dtype(np.float64),
    "f32": np.dtype(np.float32),
    "f16": np.dtype(np.float16),
    "bf16": np.dtype(ml_dtypes.bfloat16),
    "f8_e4m3": np.dtype(ml_dtypes.float8_e4m3fn),
    "f8_e5m2": np.dtype(ml_dtypes.float8_e5m2),
    **{f"i{bits}": np.dtype(f"int{bits}") for bits in (8, 16, 32, 64)},
    **{f"u{bits}": np.dtype(f"uint{bits}") for bits in (8, 16, 32, 64)},
    "bool": np.dtype(np.bool_),
}


@dataclass(frozen=True)
class SourceFile:
    """A file of a checkpoint, with the identity that shows whether it changed since."""

    path: Path
    device: int
    inode: int
    size: int
    modified_ns: int

    @classmethod
    def look_at(cls, path: Path) -> SourceFile:
        """Take down the file's identity; a folder, FIFO or device is refused."""
        try:
            facts = path.stat()
        except OSError as error:
            raise IoError(f"cannot be opened: {error.strerror}", file=path) from error
        if not path.is_file():
            raise FormatError("is not a regular file", file=path)
        return cls(path, facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns)

    def read(self, offset: int, count: int) -> bytes:
        """Up to ``count`` bytes from ``offset``."""
        try:
            # Unbuffered, or the read would fetch more than was asked for.
            with self.path.open("rb", buffering=0) as file:
                file.seek(offset)
                pieces = []
                while count > 0 and (piece := file.read(count)):
                    pieces.append(piece)
                    count -= len(piece)
        except OSError as error:
            raise IoError(f"cannot be read: {error.strerror}", file=self.path) from error
        return b"".join(pieces)

    def for_executor(self) -> tuple[bytes, int, int, int, int] | NDArray[np.uint8]:
        """What the executor opens: a path with its identity; memory is given as it is."""
        return os.fsencode(self.path), self.device, self.inode, self.size, self.modified_ns

    def is_as_opened(self) -> bool:
        """Whether it is still the file whose header was read."""
        return SourceFile.look_at(self.path) == self

    def map(self) -> NDArray[np.uint8]:
        """All of its bytes, mapped."""
        return np.memmap(self.path, dtype=np.uint8, mode="r")


@dataclass(frozen=True)
class PlaneEntry:
    """Where one plane of an encoded tensor stands: a file of the checkpoint, and bytes in it."""

    file: int
    offset: int
    nbytes: int


@dataclass(frozen=True)
class TensorEntry:
    """Where a tensor stands and what it is, from a header alone.

    Attributes
    ----------
    name : str
    type : str
        A codec's name (``bf16``, ``q4_k``), or the format's own, in lower case.
    shape : tuple of int
        As NumPy has it: the last axis is contiguous.
    file : int
        Index into the checkpoint's ``files``.
    offset, nbytes : int
        The place of its bytes in that file; of several planes or parts the first's place, and all
        bytes together.
    planes : tuple of PlaneEntry
        Of a codec with planes: codes, scales, zero points or biases, each in its own place.
    parts : tuple of TensorEntry
        Of a matrix whose rows stand in several places: matrices to be read one after the other.
    column_scale : PlaneEntry or None
        Of a matrix whose columns are stored scaled: float32 factors that undo it, one a column.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    file: int
    offset: int
    nbytes: int
    planes: tuple[PlaneEntry, ...] = ()
    parts: tuple[TensorEntry, ...] = ()
    column_scale: PlaneEntry | None = None


class Checkpoint(Mapping[str, Any]):
    """A model's tensors by name; nothing is read until it is asked for.

    Floating-point and integer tensors come as NumPy arrays, quantized ones as
    :class:`~phiquant.QuantizedTensor`, both as views of the mapped file. Types of ggml that this
    version does not decode come as blocks, too.

    Attributes
    ----------
    format : str
        ``safetensors`` or ``gguf``.
    path : Path
        The file or folder that was opened.
    files : tuple of SourceFile
    entries : dict of str to TensorEntry
        In the files' order.
    metadata : dict
        The format's own metadata (GGUF's keys and values, safetensors' strings).
    metadata_types : dict of str to str
        GGUF's type of each value.
    """

    def __init__(
        self,
        format: str,
        path: Path,
        files: tuple[SourceFile, ...],
        entries: dict[str, TensorEntry],
        metadata: Mapping[str, Any],
        metadata_types: Mapping[str, str] | None = None,
        name: str | None = None,
    ) -> None:
        self.format = format
        self.path = path
        self.files = files
        self.entries = entries
        self.metadata = dict(metadata)
        self.metadata_types = dict(metadata_types or {})
        self.name = name or (path.name if path.is_dir() else path.stem)
        self._maps: dict[int, NDArray[np.uint8]] = {}

    @property
    def folder(self) -> Path:
        """Where the files that accompany the weights stand."""
        return self.path if self.path.is_dir() else self.path.parent

    @cached_property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(entry.nbytes for entry in self.entries.values())

    def _map(self, index: int) -> NDArray[np.uint8]:
        if index not in self._maps:
            source = self.files[index]
            if not source.is_as_opened():
                raise FormatError(
                    "changed since it was opened", file=source.path, remedy="Open it again."
                )
            self._maps[index] = source.map()
        return self._maps[index]

    def _bytes(self, file: int, offset: int, nbytes: int) -> NDArray[np.uint8]:
        return self._map(file)[offset : offset + nbytes].view(np.ndarray)

    def planes_of(self, entry: TensorEntry) -> tuple[NDArray[np.uint8], ...]:
        """The bytes of an entry's planes, as views of the mapped files."""
        return tuple(self._bytes(p.file, p.offset, p.nbytes) for p in entry.planes)

    def __getitem__(self, name: str) -> Any:
        entry = self.entries[name]
        return self._tensor(entry) if not entry.parts else self._joined(entry)

    def _joined(self, entry: TensorEntry) -> Any:
        """Rows that stand apart: one array or one encoded tensor, which is a copy."""
        parts = [self._tensor(part) for part in entry.parts]
        if not isinstance(parts[0], QuantizedTensor):
            return np.concatenate(parts)
        codec = parts[0].codec
        if any(part.codec != codec for part in parts) or codec.transposed:
            raise UnsupportedError(
                "its rows stand in several tensors, by columns or encoded in several ways",
                file=self.files[entry.file].path,
                tensor=entry.name,
                remedy="Look at the parts: entries[name].parts.",
            )
        planes = tuple(
            np.concatenate(same) for same in zip(*(p.planes for p in parts), strict=True)
        )
        return QuantizedTensor(planes[0], entry.shape, codec, planes)

    def _tensor(self, entry: TensorEntry) -> Any:
        name = entry.name
        if entry.planes:
            planes, codec = self.planes_of(entry), find_codec(entry.type)
            dtype = _DTYPES.get(entry.type.partition(",")[0])
            if codec.transposed and dtype is not None:  # a float written by columns
                return planes[0].view(dtype).reshape(entry.shape[::-1]).T
            place, scale = entry.column_scale, None
            if place is not None:
                scale = self._bytes(place.file, place.offset, place.nbytes).view(np.float32)
            return QuantizedTensor(planes[0], entry.shape, codec, planes, scale)
        raw = self._bytes(entry.file, entry.offset, entry.nbytes)
        if entry.type in _DTYPES:
            return np.ndarray(entry.shape, _DTYPES[entry.type], buffer=raw)
        try:
            codec = stored_codec(entry.type)
        except UsageError as error:
            raise UnsupportedError(
                f"is of type {entry.type}, which this version does not know",
                file=self.files[entry.file].path,
                tensor=name,
            ) from error
        row_bytes = entry.shape[-1] // codec.block_values * codec.block_bytes
        return QuantizedTensor(raw.reshape(*entry.shape[:-1], row_bytes), entry.shape, codec)

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def __contains__(self, name: object) -> bool:
        return name in self.entries

    def _repr_html_(self) -> str:
        from phiquant.pages.tensor_display import checkpoint_display

        return checkpoint_display(self)

    def __repr__(self) -> str:
        return (
            f"Checkpoint({str(self.path)!r}, format={self.format!r}, {len(self)} tensors, "
            f"{self.nbytes / 1e6:.1f} MB)"
        )


def located(error: PhiquantError, file: object) -> PhiquantError:
    """The same error with the file filled in, where the reader did not know it."""
    if error.file:
        return error
    return type(error)(error.cause, file=file, tensor=error.tensor, remedy=error.remedy)


def open_checkpoint(source: str | os.PathLike[str], *, progress: bool = False) -> Checkpoint:
    """Open a model: a folder with safetensors, a ``.safetensors`` or ``.gguf`` file, or a hub id.

    Parameters
    ----------
    source : str or path
        A hub id is ``owner/name``, or ``owner/name@revision``; what is missing is downloaded.
    progress : bool
        Show the download's progress.

    Returns
    -------
    Checkpoint
        Only headers have been read.

    Raises
    ------
    phiquant.FormatError
        The files are damaged, truncated, or not what they say they are.
    phiquant.UnsupportedError
        A format that is not read, such as pickled ``.bin`` weights.
    phiquant.IoError
        They cannot be read or downloaded.
    """
    from phiquant import gguf, hub, onnx, safetensors

    text = os.fspath(source)
    path = Path(text)
    if "\0" in text:
        raise UsageError("the source's name has a NUL in it")
    # Not Path.exists, which raises for a name that is too long.
    if not os.path.exists(path):  # noqa: PTH110
        if isinstance(source, str) and hub.is_hub_id(source):
            folder = hub.fetch(source, progress=progress)
            return _open_folder(folder, source.partition("@")[0].split("/")[1])
        raise IoError(
            "does not exist",
            file=text,
            remedy="Give a folder, a .safetensors or .gguf file, or a hub id like owner/name.",
        )
    if path.is_dir():
        return _open_folder(path)
    if path.suffix.lower() == ".onnx":
        return onnx.open_file(path)
    start = SourceFile.look_at(path).read(0, 4)
    if start == b"GGUF" or path.suffix.lower() == ".gguf":
        return gguf.open_file(path)
    if path.suffix.lower() in (".bin", ".pt", ".pth", ".ckpt"):
        raise safetensors.pickle_error(path)
    return safetensors.open_file(path)


def _open_folder(path: Path, name: str | None = None) -> Checkpoint:
    """A folder of any format; ``name`` is a hub id's last part."""
    from phiquant import hf_folder, mlx_folder, onnx_folder, openvino_folder, safetensors

    if mlx_folder.is_folder(path):
        return mlx_folder.open_folder(path, name=name)
    if hf_folder.is_folder(path):
        return hf_folder.open_folder(path, name=name)
    if openvino_folder.is_folder(path):
        return openvino_folder.open_folder(path)
    if onnx_folder.is_folder(path):
        return onnx_folder.open_folder(path)
    return safetensors.open_folder(path, name=name)
