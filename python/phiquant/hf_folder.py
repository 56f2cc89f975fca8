"""Folders of quantized safetensors opened as checkpoints: in compressed-tensors, GPTQ, AWQ."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np

from phiquant import gptq_folder, safetensors
from phiquant.architectures import ModelSpec, check_tensors, read_config, spec_from_config
from phiquant.checkpoint import Checkpoint, PlaneEntry, TensorEntry
from phiquant.codecs import affine_name, find_codec
from phiquant.errors import FormatError, PhiquantError, UnsupportedError, UsageError

_SCALES: Final = {"bf16": "", "f16": ",scales=f16", "f32": ",scales=f32"}
_PARTS: Final = re.compile(r"\.weight(_packed|_scale|_zero_point|_shape|_g_idx|_global_scale)$")


def is_folder(path: Path) -> bool:
    """Whether a folder holds weights in compressed-tensors, GPTQ or AWQ, by its config."""
    if gptq_folder.settings_of(path) is not None:
        return True
    file = path / "config.json"
    if not file.is_file():
        return False
    try:
        found = read_config(file).get("quantization_config")
    except PhiquantError:
        return False
    return isinstance(found, dict) and found.get("quant_method") == "compressed-tensors"


def open_folder(path: Path, *, name: str | None = None) -> Checkpoint:
    """Open a folder with quantized matrices; headers and the matrices' shapes are read.

    Raises
    ------
    phiquant.FormatError
        Files are damaged, or a matrix's tensors contradict each other.
    phiquant.UnsupportedError
        Weights that are held in a way which phiquant does not decode.
    phiquant.IoError
        A file is missing or cannot be read.
    """
    if gptq_folder.settings_of(path) is not None:
        return gptq_folder.open_folder(path, name=name)
    opened = safetensors.open_folder(path, name=name)
    entries: dict[str, TensorEntry] = {}
    for entry in opened.entries.values():
        if entry.name.endswith(".input_global_scale"):
            continue  # of activations, for which weights are as they are
        part = _PARTS.search(entry.name)
        module = entry.name.removesuffix(".weight")
        if part is not None and part[1] == "_packed":
            packed = _packed(opened, entry, entry.name[: part.start()])
            entries[packed.name] = packed
        elif part is not None:
            _check_owner(opened, entry, entry.name[: part.start()], part[1])
        elif module != entry.name and f"{module}.weight_scale" in opened.entries:
            entries[entry.name] = _bytes(opened, entry, module)
        else:
            entries[entry.name] = entry
    files = opened.files
    gptq_folder.check_quantized(entries.values(), path)
    return Checkpoint("compressed-tensors", path, files, entries, opened.metadata, name=opened.name)


def describe_compressed(checkpoint: Checkpoint) -> ModelSpec:
    """The model of an open folder: its config, held against the weights.

    Raises
    ------
    phiquant.FormatError, phiquant.UnsupportedError
        The config is of another model, or contradicts the weights.
    """
    file = checkpoint.folder / "config.json"
    config = {k: v for k, v in read_config(file).items() if k != "quantization_config"}
    entries = {
        # How matrices are packed was seen when they were opened.
        entry.name: ("F32" if entry.planes else entry.type, entry.shape)
        for entry in checkpoint.entries.values()
    }
    spec = spec_from_config(config, file=file)
    return check_tensors(spec, entries, file=checkpoint.path, config_file=file)


def _check_owner(opened: Checkpoint, entry: TensorEntry, module: str, part: str) -> None:
    """A part of a matrix that has no codes, or that phiquant would not heed."""
    file = opened.files[entry.file].path
    # NVFP4's is read with its codes.
    if part == "_g_idx" or (part == "_global_scale" and not _is_bytes(opened, module)):
        raise UnsupportedError(
            "belongs to weights that are held in a way which phiquant does not decode",
            file=file,
            tensor=entry.name,
        )
    if not {f"{module}.weight_packed", f"{module}.weight"} & set(opened.entries):
        raise FormatError(
            "belongs to a matrix without codes",
            file=file,
            tensor=entry.name,
            remedy="The folder is incomplete: fetch it again.",
        )


def _is_bytes(opened: Checkpoint, module: str) -> bool:
    codes = opened.entries.get(f"{module}.weight_packed")
    return codes is not None and codes.type == "u8"


def _packed(opened: Checkpoint, entry: TensorEntry, module: str) -> TensorEntry:
    """A matrix of packed integers, from the shapes of its tensors."""
    file = opened.files[entry.file].path
    scales = _part(opened, entry, module, "weight_scale")
    if entry.type == "u8" and f"{module}.weight_global_scale" in opened.entries:
        return _nvfp4(opened, entry, scales, module)
    if entry.type == "u8":
        return _mxfp4(opened, entry, scales, module)
    rows, columns = _stored_shape(opened, entry, module)
    zeros = opened.entries.get(f"{module}.weight_zero_point")
    words = entry.shape[-1] if len(entry.shape) == 2 else 0
    groups = scales.shape[-1] if len(scales.shape) == 2 else 0
    found = [entry, scales, *([] if zeros is None else [zeros])]
    shapes = ", ".join(str(list(one.shape)) for one in found)
    bits = words * 32 // columns
    whole = groups > 0 and columns % groups == 0 and bits * columns == words * 32
    zero_words = (-(-rows * bits // 32), groups)
    if (
        entry.type != "i32"
        or entry.shape[:1] != (rows,)
        or not whole
        or scales.shape != (rows, groups)
        or (zeros is not None and (zeros.type != "i32" or zeros.shape != zero_words))
    ):
        raise FormatError(
            f"has tensors of the shapes {shapes}, which no packed matrix of {rows} x {columns} has",
            file=file,
            tensor=entry.name,
            remedy="compressed-tensors before 0.18 packed 3, 5 and 6 bits in another way; else "
            "the folder is damaged: fetch it again.",
        )
    sign = "sym" if zeros is None else "asym"
    length = "channel" if groups == 1 else f"g{columns // groups}"
    name = f"int{bits}_{sign}_{length},rule=ct"
    return _matrix(opened, found, name, scales.type, f"{module}.weight", (rows, columns))


def _mxfp4(opened: Checkpoint, entry: TensorEntry, scales: TensorEntry, module: str) -> TensorEntry:
    """A matrix of 4-bit floats, two a byte, with powers of two."""
    rows, pairs = entry.shape if len(entry.shape) == 2 else (0, 0)
    if scales.type != "u8" or rows < 1 or pairs < 1 or scales.shape != (rows, pairs // 16):
        raise UnsupportedError(
            f"is packed in bytes of the shape {list(entry.shape)} with scales of {scales.type} and "
            f"{list(scales.shape)}, which phiquant does not decode",
            file=opened.files[entry.file].path,
            tensor=entry.name,
        )
    shape = (rows, 2 * pairs)
    name = "mxfp4,layout=packed"
    return _matrix(opened, [entry, scales], name, "bf16", f"{module}.weight", shape)


def _nvfp4(opened: Checkpoint, entry: TensorEntry, scales: TensorEntry, module: str) -> TensorEntry:
    """A matrix of 4-bit floats with 8-bit ones as scales, under a scale of the whole matrix."""
    stored = _part(opened, entry, module, "weight_global_scale")
    file = opened.files[stored.file]
    if stored.type != "f32" or stored.shape not in ((), (1,)):
        raise FormatError("is no single float32", file=file.path, tensor=stored.name)
    value = np.frombuffer(file.read(stored.offset, stored.nbytes), "<f4")
    if not (value > 0).all() or not np.isfinite(value).all():
        raise FormatError("is no positive number", file=file.path, tensor=stored.name)
    rows, pairs = entry.shape if len(entry.shape) == 2 else (0, 0)
    if scales.type != "f8_e4m3" or rows < 1 or pairs < 8 or scales.shape != (rows, pairs // 8):
        raise FormatError(
            f"has the shape {list(entry.shape)}, with scales of {scales.type} and "
            f"{list(scales.shape)}",
            file=opened.files[entry.file].path,
            tensor=entry.name,
        )
    name = f"nvfp4,layout=packed,global={int(value.view(np.uint32)[0]):08x}"
    shape = (rows, 2 * pairs)
    return _matrix(opened, [entry, scales], name, "bf16", f"{module}.weight", shape)


def _bytes(opened: Checkpoint, entry: TensorEntry, module: str) -> TensorEntry:
    """A matrix of signed bytes or 8-bit floats."""
    file = opened.files[entry.file].path
    scales = _part(opened, entry, module, "weight_scale")
    zeros = opened.entries.get(f"{module}.weight_zero_point")
    kinds = ("i8",) if zeros is not None else ("i8", "f8_e4m3")
    if entry.type not in kinds or (zeros is not None and zeros.type != "i8"):
        raise UnsupportedError(
            f"is quantized to {entry.type}, with tensors beside it, in a way which phiquant does "
            "not decode",
            file=file,
            tensor=entry.name,
        )
    groups = scales.shape[-1] if len(scales.shape) == 2 else 0
    rows, columns = entry.shape if len(entry.shape) == 2 else (0, 0)
    found = [entry, scales, *([] if zeros is None else [zeros])]
    shapes = {one.shape for one in found[1:]}
    if rows < 1 or groups < 1 or shapes != {(rows, groups)} or columns % groups:
        listed = " and ".join(str(list(one.shape)) for one in found[1:])
        raise FormatError(
            f"has the shape {list(entry.shape)}, and beside it {listed}",
            file=file,
            tensor=entry.name,
        )
    length = "channel" if groups == 1 else f"g{columns // groups}"
    shape = (rows, columns)
    if entry.type == "f8_e4m3":
        name = f"fp8_{length}"
        return _matrix(opened, [entry, scales], name, scales.type, entry.name, shape)
    # Symmetric signed bytes are OpenVINO's, too.
    sign, layout = ("sym", "openvino") if zeros is None else ("asym", "bytes")
    name = f"int8_{sign}_{length},rule=ct"
    return _matrix(opened, found, name, scales.type, entry.name, shape, layout=layout)


def _matrix(
    opened: Checkpoint,
    found: list[TensorEntry],
    codec: str,
    scales: str,
    name: str,
    shape: tuple[int, int],
    *,
    layout: str | None = None,
) -> TensorEntry:
    entry = found[0]
    file = opened.files[entry.file].path
    try:
        if scales not in _SCALES:
            raise UsageError("scales are no floats")
        known = find_codec(affine_name(codec + _SCALES[scales], layout=layout))
        planes = known.planes(*shape)
    except PhiquantError:
        raise UnsupportedError(
            f"is held as {codec} with scales of {scales}, which phiquant does not decode",
            file=file,
            tensor=entry.name,
        ) from None
    places = tuple(PlaneEntry(one.file, one.offset, one.nbytes) for one in found)
    if [plane.nbytes for plane in planes] != [place.nbytes for place in places]:
        raise FormatError("has tensors of other sizes than it needs", file=file, tensor=entry.name)
    nbytes = sum(place.nbytes for place in places)
    return replace(entry, name=name, type=known.name, shape=shape, nbytes=nbytes, planes=places)


def _part(opened: Checkpoint, entry: TensorEntry, module: str, part: str) -> TensorEntry:
    found = opened.entries.get(f"{module}.{part}")
    if found is None:
        raise FormatError(
            f"is quantized, and has no {part} beside it",
            file=opened.files[entry.file].path,
            tensor=entry.name,
            remedy="The folder is incomplete: fetch it again.",
        )
    return found


def _stored_shape(opened: Checkpoint, entry: TensorEntry, module: str) -> tuple[int, int]:
    """Rows and columns of a packed matrix: two numbers in a tensor of their own."""
    stored = _part(opened, entry, module, "weight_shape")
    file = opened.files[stored.file]
    bytes_of: Mapping[str, str] = {"i64": "<i8", "i32": "<i4"}
    if stored.shape != (2,) or stored.type not in bytes_of:
        raise FormatError("is no pair of integers", file=file.path, tensor=stored.name)
    raw = file.read(stored.offset, stored.nbytes)
    values = np.frombuffer(raw, bytes_of[stored.type])
    rows, columns = (int(value) for value in values) if len(values) == 2 else (0, 0)
    if not (1 <= rows < 1 << 31 and 1 <= columns < 1 << 31):
        raise FormatError(
            f"says that the matrix has {rows} rows of {columns}", file=file.path, tensor=stored.name
        )
    return rows, columns
