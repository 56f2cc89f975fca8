"""Gives each matrix the scheme that compressed-tensors' presets give it, or the user wants."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from phiquant.architectures.spec import ModelSpec, TensorRole
from phiquant.errors import UsageError
from phiquant.recipes import gptq
from phiquant.recipes.globs import by_name

#: Lengths of groups; 0 is a whole row, ``channel``.
GROUPS: Final = (16, 32, 64, 128, 0)

#: Presets of floats, by name: the codec, config.json's name of the type, and safetensors'.
FLOATS: Final[Mapping[str, tuple[str, str, str]]] = {
    "fp32": ("f32", "float32", "F32"),
    "bf16": ("bf16", "bfloat16", "BF16"),
    "fp16": ("f16", "float16", "F16"),
}

#: Presets of packed integers: bits of a code.
PACKED: Final[Mapping[str, int]] = {"w8a16": 8, "w4a16": 4, "w3a16": 3, "w2a16": 2}

#: The presets of ``hf:`` targets.
PRESETS: Final = (*FLOATS, "w8a8", "fp8", *PACKED, "mxfp4", "nvfp4", *gptq.LAYOUTS)

# What compressed-tensors calls Linear; the output stays a float, as in llm-compressor's recipes.
_LINEAR = ("attn_qkv", "attn_output", "ffn_gate_up", "ffn_down", "output")

_NAME = re.compile(r"(?:w([2348])a16|int([2348]))(?:_(sym|asym))?(?:_(g16|g32|g64|g128|channel))?$")


@dataclass(frozen=True)
class Scheme:
    """How one matrix is held, and what happens to what it is multiplied by.

    Attributes
    ----------
    bits : int
    symmetric : bool
    group : int
        Values that share a scale along a row; 0: the whole row.
    activations : bool
        Whether activations are rounded to 8 bits, too, each token by its own scale.
    small_floats : bool
        Whether codes are floats: E4M3 of 8 bits, or E2M1 of 4 bits, in groups of 32 with powers of
        two as scales, or of 16 with 8-bit floats under a scale of the whole tensor.
    layout : str
        ``gptq``, ``gptq_v1`` or ``awq``; empty for compressed-tensors.
    """

    bits: int
    symmetric: bool
    group: int
    activations: bool = False
    small_floats: bool = False
    layout: str = ""

    def __str__(self) -> str:
        if self.small_floats:
            return "fp8" if self.activations else self._four_bits
        if self.activations:
            return "w8a8"
        sign = "sym" if self.symmetric else "asym"
        length = f"g{self.group}" if self.group else "channel"
        if self.layout:
            return f"{self.layout} int{self.bits}_{sign}_{length}"
        return f"w{self.bits}a16_{sign}_{length}"

    @property
    def format(self) -> str:
        """compressed-tensors' name of the container; or GPTQ's or AWQ's layout."""
        if self.layout:
            return self.layout
        if self.small_floats:
            return "float-quantized" if self.activations else f"{self._four_bits}-pack-quantized"
        return "int-quantized" if self.activations else "pack-quantized"

    @property
    def has_global(self) -> bool:
        """Whether the whole tensor has a scale, too: NVFP4."""
        return self.small_floats and self.group == 16

    @property
    def _four_bits(self) -> str:
        return "nvfp4" if self.has_global else "mxfp4"

    def codec(self, scales: str) -> str:
        """The codec's name, with scales of the type ``scales``."""
        if self.small_floats:
            name = "fp8_channel" if self.activations else f"{self._four_bits},layout=packed"
            return name if scales == "bf16" else f"{name},scales={scales}"
        sign = "sym" if self.symmetric else "asym"
        group = f"g{self.group}" if self.group else "channel"
        name = f"int{self.bits}_{sign}_{group},rule=ct"
        if self.layout:
            return f"{name},layout={self.layout}"
        if scales != "bf16":
            name += f",scales={scales}"
        # Signed bytes, as OpenVINO has them, too.
        return f"{name},layout=openvino" if self.activations else name

    def settings(self, targets: list[str]) -> dict[str, object]:
        """A group of ``config.json``'s quantization_config."""
        kind = "float" if self.small_floats else "int"
        weights: dict[str, object] = {
            "num_bits": self.bits,
            "type": kind,
            "symmetric": self.symmetric,
            "strategy": "group" if self.group else "channel",
            "group_size": self.group or None,
            "dynamic": False,
        }
        if self.has_global:
            weights |= {"strategy": "tensor_group", "scale_dtype": "torch.float8_e4m3fn"}
        elif self.small_floats and not self.activations:
            weights["scale_dtype"] = "torch.uint8"
        inputs = {
            "num_bits": 8,
            "type": kind,
            "symmetric": True,
            "strategy": "token",
            "group_size": None,
            "dynamic": True,
        }
        return {
            "targets": targets,
            "format": self.format,
            "weights": weights,
            "input_activations": inputs if self.activations else None,
            "output_activations": None,
        }


#: 8 bits for weights and activations.
W8A8: Final = Scheme(8, True, 0, activations=True)

#: The same of 8-bit floats.
FP8: Final = Scheme(8, True, 0, activations=True, small_floats=True)

#: 4-bit floats in groups with a power of two.
MXFP4: Final = Scheme(4, True, 32, small_floats=True)

#: 4-bit floats in groups with an 8-bit float, under a scale of the whole tensor.
NVFP4: Final = Scheme(4, True, 16, small_floats=True)

_FIXED: Final = {"w8a8": W8A8, "fp8": FP8, "mxfp4": MXFP4, "nvfp4": NVFP4}


@dataclass(frozen=True)
class Assignment:
    """How every linear layer's matrix is held, by its name in the source; None where a float."""

    schemes: Mapping[str, Scheme | None]

    def config(self) -> dict[str, object] | None:
        """``config.json``'s quantization_config; None where all is floats."""
        modules: dict[Scheme, list[str]] = {}
        for name, scheme in self.schemes.items():
            if scheme is not None:
                modules.setdefault(scheme, []).append(name.removesuffix(".weight"))
        if not modules:
            return None
        first = next(iter(modules))
        if first.layout:
            return gptq.settings(first.layout, first.bits, first.group, symmetric=first.symmetric)
        # The head of a model that is tied has no tensor, and no scheme either.
        floats = [n.removesuffix(".weight") for n, s in self.schemes.items() if s is None]
        ignored = list(dict.fromkeys([*floats, *([] if self.has_quantized_head else ["lm_head"])]))
        single = len(modules) == 1
        groups = {
            f"group_{number}": scheme.settings(["Linear"] if single else names)
            for number, (scheme, names) in enumerate(modules.items())
        }
        formats = {scheme.format for scheme in modules}
        return {
            "quant_method": "compressed-tensors",
            "format": formats.pop() if len(formats) == 1 else "mixed-precision",
            "quantization_status": "compressed",
            "global_compression_ratio": None,
            "kv_cache_scheme": None,
            "ignore": ignored,
            "config_groups": groups,
        }

    @property
    def has_quantized_head(self) -> bool:
        """Whether the output's matrix is quantized."""
        return self.schemes.get("lm_head.weight") is not None


def scheme_of(text: str, *, group: int = 128, symmetric: bool = True) -> Scheme | None:
    """A scheme by its name: ``w4a16``, ``int4_asym_g32``, ``w8a8``; None for a float.

    Parameters
    ----------
    group, symmetric :
        What holds where the name does not say.

    Raises
    ------
    phiquant.UsageError
        There is no such scheme.
    """
    name = text.strip().lower()
    if name in (*FLOATS, "f16", "f32", "float"):
        return None
    if name in _FIXED:
        return _FIXED[name]
    match = _NAME.match(name)
    if match:
        length = match[4]
        own = group if length is None else 0 if length == "channel" else int(length[1:])
        sign = symmetric if match[3] is None else match[3] == "sym"
        return Scheme(int(match[1] or match[2]), sign, own)
    known = [*PACKED, *_FIXED, "bf16"]
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"Did you mean {' or '.join(near)}? " if near else ""
    raise UsageError(
        f"hf has no way to hold weights named '{text}'",
        remedy=f"{hint}There are {', '.join(known)}, and kinds as int4_asym_g32.",
    )


def assign(
    spec: ModelSpec,
    preset: str,
    *,
    group: int | None = None,
    symmetric: bool | None = None,
    bits: int | None = None,
    version: int | None = None,
    overrides: Iterable[tuple[str, str]] = (),
) -> Assignment:
    """How each matrix is held.

    Parameters
    ----------
    spec : ModelSpec
    preset : str
        One of :data:`PRESETS`.
    group : int, optional
        Of packed integers; 128 by default, as in compressed-tensors' presets. 0 is a whole row.
    symmetric : bool, optional
        Of packed integers; True by default, but for AWQ.
    bits, version : int, optional
        Of GPTQ: 4 bits by default; and the first version of its layout where symmetric.
    overrides : iterable of (glob, name)
        On source tensor names; the first match decides. Names as :func:`scheme_of` takes them.

    Raises
    ------
    phiquant.UsageError
        Options that the preset does not have, a group that does not fit a matrix, or a glob that
        matches none.
    """
    grouped = preset in PACKED or preset in gptq.LAYOUTS
    if preset != "gptq" and (bits is not None or version is not None):
        raise UsageError(
            f"hf:{preset} has no choice of bits and versions", remedy="Leave the options out."
        )
    if not grouped and (group is not None or symmetric is not None):
        raise UsageError(
            f"hf:{preset} has no choice of groups and signs", remedy="Leave the options out."
        )
    if group is not None and group not in GROUPS:
        raise UsageError(
            f"hf has groups of 16, 32, 64, 128 and channel, not {group}",
            remedy="Choose one of them.",
        )
    length = 128 if group is None else group
    sign = preset != "awq" if symmetric is None else symmetric
    overrides = list(overrides)
    if preset in gptq.LAYOUTS:
        if overrides:
            raise UsageError(
                f"hf:{preset} holds all linear layers alike; '{overrides[0][0]}' cannot differ",
                remedy="Leave the override out, or choose hf:w4a16, which takes any.",
            )
        layout = gptq.layout_of(preset, symmetric=sign, version=version)
        default: Scheme | None = Scheme(4 if bits is None else bits, sign, length, layout=layout)
    else:
        default = scheme_of(preset, group=length, symmetric=sign)
    linear = [tensor for tensor in spec.tensors if tensor.role in _LINEAR]
    wanted = by_name(
        (tensor.source for tensor in linear),
        [(glob, scheme_of(name, group=length, symmetric=sign)) for glob, name in overrides],
        kind="linear layer",
    )
    schemes: dict[str, Scheme | None] = {}
    for tensor in linear:
        rule = None if tensor.role == "output" else default
        found = wanted.get(tensor.source, rule)
        if found is not None:
            _check_fit(tensor, found)
        schemes[tensor.source] = found
    return Assignment(schemes)


def _check_fit(tensor: TensorRole, scheme: Scheme) -> None:
    """compressed-tensors takes no group that does not divide the rows; nor does its packing."""
    columns = tensor.shape[-1]
    if scheme.group and columns % scheme.group:
        fitting = [str(size) for size in GROUPS if size and columns % size == 0]
        raise UsageError(
            f"its rows of {columns} are no multiple of the group of {scheme.group}",
            tensor=tensor.source,
            remedy=f"Choose group={'|'.join([*fitting, 'channel'])}.",
        )
    if scheme.layout:
        gptq.check_fit(tensor, scheme.bits)
    elif scheme.bits == 3 and not scheme.symmetric and tensor.shape[0] % 32:
        raise UsageError(
            f"zero points of 3 bits come in 32 rows, and it has {tensor.shape[0]}",
            tensor=tensor.source,
            remedy="Choose sym, or 2 or 4 bits.",
        )
