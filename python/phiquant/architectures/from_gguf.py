"""Makes a ModelSpec from the metadata of a GGUF, so that a GGUF can be a source, too."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from phiquant.architectures.spec import (
    Attention,
    LongRope,
    Mlp,
    ModelSpec,
    Norm,
    Role,
    Rope,
    TensorRole,
)
from phiquant.errors import FormatError, UnsupportedError

_LAYER: tuple[tuple[Role, str], ...] = (
    ("attn_norm", "attn_norm"),
    ("attn_qkv", "attn_qkv"),
    ("attn_output", "attn_output"),
    ("ffn_norm", "ffn_norm"),
    ("ffn_gate_up", "ffn_up"),
    ("ffn_down", "ffn_down"),
)


def spec_from_gguf(
    metadata: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    factors: Mapping[str, tuple[float, ...]],
    *,
    file: object,
) -> ModelSpec:
    """Describe the model of a GGUF of llama.cpp's ``phi3`` architecture.

    Parameters
    ----------
    metadata : mapping
        Its keys and values.
    shapes : mapping of str to tuple of int
        Every tensor's shape, the row's length last.
    factors : mapping of str to tuple of float
        ``long`` and ``short`` rope factors where the file has them.
    file
        Named in errors.

    Raises
    ------
    phiquant.UnsupportedError
        Another architecture, or no model at all.
    phiquant.FormatError
        Keys or tensors are missing or contradict each other.
    """
    kind = metadata.get("general.type", "model")
    if kind != "model":
        raise UnsupportedError(f"holds no model: its general.type is {kind!r}", file=file)
    architecture = metadata.get("general.architecture")
    if architecture != "phi3":
        raise UnsupportedError(
            f"its architecture is {architecture!r}; GGUFs of 'phi3' are converted",
            file=file,
            remedy="Use llama-quantize for other models.",
        )

    def number(key: str, default: int | None = None) -> int:
        value = metadata.get(f"phi3.{key}", default)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 40:
            raise FormatError(f"phi3.{key} is {value!r}, no sensible number", file=file)
        return value

    def real(key: str, default: float | None = None) -> float:
        value = metadata.get(f"phi3.{key}", default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
            raise FormatError(f"phi3.{key} is {value!r}, no positive number", file=file)
        return float(value)

    hidden, layers = number("embedding_length"), number("block_count")
    heads, size = number("attention.head_count"), number("feed_forward_length")
    kv_heads = number("attention.head_count_kv", heads)
    if not heads or not kv_heads or hidden % heads or heads % kv_heads:
        raise FormatError(
            f"{heads} heads and {kv_heads} KV heads do not divide an embedding of {hidden}",
            file=file,
        )
    if layers > len(shapes):
        raise FormatError(f"has {len(shapes)} tensors for {layers} layers", file=file)
    head_size = hidden // heads
    embedding = shapes.get("token_embd.weight")
    if embedding is None or len(embedding) != 2:
        raise FormatError("has no matrix token_embd.weight", file=file)
    tied = "output.weight" not in shapes
    tensors = [TensorRole("embedding", None, "token_embd.weight", (embedding[0], hidden))]
    qkv = (heads + 2 * kv_heads) * head_size
    layer_shapes: dict[Role, tuple[int, ...]] = {
        "attn_norm": (hidden,),
        "attn_qkv": (qkv, hidden),
        "attn_output": (hidden, hidden),
        "ffn_norm": (hidden,),
        "ffn_gate_up": (2 * size, hidden),
        "ffn_down": (hidden, size),
    }
    for layer in range(layers):
        for role, name in _LAYER:
            source = f"blk.{layer}.{name}.weight"
            tensors.append(TensorRole(role, layer, source, layer_shapes[role]))
    tensors.append(TensorRole("norm", None, "output_norm.weight", (hidden,)))
    if not tied:
        tensors.append(TensorRole("output", None, "output.weight", (embedding[0], hidden)))
    _check_shapes(tensors, shapes, file)
    context = number("context_length")
    original = number("rope.scaling.original_context_length", context)
    scaling = None
    if factors:
        if set(factors) != {"long", "short"}:
            raise FormatError("has one of the two rope_factors tensors only", file=file)
        pairs = number("rope.dimension_count", head_size) // 2
        for which, values in factors.items():
            if len(values) != pairs or not all(math.isfinite(value) for value in values):
                raise FormatError(
                    f"should hold {pairs} finite numbers, one a pair of rotated dimensions",
                    file=file,
                    tensor=f"rope_factors_{which}.weight",
                )
        attention_factor = real("rope.scaling.attn_factor", 1.0)
        scaling = LongRope(factors["short"], factors["long"], attention_factor)
    return ModelSpec(
        hidden_size=hidden,
        layers=layers,
        vocabulary=embedding[0],
        context=context,
        norm=Norm("rms", real("attention.layer_norm_rms_epsilon")),
        attention=Attention(
            heads, kv_heads, head_size, number("attention.sliding_window", 0) or None
        ),
        rope=Rope(
            real("rope.freq_base", 10000.0),
            number("rope.dimension_count", head_size),
            original,
            scaling,
        ),
        mlp=Mlp(size, "silu"),
        tied=tied,
        dtype=None,
        tensors=tuple(tensors),
    )


def _check_shapes(
    tensors: list[TensorRole], shapes: Mapping[str, tuple[int, ...]], file: object
) -> None:
    for tensor in tensors:
        found = shapes.get(tensor.source)
        if found is None:
            raise FormatError("is missing", file=file, tensor=tensor.source)
        if found != tensor.shape:
            raise FormatError(
                f"has the shape {found}, and its metadata ask for {tensor.shape}",
                file=file,
                tensor=tensor.source,
            )
    known = {tensor.source for tensor in tensors}
    extra = sorted(set(shapes) - known - {"rope_factors_long.weight", "rope_factors_short.weight"})
    if extra:
        raise UnsupportedError(
            "is no tensor of a Phi model that phiquant knows", file=file, tensor=extra[0]
        )
