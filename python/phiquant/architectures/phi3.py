"""Makes a ModelSpec of Phi3ForCausalLM: Phi-3-mini and -medium, Phi-3.5-mini, Phi-4, Phi-4-mini."""

from __future__ import annotations

import math
from collections.abc import Mapping

from phiquant.architectures.config_fields import Fields
from phiquant.architectures.spec import (
    Attention,
    LongRope,
    Mlp,
    ModelSpec,
    Norm,
    Rope,
    TensorRole,
)
from phiquant.errors import UnsupportedError

# llama.cpp holds at most so many layers (LLAMA_MAX_LAYERS); it also bounds what a hostile config
# makes us list.
_MAX_LAYERS = 512

# Switches of the published configs' own code that add tensors or change the arithmetic when they
# are on.
_BIASES = ("attention_bias", "mlp_bias", "lm_head_bias")

# "su" is what Phi-3's first configs called longrope, "yarn" what some called it; the factors tell
# it from real YaRN.
_LONGROPE_NAMES = ("longrope", "su", "yarn")


def spec_from_config(config: Mapping[str, object], file: str) -> ModelSpec:
    """Describe the model of a ``config.json``.

    Keys that transformers' Phi3Config has a default for may be absent, the five sizes may not. The
    rope's settings are taken in both spellings: ``rope_theta`` with ``rope_scaling``, or
    ``rope_parameters``.

    Raises
    ------
    phiquant.FormatError
        A key is missing, of the wrong kind, out of range or contradicts another one.
    phiquant.UnsupportedError
        The config is sound but asks for what phiquant does not build.
    """
    fields = Fields(config, file)
    hidden = fields.integer("hidden_size")
    heads = fields.integer("num_attention_heads")
    kv_heads = fields.integer("num_key_value_heads", default=heads)
    layers = fields.integer("num_hidden_layers", high=_MAX_LAYERS)
    inner = fields.integer("intermediate_size")
    vocabulary = fields.integer("vocab_size")
    if hidden % heads:
        raise fields.error("hidden_size", f"is {hidden}, no multiple of {heads} attention heads")
    if heads % kv_heads:
        cause = f"is {heads}, no multiple of {kv_heads} key-value heads"
        raise fields.error("num_attention_heads", cause)
    head_size = hidden // heads
    _refuse_other_arithmetic(fields, head_size, file)

    tied = fields.boolean("tie_word_embeddings", default=False)
    context = fields.integer("max_position_embeddings", default=4096)
    return ModelSpec(
        hidden_size=hidden,
        layers=layers,
        vocabulary=vocabulary,
        context=context,
        norm=Norm("rms", fields.positive("rms_norm_eps", default=1e-5)),
        attention=Attention(heads, kv_heads, head_size, _window(fields)),
        rope=_rope(fields, head_size, context, file),
        mlp=Mlp(inner, "silu"),
        tied=tied,
        dtype=_dtype(fields),
        tensors=_tensors(
            hidden, layers, inner, vocabulary, (heads + 2 * kv_heads) * head_size, tied
        ),
    )


def _refuse_other_arithmetic(fields: Fields, head_size: int, file: str) -> None:
    activation = fields.string("hidden_act", default="silu")
    if activation not in ("silu", "swish"):
        cause = f"hidden_act is '{activation}'; Phi-3 and Phi-4 models use 'silu'"
        raise UnsupportedError(cause, file=file)
    for key in _BIASES:
        if fields.boolean(key, default=False):
            raise UnsupportedError(f"{key} is true; biases are not supported", file=file)
    if fields.integer("head_dim", default=head_size) != head_size:
        cause = f"head_dim differs from hidden_size / num_attention_heads = {head_size}"
        raise UnsupportedError(cause, file=file)


def _window(fields: Fields) -> int | None:
    return fields.integer("sliding_window") if "sliding_window" in fields else None


def _dtype(fields: Fields) -> str | None:
    for key in ("dtype", "torch_dtype"):
        if key in fields:
            return fields.string(key).removeprefix("torch.")
    return None


def _rope(fields: Fields, head_size: int, context: int, file: str) -> Rope:
    inner = fields.inner("rope_parameters") or fields.inner("rope_scaling")
    base = _either(fields, inner, "rope_theta", 10000.0)
    portion = _either(fields, inner, "partial_rotary_factor", 1.0)
    if portion > 1.0:
        raise fields.error("partial_rotary_factor", f"is {portion}, more than the whole head")
    dimensions = int(head_size * portion)
    if dimensions < 2 or dimensions % 2:
        cause = f"makes {dimensions} of {head_size} dimensions rotate; it must be an even number"
        raise fields.error("partial_rotary_factor", cause)
    original = _original_context(fields, inner)
    scaling = _scaling(inner, dimensions, context, original, file) if inner else None
    return Rope(base, dimensions, original, scaling)


def _either(fields: Fields, inner: Fields | None, key: str, default: float) -> float:
    """A number that may stand at the top, among the rope's settings, or equal in both."""
    if inner is None or key not in inner:
        return fields.positive(key, default=default)
    value = inner.positive(key)
    if key in fields and fields.positive(key) != value:
        raise fields.error(key, f"is {fields.positive(key)}, but {value} among the rope's settings")
    return value


def _original_context(fields: Fields, inner: Fields | None) -> int:
    key = "original_max_position_embeddings"
    if inner is None or key not in inner:
        return fields.integer(key, default=4096)
    value = inner.integer(key)
    if key in fields and fields.integer(key) != value:
        raise fields.error(key, f"is {fields.integer(key)}, but {value} among the rope's settings")
    return value


def _scaling(
    rope: Fields, dimensions: int, context: int, original: int, file: str
) -> LongRope | None:
    kind = rope.string("rope_type" if "rope_type" in rope else "type", default="default")
    has_factors = "long_factor" in rope or "short_factor" in rope
    if kind == "default" and not has_factors:
        return None
    if kind not in _LONGROPE_NAMES or (kind == "yarn" and not has_factors):
        cause = f"the rope type '{kind}' is not supported; Phi models have 'default' or 'longrope'"
        raise UnsupportedError(cause, file=file)
    for key in ("short_mscale", "long_mscale"):
        if key in rope:
            raise UnsupportedError(f"longrope with {key} is not supported", file=file)
    why = f"{dimensions} rotary dimensions"
    short = rope.positives("short_factor", length=dimensions // 2, why=why)
    long = rope.positives("long_factor", length=dimensions // 2, why=why)
    if "attention_factor" in rope:
        return LongRope(short, long, rope.positive("attention_factor"))
    return LongRope(short, long, _attention_factor(context, original, rope))


def _attention_factor(context: int, original: int, rope: Fields) -> float:
    """How much attention is sharpened for the longer context, by LongRoPE's rule."""
    if context <= original:
        return 1.0
    if original < 2:
        raise rope.error("original_max_position_embeddings", "is 1: longrope needs at least 2")
    return math.sqrt(1 + math.log(context / original) / math.log(original))


def _tensors(
    hidden: int, layers: int, inner: int, vocabulary: int, qkv: int, tied: bool
) -> tuple[TensorRole, ...]:
    tensors = [TensorRole("embedding", None, "model.embed_tokens.weight", (vocabulary, hidden))]
    for i in range(layers):
        layer = f"model.layers.{i}."
        tensors += [
            TensorRole("attn_norm", i, layer + "input_layernorm.weight", (hidden,)),
            TensorRole("attn_qkv", i, layer + "self_attn.qkv_proj.weight", (qkv, hidden)),
            TensorRole("attn_output", i, layer + "self_attn.o_proj.weight", (hidden, hidden)),
            TensorRole("ffn_norm", i, layer + "post_attention_layernorm.weight", (hidden,)),
            TensorRole("ffn_gate_up", i, layer + "mlp.gate_up_proj.weight", (2 * inner, hidden)),
            TensorRole("ffn_down", i, layer + "mlp.down_proj.weight", (hidden, inner)),
        ]
    tensors.append(TensorRole("norm", None, "model.norm.weight", (hidden,)))
    if not tied:
        tensors.append(TensorRole("output", None, "lm_head.weight", (vocabulary, hidden)))
    return tuple(tensors)
