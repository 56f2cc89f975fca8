"""ONNX models read: the graph, with tensors as views of the files that they stand in."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from phiquant import _core
from phiquant.checkpoint import Checkpoint, SourceFile, TensorEntry, located
from phiquant.errors import FormatError, IoError, PhiquantError
from phiquant.files import is_own
from phiquant.onnx_graph import NAMES, Graph, Model, Node, Place, Tensor, TensorInfo

if TYPE_CHECKING:
    from numpy.typing import NDArray

# phiquant's names of what a checkpoint's entries hold.
_ENTRY_TYPES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16", "float64": "f64"} | {
    f"{kind}{bits}": f"{kind[0]}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)
}


def read(path: str | os.PathLike[str]) -> Model:
    """Read a model: its graph, with tensors as views of the mapped files.

    Raises
    ------
    phiquant.FormatError
        The file is damaged, or external data are missing, too short, or outside the model's folder.
    phiquant.UnsupportedError
        The graph has parts that language models do not (sparse tensors, functions, sequences).
    phiquant.IoError
        A file cannot be read.
    """
    return load(Path(path))[0]


def open_file(path: Path) -> Checkpoint:
    """Open a model's initializers as a checkpoint; ``metadata`` is the file's own.

    Raises
    ------
    phiquant.FormatError, phiquant.UnsupportedError, phiquant.IoError
        As :func:`read`.
    """
    model, files, entries = load(path)
    return Checkpoint("onnx", path, files, entries, model.metadata)


def load(path: Path) -> tuple[Model, tuple[SourceFile, ...], dict[str, TensorEntry]]:
    """Read a model, the files that it consists of, and where its initializers stand in them.

    Raises
    ------
    phiquant.FormatError, phiquant.UnsupportedError, phiquant.IoError
        As :func:`read`.
    """
    files = _Files(path)
    try:
        held = _core.parse_onnx(files.bytes_of(0))
        entries: dict[str, TensorEntry] = {}
        graph = _graph_in(held["graph"], files, entries)
    except PhiquantError as error:
        raise located(error, path) from None
    model = Model(
        graph,
        dict(held["opsets"]),
        held["ir_version"],
        dict(held["metadata"]),
        held["producer"],
        held["producer_version"],
    )
    return model, tuple(files.found), entries


class _Files:
    """The model's file and those that its external tensors name, mapped when they are needed."""

    def __init__(self, path: Path) -> None:
        self.folder = path.parent
        self.found = [SourceFile.look_at(path)]
        self._numbers: dict[str, int] = {}
        self._maps: dict[int, NDArray[np.uint8]] = {}

    def bytes_of(self, number: int) -> NDArray[np.uint8]:
        if number not in self._maps:
            file = self.found[number]
            if file.size == 0:
                raise FormatError("is empty (0 bytes)", file=file.path)
            try:
                mapped = np.memmap(file.path, dtype=np.uint8, mode="r")
            except OSError as error:
                raise IoError(f"cannot be read: {error.strerror}", file=file.path) from error
            self._maps[number] = mapped.view(np.ndarray)
        return self._maps[number]

    def external(self, location: str, tensor: str) -> int:
        """The number of the file that a tensor names, which must be in the model's own folder."""
        if location not in self._numbers:
            self._numbers[location] = len(self.found)
            self.found.append(SourceFile.look_at(self._inside(location, tensor)))
        return self._numbers[location]

    def _inside(self, location: str, tensor: str) -> Path:
        parts = location.replace("\\", "/").split("/")
        if any(part in ("", ".", "..") for part in parts) or ":" in location or len(parts) > 1:
            raise FormatError(
                f"has its data in '{location}', which is no plain name of a file in the model's "
                "folder",
                tensor=tensor,
            )
        path = self.folder / location
        try:
            target = path.resolve(strict=True)
        except (OSError, RuntimeError):
            raise FormatError(
                f"has its data in '{location}', which is not there",
                tensor=tensor,
                remedy="The external data belong beside the model: fetch them too.",
            ) from None
        if not is_own(target, self.folder.resolve()):
            raise FormatError(
                f"has its data in '{location}', a link that leaves the model's folder",
                tensor=tensor,
            )
        return path


def _tensor_in(
    held: tuple[Any, ...], files: _Files, entries: dict[str, TensorEntry] | None
) -> Tensor:
    name, type_id, dims, values, location, offset, nbytes = held
    dtype = NAMES[type_id]
    if values is not None:
        return Tensor(name, dtype, dims, np.frombuffer(values, np.uint8))
    number = 0 if location is None else files.external(location, name)
    file = files.found[number]
    if offset + nbytes > file.size:
        raise FormatError(
            f"ends at byte {offset + nbytes} of {file.path.name}, past the file's end "
            f"({file.size})",
            tensor=name,
            remedy="The file is incomplete: fetch it again.",
        )
    # Subclasses of ndarray would make every view of it slower.
    data = files.bytes_of(number)[offset : offset + nbytes] if nbytes else np.empty(0, np.uint8)
    if entries is not None and nbytes:
        kind = _ENTRY_TYPES.get(dtype, dtype)
        entries.setdefault(name, TensorEntry(name, kind, dims, number, offset, nbytes))
    place = None if location is None else Place(location, offset, nbytes)
    return Tensor(name, dtype, dims, data, place)


def _attribute_in(kind: str, value: Any, files: _Files, entries: dict[str, TensorEntry]) -> Any:
    if kind == "tensor":
        return _tensor_in(value, files, None)
    if kind == "graph":
        return _graph_in(value, files, entries)
    return value


def _info_in(held: tuple[Any, ...]) -> TensorInfo:
    name, type_id, dims = held
    return TensorInfo(name, NAMES.get(type_id, ""), dims)


def _graph_in(held: dict[str, Any], files: _Files, entries: dict[str, TensorEntry]) -> Graph:
    return Graph(
        held["name"],
        [
            Node(
                op,
                inputs,
                outputs,
                name,
                domain,
                {
                    key: _attribute_in(kind, value, files, entries)
                    for key, kind, value in attributes
                },
            )
            for op, domain, name, inputs, outputs, attributes in held["nodes"]
        ],
        [_info_in(info) for info in held["inputs"]],
        [_info_in(info) for info in held["outputs"]],
        [_tensor_in(tensor, files, entries) for tensor in held["initializers"]],
        [_info_in(info) for info in held["values"]],
    )
