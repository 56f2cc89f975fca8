"""Graphs of OpenVINO operations, written as IR: an XML text whose constants lie in a second file.

The format is version 11 of https://docs.openvino.ai/2026/documentation/openvino-ir-format.html.
Shapes of what is computed are not written: OpenVINO infers them when it reads the graph.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final
from xml.sax.saxutils import quoteattr

import numpy as np
from numpy.typing import NDArray

#: Every constant begins at a multiple of this in the binary file: a cache line.
ALIGNMENT: Final = 64

#: Bits of an element, for the element types that graphs use.
ELEMENT_BITS: Final = dict(
    i4=4, u4=4, i8=8, u8=8, boolean=8, f16=16, bf16=16, i32=32, f32=32, i64=64,
    nf4=4, f4e2m1=4, f8e4m3=8, f8e8m0=8,
)  # fmt: skip
_NUMPY_TYPES = {"?": "boolean", "i1": "i8", "u1": "u8", "f2": "f16", "i4": "i32", "i8": "i64"}
_NUMPY_TYPES |= {"f4": "f32"}
# How ports spell element types.
_PRECISION = {"f32": "FP32", "f16": "FP16", "bf16": "BF16", "boolean": "BOOL", "string": "STRING"}


@dataclass(frozen=True)
class Value:
    """One output of an operation: its layer, which of the layer's outputs, and its element type."""

    layer: int
    output: int
    type: str


@dataclass(frozen=True)
class Stored:
    """A constant in the binary file.

    Attributes
    ----------
    label : str
        Its layer's name.
    source : str
        The tensor of the checkpoint that it is made from; empty for the graph's own numbers.
    plane : int
        Which plane of the encoded tensor it is.
    type, shape
        Of the constant.
    offset, nbytes : int
        Its place.
    data : bytes
        The graph's own numbers; empty where there is a source.
    """

    label: str
    source: str
    plane: int
    type: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int
    data: bytes = field(default=b"", repr=False)


@dataclass(frozen=True)
class _Layer:
    kind: str
    version: str
    name: str
    attributes: Mapping[str, str]
    inputs: tuple[Value, ...]
    outputs: tuple[str, ...]
    tensor_names: str = ""
    is_decompression: bool = False
    constant: Stored | None = None


class Graph:
    """A graph under construction. Every method adds one operation and returns its outputs.

    Parameters
    ----------
    name : str
        The network's name in the XML.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._layers: list[_Layer] = []
        self._numbers: dict[tuple[str, tuple[int, ...], bytes], Value] = {}
        self._labels: set[str] = set()

    def stored(self) -> list[Stored]:
        """Every constant with its place: the graph's own numbers, and then the weights."""
        constants = [layer.constant for layer in self._layers if layer.constant is not None]
        constants.sort(key=lambda item: bool(item.source))
        placed, end = [], 0
        for item in constants:
            offset = -(-end // ALIGNMENT) * ALIGNMENT
            placed.append(replace(item, offset=offset))
            end = offset + item.nbytes
        return placed

    def binary(self) -> bytes:
        """The beginning of the binary file, with all of the graph's own numbers."""
        own = [item for item in self.stored() if not item.source]
        out = bytearray(own[-1].offset + own[-1].nbytes if own else 0)
        for item in own:
            out[item.offset : item.offset + item.nbytes] = item.data
        return bytes(out)

    def parameter(self, name: str, element_type: str, shape: Sequence[int | None]) -> Value:
        """An input of the graph; None stands for any extent."""
        text = ",".join("?" if extent is None else str(extent) for extent in shape)
        attributes = {"shape": text, "element_type": element_type}
        layer = _Layer("Parameter", "opset1", name, attributes, (), (element_type,), name)
        return self._append(layer)[0]

    def number(self, value: object, dtype: str = "i8") -> Value:
        """A constant of the graph's own: a scalar or an array, by NumPy's name of its type.

        The same numbers are stored once.
        """
        array: NDArray[np.generic] = np.asarray(value, np.dtype(dtype).newbyteorder("<"))
        element_type, data = _NUMPY_TYPES[dtype], array.tobytes()
        key = (element_type, array.shape, data)
        if key not in self._numbers:
            self._numbers[key] = self._constant(
                element_type, array.shape, len(data), f"constant_{len(self._numbers)}", "", 0, data
            )
        return self._numbers[key]

    def weight(
        self, source: str, plane: int, element_type: str, shape: Sequence[int], label: str
    ) -> Value:
        """A constant that is made from a tensor of the checkpoint, or one plane of it."""
        nbytes = (math.prod(shape) * ELEMENT_BITS[element_type] + 7) // 8
        return self._constant(element_type, tuple(shape), nbytes, label, source, plane, b"")

    def numbers(self, values: NDArray[np.float32], label: str) -> Value:
        """A constant of the graph's own under a name of its own, which readers find it by."""
        data = np.asarray(values, "<f4").tobytes()
        return self._constant("f32", values.shape, len(data), label, "", 0, data)

    def data(self, data: bytes, label: str) -> Value:
        """A constant of bytes (u8), of any length."""
        return self._constant("u8", (len(data),), len(data), label, "", 0, data)

    def add(
        self,
        kind: str,
        *inputs: Value,
        types: Sequence[str] | None = None,
        version: str = "opset1",
        name: str = "",
        tensor_names: str = "",
        is_decompression: bool = False,
        **attributes: object,
    ) -> Value:
        """An operation with one output, of the first input's type unless ``types`` says another."""
        return self.add_many(
            kind,
            *inputs,
            types=[inputs[0].type] if types is None else types,
            version=version,
            name=name,
            tensor_names=tensor_names,
            is_decompression=is_decompression,
            **attributes,
        )[0]

    def add_many(
        self,
        kind: str,
        *inputs: Value,
        types: Sequence[str],
        version: str = "opset1",
        name: str = "",
        tensor_names: str = "",
        is_decompression: bool = False,
        **attributes: object,
    ) -> list[Value]:
        """An operation with any number of outputs.

        Parameters
        ----------
        kind, version : str
            The operation's name and the operation set that defines it.
        types : sequence of str
            Element types of the outputs.
        name : str
            The layer's name, ``KIND_NUMBER`` by default.
        tensor_names : str
            The names by which the runtime finds the first output.
        is_decompression : bool
            Marks a Convert of stored weights, which is to happen where they are used.
        attributes
            The operation's own, in its specification's spelling.
        """
        texts = {key.rstrip("_"): _text(value) for key, value in attributes.items()}
        layer = _Layer(
            kind,
            version,
            name or f"{kind}_{len(self._layers)}",
            texts,
            inputs,
            tuple(types),
            tensor_names,
            is_decompression,
        )
        return self._append(layer)

    def convert(self, value: Value, element_type: str, *, is_decompression: bool = False) -> Value:
        """The same numbers in another element type."""
        return self.add(
            "Convert",
            value,
            types=[element_type],
            is_decompression=is_decompression,
            destination_type=element_type,
        )

    def result(self, value: Value, name: str) -> None:
        """Make a value an output of the graph."""
        self.add_many("Result", value, types=(), name=f"Result_{name}", output_names=name)

    def xml(self, information: Sequence[tuple[str, object]] = ()) -> str:
        """The graph's XML.

        Parameters
        ----------
        information : sequence of (name, value)
            The runtime information of the whole model; a value is a text, or such a sequence.
        """
        places = {item.label: item for item in self.stored()}
        lines = ['<?xml version="1.0"?>', f'<net name={quoteattr(self.name)} version="11">']
        lines.append("\t<layers>")
        for number, layer in enumerate(self._layers):
            if layer.constant is not None:
                place = places[layer.name]
                attributes = {"offset": str(place.offset), "size": str(place.nbytes)}
                layer = replace(layer, attributes={**layer.attributes, **attributes})
            lines.extend(_layer_lines(number, layer))
        lines.append("\t</layers>")
        lines.append("\t<edges>")
        for number, layer in enumerate(self._layers):
            for port, value in enumerate(layer.inputs):
                first = len(self._layers[value.layer].inputs)
                lines.append(
                    f'\t\t<edge from-layer="{value.layer}" from-port="{first + value.output}" '
                    f'to-layer="{number}" to-port="{port}" />'
                )
        lines.append("\t</edges>")
        lines.append("\t<rt_info>")
        lines.extend(_information_lines(information, 2))
        lines.append("\t</rt_info>")
        lines.append("</net>")
        return "\n".join(lines) + "\n"

    def _constant(
        self,
        element_type: str,
        shape: tuple[int, ...],
        nbytes: int,
        label: str,
        source: str,
        plane: int,
        data: bytes,
    ) -> Value:
        label = label if label not in self._labels else f"{label}_{len(self._layers)}"
        self._labels.add(label)
        constant = Stored(label, source, plane, element_type, shape, 0, nbytes, data)
        attributes = {"element_type": element_type, "shape": ", ".join(map(str, shape))}
        kinds = (element_type,)
        layer = _Layer("Const", "opset1", label, attributes, (), kinds, constant=constant)
        return self._append(layer)[0]

    def _append(self, layer: _Layer) -> list[Value]:
        self._layers.append(layer)
        number = len(self._layers) - 1
        return [Value(number, port, kind) for port, kind in enumerate(layer.outputs)]


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_text, value))
    return str(value)


def _layer_lines(number: int, layer: _Layer) -> list[str]:
    head = f'id="{number}" name={quoteattr(layer.name)} type="{layer.kind}"'
    lines = [f'\t\t<layer {head} version="{layer.version}">']
    if layer.attributes:
        pairs = " ".join(f"{key}={quoteattr(value)}" for key, value in layer.attributes.items())
        lines.append(f"\t\t\t<data {pairs} />")
    if layer.is_decompression:
        lines.append("\t\t\t<rt_info>")
        lines.append('\t\t\t\t<attribute name="decompression" version="0" />')
        lines.append("\t\t\t</rt_info>")
    if layer.inputs:
        lines.append("\t\t\t<input>")
        for port, value in enumerate(layer.inputs):
            lines.append(f'\t\t\t\t<port id="{port}" precision="{_precision(value.type)}" />')
        lines.append("\t\t\t</input>")
    if layer.outputs:
        lines.append("\t\t\t<output>")
        for index, kind in enumerate(layer.outputs):
            port = len(layer.inputs) + index
            named = f" names={quoteattr(layer.tensor_names)}" if layer.tensor_names else ""
            names = named if index == 0 else ""
            lines.append(f'\t\t\t\t<port id="{port}" precision="{_precision(kind)}"{names} />')
        lines.append("\t\t\t</output>")
    lines.append("\t\t</layer>")
    return lines


def _precision(element_type: str) -> str:
    return _PRECISION.get(element_type, element_type.upper())


def _information_lines(information: Sequence[tuple[str, object]], depth: int) -> list[str]:
    indent, lines = "\t" * depth, []
    for name, value in information:
        if isinstance(value, (list, tuple)):
            lines.append(f"{indent}<{name}>")
            lines.extend(_information_lines(value, depth + 1))
            lines.append(f"{indent}</{name}>")
        else:
            lines.append(f"{indent}<{name} value={quoteattr(_text(value))} />")
    return lines
