"""MLX folders, of phiquant or mlx-lm, opened as checkpoints: weights by their names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

from phiquant import safetensors
from phiquant.architectures import ModelSpec, check_tensors, read_config, spec_from_config
from phiquant.checkpoint import Checkpoint, PlaneEntry, TensorEntry
from phiquant.codecs import find_codec
from phiquant.errors import FormatError, PhiquantError, UnsupportedError, UsageError

_SCALES: Final = {"bf16": "", "f16": ",scales=f16", "f32": ",scales=f32"}
_MODES: Final = ("mxfp4", "mxfp8", "nvfp4")
# What mlx takes where a number is null, as mlx-lm's mixed recipes leave the group.
_DEFAULTS: Final = {"affine": (4, 64), "mxfp4": (4, 32), "mxfp8": (8, 32), "nvfp4": (4, 16)}


def is_folder(path: Path) -> bool:
    """Whether a folder holds quantized weights as mlx packs them, by its config."""
    try:
        return _settings(path) is not None
    except PhiquantError:
        return False


def _settings(path: Path) -> Mapping[str, object] | None:
    """How matrices are held, as the config says; None where that is not mlx's way."""
    file = path / "config.json"
    if not file.is_file():
        return None
    found = read_config(file).get("quantization")
    return found if isinstance(found, dict) and "group_size" in found else None


def open_folder(path: Path, *, name: str | None = None) -> Checkpoint:
    """Open a folder with quantized matrices; only headers are read.

    Raises
    ------
    phiquant.FormatError
        Files are damaged, or planes have other shapes than the config's bits and groups make.
    phiquant.UnsupportedError
        A mode, bits or groups that phiquant does not decode.
    phiquant.IoError
        A file is missing or cannot be read.
    """
    opened = safetensors.open_folder(path, name=name)
    settings = _settings(path) or {}
    entries: dict[str, TensorEntry] = {}
    planes = set()
    for entry in opened.entries.values():
        module = entry.name.removesuffix(".weight")
        if module != entry.name and entry.type == "u32":
            packed, own = _packed(opened, entry, module, settings)
            entries[entry.name] = packed
            planes |= own
        else:
            entries[entry.name] = entry
    left = {key: entry for key, entry in entries.items() if key not in planes}
    return Checkpoint("mlx", path, opened.files, left, opened.metadata, name=opened.name)


def describe_mlx(checkpoint: Checkpoint) -> ModelSpec:
    """The model of an open folder: its config, held against the weights.

    Raises
    ------
    phiquant.FormatError, phiquant.UnsupportedError
        The config is of another model, or contradicts the weights.
    """
    file = checkpoint.folder / "config.json"
    config = {
        key: value
        for key, value in read_config(file).items()
        if key not in ("quantization", "quantization_config")
    }
    entries = {
        # How matrices are packed was seen when they were opened.
        entry.name: ("F32" if entry.planes else entry.type, entry.shape)
        for entry in checkpoint.entries.values()
    }
    spec = spec_from_config(config, file=file)
    return check_tensors(spec, entries, file=checkpoint.path, config_file=file)


def _packed(
    opened: Checkpoint, entry: TensorEntry, module: str, settings: Mapping[str, object]
) -> tuple[TensorEntry, set[str]]:
    """A matrix's entry, and the names of its scales and biases."""
    place = opened.files[entry.file].path
    own = settings.get(module, settings)
    if not isinstance(own, dict):
        raise FormatError(
            "is packed, and config.json says that it is not", file=place, tensor=entry.name
        )
    mode = own.get("mode") or "affine"
    usual = _DEFAULTS.get(mode, (0, 0)) if isinstance(mode, str) else (0, 0)
    bits, group = _number(own.get("bits"), usual[0]), _number(own.get("group_size"), usual[1])
    wanted = ("scales", "biases") if mode == "affine" else ("scales",)
    others = [opened.entries.get(f"{module}.{kind}") for kind in wanted]
    if any(other is None for other in others):
        raise FormatError(
            f"is packed, and has no {' and '.join(wanted)} beside it",
            file=place,
            tensor=entry.name,
            remedy="The folder is incomplete: fetch it again.",
        )
    found = [entry, *(other for other in others if other is not None)]
    scales = found[1].type
    try:
        if mode == "affine":
            if scales not in _SCALES or found[2].type != scales:
                raise UsageError("scales are no floats")
            codec = find_codec(f"int{bits}_asym_g{group},rule=mlx{_SCALES[scales]}")
        elif mode in _MODES and scales == "u8":
            codec = find_codec(f"{mode},layout=mlx")
        else:
            raise UsageError("there is no such mode")
    except UsageError:
        raise UnsupportedError(
            f"is packed with mode {str(mode)[:20]!r}, {bits} bits, groups of {group} and scales of "
            f"{scales}, which phiquant does not decode",
            file=place,
            tensor=entry.name,
        ) from None
    affine = codec.affine
    if affine is None or len(entry.shape) != 2 or (affine.bits, affine.group) != (bits, group):
        raise FormatError(
            f"is packed with mode {mode}, which has no {bits} bits in groups of {group}",
            file=place,
            tensor=entry.name,
        )
    rows, words = entry.shape
    columns = words * 32 // affine.bits
    groups = (rows, columns // affine.group)
    if (
        rows < 1
        or columns < 1
        or columns * affine.bits != words * 32
        or columns % affine.group
        or any(other.shape != groups for other in found[1:])
    ):
        shapes = ", ".join(str(list(one.shape)) for one in found)
        raise FormatError(
            f"has planes of the shapes {shapes}, which {bits} bits in groups of {group} do not "
            "make",
            file=place,
            tensor=entry.name,
            remedy="Weights and config.json are of different conversions: fetch both again.",
        )
    places = tuple(PlaneEntry(one.file, one.offset, one.nbytes) for one in found)
    packed = replace(
        entry,
        type=codec.name,
        shape=(rows, columns),
        nbytes=sum(one.nbytes for one in places),
        planes=places,
    )
    return packed, {one.name for one in found[1:]}


def _number(value: object, usual: int) -> int:
    if value is None:
        return usual
    return value if isinstance(value, int) and not isinstance(value, bool) else 0
