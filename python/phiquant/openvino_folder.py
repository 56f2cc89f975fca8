"""Folders for OpenVINO GenAI, opened as checkpoints: weights by their source's names."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Final

from phiquant.architectures import ModelSpec, check_tensors, read_config, spec_from_config
from phiquant.checkpoint import Checkpoint, PlaneEntry, SourceFile, TensorEntry
from phiquant.codecs import find_codec
from phiquant.errors import FormatError, PhiquantError, UnsupportedError
from phiquant.openvino import Constant, Layer, Network, read_network

MODEL: Final = "openvino_model.xml"
#: What follows a matrix' name in that of the constant its inputs are multiplied by.
INPUT_SCALE: Final = "/input_scale"

_WEIGHT = re.compile(r"(model\.(embed_tokens|norm|layers\.\d+\..+)|lm_head)\.weight")
_FLOATS = ("f32", "f16", "bf16")
_CODES = {"i4": "int4_sym", "u4": "int4_asym", "i8": "int8_sym", "u8": "int8_asym", "nf4": "nf4"}
_MX = {"f4e2m1": "mxfp4", "f8e4m3": "mxfp8"}


def is_folder(path: Path) -> bool:
    """Whether a folder holds a model for OpenVINO, by its files' names."""
    return (path / MODEL).is_file()


def open_folder(path: Path) -> Checkpoint:
    """Open a folder that phiquant wrote; only the XML is read.

    Raises
    ------
    phiquant.FormatError
        The model's files are damaged or contradict each other, or hold no weights by names of a
        checkpoint.
    phiquant.UnsupportedError
        Weights that are stored in a way that phiquant does not write.
    phiquant.IoError
        A file is missing or cannot be read.
    """
    network = read_network(path / MODEL)
    entries = {}
    consumers = network.consumers()
    factors = {layer.name: layer for layer in network.constants()}
    for layer in network.constants():
        if _WEIGHT.fullmatch(layer.name):
            entry = _entry(network, consumers, layer)
            if layer.name + INPUT_SCALE in factors:
                scale = factors[layer.name + INPUT_SCALE]
                entry = replace(
                    entry, column_scale=_column_scale(network, consumers, scale, entry.shape)
                )
            entries[layer.name] = entry
    if not entries:
        raise FormatError(
            "has no constant with the name of a checkpoint's tensor",
            file=network.path,
            remedy="phiquant reads OpenVINO models that it wrote itself.",
        )
    file = SourceFile.look_at(network.binary)
    return Checkpoint("openvino", path, (file,), entries, network.information)


def describe_openvino(checkpoint: Checkpoint) -> ModelSpec:
    """The model of an open folder: its config, held against the weights.

    Raises
    ------
    phiquant.FormatError, phiquant.UnsupportedError
        The config is missing, of another model, or contradicts the weights.
    """
    config_file = checkpoint.folder / "config.json"
    if not config_file.exists():
        raise FormatError("is missing, and the weights don't say what model they make",
                          file=config_file)  # fmt: skip
    spec = spec_from_config(read_config(config_file), file=str(config_file))
    # Only names and shapes are to be held against the config: how weights are stored was seen.
    entries = {entry.name: ("F32", entry.shape) for entry in checkpoint.entries.values()}
    return check_tensors(spec, entries, file=checkpoint.path, config_file=config_file)


def _entry(network: Network, consumers: dict[int, list[Layer]], layer: Layer) -> TensorEntry:
    constant = layer.constant
    assert constant is not None
    # Norms have two axes of one before their own.
    shape = constant.shape
    while len(shape) > 1 and shape[0] == 1:
        shape = shape[1:]
    if constant.type in _FLOATS:
        return TensorEntry(layer.name, constant.type, shape, 0, constant.offset, constant.nbytes)
    if constant.type not in (*_CODES, *_MX) or len(constant.shape) not in (2, 3):
        raise _unknown(network, layer, f"of type {constant.type}")
    scale, zero = _parameters(network, consumers, layer)
    rows = constant.shape[0]
    columns = constant.shape[1] * (constant.shape[2] if len(constant.shape) == 3 else 1)
    group = "channel" if len(constant.shape) == 2 else f"g{constant.shape[2]}"
    wanted = (*constant.shape[:-1], 1)
    scale_type = "f8e8m0" if constant.type in _MX else "f16"
    for other, expected in ((scale, scale_type), (zero, constant.type)):
        if other is not None and (other.type != expected or other.shape != wanted):
            raise FormatError(
                f"has scales or zero points of {other.type} in the shape "
                f"{_shape(other.shape)} for codes of {constant.type} in {_shape(constant.shape)}",
                file=network.path,
                tensor=layer.name,
            )
    if (zero is None) == constant.type.startswith("u"):
        raise _unknown(network, layer, f"of {constant.type} {'without' if zero is None else 'with'}"
                       " zero points")  # fmt: skip
    places = tuple(
        PlaneEntry(0, plane.offset, plane.nbytes)
        for plane in (constant, scale, zero)
        if plane is not None
    )
    if constant.type in _MX:
        name = f"{_MX[constant.type]},layout=openvino"
    else:
        rule = "" if constant.type == "nf4" else ",rule=nncf"
        name = f"{_CODES[constant.type]}_{group}{rule}"
    try:
        codec = find_codec(name)
        planes = codec.planes(rows, columns)
    except PhiquantError:
        raise _unknown(network, layer, f"in groups of {constant.shape[-1]}") from None
    if [plane.nbytes for plane in planes] != [place.nbytes for place in places]:
        raise FormatError("has planes of other sizes", file=network.path, tensor=layer.name)
    nbytes = sum(place.nbytes for place in places)
    return TensorEntry(
        layer.name, codec.name, (rows, columns), 0, constant.offset, nbytes, planes=places
    )


def _column_scale(
    network: Network, consumers: dict[int, list[Layer]], layer: Layer, shape: tuple[int, ...]
) -> PlaneEntry:
    """The factors of a matrix' inputs: what its columns are to be multiplied by."""
    constant = layer.constant
    assert constant is not None
    if constant.type != "f32" or constant.shape != (1, 1, shape[-1]):
        raise FormatError(
            f"is {constant.type} in the shape {_shape(constant.shape)}, where a matrix of "
            f"{_shape(shape)} has factors of its inputs",
            file=network.path,
            tensor=layer.name,
        )
    value = layer
    for kind in ("Multiply", "Multiply", "MatMul"):
        value = _only(network, consumers, value, layer)
        if value.kind != kind:
            raise _unknown(network, layer, f"used by a {value.kind[:40]}")
    return PlaneEntry(0, constant.offset, constant.nbytes)


def _parameters(
    network: Network, consumers: dict[int, list[Layer]], layer: Layer
) -> tuple[Constant, Constant | None]:
    """The scales and zero points that codes are decompressed with."""
    value = _only(network, consumers, layer, layer)
    if value.kind != "Convert":
        raise _unknown(network, layer, f"used by a {value.kind[:40]}")
    zero = None
    value = _only(network, consumers, value, layer)
    if value.kind == "Subtract":
        zero = _operand(network, value, layer)
        value = _only(network, consumers, value, layer)
    if value.kind != "Multiply":
        raise _unknown(network, layer, f"used by a {value.kind[:40]}")
    return _operand(network, value, layer), zero


def _only(
    network: Network, consumers: dict[int, list[Layer]], layer: Layer, weight: Layer
) -> Layer:
    readers = consumers[layer.number]
    if len(readers) != 1:
        raise _unknown(network, weight, f"used {len(readers)} times before it is decompressed")
    return readers[0]


def _operand(network: Network, layer: Layer, weight: Layer) -> Constant:
    """The second input, where that is a constant, be it converted."""
    if len(layer.inputs) != 2:
        raise _unknown(network, weight, f"used by a {layer.kind} of {len(layer.inputs)} inputs")
    source = network.layers[layer.inputs[1][0]]
    if source.kind == "Convert" and source.inputs:
        source = network.layers[source.inputs[0][0]]
    if source.constant is None:
        raise _unknown(network, weight, "with scales or zero points that are computed")
    return source.constant


def _unknown(network: Network, layer: Layer, how: str) -> UnsupportedError:
    return UnsupportedError(
        f"is stored as phiquant does not store weights: {how}",
        file=network.path,
        tensor=layer.name,
        remedy="phiquant reads OpenVINO models that it wrote itself.",
    )


def _shape(shape: tuple[int, ...]) -> str:
    return "[" + ", ".join(map(str, shape)) + "]"
