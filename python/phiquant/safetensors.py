"""Safetensors: the folders that Hugging Face publishes, read strictly; and a writer."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from phiquant import _core
from phiquant.checkpoint import Checkpoint, SourceFile, TensorEntry, located
from phiquant.errors import FormatError, PhiquantError, UnsupportedError, UsageError
from phiquant.files import array_bytes, is_own
from phiquant.strict_json import read_json

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"

# numpy's and ml_dtypes' names, in the format's spelling.
_DTYPES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "bool": "BOOL",
    **{f"int{bits}": f"I{bits}" for bits in (8, 16, 32, 64)},
    **{f"uint{bits}": f"U{bits}" for bits in (8, 16, 32, 64)},
}  # fmt: skip


def pickle_error(path: Path) -> PhiquantError:
    """The refusal of pickled weights: loading a pickle runs whatever code it holds."""
    return UnsupportedError(
        "holds pickled weights, which are never loaded: a pickle can run any code",
        file=path,
        remedy="Use the model's safetensors files, or save it again with safe_serialization=True.",
    )


def _read_header(source: SourceFile) -> tuple[list[Any], dict[str, str]]:
    try:
        # Enough to recognize what pretends to be a shard: a pointer of Git LFS, a web page.
        length = _core.safetensors_header_length(source.read(0, 512), source.size)
        return _core.parse_safetensors(source.read(8, length), source.size)
    except PhiquantError as error:
        raise located(error, source.path) from None


def _contained(folder: Path, name: str, index: Path) -> Path:
    """The shard's path, if its name is a plain one and leads nowhere outside the checkpoint."""
    if (
        name in ("", ".", "..")
        or any(character in name for character in "/\\")
        or any(ord(character) < 32 or ord(character) == 127 for character in name)
        or (len(name) > 1 and name[1] == ":")
        or len(os.fsencode(name)) > 255
    ):
        raise FormatError(
            f"names the shard {name[:80]!r}, which is not a plain file name",
            file=index,
            remedy="The index is damaged or hostile: fetch the model again from its publisher.",
        )
    path = folder / name
    if not os.path.lexists(path):
        raise FormatError(
            f"names the shard {name!r}, which is missing",
            file=index,
            remedy="The download is incomplete: fetch the missing shard.",
        )
    _check_containment(folder, path)
    return path


def _check_containment(folder: Path, path: Path) -> None:
    # Not Path.resolve, which raises for links that go in circles.
    real, home = Path(os.path.realpath(path)), Path(os.path.realpath(folder))
    if is_own(real, home):
        return
    raise FormatError(
        "is a link to a file outside the checkpoint",
        file=path,
        remedy="Copy the shard itself into the folder.",
    )


def open_folder(folder: Path, *, name: str | None = None) -> Checkpoint:
    """Open a folder with one ``model.safetensors``, or with shards and their index.

    Raises
    ------
    phiquant.FormatError
        Shards are missing, damaged, contradict the index, or lead outside the folder.
    phiquant.UnsupportedError
        The folder holds pickled weights only.
    """
    index = folder / INDEX
    if os.path.lexists(index):
        _check_containment(folder, index)
        weight_map = _read_index(index)
        shards = [_contained(folder, shard, index) for shard in dict.fromkeys(weight_map.values())]
        checkpoint = _open(folder, shards, name)
        _check_index(index, weight_map, checkpoint)
        return checkpoint
    single = folder / SINGLE
    if os.path.lexists(single):
        _check_containment(folder, single)
        return _open(folder, [single], name)
    found = sorted(folder.glob("*.safetensors"))
    if len(found) == 1:
        _check_containment(folder, found[0])
        return _open(folder, found, name)
    if found:
        raise FormatError(
            f"holds {len(found)} safetensors files but no {INDEX}",
            file=folder,
            remedy="The download is incomplete: fetch the index, too.",
        )
    pickles = [*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")]
    if pickles:
        raise pickle_error(sorted(pickles)[0])
    ggufs = sorted(folder.glob("*.gguf"))
    remedy = f"Name the file itself: {ggufs[0]}" if ggufs else "Give a Hugging Face model's folder."
    raise FormatError("holds no safetensors files", file=folder, remedy=remedy)


def open_file(path: Path) -> Checkpoint:
    """Open one ``.safetensors`` file by itself.

    Raises
    ------
    phiquant.FormatError
    """
    return _open(path, [path], None)


def _open(path: Path, shards: list[Path], name: str | None) -> Checkpoint:
    files = tuple(SourceFile.look_at(shard) for shard in shards)
    entries: dict[str, TensorEntry] = {}
    metadata: dict[str, str] = {}
    for number, source in enumerate(files):
        tensors, strings = _read_header(source)
        metadata.update(strings)
        for tensor, dtype, shape, begin, end in tensors:
            if tensor in entries:
                other = files[entries[tensor].file].path.name
                raise FormatError(f"stands in {other}, too", file=source.path, tensor=tensor)
            entries[tensor] = TensorEntry(
                tensor, dtype.lower(), tuple(shape), number, begin, end - begin
            )
    return Checkpoint("safetensors", path, files, entries, metadata, name=name)


def _read_index(index: Path) -> dict[str, str]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise FormatError("has no weight_map", file=index)
    for tensor, shard in weight_map.items():
        if not isinstance(shard, str):
            raise FormatError("names no file in weight_map", file=index, tensor=str(tensor))
    return weight_map


def _check_index(index: Path, weight_map: Mapping[str, str], checkpoint: Checkpoint) -> None:
    for tensor, shard in weight_map.items():
        entry = checkpoint.entries.get(tensor)
        if entry is None or checkpoint.files[entry.file].path.name != shard:
            raise FormatError(
                f"stands in {shard}, says the index, but that shard does not have it",
                file=index,
                tensor=tensor,
                remedy="Index and shards are of different versions: fetch them again.",
            )
    for tensor, entry in checkpoint.entries.items():
        if tensor not in weight_map:
            raise FormatError(
                "is not in the index",
                file=checkpoint.files[entry.file].path,
                tensor=tensor,
                remedy="Index and shards are of different versions: fetch them again.",
            )


def write(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Any],
    metadata: Mapping[str, str] | None = None,
    *,
    overwrite: bool = False,
) -> Path:
    """Write arrays into one safetensors file, in the mapping's order, without copying them.

    Parameters
    ----------
    path : str or path
    tensors : mapping of str to array
        C-contiguous NumPy arrays, bfloat16 and float8 of ml_dtypes included.
    metadata : mapping of str to str, optional
    overwrite : bool
        Replace an existing file.

    Returns
    -------
    Path

    Raises
    ------
    phiquant.UsageError
        The file exists, or an array has a dtype that the format does not know.
    phiquant.ShapeError
        An array is not contiguous.
    """
    entries, arrays = [], []
    for name, array in tensors.items():
        dtype = _DTYPES.get(getattr(getattr(array, "dtype", None), "name", ""))
        if dtype is None:
            raise UsageError("is no array of a dtype that safetensors knows", tensor=name)
        entries.append((name, dtype, tuple(array.shape)))
        arrays.append(array_bytes(array, name))
    header = _core.write_safetensors_header(entries, dict(metadata or {}))
    pieces: list[tuple[int, Any]] = [(0, header)]
    at = len(header)
    for raw in arrays:
        pieces.append((at, raw))
        at += raw.nbytes
    _core.write_file(os.fsencode(path), at, pieces, overwrite)
    return Path(path)
