"""The config.json that mlx-lm reads rightly: legacy rope keys, one set of factors, packings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import isclose, log, sqrt
from typing import Any, Literal

from phiquant.architectures.spec import LongRope, ModelSpec
from phiquant.errors import UnsupportedError
from phiquant.recipes.mlx import Assignment, Packing

#: Which of longrope's factors mlx-lm is given.
Context = Literal["short", "long"]

# Of another container, or code that is not copied along.
_DROPPED = ("quantization", "quantization_config", "rope_parameters", "auto_map", "_name_or_path")


def config(
    source: Mapping[str, object],
    spec: ModelSpec,
    assignment: Assignment,
    *,
    context: Context,
    dtype: str,
) -> bytes:
    """The text of ``config.json``.

    mlx-lm's Phi-3 reads ``rope_theta``, ``rope_scaling`` and ``partial_rotary_factor``, and no
    ``rope_parameters``; of longrope's factors it takes the long ones at every position (mlx-lm
    0.32.2, models/rope_utils.py). So both sets become the one that was asked for, and the others
    stay under ``phiquant``, which no program reads.

    Parameters
    ----------
    source : mapping
        The source's config.
    dtype : str
        ``bfloat16``, ``float16`` or ``float32``: of what is not quantized.

    Raises
    ------
    phiquant.UnsupportedError
        mlx-lm cannot be told of an attention factor other than longrope's own.
    """
    made: dict[str, Any] = {key: value for key, value in source.items() if key not in _DROPPED}
    made["rope_theta"] = spec.rope.base
    made["partial_rotary_factor"] = _rotary_share(spec)
    made["original_max_position_embeddings"] = spec.rope.original_context
    made["tie_word_embeddings"] = spec.tied
    made["num_key_value_heads"] = spec.attention.kv_heads
    made["rope_scaling"] = None
    made["torch_dtype"] = made["dtype"] = dtype
    scaling = spec.rope.scaling
    if scaling is not None:
        _check_attention_factor(spec, scaling)
        used = scaling.short_factors if context == "short" else scaling.long_factors
        other = "long_factor" if context == "short" else "short_factor"
        left = scaling.long_factors if context == "short" else scaling.short_factors
        made["rope_scaling"] = {
            "type": "longrope",
            "short_factor": list(used),
            "long_factor": list(used),
        }
        made["phiquant"] = {"context": context, other: list(left)}
    packings = quantization(assignment)
    if packings is not None:
        made["quantization"] = made["quantization_config"] = packings
    return (json.dumps(dict(sorted(made.items())), indent=4, ensure_ascii=False) + "\n").encode()


def quantization(assignment: Assignment) -> dict[str, object] | None:
    """How matrices are held: what holds for most, and the others by their modules' paths."""
    held = {name: packing for name, packing in assignment.packings.items() if packing is not None}
    if not held:
        return None
    default = assignment.default or next(iter(held.values()))
    made: dict[str, object] = default.settings()
    for name, packing in assignment.packings.items():
        if packing != default:
            path = name.removesuffix(".weight")
            made[path] = packing.settings() if isinstance(packing, Packing) else False
    return made


def context_note(spec: ModelSpec, context: Context) -> tuple[str, ...]:
    """What the user should know of the chosen factors."""
    notes = []
    if spec.rope.scaling is not None:
        original = spec.rope.original_context
        if context == "short":
            notes.append(
                f"mlx-lm has one set of rope factors: this output has the short ones, right up to "
                f"{original} tokens and wrong beyond; context=long is for longer texts"
            )
        else:
            notes.append(
                f"mlx-lm has one set of rope factors: this output has the long ones, right beyond "
                f"{original} tokens and wrong up to there; context=short is for those"
            )
    window = spec.attention.window
    if window is not None and window < spec.context:
        notes.append(
            f"mlx-lm ignores the sliding window: beyond {window} tokens each one sees more than "
            "the model was trained with"
        )
    return tuple(notes)


def _rotary_share(spec: ModelSpec) -> float:
    """A share of the head that mlx-lm, which rounds down, makes the rotary dimensions of."""
    head, dimensions = spec.attention.head_size, spec.rope.dimensions
    share = dimensions / head
    return share if int(head * share) == dimensions else (dimensions + 0.5) / head


def _check_attention_factor(spec: ModelSpec, scaling: LongRope) -> None:
    """mlx-lm computes the factor from the two context lengths."""
    original = spec.rope.original_context
    ratio = spec.context / original
    own = 1.0 if ratio <= 1 else sqrt(1 + log(ratio) / log(original))
    if not isclose(own, scaling.attention_factor, rel_tol=1e-6):
        raise UnsupportedError(
            f"the rope's attention factor is {scaling.attention_factor}, and mlx-lm always takes "
            f"{own:.6g}",
            file="config.json",
            remedy="Convert to another format, such as gguf:q4_k_m.",
        )
