"""OpenVINO IR: any model's operations and constants, read without trust."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from xml.parsers import expat

from phiquant.checkpoint import SourceFile
from phiquant.errors import FormatError

#: What an XML file may hold at most: a model of 200 layers takes 10 MB.
MAX_XML: Final = 64 << 20
_MAX_LAYERS = 1 << 18
_MAX_DEPTH = 32
_MAX_ELEMENTS = 1 << 62
_VERSIONS = ("10", "11")
#: Bits of an element by OpenVINO's names of types.
ELEMENT_BITS: Final[Mapping[str, int]] = {
    "boolean": 8,
    **{f"{kind}{bits}": bits for kind in "iu" for bits in (4, 8, 16, 32, 64)},
    "f16": 16,
    "bf16": 16,
    "f32": 32,
    "f64": 64,
    "nf4": 4,
    "f4e2m1": 4,
    "f8e4m3": 8,
    "f8e5m2": 8,
    "f8e8m0": 8,
    "u1": 1,
    "u2": 2,
}


@dataclass(frozen=True)
class Constant:
    """A constant's bytes in the binary file."""

    type: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


@dataclass
class Layer:
    """One operation.

    Attributes
    ----------
    number : int
        Its id in the file.
    kind, version, name : str
    attributes : dict of str to str
        As written.
    inputs : list of (layer, output)
        What each input is joined to: a layer's number, and which of its outputs.
    outputs : int
        How many it has.
    constant : Constant or None
    """

    number: int
    kind: str
    version: str
    name: str
    attributes: dict[str, str] = field(default_factory=dict)
    inputs: list[tuple[int, int]] = field(default_factory=list)
    outputs: int = 0
    constant: Constant | None = None


@dataclass(frozen=True)
class Network:
    """A model as it stands in its two files.

    Attributes
    ----------
    name : str
    path, binary : Path
    layers : dict of int to Layer
    information : dict of str to str
        Runtime information, nested names joined by ``/``.
    """

    name: str
    path: Path
    binary: Path
    layers: dict[int, Layer]
    information: dict[str, str]

    def constants(self) -> Iterator[Layer]:
        """The layers that are constants."""
        return (layer for layer in self.layers.values() if layer.constant is not None)

    def consumers(self) -> dict[int, list[Layer]]:
        """Which layers read each layer."""
        found: dict[int, list[Layer]] = {number: [] for number in self.layers}
        for layer in self.layers.values():
            for number, _ in layer.inputs:
                found[number].append(layer)
        return found


def read_network(
    path: str | os.PathLike[str], *, binary: str | os.PathLike[str] | None = None
) -> Network:
    """Read an IR's XML, and hold every constant against the binary file's size.

    Parameters
    ----------
    path : str or path
        The XML file.
    binary : str or path, optional
        By default the file beside it that ends in ``.bin``.

    Raises
    ------
    phiquant.FormatError
        No IR, or one whose parts contradict each other or reach outside the binary file. Documents
        with a type declaration, which entities need, are refused.
    phiquant.IoError
        A file is missing or cannot be read.
    """
    path = Path(path)
    source = SourceFile.look_at(path)
    if source.size > MAX_XML:
        raise FormatError(f"holds {source.size} bytes; at most {MAX_XML} are accepted", file=path)
    binary = path.with_suffix(".bin") if binary is None else Path(binary)
    size = SourceFile.look_at(binary).size
    reader = _Reader(path, binary, size)
    reader.parse(source.read(0, source.size))
    return reader.network()


class _Reader:
    def __init__(self, path: Path, binary: Path, size: int) -> None:
        self.path, self.binary, self.size = path, binary, size
        self.name = ""
        self.layers: dict[int, Layer] = {}
        self.information: dict[str, str] = {}
        self._stack: list[str] = []
        self._layer: Layer | None = None
        self._ports: dict[int, tuple[dict[str, int], dict[str, int]]] = {}
        self._edges: list[Mapping[str, str]] = []

    def parse(self, text: bytes) -> None:
        parser = expat.ParserCreate()
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.StartDoctypeDeclHandler = self._refuse_doctype
        parser.EntityDeclHandler = self._refuse_doctype
        try:
            parser.Parse(text, True)
        except expat.ExpatError as error:
            words = expat.errors.messages.get(error.code, "is damaged")
            raise self._error(f"is no XML: {words} in line {error.lineno}") from None
        except UnicodeError:
            raise self._error("is no XML: its text is not as its encoding says") from None

    def network(self) -> Network:
        self._join()
        return Network(self.name, self.path, self.binary, self.layers, self.information)

    def _error(self, cause: str, layer: Layer | None = None) -> FormatError:
        return FormatError(cause, file=self.path, tensor=layer.name if layer else None)

    def _refuse_doctype(self, *_: Any) -> None:
        raise self._error("has a document type declaration, which no IR has")

    def _start(self, tag: str, attributes: dict[str, str]) -> None:
        if not self._stack:
            if tag != "net" or attributes.get("version") not in _VERSIONS:
                raise self._error(
                    "is no OpenVINO IR of version 10 or 11 "
                    f"(<{tag[:40]} version={attributes.get('version', 'none')[:20]!r}>)"
                )
            self.name = attributes.get("name", "")
        if len(self._stack) >= _MAX_DEPTH:
            raise self._error(f"nests more than {_MAX_DEPTH} elements")
        self._stack.append(tag)
        where = self._stack[1:]
        if where[:2] == ["layers", "layer"] and len(where) == 2:
            self._start_layer(attributes)
        elif self._layer is not None and where[:2] == ["layers", "layer"]:
            if where[2:] == ["data"]:
                self._layer.attributes = dict(attributes)
            elif where[2:] in (["input", "port"], ["output", "port"]):
                self._port(where[2], attributes)
        elif where == ["edges", "edge"]:
            if len(self._edges) > 16 * _MAX_LAYERS:
                raise self._error("has too many edges")
            self._edges.append(dict(attributes))
        elif where[:1] == ["rt_info"] and "value" in attributes:
            self.information["/".join(where[1:])] = attributes["value"]

    def _end(self, tag: str) -> None:
        self._stack.pop()
        if tag == "layer" and self._stack == ["net", "layers"]:
            layer, self._layer = self._layer, None
            if layer is not None and layer.kind == "Const":
                layer.constant = self._constant(layer)

    def _start_layer(self, attributes: dict[str, str]) -> None:
        number = self._number(attributes.get("id"), "a layer's id")
        layer = Layer(
            number,
            attributes.get("type", ""),
            attributes.get("version", ""),
            attributes.get("name", ""),
        )
        if number in self.layers:
            raise self._error(f"has two layers with the id {number}", layer)
        if len(self.layers) >= _MAX_LAYERS:
            raise self._error(f"has more than {_MAX_LAYERS} layers")
        self.layers[number] = self._layer = layer
        self._ports[number] = ({}, {})

    def _port(self, side: str, attributes: dict[str, str]) -> None:
        layer = self._layer
        assert layer is not None
        ports = self._ports[layer.number][side == "output"]
        name = attributes.get("id", "")
        if name in ports or len(ports) > 1024:
            raise self._error(f"has the port {name[:20]!r} twice, or too many ports", layer)
        ports[name] = len(ports)
        layer.outputs = len(self._ports[layer.number][1])

    def _constant(self, layer: Layer) -> Constant:
        attributes = layer.attributes
        kind = attributes.get("element_type", "")
        text = attributes.get("shape", "").replace(" ", "")
        shape = tuple(self._number(part, "an extent", layer) for part in text.split(",") if part)
        offset = self._number(attributes.get("offset"), "a constant's offset", layer)
        nbytes = self._number(attributes.get("size"), "a constant's size", layer)
        if offset + nbytes > self.size:
            raise self._error(
                f"has bytes {offset} to {offset + nbytes}, past the end of {self.binary.name} "
                f"({self.size})",
                layer,
            )
        elements = 1
        for extent in shape:
            elements *= extent
            if elements > _MAX_ELEMENTS:
                raise self._error("has more elements than any file can hold", layer)
        bits = ELEMENT_BITS.get(kind)
        # OpenVINO keeps one byte of a constant without elements.
        wanted = None if bits is None else (elements * bits + 7) // 8
        if wanted is not None and nbytes != wanted and (elements or nbytes > 1):
            raise self._error(
                f"has {nbytes} bytes, and {'x'.join(map(str, shape)) or 'one'} of {kind} need "
                f"{wanted}",
                layer,
            )
        return Constant(kind, shape, offset, nbytes)

    def _join(self) -> None:
        joined: dict[int, dict[int, tuple[int, int]]] = {number: {} for number in self.layers}
        for edge in self._edges:
            ends = []
            for side, which in (("from", 1), ("to", 0)):
                number = self._number(edge.get(f"{side}-layer"), "an edge's layer")
                ports = self._ports.get(number, ({}, {}))[which]
                port = edge.get(f"{side}-port", "")
                if port not in ports:
                    raise self._error(f"has an edge {side} port {port[:20]!r} of layer {number}")
                ends.append((number, ports[port]))
            (number, port_index) = ends[1]
            if port_index in joined[number]:
                raise self._error("has an input with two edges", self.layers[number])
            joined[number][port_index] = ends[0]
        for number, inputs in joined.items():
            layer = self.layers[number]
            if len(inputs) != len(self._ports[number][0]):
                raise self._error("has an input without an edge", layer)
            layer.inputs = [inputs[index] for index in range(len(inputs))]

    def _number(self, text: str | None, what: str, layer: Layer | None = None) -> int:
        if text is None or not re.fullmatch(r"[0-9]{1,19}", text):
            raise self._error(f"has {text[:40] if text else 'nothing'!r} for {what}", layer)
        return int(text)
