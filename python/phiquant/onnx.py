"""ONNX: small typed graphs, written with external data, and any model's graph and tensors read."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from phiquant import _core
from phiquant.errors import UsageError
from phiquant.onnx_graph import (
    IR_VERSION,
    OPSETS,
    Attribute,
    Graph,
    Model,
    Node,
    Place,
    Tensor,
    TensorInfo,
    nbytes_of,
)
from phiquant.onnx_read import load, open_file, read

__all__ = [
    "IR_VERSION",
    "OPSETS",
    "Attribute",
    "Graph",
    "Model",
    "Node",
    "Place",
    "Tensor",
    "TensorInfo",
    "load",
    "nbytes_of",
    "next_place",
    "open_file",
    "read",
    "write",
]

#: External tensors start at multiples of this, and large ones at the page size of every system, so
#: that ONNX Runtime can map them where they are.
ALIGNMENT = 64
PAGE = 4096
_LARGE = 1 << 20
# Smaller ones stay in the model's file: shape inference needs to see shapes and axes.
_SMALL = 128


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
