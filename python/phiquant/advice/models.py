"""The published models' shapes, for advice before anything is downloaded."""

from __future__ import annotations

from functools import cache
from typing import Final

from phiquant.architectures import ModelSpec, spec_from_config
from phiquant.errors import UsageError

# Of config.json: hidden and intermediate size, layers, heads, key-value heads, vocabulary, context,
# whether embedding and output are tied.
_SHAPES: Final[dict[str, tuple[int, int, int, int, int, int, int, bool]]] = {
    "Phi-4-mini-instruct": (3072, 8192, 32, 24, 8, 200064, 131072, True),
    "Phi-4-mini-reasoning": (3072, 8192, 32, 24, 8, 200064, 131072, True),
    "Phi-3.5-mini-instruct": (3072, 8192, 32, 32, 32, 32064, 131072, False),
    "Phi-3-mini-128k-instruct": (3072, 8192, 32, 32, 32, 32064, 131072, False),
    "Phi-3-mini-4k-instruct": (3072, 8192, 32, 32, 32, 32064, 4096, False),
    "Phi-3-medium-128k-instruct": (5120, 17920, 40, 40, 10, 32064, 131072, False),
    "Phi-3-medium-4k-instruct": (5120, 17920, 40, 40, 10, 32064, 4096, False),
    "phi-4": (5120, 17920, 40, 40, 10, 100352, 16384, False),
}

#: Published models of which advice without a source speaks: one of each shape.
EXAMPLES: Final = (
    *("microsoft/Phi-4-mini-instruct", "microsoft/Phi-3.5-mini-instruct"),
    *("microsoft/phi-4", "microsoft/Phi-3-medium-128k-instruct"),
)

#: All whose shapes are known.
KNOWN: Final = tuple(f"microsoft/{name}" for name in _SHAPES)


@cache
def shape_of(model: str) -> ModelSpec:
    """A published model's shape. Its rope, which has no weights, is not the real one.

    Parameters
    ----------
    model : str
        A hub id, with or without owner and revision, in any case.

    Raises
    ------
    phiquant.UsageError
        The model is not known here.
    """
    name = model.split("@", 1)[0].rstrip("/").rpartition("/")[2].lower()
    found = next((shape for known, shape in _SHAPES.items() if known.lower() == name), None)
    if found is None:
        raise UsageError(
            f"'{model}' is no folder or file here, and no published model that phiquant knows",
            remedy=f"Name a folder, or one of {', '.join(KNOWN)}.",
        )
    hidden, mlp, layers, heads, kv_heads, vocabulary, context, tied = found
    return spec_from_config(
        {
            "architectures": ["Phi3ForCausalLM"],
            "model_type": "phi3",
            "hidden_act": "silu",
            "hidden_size": hidden,
            "intermediate_size": mlp,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "vocab_size": vocabulary,
            "max_position_embeddings": context,
            # Those of 128k have longrope.
            "original_max_position_embeddings": 4096 if context > 100000 else context,
            "rms_norm_eps": 1e-05,
            "rope_theta": 10000.0,
            "tie_word_embeddings": tied,
        }
    )
