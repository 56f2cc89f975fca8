"""The config.json of a model that is known by its ModelSpec alone, as that of a GGUF is."""

from __future__ import annotations

from phiquant.architectures.spec import ModelSpec


def config_of(spec: ModelSpec) -> dict[str, object]:
    """A Phi-3 config from which :func:`phiquant.architectures.spec_from_config` makes this spec.

    The attention factor of longrope is left to its formula, from the two contexts.
    """
    rope, attention = spec.rope, spec.attention
    scaling = rope.scaling
    return {
        "architectures": ["Phi3ForCausalLM"],
        "model_type": "phi3",
        "hidden_act": spec.mlp.activation,
        "hidden_size": spec.hidden_size,
        "intermediate_size": spec.mlp.size,
        "max_position_embeddings": spec.context,
        "num_attention_heads": attention.heads,
        "num_hidden_layers": spec.layers,
        "num_key_value_heads": attention.kv_heads,
        "original_max_position_embeddings": rope.original_context,
        "partial_rotary_factor": rope.dimensions / attention.head_size,
        "rms_norm_eps": spec.norm.epsilon,
        "rope_scaling": None
        if scaling is None
        else {
            "type": "longrope",
            "long_factor": list(scaling.long_factors),
            "short_factor": list(scaling.short_factors),
        },
        "rope_theta": rope.base,
        "sliding_window": attention.window,
        "tie_word_embeddings": spec.tied,
        "torch_dtype": spec.dtype or "float16",
        "vocab_size": spec.vocabulary,
    }
