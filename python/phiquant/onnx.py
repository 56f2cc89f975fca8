"""ONNX: small typed graphs, written with external data, and any model's graph and tensors read."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

import ml_dtypes
import numpy as np

from phiquant import _core
from phiquant.checkpoint import Checkpoint, SourceFile, TensorEntry, located
from phiquant.errors import FormatError, IoError, PhiquantError, UsageError
from phiquant.files import array_bytes, is_own

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: The versions that ONNX Runtime GenAI's own models have.
IR_VERSION = 10
OPSETS: Mapping[str, int] = {"": 22, "com.microsoft": 1}

#: External tensors start at multiples of this, and large ones at the page size of every system, so
#: that ONNX Runtime can map them where they are.
ALIGNMENT = 64
PAGE = 4096
_LARGE = 1 << 20
# Smaller ones stay in the model's file: shape inference needs to see shapes and axes.
_SMALL = 128

_BITS = {name: bits for _, name, bits in _core.onnx_types()}
_IDS = {name: type_id for type_id, name, _ in _core.onnx_types()}
_NAMES = {type_id: name for type_id, name, _ in _core.onnx_types()}
# phiquant's names of what a checkpoint's entries hold.
_ENTRY_TYPES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16", "float64": "f64"} | {
    f"{kind}{bits}": f"{kind[0]}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)
}


@dataclass(frozen=True)
class TensorInfo:
    """A graph's input or output.

    Attributes
    ----------
    name : str
    dtype : str
        NumPy's name, as ``float32``; ml_dtypes' for the others, as ``bfloat16`` and ``int4``.
    shape : tuple of int or str, or None
        A name stands for an extent that is known only when the model runs; None for any shape.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...] | None


@dataclass(frozen=True)
class Place:
    """Where a tensor's bytes stand in a file beside the model's."""

    location: str
    offset: int
    nbytes: int


@dataclass(frozen=True, eq=False)
class Tensor:
    """A constant of a graph.

    Attributes
    ----------
    name : str
    dtype : str
        As in :class:`TensorInfo`.
    shape : tuple of int
    data : uint8 array, or None
        The bytes as files hold them: little-endian, types below 8 bits packed low bits first. None
        where only the place is known.
    place : Place, or None
        In an external file; None where the bytes go into (or were found in) the model's own.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: NDArray[np.uint8] | None = field(default=None, repr=False)
    place: Place | None = None

    @classmethod
    def of(cls, name: str, array: Any) -> Tensor:
        """A tensor of a NumPy array's values; a contiguous array is not copied.

        Raises
        ------
        phiquant.UsageError
            ONNX has no such type.
        """
        array = np.asarray(array)
        dtype = array.dtype.name
        if _BITS.get(dtype, 0) < 8:
            raise UsageError(f"ONNX tensors are not made from {dtype} arrays", tensor=name)
        return cls(name, dtype, array.shape, array_bytes(np.ascontiguousarray(array), name))

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return nbytes_of(self.dtype, self.shape)

    def numpy(self) -> NDArray[Any]:
        """The values as a NumPy array; types below 8 bits are unpacked.

        Raises
        ------
        phiquant.UsageError
            The values are not at hand.
        """
        if self.data is None:
            raise UsageError("the values are not at hand, only their place", tensor=self.name)
        bits = _BITS[self.dtype]
        if bits >= 8:
            return self.data.view(_dtype(self.dtype)).reshape(self.shape)
        shifts = np.arange(0, 8, bits, dtype=np.uint8)
        codes = (self.data[:, None] >> shifts) & np.uint8((1 << bits) - 1)
        count = int(np.prod(self.shape, dtype=np.int64))
        values: NDArray[Any] = codes.reshape(-1)[:count].view(_dtype(self.dtype))
        return values.reshape(self.shape)


#: A string attribute is bytes in the file; str is written as UTF-8, and read as bytes.
Attribute = Union[
    int, float, str, bytes, Tensor, "Graph", Sequence[int], Sequence[float], Sequence[str]
]


@dataclass(frozen=True)
class Node:
    """One operation.

    Attributes
    ----------
    op : str
    inputs, outputs : sequence of str
        Names of values; an empty one stands for an optional input or output that is left out.
    name : str
    domain : str
        Empty for ONNX's own operators, ``com.microsoft`` for ONNX Runtime's.
    attributes : mapping
        ``int``, ``float``, ``str``, ``bytes``, Tensor, Graph, or a sequence of one of the first
        three.
    """

    op: str
    inputs: Sequence[str]
    outputs: Sequence[str]
    name: str = ""
    domain: str = ""
    attributes: Mapping[str, Attribute] = field(default_factory=dict)


@dataclass(frozen=True)
class Graph:
    """A graph, or one that a node such as ``If`` runs.

    Attributes
    ----------
    name : str
    nodes : sequence of Node
        In an order in which they can run.
    inputs, outputs : sequence of TensorInfo
    initializers : sequence of Tensor
    values : sequence of TensorInfo
        What is known of values in between.
    """

    name: str
    nodes: Sequence[Node]
    inputs: Sequence[TensorInfo] = ()
    outputs: Sequence[TensorInfo] = ()
    initializers: Sequence[Tensor] = ()
    values: Sequence[TensorInfo] = ()

    def walk(self) -> Iterator[Graph]:
        """This graph, and all that its nodes hold."""
        yield self
        for node in self.nodes:
            for value in node.attributes.values():
                if isinstance(value, Graph):
                    yield from value.walk()


@dataclass(frozen=True)
class Model:
    """A graph with what its file says about it.

    Attributes
    ----------
    graph : Graph
    opsets : mapping of str to int
        Version of each domain's operators.
    ir_version : int
    metadata : mapping of str to str
    producer : str
    producer_version : str
    """

    graph: Graph
    opsets: Mapping[str, int] = field(default_factory=lambda: dict(OPSETS))
    ir_version: int = IR_VERSION
    metadata: Mapping[str, str] = field(default_factory=dict)
    producer: str = "phiquant"
    producer_version: str = _core.version

    def to_bytes(self) -> bytes:
        """The file's bytes; tensors with a place are external.

        Raises
        ------
        phiquant.UsageError
            A value's kind has no place in ONNX, or the bytes would be 2 GiB or more.
        """
        return _core.write_onnx(
            {
                "ir_version": self.ir_version,
                "producer": self.producer,
                "producer_version": self.producer_version,
                "opsets": list(self.opsets.items()),
                "metadata": list(self.metadata.items()),
                "graph": _graph_out(self.graph),
            }
        )


def nbytes_of(dtype: str, shape: Sequence[int]) -> int:
    """The bytes that a tensor takes in a file."""
    count = 1
    for extent in shape:
        count *= extent
    return (count * _BITS[dtype] + 7) // 8


def next_place(end: int, nbytes: int) -> int:
    """Where a tensor of ``nbytes`` starts in an external file that is filled up to ``end``."""
    step = PAGE if nbytes > _LARGE else ALIGNMENT
    return -(-end // step) * step


def write(
    path: str | os.PathLike[str],
    graph: Graph,
    *,
    external: str | None = None,
    opsets: Mapping[str, int] | None = None,
    ir_version: int = IR_VERSION,
    metadata: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a graph into an ONNX file.

    Parameters
    ----------
    path : str or path
    graph : Graph
        Its tensors have their ``data``.
    external : str, optional
        Name of a file beside ``path`` for the tensors of 128 bytes and more, those of inner graphs
        too; without it all stand in the model's file, which then must stay below 2 GiB.
    opsets : mapping, optional
        Versions of the operators' domains; ``{"": 22, "com.microsoft": 1}`` by default.
    ir_version : int
    metadata : mapping of str to str, optional
    overwrite : bool
        Replace existing files.

    Returns
    -------
    Path

    Raises
    ------
    phiquant.UsageError
        A file exists, the external name is no plain one, or the graph cannot be written.
    """
    path = Path(path)
    pieces: list[tuple[int, Any]] = []
    size = 0
    if external is not None:
        if external in ("", ".", "..", path.name) or Path(external).name != external:
            raise UsageError(f"'{external}' is no plain name of a file beside the model's")
        graph, pieces, size = _place(graph, external, 0)
    model = Model(graph, dict(opsets or OPSETS), ir_version, dict(metadata or {}))
    written = model.to_bytes()
    if external is not None:
        if not overwrite and os.path.lexists(path):
            raise UsageError("exists already", file=path, remedy="Pass overwrite=True.")
        _core.write_file(os.fsencode(path.parent / external), size, pieces, overwrite)
    _core.write_file(os.fsencode(path), len(written), [(0, written)], overwrite)
    return path


def _place(graph: Graph, external: str, end: int) -> tuple[Graph, list[tuple[int, Any]], int]:
    """The graph with its larger tensors in the external file, what goes there, and the end."""
    pieces: list[tuple[int, Any]] = []
    tensors = []
    for tensor in graph.initializers:
        if tensor.nbytes < _SMALL:
            tensors.append(tensor)
            continue
        if tensor.data is None:
            raise UsageError("has no data to write", tensor=tensor.name)
        offset = next_place(end, tensor.nbytes)
        end = offset + tensor.nbytes
        pieces.append((offset, tensor.data))
        placed = Place(external, offset, tensor.nbytes)
        tensors.append(Tensor(tensor.name, tensor.dtype, tensor.shape, None, placed))
    nodes = []
    for node in graph.nodes:
        attributes = dict(node.attributes)
        for key, value in node.attributes.items():
            if isinstance(value, Graph):
                attributes[key], more, end = _place(value, external, end)
                pieces += more
        nodes.append(Node(node.op, node.inputs, node.outputs, node.name, node.domain, attributes))
    inner = Graph(graph.name, nodes, graph.inputs, graph.outputs, tensors, graph.values)
    return inner, pieces, end


# --- to the core's plain data ---


def _type_id(dtype: str, name: str) -> int:
    if dtype not in _IDS:
        raise UsageError(f"ONNX has no type '{dtype}'", tensor=name)
    return int(_IDS[dtype])


def _tensor_out(tensor: Tensor) -> tuple[Any, ...]:
    type_id = _type_id(tensor.dtype, tensor.name)
    if tensor.place is not None:
        place = tensor.place
        return (
            *(tensor.name, type_id, tensor.shape, None),
            *(place.location, place.offset, place.nbytes),
        )
    if tensor.data is None:
        raise UsageError("has neither data nor a place", tensor=tensor.name)
    return (tensor.name, type_id, tensor.shape, tensor.data.tobytes(), None, 0, 0)


def _attribute_out(name: str, value: Attribute) -> tuple[str, str, Any]:
    if isinstance(value, (bool, int, np.integer)):
        return name, "int", int(value)
    if isinstance(value, (float, np.floating)):
        return name, "float", float(value)
    if isinstance(value, (str, bytes)):
        return name, "string", value
    if isinstance(value, Tensor):
        return name, "tensor", _tensor_out(value)
    if isinstance(value, Graph):
        return name, "graph", _graph_out(value)
    if isinstance(value, Sequence):
        items: list[Any] = list(value)
        if all(isinstance(item, (str, bytes)) for item in items) and items:
            return name, "strings", items
        if all(isinstance(item, (int, np.integer)) for item in items):
            return name, "ints", [int(item) for item in items]
        if all(isinstance(item, (int, float, np.number)) for item in items):
            return name, "floats", [float(item) for item in items]
    raise UsageError(f"the attribute '{name}' is a {type(value).__name__}, no kind that ONNX has")


def _info_out(info: TensorInfo) -> tuple[str, int, tuple[int | str, ...] | None]:
    return info.name, _type_id(info.dtype, info.name), info.shape


def _graph_out(graph: Graph) -> dict[str, Any]:
    return {
        "name": graph.name,
        "nodes": [
            (
                *(node.op, node.domain, node.name, list(node.inputs), list(node.outputs)),
                [_attribute_out(key, value) for key, value in node.attributes.items()],
            )
            for node in graph.nodes
        ],
        "initializers": [_tensor_out(tensor) for tensor in graph.initializers],
        "inputs": [_info_out(info) for info in graph.inputs],
        "outputs": [_info_out(info) for info in graph.outputs],
        "values": [_info_out(info) for info in graph.values],
    }


# --- and back ---


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
    dtype = _NAMES[type_id]
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
    return TensorInfo(name, _NAMES.get(type_id, ""), dims)


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


def _dtype(name: str) -> np.dtype[Any]:
    return np.dtype(getattr(ml_dtypes, name, name))
