"""GGUF: any file's metadata and tensors as views, and a writer for anyone's tensors."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from phiquant import _core
from phiquant.checkpoint import Checkpoint, SourceFile, TensorEntry, located
from phiquant.codecs import GGML_TYPE_NAMES, find_codec
from phiquant.errors import FormatError, PhiquantError, UsageError
from phiquant.files import array_bytes
from phiquant.tensor import QuantizedTensor

#: The alignment of tensor data that every tool writes.
ALIGNMENT = 32

_FIRST_READ = 1 << 20
# numpy's and ml_dtypes' names of the arrays that GGUF stores as they are.
_ARRAY_TYPES = {
    "float32": 0, "float16": 1, "int8": 24, "int16": 25, "int32": 26, "int64": 27, "float64": 28,
    "bfloat16": 30,
}  # fmt: skip


def open_file(path: Path) -> Checkpoint:
    """Open a GGUF file: metadata in ``.metadata``, tensors under GGUF's names.

    Shapes are NumPy's, the row's length last, where GGUF writes it first.

    Raises
    ------
    phiquant.FormatError
        The file is damaged, truncated, or made to deceive.
    """
    source = SourceFile.look_at(path)
    wanted = min(_FIRST_READ, source.size)
    try:
        # Headers grow with the vocabulary: read on until it is all there, never the tensors.
        while (header := _core.parse_gguf(source.read(0, wanted), source.size)) is None:
            if wanted == source.size:
                raise FormatError("ends within its header", remedy="Fetch the file again.")
            wanted = min(wanted * 4, source.size)
    except PhiquantError as error:
        raise located(error, path) from None
    entries = {
        name: TensorEntry(name, GGML_TYPE_NAMES[type_id], tuple(reversed(dims)), 0, offset, nbytes)
        for name, dims, type_id, offset, nbytes in header["tensors"]
    }
    metadata = {key: value for key, _, value in header["metadata"]}
    types = {key: type_name for key, type_name, _ in header["metadata"]}
    return Checkpoint("gguf", path, (source,), entries, metadata, types)


def typed(key: str, value: Any) -> tuple[str, str, Any]:
    """A metadata value with the GGUF type that it goes best with.

    ``bool`` and ``str`` are what they are, an ``int`` is uint32 (int32 if negative, 64 bits if it
    must), a ``float`` is float32; NumPy scalars and arrays keep their dtype; a list takes the type
    of its items. A pair ``("uint64", value)`` says it outright.

    Raises
    ------
    phiquant.UsageError
        The value is of no such kind.
    """
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str):
        return key, value[0], value[1]
    if isinstance(value, np.ndarray):
        if value.ndim != 1:
            raise UsageError(f"metadata '{key}': arrays have one axis")
        return key, f"array:{value.dtype.name}", value
    if isinstance(value, (list, tuple)):
        if not value:
            raise UsageError(
                f"metadata '{key}' is an empty list", remedy='Say its type: ("array:string", [])'
            )
        kinds = {typed(key, item)[1] for item in value}
        if kinds == {"int32", "uint32"} and max(value) < 1 << 31:
            kinds = {"int32"}
        if len(kinds) != 1:
            raise UsageError(f"metadata '{key}' mixes {', '.join(sorted(kinds))}")
        return key, f"array:{kinds.pop()}", list(value)
    return key, _scalar_type(key, value), value


def _scalar_type(key: str, value: Any) -> str:
    if isinstance(value, np.generic) and value.dtype.name in (
        *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
        "float32",
        "float64",
        "bool",
    ):
        return str(value.dtype.name)
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, (str, bytes)):
        return "string"
    if isinstance(value, int):
        if value < 0:
            return "int32" if value >= -(1 << 31) else "int64"
        return "uint32" if value < 1 << 32 else "uint64"
    if isinstance(value, float):
        return "float32"
    raise UsageError(f"metadata '{key}' is a {type(value).__name__}, which GGUF has no type for")


def write(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Any],
    metadata: Mapping[str, Any] | None = None,
    *,
    alignment: int = ALIGNMENT,
    overwrite: bool = False,
) -> Path:
    """Write tensors into a GGUF file, in the mapping's order, without copying them.

    Parameters
    ----------
    path : str or path
    tensors : mapping of str to QuantizedTensor or array
        Arrays are C-contiguous float32, float16, bfloat16, float64 or signed integers.
    metadata : mapping of str to value, optional
        See :func:`typed`; ``general.architecture`` is what loaders ask for first.
    alignment : int
        Of each tensor's data, a power of two.
    overwrite : bool
        Replace an existing file.

    Returns
    -------
    Path

    Raises
    ------
    phiquant.UsageError
        The file exists, or a value has no type in GGUF.
    phiquant.ShapeError
        An array is not contiguous.
    """
    infos, arrays = [], []
    for name, tensor in tensors.items():
        if isinstance(tensor, QuantizedTensor):
            type_id, shape, data = tensor.codec.ggml_type, tensor.shape, tensor.data
        else:
            dtype = getattr(getattr(tensor, "dtype", None), "name", "")
            if dtype not in _ARRAY_TYPES:
                raise UsageError("is no array of a dtype that GGUF knows", tensor=name)
            type_id, shape, data = _ARRAY_TYPES[dtype], tensor.shape, tensor
        infos.append((name, tuple(reversed(shape)), type_id))
        arrays.append(array_bytes(data, name))
    values = [typed(key, value) for key, value in (metadata or {}).items()]
    header, offsets, size = _core.write_gguf_header(values, infos, alignment)
    pieces: list[tuple[int, Any]] = [(0, header), *zip(offsets, arrays, strict=True)]
    _core.write_file(os.fsencode(path), size, pieces, overwrite)
    return Path(path)


def ggml_type(codec: str) -> int:
    """The id that GGUF files give a codec."""
    return find_codec(codec).ggml_type
