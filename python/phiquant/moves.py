"""Moves between quantized formats: what a target must be to hold a source's numbers."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from phiquant.architectures.spec import ModelSpec, TensorRole
from phiquant.checkpoint import Checkpoint, TensorEntry
from phiquant.codecs import find_codec
from phiquant.errors import PhiquantError, UnsupportedError, UsageError
from phiquant.plan import PlannedTarget, PlannedTensor
from phiquant.targets.names import Target

#: The codec of the portable grid: whole zero points, and scales of 7 bits, so that every product
#: of a code and a scale is a float16 (docs/formats/moving.md).
PORTABLE: Final = "int4_asym_g32,rule=portable"

#: Presets of targets that can hold the portable grid.
_PORTABLE_PRESETS: Final = {
    "gguf": ("q4_1",),
    "onnx": ("int4",),
    "openvino": ("int4", "int4_asym"),
    "mlx": ("4bit",),
    "hf": ("w4a16", "gptq", "awq"),
}

_FLOATS: Final = ("f32", "f16", "bf16")
_FLOAT_PRESETS: Final = (*_FLOATS, "fp32", "fp16")
_DTYPES: Final = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
# ggml's blocks of 32 values: bits, and whether a minimum stands beside the scale.
_BLOCKS: Final[Mapping[str, tuple[int, str]]] = {
    "q4_0": (4, "sym"),
    "q4_1": (4, "biased"),
    "q5_0": (5, "sym"),
    "q5_1": (5, "biased"),
    "q8_0": (8, "sym"),
    "mxfp4": (4, "mxfp4"),
}
# Bits that a format has codes of.
_BITS: Final = {
    "gguf": (4, 5, 8),
    "onnx": (2, 4, 8),
    "openvino": (4, 8),
    "mlx": (2, 3, 4, 5, 6, 8),
    "hf": (2, 3, 4, 8),
}
_SMALL_FLOATS: Final = ("mxfp4", "mxfp8", "nvfp4", "nf4", "fp8")
# Presets that leave no matrix a choice.
_UNIFORM: Final = ("int8-dynamic", "int8-static")
# Bits of a preset's codes.
_PRESET_BITS: Final = re.compile(r"(?:int|w)?([2-8])(?:bit|a16|_sym|_asym)?$|q([458])_[01]$")


@dataclass(frozen=True)
class Held:
    """The grid of an encoded matrix.

    Attributes
    ----------
    bits : int
    group : int
        Values that share a scale; 0: the whole row.
    kind : str
        ``sym``, ``asym`` (whole zero points), ``biased``, or the name of a small float's codec.
    scales : str
        The type of the scales: ``float32``, ``float16`` or ``bfloat16``.
    """

    bits: int
    group: int
    kind: str
    scales: str


def held(entry: TensorEntry) -> Held | None:
    """What an entry holds; None for floats, and for codecs whose codes cannot be moved."""
    name = codec_of(entry)
    if name in _BLOCKS:
        bits, kind = _BLOCKS[name]
        return Held(bits, 32, kind, "float16")
    if not entry.planes and not entry.parts:
        return None
    codec = find_codec(name)
    if codec.affine is None:
        return None
    small = name.partition(",")[0]
    if small.startswith(("mxfp", "nvfp", "fp8", "nf4")):
        return Held(codec.affine.bits, codec.affine.group, small, "float32")
    biased = codec.has_biases
    kind = "biased" if biased else "sym" if codec.affine.symmetric else "asym"
    return Held(codec.affine.bits, codec.affine.group, kind, codec.affine.scale)


def codec_of(entry: TensorEntry) -> str:
    """The codec of an entry; of parts that differ, the first that is no float."""
    names = [part.type for part in entry.parts] or [entry.type]
    return next((name for name in names if not _is_float(name)), names[0])


def is_quantized(checkpoint: Checkpoint) -> bool:
    """Whether some matrix is encoded already."""
    return any(not _is_float(codec_of(entry)) for entry in checkpoint.entries.values())


def _is_float(name: str) -> bool:
    return name.partition(",")[0] in _FLOATS or not _is_codec(name)


def _is_codec(name: str) -> bool:
    try:
        find_codec(name)
    except UsageError:
        return False
    return True


def can_move(entry: TensorEntry, codec: str) -> bool:
    """Whether a codec may hold an encoded entry's numbers: the executor compares every one."""
    own = codec_of(entry)
    return own != codec and not _is_float(own) and _can_hold(codec, held(entry))


def prepare(
    target: Target, spec: ModelSpec, checkpoint: Checkpoint
) -> tuple[Target, tuple[tuple[str, str], ...]]:
    """A target with the options and overrides with which it can hold the source's numbers.

    Only what the user left open is filled in: groups, signs, the type of scales, and by each
    matrix's name the codec that holds its bits.

    Raises
    ------
    phiquant.UnsupportedError
        The preset's codes have fewer bits than most of the source's matrices, or are of another
        kind.
    """
    if target.preset in _FLOAT_PRESETS:
        return target, ()
    grids = {t.source: held(checkpoint.entries[t.source]) for t in spec.tensors}
    inner = Counter(grids[t.source] for t in spec.tensors if t.layer is not None and _is_matrix(t))
    main = inner.most_common(1)[0][0]
    _check_kind(target, main, checkpoint)
    _check_bits(target, main, checkpoint)
    if target.preset in _UNIFORM:
        return target, ()
    options = dict(target.options)
    if target.format == "openvino" and target.preset.startswith("int4"):
        options = {**_without_awq(target), **options}
    if target.format in ("hf", "mlx") and target.preset not in _DTYPES.values():
        options.setdefault("dtype", _DTYPES[_scales(main)])
    if target.preset in ("gptq", "awq"):
        # All matrices alike.
        if main is not None:
            options.setdefault("group", str(min(main.group, 128) or "channel"))
            if not {"sym", "asym"} & options.keys():
                options["sym" if main.kind == "sym" else "asym"] = True
            if target.preset == "gptq":
                options.setdefault("bits", str(next(b for b in _BITS["hf"] if b >= main.bits)))
        return replace(target, options=tuple(sorted(options.items(), key=lambda o: o[0]))), ()
    overrides = [
        (tensor.source, name)
        for tensor in spec.tensors
        if _takes_override(target.format, spec, tensor)
        and (name := _name(target, grids[tensor.source], tensor, checkpoint))
    ]
    return (
        replace(target, options=tuple(sorted(options.items(), key=lambda o: o[0]))),
        tuple(overrides),
    )


def prepare_portable(target: Target, spec: ModelSpec) -> tuple[Target, tuple[tuple[str, str], ...]]:
    """A target with the options and overrides of the portable grid.

    Raises
    ------
    phiquant.UsageError
        A preset that cannot hold it, or an option that contradicts it.
    """
    if target.preset not in _PORTABLE_PRESETS[target.format]:
        presets = ", ".join(
            f"{name}:{preset}" for name, all_ in _PORTABLE_PRESETS.items() for preset in all_
        )
        raise UsageError(
            f"'{target}' cannot hold the portable grid: 4 bits with whole zero points",
            remedy=f"These can: {presets}.",
        )
    if target.options:
        raise UsageError(
            f"'{target}': the portable grid leaves no choice of options",
            remedy=f"Write {target.format}:{target.preset} alone.",
        )
    options: dict[str, str | bool] = {}
    if target.format == "openvino":
        options = _without_awq(target)
    if target.format in ("hf", "mlx"):
        options["dtype"] = "fp16"
    if target.preset in ("gptq", "awq"):
        options |= {"group": "32", "asym": True}
    grid = Held(4, 32, "asym", "float16")
    overrides = tuple(
        (tensor.source, str(_codec_name(target.format, grid, tensor.shape[-1])))
        for tensor in spec.tensors
        if target.preset not in ("gptq", "awq") and _takes_override(target.format, spec, tensor)
    )
    return replace(target, options=tuple(sorted(options.items(), key=lambda o: o[0]))), overrides


def with_moves(planned: PlannedTarget, checkpoint: Checkpoint) -> PlannedTarget:
    """The same target, made of the source's own codes.

    Raises
    ------
    phiquant.UnsupportedError
        A matrix that it holds in a codec that cannot hold these numbers; the error says what a
        second rounding would cost.
    """

    unheeded = set()

    def moved(tensor: PlannedTensor) -> PlannedTensor:
        if tensor.source is None:
            return tensor
        entry = checkpoint.entries[tensor.source]
        own = codec_of(entry)
        if _is_float(own):
            return tensor
        if own == tensor.codec and not entry.planes and not entry.parts:
            return tensor  # the very blocks go through
        if any(part.type != own for part in entry.parts):
            raise UnsupportedError(
                "has parts in several codecs in the source, and is one matrix in phiquant",
                file=checkpoint.path,
                tensor=tensor.source,
                remedy="Round a second time with --requantize (requantize=True).",
            )
        if entry.column_scale is not None:
            raise UnsupportedError(
                "has columns that AWQ has scaled, with factors that only OpenVINO's graph holds",
                file=checkpoint.path,
                tensor=tensor.source,
                remedy="Move a model made with noawq, or round a second time with --requantize "
                "(requantize=True).",
            )
        if not _can_hold(tensor.codec, held(entry)):
            raise UnsupportedError(
                f"is {own} in the source, whose numbers {planned.target} cannot hold in "
                f"{tensor.codec}",
                file=checkpoint.path,
                tensor=tensor.source,
                remedy=f"Choose a target that can, or round a second time with --requantize "
                f"(requantize=True){_cost(checkpoint, entry, tensor.codec)}.",
            )
        if tensor.best or tensor.importance is not None:
            unheeded.add(tensor.source)
        return replace(tensor, via=own, best=False, importance=None)

    made = _with_tensors(planned, moved)
    if not unheeded:
        return made
    count = len(unheeded)
    matrices = "1 matrix is" if count == 1 else f"{count} matrices are"
    note = f"{matrices} moved as the source has them, without the quality or importance asked for"
    return replace(made, notes=(*made.notes, note))


def with_portable_grid(planned: PlannedTarget, checkpoint: Checkpoint) -> PlannedTarget:
    """The same target, with every matrix on the portable grid, decoded where it is a float.

    Raises
    ------
    phiquant.UnsupportedError
        A source that is quantized already, whose weights are on another grid.
    """
    if is_quantized(checkpoint):
        raise UnsupportedError(
            "is quantized already, and the portable grid is for weights that are not",
            file=checkpoint.path,
            remedy="Leave --grid (grid=) out, so that its own codes are moved, or convert the "
            "original weights.",
        )

    def moved(tensor: PlannedTensor) -> PlannedTensor:
        if tensor.source is None or len(checkpoint.entries[tensor.source].shape) < 2:
            return tensor
        codec = "f16" if tensor.codec == "bf16" else tensor.codec
        return replace(tensor, codec=codec, via=PORTABLE)

    return _with_tensors(planned, moved)


def _with_tensors(planned: PlannedTarget, change: object) -> PlannedTarget:
    assert callable(change)
    return replace(
        planned,
        files=tuple(
            replace(file, tensors=tuple(change(tensor) for tensor in file.tensors))
            for file in planned.files
        ),
    )


def _without_awq(target: Target) -> dict[str, str | bool]:
    """Scaled columns would be other weights."""
    if ("awq", True) in target.options:
        raise UsageError(
            f"'{target}': AWQ scales columns, and what is moved stays as it is",
            remedy="Leave awq out.",
        )
    return {"noawq": True}


def _is_matrix(tensor: TensorRole) -> bool:
    return len(tensor.shape) == 2


def _scales(grid: Held | None) -> str:
    return "bfloat16" if grid is None else grid.scales


def _preset_bits(target: Target) -> int | None:
    match = _PRESET_BITS.match(target.preset)
    return int(match[1] or match[2]) if match else None


def _check_bits(target: Target, main: Held | None, checkpoint: Checkpoint) -> None:
    bits = _preset_bits(target)
    if main is not None and bits is not None and bits < main.bits:
        raise UnsupportedError(
            f"holds codes of {main.bits} bits, which '{target}' cannot",
            file=checkpoint.path,
            remedy=f"Choose a target of {main.bits} bits, or round a second time with --requantize "
            "(requantize=True).",
        )


def _check_kind(target: Target, main: Held | None, checkpoint: Checkpoint) -> None:
    """Refuse what would bear a preset's name and hold none of its codes."""
    if main is None:
        return
    small = next((name for name in _SMALL_FLOATS if target.preset.startswith(name)), "")
    if target.preset == "w8a8":
        fits = (main.bits, main.kind, main.group) == (8, "sym", 0)
    elif small or main.kind not in ("sym", "asym", "biased"):
        fits = bool(small) and main.kind.startswith(small)
    else:
        fits = target.format != "gguf" or target.preset in _BLOCKS
    if not fits:
        kind = {"sym": "symmetric", "asym": "asymmetric"}.get(main.kind, main.kind)
        raise UnsupportedError(
            f"holds {kind} codes of {main.bits} bits, which '{target}' does not",
            file=checkpoint.path,
            remedy="Choose a target of such codes, or round a second time with --requantize "
            "(requantize=True).",
        )


def _takes_override(format_name: str, spec: ModelSpec, tensor: TensorRole) -> bool:
    """Whether the format's targets let a tensor's codec be chosen."""
    if not _is_matrix(tensor):
        return False
    if tensor.role == "embedding":
        # A table of floats there, unless it is the output matrix, too.
        return format_name not in ("hf", "onnx") or (format_name == "onnx" and spec.tied)
    return True


def _name(
    target: Target, grid: Held | None, tensor: TensorRole, checkpoint: Checkpoint
) -> str | None:
    """The format's own name for what holds a matrix, or None to leave it to the preset."""
    own = codec_of(checkpoint.entries[tensor.source])
    if grid is not None:
        wider = replace(grid, bits=max(grid.bits, _preset_bits(target) or 0))
        if name := _codec_name(target.format, wider, tensor.shape[-1]):
            return name
    is_float = _is_float(own)
    if not is_float and tensor.layer is not None:
        return None
    # What stays a float; embedding and head also where nothing else can hold them.
    if target.format == "onnx":
        return "float"
    if target.format == "gguf":
        return own.partition(",")[0] if is_float else "f32"
    if target.format == "openvino":
        return "f16" if is_float and not own.startswith("f32") else "f32"
    return "bf16"


def _codec_name(format_name: str, grid: Held, columns: int) -> str | None:
    kind = grid.kind
    bits = next((b for b in _BITS[format_name] if b >= grid.bits), 8)
    if kind == "mxfp4":
        return "mxfp4" if format_name in ("gguf", "mlx", "hf", "openvino") else None
    if kind not in ("sym", "asym", "biased"):
        return None
    if format_name == "gguf":
        return {
            (4, True): "q4_0",
            (5, True): "q5_0",
            (8, True): "q8_0",
            (4, False): "q4_1",
            (5, False): "q5_1",
            # Codes less their zero points: signed ones, where the source's have fewer bits.
            (8, False): "q8_0",
        }.get((bits, kind == "sym"))
    sign = "sym" if kind == "sym" else "asym"
    lengths = {
        "onnx": (256, 128, 64, 32, 16),
        "openvino": (256, 128, 64, 32, 16),
        "mlx": (128, 64, 32),
        "hf": (128, 64, 32, 16),
    }[format_name]
    whole = grid.group or columns
    if grid.group == 0 and format_name in ("openvino", "hf"):
        return f"int{bits}_{sign}_channel"
    # A longer group is several of the longest that divide it, with the same scale.
    fitting = [length for length in lengths if whole % length == 0 and columns % length == 0]
    if not fitting:
        return None
    return f"{bits}bit_g{fitting[0]}" if format_name == "mlx" else f"int{bits}_{sign}_g{fitting[0]}"


def _can_hold(name: str, grid: Held | None) -> bool:
    """Whether a codec may hold these numbers; the executor compares every one of them."""
    base = name.partition(",")[0]
    if base in _FLOATS:
        return True
    if grid is None:
        return False
    if grid.kind not in ("sym", "asym", "biased"):
        return base.startswith(grid.kind)
    if base in _BLOCKS:
        return _BLOCKS[base][1] != "mxfp4" and _BLOCKS[base][0] >= grid.bits
    codec = find_codec(name)
    return codec.affine is not None and base.startswith("int") and codec.affine.bits >= grid.bits


def _cost(checkpoint: Checkpoint, entry: TensorEntry, codec: str) -> str:
    """What a second rounding does to some rows, in words; empty where it cannot be told."""
    from phiquant.reference.weights import Weights
    from phiquant.tensor import quantize

    try:
        count = min(64, math.prod(entry.shape[:-1]))
        values = Weights(checkpoint).rows(entry.name, 0, count)
        error = quantize(values, codec).error(values)
    except PhiquantError:
        return ""
    return f"; it would move the weights by {error:.1%} of their size (root mean square)"
