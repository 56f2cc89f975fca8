"""What a config says: the ModelSpecs of the fixtures and of every published Phi model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from phiquant.architectures import ModelSpec, read_config, spec_from_config

DATA = Path(__file__).parents[1] / "data"


def published(name: str) -> ModelSpec:
    return spec_from_config(read_config(DATA / "configs" / f"{name}.json"))


# name, weights as safetensors' metadata of the published models count them, heads, key-value heads, head size,
# rotary dimensions, window, context
PUBLISHED = [
    ("phi-3-mini-4k-instruct", 3_821_079_552, 32, 32, 96, 96, 2047, 4096),
    ("phi-3-mini-128k-instruct", 3_821_079_552, 32, 32, 96, 96, 262144, 131072),
    ("phi-3-medium-4k-instruct", 13_960_238_080, 40, 10, 128, 128, 2047, 4096),
    ("phi-3-medium-128k-instruct", 13_960_238_080, 40, 10, 128, 128, 131072, 131072),
    ("phi-3.5-mini-instruct", 3_821_079_552, 32, 32, 96, 96, 262144, 131072),
    ("phi-4", 14_659_507_200, 40, 10, 128, 128, None, 16384),
    ("phi-4-mini-instruct", 3_836_021_760, 24, 8, 128, 96, 262144, 131072),
    ("phi-4-mini-reasoning", 3_836_021_760, 24, 8, 128, 96, 262144, 131072),
]


@pytest.mark.parametrize(
    ("name", "weights", "heads", "kv_heads", "head_size", "rotary", "window", "context"),
    PUBLISHED,
    ids=[row[0] for row in PUBLISHED],
)
def test_published_models_have_their_published_sizes(
    name: str,
    weights: int,
    heads: int,
    kv_heads: int,
    head_size: int,
    rotary: int,
    window: int | None,
    context: int,
) -> None:
    spec = published(name)
    assert spec.parameters == weights
    attention = spec.attention
    assert (attention.heads, attention.kv_heads, attention.head_size) == (
        heads,
        kv_heads,
        head_size,
    )
    assert attention.group == heads // kv_heads
    assert (spec.rope.dimensions, attention.window, spec.context) == (rotary, window, context)
    assert spec.dtype == "bfloat16"


def test_longrope_sharpens_attention_by_its_paper_s_rule_for_32_times_the_context() -> None:
    for name in ("phi-3-mini-128k-instruct", "phi-3.5-mini-instruct", "phi-4-mini-instruct"):
        scaling = published(name).rope.scaling
        assert scaling is not None
        # sqrt(1 + ln 32 / ln 4096) to six digits, as llama.cpp's converter writes it
        assert scaling.attention_factor == pytest.approx(1.190238, abs=5e-7)
        assert len(scaling.short_factors) == len(scaling.long_factors) == 48


def test_models_without_rope_scaling_have_none() -> None:
    for name in ("phi-3-mini-4k-instruct", "phi-3-medium-4k-instruct", "phi-4"):
        assert published(name).rope.scaling is None
    assert published("phi-4").rope.base == 250000.0


@pytest.mark.parametrize("fixture", ["phi35", "phi4mini", "phi3win"])
def test_both_spellings_of_the_rope_settings_mean_the_same_model(fixture: str) -> None:
    old = spec_from_config(read_config(DATA / fixture / "config.json"))
    new = spec_from_config(read_config(DATA / fixture / "config.transformers5.json"))
    assert old == new


def test_su_and_early_yarn_are_longrope() -> None:
    config = json.loads((DATA / "configs/phi-3-mini-128k-instruct.json").read_text())
    assert config["rope_scaling"]["type"] == "su"
    specs = []
    for kind in ("su", "yarn", "longrope"):
        config["rope_scaling"]["type"] = kind
        specs.append(spec_from_config(config))
    assert specs[0] == specs[1] == specs[2]


def test_a_given_attention_factor_is_taken() -> None:
    config = json.loads((DATA / "phi35/config.transformers5.json").read_text())
    config["rope_parameters"]["attention_factor"] = 1.5
    scaling = spec_from_config(config).rope.scaling
    assert scaling is not None
    assert scaling.attention_factor == 1.5


def test_keys_that_transformers_has_defaults_for_may_be_absent() -> None:
    config: dict[str, object] = {
        "architectures": ["Phi3ForCausalLM"],
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 100,
    }
    spec = spec_from_config(config)
    assert spec.attention.kv_heads == 4
    assert spec.attention.window is None
    assert spec.norm.epsilon == 1e-5
    assert (spec.rope.base, spec.rope.dimensions, spec.rope.original_context) == (10000.0, 32, 4096)
    assert (spec.context, spec.tied, spec.dtype) == (4096, False, None)


def test_tensors_are_listed_once_each_with_layers_in_order() -> None:
    spec = published("phi-4-mini-instruct")
    names = [tensor.source for tensor in spec.tensors]
    assert len(set(names)) == len(names) == 2 + 6 * 32
    assert names[0] == "model.embed_tokens.weight"
    assert names[-1] == "model.norm.weight"
    layers = [tensor.layer for tensor in spec.tensors if tensor.layer is not None]
    assert layers == sorted(layers)
    shapes = {tensor.role: tensor.shape for tensor in spec.tensors}
    assert shapes["attn_qkv"] == (5120, 3072)
    assert shapes["ffn_gate_up"] == (16384, 3072)
    assert shapes["ffn_down"] == (3072, 8192)
