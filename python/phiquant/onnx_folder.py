"""ONNX folders of language models: what their graphs hold, under the source's names."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from phiquant.architectures import ModelSpec, TensorRole, spec_from_config
from phiquant.checkpoint import Checkpoint, PlaneEntry, TensorEntry
from phiquant.codecs import affine_name
from phiquant.errors import FormatError, UnsupportedError
from phiquant.onnx import Graph, Node, load
from phiquant.strict_json import read_json

CONFIG = "genai_config.json"

#: Metadata of phiquant's own models: the source's config.json, for what a graph does not tell.
SOURCE_CONFIG = "phiquant.config"

_SCALES = {"float32": "f32", "float16": "f16"}
_PARTS = {"qkv": ("q", "k", "v"), "gate_up": ("gate", "up")}
_INNER = re.compile(r"model\.layers\.(\d+)\.(attn|mlp)\.(\w+)_proj\.MatMul\.weight")
_NORM = re.compile(r"model\.layers\.(\d+)\.(input_layernorm|post_attention_layernorm)\.weight")


def is_folder(path: Path) -> bool:
    """Whether this is a folder that ONNX Runtime GenAI loads."""
    return (path / CONFIG).is_file()


def open_folder(path: Path) -> Checkpoint:
    """Open a folder that phiquant or onnxruntime-genai's model builder made.

    Matrices have the names that they have in Hugging Face checkpoints, and their planes where the
    graph's initializers stand.

    Raises
    ------
    phiquant.FormatError
        The graph or its external data are damaged, or lie outside the folder.
    phiquant.UnsupportedError
        The graph has parts that language models do not.
    """
    name = _filename(path)
    model, files, entries = load(path / name)
    found = _Matrices(model.graph, entries).entries()
    return Checkpoint("onnx", path, files, found, model.metadata)


def describe_onnx(checkpoint: Checkpoint) -> ModelSpec:
    """The model of an open folder that phiquant made.

    Raises
    ------
    phiquant.UnsupportedError
        Another tool made it: its graph does not say what its rope is.
    phiquant.FormatError
        Its metadata and its matrices contradict each other.
    """
    text = checkpoint.metadata.get(SOURCE_CONFIG)
    if not isinstance(text, str):
        raise UnsupportedError(
            "was not made by phiquant: the graph alone does not tell all of the model",
            file=checkpoint.path,
        )
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"has a broken {SOURCE_CONFIG}: {error}", file=checkpoint.path) from None
    if not isinstance(config, dict):
        raise FormatError(f"has a {SOURCE_CONFIG} that is no object", file=checkpoint.path)
    spec = spec_from_config(config, file=checkpoint.path)
    tensors = list(spec.tensors)
    tied = spec.tied and "lm_head.weight" not in checkpoint.entries
    if spec.tied and not tied:
        shape = (spec.vocabulary, spec.hidden_size)
        tensors.append(TensorRole("output", None, "lm_head.weight", shape))
    for tensor in tensors:
        entry = checkpoint.entries.get(tensor.source)
        if entry is None or entry.shape != tensor.shape:
            has = "is missing" if entry is None else f"has the shape {entry.shape}"
            raise FormatError(
                f"{has}, and {SOURCE_CONFIG} wants {tensor.shape}",
                file=checkpoint.path,
                tensor=tensor.source,
            )
    return replace(spec, tensors=tuple(tensors), tied=tied)


def _is_plain(name: str) -> bool:
    return name not in ("", ".", "..") and "\0" not in name and Path(name).name == name


def _filename(path: Path) -> str:
    config: Any = read_json(path / CONFIG)
    try:
        name = config["model"]["decoder"]["filename"]
    except (KeyError, TypeError):
        name = None
    if not isinstance(name, str) or not _is_plain(name):
        raise FormatError(
            "names no plain file of this folder as the decoder's graph", file=path / CONFIG
        )
    return name


@dataclass(frozen=True)
class _Matrix:
    """A matrix by the name of its weight in the graph."""

    name: str
    entry: TensorEntry


class _Matrices:
    def __init__(self, graph: Graph, entries: Mapping[str, TensorEntry]) -> None:
        self.graph = graph
        self.raw = entries
        self.made_by: dict[str, Node] = {}
        for node in graph.nodes:
            for output in node.outputs:
                self.made_by[output] = node

    def entries(self) -> dict[str, TensorEntry]:
        """All matrices and vectors by source name; what is not understood keeps its own."""
        found: dict[str, TensorEntry] = {}
        used: set[str] = set()
        for node in self.graph.nodes:
            if node.op == "MatMulNBits":
                self._quantized(node, found, used)
            elif node.op == "MatMul" and len(node.inputs) == 2:
                self._float(node, found, used)
            elif node.op == "MatMulInteger" and len(node.inputs) > 1:
                codes = self._initializer(node.inputs[1])
                self._rows(codes, self._scales_beside(codes), found, used)
        # Shapes and axes are no weights.
        rest = {
            name: entry
            for name, entry in self.raw.items()
            if name not in used and entry.type != "i64"
        }
        named: dict[str, TensorEntry] = {}
        for name, entry in (found | rest).items():
            source = _source_name(name)
            named[source] = replace(entry, name=source)
        named = _joined(named)
        table = "model.embed_tokens.weight"
        if table not in named and "lm_head.weight" in named:
            # One table serves both, as GatherBlockQuantized reads it.
            named[table] = replace(named.pop("lm_head.weight"), name=table)
        return named

    def _initializer(self, value: str) -> TensorEntry | None:
        """The constant behind a value, through what only changes its type or shape."""
        while value not in self.raw:
            node = self.made_by.get(value)
            if node is None or node.op not in ("Cast", "Reshape"):
                return None
            value = node.inputs[0]
        return self.raw[value]

    def _quantized(self, node: Node, found: dict[str, TensorEntry], used: set[str]) -> None:
        inputs = [*node.inputs, *[""] * 6]
        planes = [self._initializer(value) if value else None for value in inputs[1:4]]
        if planes[0] is None or planes[1] is None or inputs[4]:  # indices of groups
            return
        bits, block, rows, columns = (
            _integer(node, key) for key in ("bits", "block_size", "N", "K")
        )
        symmetric = planes[2] is None
        if planes[2] is not None and planes[2].type != "u8":  # zero points as floats
            return
        codec = _codec(bits, symmetric, block, planes[1])
        if codec is None:
            return
        groups = -(-columns // block)
        sizes = (
            rows * groups * (block * bits // 8),
            rows * groups * (4 if planes[1].type == "f32" else 2),
            rows * -(-groups * bits // 8),
        )
        self._take(planes, sizes, codec, (rows, columns), found, used)

    def _float(self, node: Node, found: dict[str, TensorEntry], used: set[str]) -> None:
        weight = node.inputs[1]
        entry = self.raw.get(weight)
        if entry is not None:
            if len(entry.shape) == 2 and entry.type in ("f32", "f16"):
                self._take(
                    [entry],
                    (entry.nbytes,),
                    f"{entry.type},layout=transposed",
                    (entry.shape[1], entry.shape[0]),
                    found,
                    used,
                )
            return
        made = self.made_by.get(weight)
        if made is None or made.op != "DequantizeLinear":
            return
        inputs = [*made.inputs, ""]
        planes = [self._initializer(value) if value else None for value in inputs[:3]]
        if planes[0] is None or planes[1] is None or len(planes[0].shape) != 2:
            return
        if _integer(made, "axis", 1) == 1:
            if not inputs[2]:
                self._rows(planes[0], planes[1], found, used)
            return
        columns, rows = planes[0].shape
        kind = re.fullmatch(r"(u?)(?:int|i)(4|8)|u(8)", planes[0].type)
        block = _integer(made, "block_size", 0)
        if kind is None or not block or columns % block:
            return
        bits = int(kind[2] or kind[3])
        symmetric = planes[2] is None
        codec = _codec(bits, symmetric, block, planes[1], layout="transposed")
        if codec is None:
            return
        groups = columns // block
        sizes = (
            rows * columns * bits // 8,
            rows * groups * (4 if planes[1].type == "f32" else 2),
            -(-rows * groups * bits // 8),
        )
        self._take(planes, sizes, codec, (rows, columns), found, used)

    def _scales_beside(self, codes: TensorEntry | None) -> TensorEntry | None:
        """The scales of a matrix of integers: its product is scaled behind a node or two."""
        name = re.sub(r"_Q8$", "_scales", codes.name) if codes is not None else ""
        return self.raw.get(name)

    def _rows(
        self,
        codes: TensorEntry | None,
        scales: TensorEntry | None,
        found: dict[str, TensorEntry],
        used: set[str],
    ) -> None:
        """8 bits with a scale a row, written by columns."""
        if codes is None or scales is None or codes.type != "i8" or len(codes.shape) != 2:
            return
        columns, rows = codes.shape
        if scales.shape != (rows,) or scales.type != "f32":
            return
        codec = affine_name("int8_sym_channel", layout="transposed")
        sizes = (codes.nbytes, scales.nbytes)
        self._take([codes, scales], sizes, codec, (rows, columns), found, used)

    def _take(
        self,
        planes: list[TensorEntry | None],
        sizes: tuple[int, ...],
        codec: str,
        shape: tuple[int, int],
        found: dict[str, TensorEntry],
        used: set[str],
    ) -> None:
        held = [plane for plane in planes if plane is not None]
        for plane, size in zip(held, sizes, strict=False):
            if plane.nbytes != size:
                raise FormatError(
                    f"has {plane.nbytes} bytes, and its node takes {size}", tensor=plane.name
                )
        first = held[0]
        name = re.sub(r"_Q\d+(G\d+)?$", "", first.name)
        used |= {plane.name for plane in held}
        found[name] = TensorEntry(
            name,
            codec,
            shape,
            first.file,
            first.offset,
            sum(plane.nbytes for plane in held),
            tuple(PlaneEntry(plane.file, plane.offset, plane.nbytes) for plane in held),
        )


def _codec(
    bits: int, symmetric: bool, block: int, scales: TensorEntry, layout: str | None = None
) -> str | None:
    if bits not in (2, 4, 8) or block not in (16, 32, 64, 128, 256):
        return None
    if scales.type not in _SCALES.values():
        return None
    name = f"int{bits}_{'sym' if symmetric else 'asym'}_g{block}"
    return affine_name(name, scales=None if scales.type == "f32" else scales.type, layout=layout)


def _integer(node: Node, key: str, default: int | None = None) -> int:
    value = node.attributes.get(key, default)
    if not isinstance(value, int) or not 0 <= value < 1 << 31:
        raise FormatError(f"the node '{node.name}' has no sound '{key}'")
    return value


def _source_name(name: str) -> str:
    """The name that a constant of the builder's graphs has in Hugging Face checkpoints."""
    if match := _INNER.fullmatch(name):
        room = "self_attn" if match[2] == "attn" else "mlp"
        return f"model.layers.{match[1]}.{room}.{match[3]}_proj.weight"
    if name == "lm_head.MatMul.weight":
        return "lm_head.weight"
    if re.fullmatch(r"model\.layers\.\d+\.final_norm_layernorm\.weight", name):
        return "model.norm.weight"
    return name


def _joined(entries: dict[str, TensorEntry]) -> dict[str, TensorEntry]:
    """Projections that the source has in one matrix as parts of one."""
    found: dict[str, TensorEntry] = {}
    for name, entry in entries.items():
        match = re.fullmatch(r"(model\.layers\.\d+\.(?:self_attn|mlp)\.)(\w+)_proj\.weight", name)
        whole = next((w for w, parts in _PARTS.items() if match and match[2] in parts), None)
        if match is None or whole is None:
            found[name] = entry
            continue
        parts = [entries.get(f"{match[1]}{part}_proj.weight") for part in _PARTS[whole]]
        held = [part for part in parts if part is not None]
        if len(held) != len(parts) or len({part.shape[-1] for part in held}) != 1:
            found[name] = entry
            continue
        fused = f"{match[1]}{whole}_proj.weight"
        rows = sum(math.prod(part.shape[:-1]) for part in held)
        found[fused] = TensorEntry(
            fused,
            held[0].type,
            (rows, held[0].shape[-1]),
            held[0].file,
            held[0].offset,
            sum(part.nbytes for part in held),
            parts=tuple(held),
        )
    return found
