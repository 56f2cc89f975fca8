"""ONNX graphs as data: values, nodes and constants, and what the C++ core takes of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Union

import ml_dtypes
import numpy as np

from phiquant import _core
from phiquant.errors import UsageError
from phiquant.files import array_bytes

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: The versions that ONNX Runtime GenAI's own models have.
IR_VERSION = 10
OPSETS: Mapping[str, int] = {"": 22, "com.microsoft": 1}

_BITS = {name: bits for _, name, bits in _core.onnx_types()}
_IDS = {name: type_id for type_id, name, _ in _core.onnx_types()}
#: Names of the element types by the numbers that files hold.
NAMES = {type_id: name for type_id, name, _ in _core.onnx_types()}


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


def _dtype(name: str) -> np.dtype[Any]:
    return np.dtype(getattr(ml_dtypes, name, name))
