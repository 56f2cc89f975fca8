"""Gives each matrix the mode, bits and group that mlx_lm.convert gives it, or the user wants."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from phiquant.architectures.spec import ModelSpec, TensorRole
from phiquant.errors import UsageError
from phiquant.recipes.globs import by_name

#: Lengths of groups that mlx's affine mode has, and bits of its codes.
GROUPS: Final = (32, 64, 128)
BITS: Final = (2, 3, 4, 5, 6, 8)

#: Modes of small floats: bits and group.
FLOAT_MODES: Final[Mapping[str, tuple[int, int]]] = {
    "mxfp4": (4, 32),
    "mxfp8": (8, 32),
    "nvfp4": (4, 16),
}

#: Mixed recipes: bits of most matrices, and of those that suffer most.
MIXES: Final[Mapping[str, tuple[int, int]]] = {
    "mixed_2_6": (2, 6),
    "mixed_3_4": (3, 4),
    "mixed_3_6": (3, 6),
    "mixed_4_6": (4, 6),
}

#: The presets of ``mlx:`` targets.
PRESETS: Final = (
    *("bf16", "fp16"),
    *(f"{bits}bit" for bits in BITS),
    *MIXES,
    *FLOAT_MODES,
)

# Matrices that mlx-lm quantizes; norms stay as they are.
_MATRICES = ("embedding", "output", "attn_qkv", "attn_output", "ffn_gate_up", "ffn_down")

_AFFINE = re.compile(r"(?:([2-8])bit|int([2-8])_asym)(?:_g(32|64|128))?$")


@dataclass(frozen=True)
class Packing:
    """How one matrix is held.

    Attributes
    ----------
    mode : str
        ``affine``, ``mxfp4``, ``mxfp8`` or ``nvfp4``, as mlx names them.
    bits, group : int
    """

    mode: str
    bits: int
    group: int

    def __str__(self) -> str:
        return f"{self.bits}bit_g{self.group}" if self.mode == "affine" else self.mode

    def codec(self, scales: str) -> str:
        """The codec's name, with scales and biases of the type ``scales``."""
        if self.mode != "affine":
            return f"{self.mode},layout=mlx"
        suffix = "" if scales == "bf16" else f",scales={scales}"
        return f"int{self.bits}_asym_g{self.group},rule=mlx{suffix}"

    def settings(self) -> dict[str, object]:
        """What ``config.json`` says of it."""
        return {"group_size": self.group, "bits": self.bits, "mode": self.mode}


@dataclass(frozen=True)
class Assignment:
    """How every matrix is held, by its name in the source; None where it stays a float.

    Attributes
    ----------
    default : Packing or None
        What holds for matrices that ``config.json`` does not name.
    unfit : tuple of str
        Matrices that stay floats because their rows are no multiple of the group.
    notes : tuple of str
        What users should know of the mix.
    """

    default: Packing | None
    packings: Mapping[str, Packing | None]
    unfit: tuple[str, ...]
    notes: tuple[str, ...]


def packing_of(text: str) -> Packing | None:
    """A packing by its name: ``4bit``, ``6bit_g32``, ``int4_asym_g64``, ``mxfp4``; None: a float.

    Raises
    ------
    phiquant.UsageError
        mlx has no such mode.
    """
    name = text.strip().lower()
    if name in ("bf16", "fp16", "f16", "f32", "float"):
        return None
    if name in FLOAT_MODES:
        return Packing(name, *FLOAT_MODES[name])
    match = _AFFINE.match(name)
    bits = int(match[1] or match[2]) if match else 0
    if match and bits in BITS:
        return Packing("affine", bits, int(match[3] or 64))
    known = [f"{bits}bit" for bits in BITS] + [*FLOAT_MODES, "bf16"]
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"Did you mean {' or '.join(near)}? " if near else ""
    raise UsageError(
        f"mlx has no way to hold weights named '{text}'",
        remedy=f"{hint}There are {', '.join(known)}, and groups as 4bit_g32.",
    )


def assign(
    spec: ModelSpec,
    preset: str,
    *,
    group: int | None = None,
    overrides: Iterable[tuple[str, str]] = (),
) -> Assignment:
    """How each matrix is held.

    Parameters
    ----------
    spec : ModelSpec
    preset : str
        One of :data:`PRESETS`.
    group : int, optional
        Of affine modes; 64 by default.
    overrides : iterable of (glob, name)
        On source tensor names; the first match decides. Names as :func:`packing_of` takes them.

    Raises
    ------
    phiquant.UsageError
        An unknown preset, a group that mlx does not have, or a glob that matches no matrix.
    """
    if preset not in PRESETS:
        near = difflib.get_close_matches(preset, PRESETS, n=3, cutoff=0.5)
        hint = f"Did you mean {' or '.join(near)}? " if near else ""
        raise UsageError(
            f"mlx has no preset '{preset}'", remedy=f"{hint}There are {', '.join(PRESETS)}."
        )
    _check_group(preset, group)
    matrices = [tensor for tensor in spec.tensors if tensor.role in _MATRICES]
    wanted = by_name(
        (tensor.source for tensor in matrices),
        [(glob, packing_of(name)) for glob, name in overrides],
        kind="matrix",
    )
    default = _default(preset, group or 64)
    packings: dict[str, Packing | None] = {}
    unfit = []
    for tensor in matrices:
        name = tensor.source
        found = wanted[name] if name in wanted else _rule(spec, tensor, preset, default)
        if found is not None and tensor.shape[-1] % found.group:
            unfit.append(name)
            found = None
        packings[name] = found
    return Assignment(default, packings, tuple(unfit), _notes(spec, preset))


def _check_group(preset: str, group: int | None) -> None:
    if group is None:
        return
    if preset in FLOAT_MODES:
        fixed = FLOAT_MODES[preset][1]
        if group != fixed:
            raise UsageError(
                f"{preset} has groups of {fixed}, not {group}", remedy="Leave the option group out."
            )
    elif preset in ("bf16", "fp16"):
        raise UsageError(f"{preset} has no groups", remedy="Leave the option group out.")
    elif group not in GROUPS:
        raise UsageError(
            f"mlx has groups of {', '.join(map(str, GROUPS))}, not {group}",
            remedy="Choose one of them.",
        )


def _default(preset: str, group: int) -> Packing | None:
    if preset in FLOAT_MODES:
        return Packing(preset, *FLOAT_MODES[preset])
    if preset in MIXES:
        return Packing("affine", MIXES[preset][0], group)
    if preset.endswith("bit"):
        return Packing("affine", int(preset[0]), group)
    return None


def _rule(
    spec: ModelSpec, tensor: TensorRole, preset: str, default: Packing | None
) -> Packing | None:
    """mlx-lm's choice: more bits for the output, and in some layers for values and the way down."""
    if preset not in MIXES or default is None:
        return default
    high = Packing("affine", MIXES[preset][1], default.group)
    if tensor.role == "output":
        return high
    # The fused matrix holds the values, and can only be held as a whole.
    if tensor.role in ("attn_qkv", "ffn_down") and _more_bits(tensor.layer or 0, spec.layers):
        return high
    return default


def _more_bits(layer: int, layers: int) -> bool:
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2


def _notes(spec: ModelSpec, preset: str) -> tuple[str, ...]:
    if preset not in MIXES:
        return ()
    low, high = MIXES[preset]
    notes = [
        f"the fused qkv_proj holds v_proj: where the recipe gives v_proj {high} bits, queries and "
        "keys have them, too, as mlx_lm.convert does"
    ]
    if spec.tied:
        notes.append(
            f"the embedding table, which is the output matrix, too, has {low} bits, as "
            "mlx_lm.convert gives it; more: --tensor "
            f"'mlx:model.embed_tokens.weight={high}bit'"
        )
    return tuple(notes)
