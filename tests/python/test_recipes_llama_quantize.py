"""The mixes: every tensor gets the codec that llama-quantize gave it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from phiquant.architectures import ModelSpec, read_config, spec_from_config
from phiquant.errors import UnsupportedError, UsageError
from phiquant.recipes.llama_quantize import (
    BLOCK,
    Fallback,
    assign,
    codec_name,
    ftype_name,
    ftype_number,
    needs_importance,
)
from phiquant.recipes.mixes import CURRENT
from phiquant.targets.gguf_metadata import file_tensors, tensor_name

DATA = Path(__file__).parents[1] / "data"
GOLDEN = Path(__file__).parents[1] / "golden"
DIGESTS: dict[str, Any] = json.loads((GOLDEN / "llama-quantize-digests.json").read_text())
MIXES: dict[str, Any] = json.loads((GOLDEN / "llama-quantize-mixes.json").read_text())
OVERRIDES: list[dict[str, Any]] = json.loads(
    (GOLDEN / "llama-quantize-overrides.json").read_text()
)["cases"]
FIXTURES = ("phi35", "phi4mini", "phi3win")
MODELS = tuple(MIXES["models"])

# Bytes of a block in ggml (ggml-common.h); the columns of one are phiquant's own table, held against this one's.
BLOCK_BYTES = {
    "f32": (1, 4),
    "f16": (1, 2),
    "bf16": (1, 2),
    "q4_0": (32, 18),
    "q4_1": (32, 20),
    "q5_0": (32, 22),
    "q5_1": (32, 24),
    "q8_0": (32, 34),
    "q2_k": (256, 84),
    "q3_k": (256, 110),
    "q4_k": (256, 144),
    "q5_k": (256, 176),
    "q6_k": (256, 210),
    "iq4_nl": (32, 18),
    "iq4_xs": (256, 136),
    "iq3_s": (256, 110),
    "iq3_xxs": (256, 98),
    "iq2_xxs": (256, 66),
    "iq2_xs": (256, 74),
    "iq2_s": (256, 82),
    "iq1_s": (256, 50),
    "iq1_m": (256, 56),
    "tq1_0": (256, 54),
    "tq2_0": (256, 66),
    "q1_0": (128, 18),
    "q2_0": (64, 18),
    "mxfp4": (32, 17),
    "nvfp4": (64, 36),
}


def fixture_spec(name: str) -> ModelSpec:
    return spec_from_config(read_config(DATA / name / "config.json"))


def model_spec(name: str) -> ModelSpec:
    return spec_from_config(read_config(DATA / "configs" / f"{name}.json"))


def types_by_name(spec: ModelSpec, codecs: Any) -> dict[str, str]:
    return {
        entry.name: codecs[entry.tensor.source] if entry.tensor else "f32"
        for entry in file_tensors(spec)
    }


def mib(spec: ModelSpec, codecs: Any) -> float:
    total = 0
    for tensor in spec.tensors:
        values, size = BLOCK_BYTES[codecs[tensor.source]]
        total += tensor.elements // values * size
    return total / 2**20


@pytest.mark.parametrize("ftype", list(DIGESTS["phi35"]))
@pytest.mark.parametrize("fixture", FIXTURES)
def test_fixtures_get_llama_quantize_s_types_in_its_order(fixture: str, ftype: str) -> None:
    recorded = DIGESTS[fixture][ftype]
    spec = fixture_spec(fixture)
    name, _, importance = ftype.partition("+")
    if isinstance(recorded, str):
        assert recorded.startswith("llama-quantize refuses")
        with pytest.raises(UnsupportedError):
            assign(spec, name, importance=bool(importance))
        return
    types = types_by_name(spec, assign(spec, name, importance=bool(importance)).codecs)
    assert list(types) == list(recorded)
    assert types == {tensor: row[0].lower() for tensor, row in recorded.items()}


def expected_type(words: str, layer: int | None) -> str:
    """``q6_K[0-3,6]|q4_K[4-5]`` at a layer."""
    for part in words.split("|"):
        match = re.fullmatch(r"(\w+)(?:\[([\d,\-]+)\])?", part)
        assert match
        if match[2] is None:
            return match[1].lower()
        for span in match[2].split(","):
            first, _, last = span.partition("-")
            if layer is not None and int(first) <= layer <= int(last or first):
                return match[1].lower()
    raise AssertionError(words)


CASES = [(model, ftype) for model in MODELS for ftype in MIXES["models"][model]]


@pytest.mark.parametrize(("model", "ftype"), CASES)
def test_published_shapes_get_llama_quantize_s_mix_and_size(model: str, ftype: str) -> None:
    recorded = MIXES["models"][model][ftype]
    spec = model_spec(model)
    name, _, importance = ftype.partition("+")
    codecs = assign(spec, name, importance=bool(importance)).codecs
    for tensor in spec.tensors:
        if len(tensor.shape) == 1:
            assert codecs[tensor.source] == "f32"
            continue
        short = tensor_name(tensor).removesuffix(".weight").rpartition(".")[2]
        wanted = expected_type(recorded["types"][short], tensor.layer)
        assert codecs[tensor.source] == wanted, tensor.source
    # The record is rounded to 0.01, and the rope's factors (a few hundred bytes) are not among the roles.
    assert mib(spec, codecs) == pytest.approx(recorded["mib"], abs=0.011)
    asks = any(needs_importance(t, codecs[t.source], name) for t in spec.tensors)
    assert (asks and not importance) == recorded["needs_importance"]


def test_the_published_mix_has_the_size_of_the_files_that_were_published() -> None:
    for model, sizes in MIXES["published"]["mib"].items():
        spec = model_spec(model)
        for ftype, size in sizes.items():
            codecs = assign(spec, ftype, mix="published").codecs
            assert mib(spec, codecs) == pytest.approx(size, abs=0.06), ftype
            assert mib(spec, codecs) < mib(spec, assign(spec, ftype).codecs)


def test_the_published_mix_differs_in_attn_qkv_alone() -> None:
    spec = model_spec("phi-3.5-mini-instruct")
    for ftype in CURRENT:
        now, before = assign(spec, ftype).codecs, assign(spec, ftype, mix="published").codecs
        differing = {name for name in now if now[name] != before[name]}
        assert all(name.endswith("qkv_proj.weight") for name in differing), ftype


@pytest.mark.parametrize("case", OVERRIDES, ids=lambda c: f"{c['fixture']}-{c['options'][-1]}")
def test_overrides_and_pure_choose_as_llama_quantize_s_own_options(case: dict[str, Any]) -> None:
    spec = fixture_spec(case["fixture"])
    same = dict(case["same"])
    same["overrides"] = [tuple(pair) for pair in same.get("overrides", [])]
    assert types_by_name(spec, assign(spec, case["ftype"], **same).codecs) == case["types"]


def test_rows_that_do_not_divide_fall_back_and_say_so() -> None:
    spec = fixture_spec("phi3win")
    result = assign(spec, "q4_k_m")
    name = "model.layers.0.self_attn.o_proj.weight"
    assert result.codecs[name] == "q5_0"
    assert Fallback(name, 320, "q4_k", "q5_0") in result.fallbacks
    assert not assign(spec, "q4_0", output_type="q8_0").fallbacks
    assert not assign(fixture_spec("phi35"), "q4_k_m").fallbacks


def test_rows_that_no_block_divides_become_f16() -> None:
    config = read_config(DATA / "phi3win/config.json")
    config.update(hidden_size=80, num_attention_heads=5, num_key_value_heads=5)
    codecs = assign(spec_from_config(config), "q4_k_m").codecs
    assert codecs["model.layers.0.self_attn.qkv_proj.weight"] == "f16"
    assert codecs["lm_head.weight"] == "f16"
    # 640 columns divide by 32, not by 256; more bits for the last layer of two
    assert codecs["model.layers.1.mlp.down_proj.weight"] == "q8_0"


def test_overrides_apply_to_unquantized_ftypes_too() -> None:
    spec = fixture_spec("phi4mini")
    codecs = assign(spec, "bf16", overrides=[("*.down_proj.weight", "Q8_0")]).codecs
    assert codecs["model.layers.2.mlp.down_proj.weight"] == "q8_0"
    # llama-quantize drops this one for a tied table; the user asked for it.
    assert assign(spec, "f16", output_type="q8_0").codecs["model.embed_tokens.weight"] == "q8_0"


def test_the_first_matching_glob_decides_and_case_matters() -> None:
    spec = fixture_spec("phi35")
    globs = [("*.layers.0.*down*", "q8_0"), ("*down*", "q5_0")]
    codecs = assign(spec, "q4_k_m", overrides=globs).codecs
    assert codecs["model.layers.0.mlp.down_proj.weight"] == "q8_0"
    assert codecs["model.layers.1.mlp.down_proj.weight"] == "q5_0"
    with pytest.raises(UsageError, match=r"no matrix matches '\*DOWN\*'"):
        assign(spec, "q4_k_m", overrides=[("*DOWN*", "q8_0")])


def test_vectors_cannot_be_quantized() -> None:
    with pytest.raises(UsageError, match="no matrix matches"):
        assign(fixture_spec("phi35"), "q8_0", overrides=[("*layernorm*", "q8_0")])


def test_unknown_names_are_refused_with_a_guess() -> None:
    spec = fixture_spec("phi35")
    with pytest.raises(UsageError, match=r"Did you mean .*q4_k_m"):
        assign(spec, "q4_k_n")
    with pytest.raises(UsageError, match="no codec of GGUF"):
        assign(spec, "q4_k_m", output_type="q9")
    with pytest.raises(UsageError, match="is a mix of codecs; its base is q4_k"):
        codec_name("Q4_K_M")
    with pytest.raises(UsageError, match="no mix 'old'"):
        assign(spec, "q4_k_m", mix="old")  # type: ignore[arg-type]


def test_aliases_are_llama_quantize_s() -> None:
    assert [ftype_name(name) for name in ("Q4_K", "q5_k", "Q3_K")] == ["q4_k_m", "q5_k_m", "q3_k_m"]


def test_ftype_numbers_are_llama_h_s() -> None:
    names = "f32 f16 q4_0 q4_1 q8_0 q5_0 q5_1 q2_k q3_k_s q3_k_m q3_k_l q4_k_s q4_k_m q5_k_s q5_k_m q6_k"
    numbers = (0, 1, 2, 3, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18)
    assert [ftype_number(name) for name in names.split()] == list(numbers)
    assert ftype_number("BF16") == 32


def test_block_sizes_are_ggml_s() -> None:
    assert {name: values for name, (values, _) in BLOCK_BYTES.items()} == BLOCK
