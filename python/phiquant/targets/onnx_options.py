"""The ONNX target's presets and options, and which grid each matrix gets from them."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from phiquant.architectures import ModelSpec, TensorRole
from phiquant.errors import UnsupportedError, UsageError
from phiquant.targets.names import Target

PROVIDERS: Final = ("cpu", "cuda", "dml", "webgpu")
#: Groups that ONNX Runtime's quantizer and kernels take.
BLOCKS: Final = (16, 32, 64, 128, 256)

_QUANTIZED = ("int8", "int4")
#: Presets that quantize activations, too, a whole tensor at a time.
CLASSIC: Final = ("int8-dynamic", "int8-static")
RANGES: Final = ("minmax", "percentile")
_KEYS: Final[Mapping[str, str]] = {
    "block": "int8 and int4",
    "sym": "int8 and int4",
    "asym": "int8 and int4",
    "accuracy": "int8 and int4",
    "head": "int8 and int4",
    "down": "int8 and int4",
    "mixed": "int4",
    "scales": "int8 and int4",
    "positive-scales": "int8 and int4",
    "qdq": "int8 and int4",
    "ranges": "int8-static",
    "text": "int8-static",
    "tokens": "int8-static",
    "ep": "all presets",
}


@dataclass(frozen=True)
class Grid:
    """What a quantized matrix's numbers can be.

    Attributes
    ----------
    bits : int
        4 or 8; 2 by override.
    symmetric : bool
        Without zero points.
    block : int
        Values along a row that share a scale; 0 for whole rows.
    """

    bits: int
    symmetric: bool
    block: int

    @property
    def codec(self) -> str:
        """phiquant's name of it."""
        group = f"g{self.block}" if self.block else "channel"
        return f"int{self.bits}_{'sym' if self.symmetric else 'asym'}_{group}"


@dataclass(frozen=True)
class Settings:
    """A target's choices.

    Attributes
    ----------
    preset : str
    provider : str
        The execution provider that the graph is made for.
    activations : str
        ``f32`` or ``f16``: of the graph's floats, its inputs and outputs.
    grid : Grid or None
        Of the matrices; None for floats.
    head, down : Grid or None
        Of the output matrix, and of the down projections.
    mixed : bool
        The outer layers' and every third layer's attention and down projections at 8 bits.
    accuracy : int
        MatMulNBits' ``accuracy_level``; 0 leaves it out.
    scales : str
        ``f32`` or ``f16``: as which scales are stored.
    qdq : bool
        DequantizeLinear and MatMul instead of MatMulNBits.
    rule : str
        Which of ONNX Runtime's rules makes the codes: ``ort``, that of its blockwise quantizer, or
        ``qdq``, that of its quantization scripts, whose scales are positive.
    classic : str
        ``dynamic`` or ``static``: activations are rounded to 8 bits, too, by their range in each
        run, or by that in calibration; else empty.
    ranges : str
        How ``static`` finds it.
    text : str or None
        The calibration text's file; None for phiquant's own.
    tokens : int or None
        How much of it is read; None for the usual number.
    """

    preset: str
    provider: str
    activations: str
    grid: Grid | None
    head: Grid | None
    down: Grid | None
    mixed: bool
    accuracy: int
    scales: str
    qdq: bool
    rule: str = "ort"
    classic: str = ""
    ranges: str = ""
    text: str | None = None
    tokens: int | None = None


def settings_of(target: Target) -> Settings:
    """Read a target's options.

    Raises
    ------
    phiquant.UsageError
        An unknown option, one that the preset does not have, or two that contradict each other.
    """
    options = dict(target.options)
    for key in options:
        if key not in _KEYS:
            raise _wrong(target, f"ONNX targets have no option '{key}'")
        family = "int8 and int4" if target.preset in _QUANTIZED else target.preset
        if _KEYS[key] not in ("all presets", family, target.preset):
            raise _wrong(target, f"'{key}' is for {_KEYS[key]}")
    if target.preset in CLASSIC:
        return _classic(target, options)
    provider = _choice(target, options, "ep", PROVIDERS, "cpu")
    if target.preset not in _QUANTIZED:
        activations = "f16" if target.preset == "fp16" else "f32"
        return Settings(
            *(target.preset, provider, activations, None, None, None),
            mixed=False,
            accuracy=0,
            scales=activations,
            qdq=False,
        )
    if "sym" in options and "asym" in options:
        raise _wrong(target, "'sym' and 'asym' exclude each other")
    for flag in ("sym", "asym", "mixed", "qdq", "positive-scales"):
        if options.get(flag, True) is not True:
            raise _wrong(target, f"'{flag}' is a flag and takes no value")
    block = int(_choice(target, options, "block", tuple(map(str, BLOCKS)), "32"))
    bits = 8 if target.preset == "int8" else 4
    symmetric = "asym" not in options
    if "positive-scales" in options and not symmetric:
        raise _wrong(target, "asymmetric scales are positive without 'positive-scales'")
    mixed = "mixed" in options
    grid = Grid(bits, symmetric, block)
    eight = Grid(8, symmetric, block)
    by_word = {"int8": eight, "int4": Grid(4, symmetric, block), "float": None}
    head = _choice(target, options, "head", tuple(by_word), "int8" if mixed else target.preset)
    down = _choice(target, options, "down", ("int8", "int4"), target.preset)
    activations = "f32" if provider == "cpu" else "f16"
    scales = {"fp32": "f32", "fp16": "f16"}[
        _choice(target, options, "scales", ("fp32", "fp16"), f"fp{activations[1:]}")
    ]
    if activations == "f16" and scales == "f32":
        raise _wrong(target, f"ep={provider} computes in fp16, and so are its scales")
    qdq = "qdq" in options
    # 4 lets the kernel round activations to int8 a block; without it ONNX Runtime's 8-bit kernel
    # is hundreds of times slower on processors. CUDA has no such mode.
    usual = "4" if provider in ("cpu", "webgpu") and not qdq else "0"
    accuracy = int(_choice(target, options, "accuracy", tuple("01234"), usual))
    if accuracy and (qdq or provider in ("cuda", "dml")):
        where = "qdq" if qdq else f"ep={provider}"
        raise _wrong(target, f"'accuracy' says nothing to {where}")
    return Settings(
        *(target.preset, provider, activations, grid, by_word[head], by_word[down]),
        mixed=mixed,
        accuracy=accuracy,
        scales=scales,
        qdq=qdq,
        rule="qdq" if "positive-scales" in options else "ort",
    )


def _classic(target: Target, options: Mapping[str, str | bool]) -> Settings:
    """Whole rows at 8 bits and positive scales: what integer kernels take."""
    _choice(target, options, "ep", ("cpu",), "cpu")
    rows = Grid(8, True, 0)
    classic = target.preset.removeprefix("int8-")
    ranges = _choice(target, options, "ranges", RANGES, "minmax") if classic == "static" else ""
    return Settings(
        *(target.preset, "cpu", "f32", rows, rows, None),
        mixed=False,
        accuracy=0,
        scales="f32",
        qdq=False,
        rule="qdq",
        classic=classic,
        ranges=ranges,
        text=_text(target, options),
        tokens=_tokens(target, options),
    )


def _text(target: Target, options: Mapping[str, str | bool]) -> str | None:
    text = options.get("text")
    if text is True or text == "":
        raise _wrong(target, "'text' is without a file")
    return text or None


def _tokens(target: Target, options: Mapping[str, str | bool]) -> int | None:
    tokens = options.get("tokens")
    if tokens is None:
        return None
    word = str(tokens)
    if not (word.isascii() and word.isdecimal() and len(word) < 9 and int(word) >= 16):
        raise _wrong(target, "'tokens' is no number from 16 to 99999999")
    return int(word)


def grids_of(
    spec: ModelSpec, settings: Settings, overrides: Sequence[tuple[str, str]] = ()
) -> dict[str, Grid | None]:
    """The grid of every matrix by source name; None for floats.

    The tied embedding's entry is that of the output matrix, which it serves as well.

    Parameters
    ----------
    overrides : sequence of (glob, codec)
        On source names; the first match decides. Codecs are ``int{2,4,8}_{sym,asym}_g{16..256}``
        and ``float``.

    Raises
    ------
    phiquant.UsageError
        A codec that MatMulNBits does not have, or a glob that matches no matrix.
    """
    chosen: dict[str, Grid | None] = {}
    used: set[str] = set()
    for tensor in spec.tensors:
        if len(tensor.shape) != 2:
            continue
        grid = _preset_grid(spec, settings, tensor)
        for glob, codec in overrides:
            if fnmatch.fnmatchcase(tensor.source, glob):
                used.add(glob)
                if settings.classic:
                    raise UsageError(
                        f"'{glob}={codec}': {settings.preset} has one codec for all matrices"
                    )
                grid = _override(tensor, codec)
                if (
                    grid is not None
                    and grid == Grid(2, True, grid.block)
                    and settings.rule == "qdq"
                ):
                    raise UsageError(
                        f"'{glob}={codec}': positive-scales is for 4 and 8 bits",
                        tensor=tensor.source,
                        remedy="Choose int2_asym, whose scales are positive, too.",
                    )
                break
        if tensor.role == "embedding" and not spec.tied and grid is not None:
            raise UsageError(
                "the embedding of an untied model is a table of floats in ONNX",
                tensor=tensor.source,
            )
        if grid is not None:
            _check_columns(tensor, grid, settings)
        chosen[tensor.source] = grid
    for glob, codec in overrides:
        if glob not in used:
            raise UsageError(f"'{glob}={codec}' matches no matrix, or only those of others before")
    return chosen


def _preset_grid(spec: ModelSpec, settings: Settings, tensor: TensorRole) -> Grid | None:
    if tensor.role == "output" or (tensor.role == "embedding" and spec.tied):
        return settings.head
    if settings.grid is None or tensor.role == "embedding":
        return None
    if tensor.role == "ffn_down" and settings.down is not None and settings.down != settings.grid:
        return settings.down
    if settings.mixed and tensor.role in ("attn_qkv", "ffn_down"):
        # The layers that onnxruntime-genai's k_quant_mixed keeps at 8 bits, after llama.cpp's rule.
        assert tensor.layer is not None
        first, eighth = tensor.layer, spec.layers / 8
        if first < eighth or first >= 7 * spec.layers / 8 or (first - round(eighth)) % 3 == 2:
            return Grid(8, settings.grid.symmetric, settings.grid.block)
    return settings.grid


def _override(tensor: TensorRole, codec: str) -> Grid | None:
    if codec in ("float", "f32", "f16"):
        return None
    name, _, group = codec.partition("_g")
    bits, _, kind = name.removeprefix("int").partition("_")
    if bits in ("2", "4", "8") and kind in ("sym", "asym") and group in map(str, BLOCKS):
        return Grid(int(bits), kind == "sym", int(group))
    raise UsageError(
        f"MatMulNBits has no codec '{codec}'",
        tensor=tensor.source,
        remedy="It takes int{2,4,8}_{sym,asym}_g{16,32,64,128,256}, and float.",
    )


def _check_columns(tensor: TensorRole, grid: Grid, settings: Settings) -> None:
    columns = tensor.shape[1]
    if grid.block == 0 or columns % grid.block == 0:
        return
    if settings.qdq:
        raise UnsupportedError(
            f"has rows of {columns}, no multiple of the block of {grid.block}, which "
            "DequantizeLinear needs",
            tensor=tensor.source,
            remedy="Choose another block=, or leave out qdq.",
        )
    if tensor.role == "embedding":
        raise UnsupportedError(
            f"has rows of {columns}, no multiple of the block of {grid.block}, which the shared "
            "table needs",
            tensor=tensor.source,
            remedy="Choose another block=, or head=float.",
        )


def _choice(
    target: Target,
    options: Mapping[str, str | bool],
    key: str,
    words: Sequence[str],
    default: str,
) -> str:
    value = options.get(key, default)
    if value is True or value not in words:
        said = "without a value" if value is True else f"'{value}'"
        raise _wrong(target, f"'{key}' is {said}, not one of {', '.join(words)}")
    return str(value)


def _wrong(target: Target, cause: str) -> UsageError:
    return UsageError(f"'{target}': {cause}", remedy="'phiquant formats' lists what there is.")
