"""Stored weights in OpenVINO's operations: what is decompressed where it is used."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from phiquant.architectures.spec import TensorRole
from phiquant.targets.openvino_graph import Graph, Value

_ELEMENTS: Final = {"nf4": "nf4", "mxfp4": "f4e2m1", "mxfp8": "f8e4m3"}


@dataclass(frozen=True)
class Encoding:
    """How a tensor is stored: as numbers, or as codes with scales (and zero points).

    Attributes
    ----------
    bits : int
        16 or 32 for numbers (f16, f32), 4 or 8 for codes.
    symmetric : bool
        Without zero points; the codes are signed then.
    group : int or None
        Values of a row that share a scale; None for the whole row.
    levels : str
        Of small floats: ``nf4``, ``mxfp4`` or ``mxfp8`` (symmetric); empty where codes are
        integers.
    """

    bits: int
    symmetric: bool = True
    group: int | None = None
    levels: str = ""

    @property
    def codec(self) -> str:
        """phiquant's name of it."""
        if self.bits >= 16:
            return f"f{self.bits}"
        if self.levels.startswith("mx"):
            return f"{self.levels},layout=openvino"
        kind = "sym" if self.symmetric else "asym"
        group = "channel" if self.group is None else f"g{self.group}"
        return f"nf4_{group}" if self.levels else f"int{self.bits}_{kind}_{group},rule=nncf"

    @property
    def element_type(self) -> str:
        """OpenVINO's name of the codes' type."""
        if self.levels:
            return _ELEMENTS[self.levels]
        return f"{'i' if self.symmetric else 'u'}{self.bits}"

    @property
    def scale_type(self) -> str:
        """OpenVINO's name of the scales' type."""
        return "f8e8m0" if self.levels.startswith("mx") else "f16"


def stored_vector(graph: Graph, tensor: TensorRole, encoding: Encoding) -> Value:
    """A norm's weights as f32, shape [1, 1, length]."""
    return _numbers(graph, tensor, encoding, (1, 1, *tensor.shape))


def stored_matrix(graph: Graph, tensor: TensorRole, encoding: Encoding) -> Value:
    """A matrix as f32, shape [rows, columns].

    The form of NNCF's compressed weights: plugins look for it, and multiply by the codes.
    """
    source, (rows, columns) = tensor.source, tensor.shape
    if encoding.bits >= 16:
        return _numbers(graph, tensor, encoding, (rows, columns))
    codes: tuple[int, ...] = (rows, columns)
    scales: tuple[int, ...] = (rows, 1)
    if encoding.group is not None:
        groups = columns // encoding.group
        codes, scales = (rows, groups, encoding.group), (rows, groups, 1)
    kind = encoding.element_type
    value = graph.convert(graph.weight(source, 0, kind, codes, source), "f16")
    scale = graph.weight(source, 1, encoding.scale_type, scales, f"{source}/scale")
    if scale.type != "f16":
        scale = graph.convert(scale, "f16")
    if not encoding.symmetric:
        zero = graph.weight(source, 2, kind, scales, f"{source}/zero_point")
        zero = graph.convert(zero, "f16")
        value = graph.add("Subtract", value, zero, auto_broadcast="numpy")
    value = graph.add("Multiply", value, scale, auto_broadcast="numpy")
    if encoding.group is not None:
        value = graph.add("Reshape", value, graph.number([rows, columns]), special_zero=False)
    return graph.convert(value, "f32", is_decompression=True)


def _numbers(graph: Graph, tensor: TensorRole, encoding: Encoding, shape: tuple[int, ...]) -> Value:
    value = graph.weight(tensor.source, 0, f"f{encoding.bits}", shape, tensor.source)
    if encoding.bits == 32:
        return value
    return graph.convert(value, "f32", is_decompression=True)
