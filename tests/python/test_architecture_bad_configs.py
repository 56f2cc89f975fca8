"""Configs and checkpoints that must be refused, each with an error that says what was found."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

import pytest

from phiquant.architectures import check_tensors, read_config, spec_from_config
from phiquant.errors import FormatError, PhiquantError, ShapeError, UnsupportedError

DATA = Path(__file__).parents[1] / "data"
PHI35: dict[str, Any] = json.loads((DATA / "phi35/config.json").read_text())
PHI35_NEW: dict[str, Any] = json.loads((DATA / "phi35/config.transformers5.json").read_text())
PHI4MINI: dict[str, Any] = json.loads((DATA / "phi4mini/config.json").read_text())


def refuse(config: dict[str, Any], *words: str, error: type[PhiquantError] = FormatError) -> None:
    with pytest.raises(error) as caught:
        spec_from_config(config, file="model/config.json")
    assert type(caught.value) is error
    assert caught.value.exit_code == 3
    assert "model/config.json" in str(caught.value)
    for word in words:
        assert word in str(caught.value), str(caught.value)


def changed(config: dict[str, Any] = PHI35, **values: object) -> dict[str, Any]:
    return {**copy.deepcopy(config), **values}


def with_rope(**values: object) -> dict[str, Any]:
    config = changed()
    config["rope_scaling"].update(values)
    return config


# The file

BAD_FILES = {
    "duplicate key": (b'{"hidden_size": 1, "hidden_size": 2}', "'hidden_size' stands twice"),
    "duplicate key within": (b'{"rope_scaling": {"a": 1, "a": 1}}', "'a' stands twice"),
    "long duplicate key": (b'{"%b": 1, "%b": 1}' % (b"k" * 5000, b"k" * 5000), "kk' stands twice"),
    "NaN": (b'{"rms_norm_eps": NaN}', "NaN"),
    "Infinity": (b'{"rms_norm_eps": -Infinity}', "-Infinity"),
    "huge number": (b'{"rms_norm_eps": 1e999}', "too large"),
    "number of many digits": (b'{"hidden_size": ' + b"9" * 10000 + b"}", "not usable"),
    "nested deeply": (b'{"a": ' + b"[" * 100_000, "nested too deeply"),
    "not UTF-8": (b'{"a": "\xff"}', "not UTF-8: byte 0xff at offset 7"),
    "UTF-8 mark first": (b"\xef\xbb\xbf{}", "not JSON"),
    "half a surrogate pair": (b'{"a": ["\\ud800"]}', "no Unicode text"),
    "empty": (b"", "not JSON"),
    "truncated": (b'{"a": 1', "not JSON"),
    "two objects": (b"{}{}", "not JSON"),
    "array": (b"[]", "an array where an object"),
    "null": (b"null", "null where an object"),
    "LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "Git-LFS"),
    "web page": (b"<!DOCTYPE html><html>", "web page"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_config_file_with_two_meanings_or_none_is_refused(case: str, tmp_path: Path) -> None:
    content, words = BAD_FILES[case]
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(FormatError) as caught:
        read_config(path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_a_huge_config_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(FormatError, match="larger than the 16 MB"):
        read_config(path)


@pytest.mark.parametrize("kind", ["absent", "folder", "fifo"])
def test_a_config_that_is_no_file_is_refused(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    with pytest.raises(FormatError, match="no such file" if kind == "absent" else "not a regular"):
        read_config(path)


# The sizes

SIZES = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    "vocab_size",
)


@pytest.mark.parametrize("key", SIZES)
def test_a_missing_size_is_refused(key: str) -> None:
    config = changed()
    del config[key]
    refuse(config, key, "is missing")
    refuse(changed(**{key: None}), key, "is null")


@pytest.mark.parametrize("key", (*SIZES, "num_key_value_heads", "max_position_embeddings"))
@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0, "is 0, which is not in"),
        (-1, "is -1, which is not in"),
        (2**63, "is 9223372036854775808, which is not in"),
        (10**100, "which is not in"),
        (256.0, "is 256.0, which is not a whole number"),
        (True, "is true, which is not a whole number"),
        ("256", 'is "256", which is not a whole number'),
        ([256], "is an array, which is not a whole number"),
        ({}, "is an object, which is not a whole number"),
    ],
)
def test_a_size_that_is_no_size_is_refused(key: str, value: object, words: str) -> None:
    refuse(changed(**{key: value}), key, words)


def test_heads_that_do_not_divide_are_refused() -> None:
    refuse(changed(num_attention_heads=7), "hidden_size is 256, no multiple of 7 attention heads")
    refuse(changed(num_key_value_heads=3), "num_attention_heads is 8, no multiple of 3 key-value")
    refuse(changed(num_key_value_heads=16), "no multiple of 16 key-value heads")


def test_a_number_of_layers_that_no_runtime_holds_is_refused_before_they_are_listed() -> None:
    refuse(changed(num_hidden_layers=2**31 - 1), "num_hidden_layers", "not in 1 to 512")


@pytest.mark.parametrize("value", [0, -1e-5, "1e-5", True, 1e-60, 1e60])
def test_an_epsilon_that_is_no_positive_float32_is_refused(value: object) -> None:
    refuse(changed(rms_norm_eps=value), "rms_norm_eps")


def test_a_window_of_nothing_is_refused() -> None:
    refuse(changed(sliding_window=0), "sliding_window is 0")
    refuse(changed(sliding_window=-1), "sliding_window is -1")
    refuse(changed(sliding_window="2047"), "sliding_window")


def test_other_arithmetic_is_refused() -> None:
    for key in ("attention_bias", "mlp_bias", "lm_head_bias"):
        refuse(changed(**{key: True}), f"{key} is true", error=UnsupportedError)
        refuse(changed(**{key: 1}), f"{key} is 1")
    refuse(changed(hidden_act="gelu"), "hidden_act is 'gelu'", "silu", error=UnsupportedError)
    refuse(changed(head_dim=64), "head_dim", "= 32", error=UnsupportedError)
    refuse(changed(tie_word_embeddings="no"), "tie_word_embeddings")


# The rope


@pytest.mark.parametrize("key", ["short_factor", "long_factor"])
def test_factor_arrays_of_the_wrong_length_or_kind_are_refused(key: str) -> None:
    factors = PHI35["rope_scaling"][key]
    refuse(
        with_rope(**{key: factors[:-1]}), key, "has 15 numbers where 32 rotary dimensions need 16"
    )
    refuse(with_rope(**{key: [*factors, 1.0]}), key, "has 17 numbers")
    refuse(with_rope(**{key: []}), key, "has 0 numbers")
    refuse(with_rope(**{key: None}), key, "is null")
    refuse(with_rope(**{key: "1.0"}), key, "not an array")
    for bad in (0, 0.0, -1.0, "1", None, True, 1e39, 1e-50, [1.0]):
        refuse(with_rope(**{key: [*factors[:-1], bad]}), key, "at index 15")


def test_longrope_without_its_factors_is_refused() -> None:
    for key in ("short_factor", "long_factor"):
        config = changed()
        del config["rope_scaling"][key]
        refuse(config, f"rope_scaling.{key} is missing")


def test_partial_rotation_changes_how_many_factors_are_needed() -> None:
    refuse(changed(partial_rotary_factor=0.5), "where 16 rotary dimensions need 8")
    refuse(changed(PHI4MINI, partial_rotary_factor=1.0), "where 32 rotary dimensions need 16")


@pytest.mark.parametrize("value", [0, -0.5, 1.5, 0.01, 0.1, "0.75", True])
def test_a_rotary_part_that_makes_no_even_number_of_dimensions_is_refused(value: object) -> None:
    refuse(changed(partial_rotary_factor=value), "partial_rotary_factor")


@pytest.mark.parametrize("kind", ["linear", "dynamic", "llama3", "yarn", "ntk", "Longrope"])
def test_other_rope_types_are_refused_by_name(kind: str) -> None:
    config = changed(rope_scaling={"type": kind, "factor": 2.0})
    refuse(config, f"'{kind}'", "'longrope'", error=UnsupportedError)
    config = changed(rope_parameters={"rope_type": kind, "factor": 2.0, "rope_theta": 10000.0})
    refuse(config, f"'{kind}'", error=UnsupportedError)


def test_rope_settings_of_the_wrong_kind_are_refused() -> None:
    refuse(changed(rope_scaling="longrope"), "rope_scaling", "not an object")
    refuse(with_rope(type=3), "rope_scaling.type is 3")
    refuse(with_rope(short_mscale=1.2), "short_mscale", error=UnsupportedError)
    refuse(with_rope(attention_factor=-1), "attention_factor")
    refuse(changed(rope_theta=0), "rope_theta")
    refuse(changed(original_max_position_embeddings=1), "original_max_position_embeddings is 1")


def test_rope_settings_that_contradict_each_other_are_refused() -> None:
    refuse(changed(PHI35_NEW, rope_theta=5000.0), "rope_theta is 5000.0, but 10000.0")
    refuse(changed(PHI35_NEW, partial_rotary_factor=0.5), "partial_rotary_factor is 0.5, but 1.0")
    key = "original_max_position_embeddings"
    refuse(changed(PHI35_NEW, **{key: 4096}), f"{key} is 4096, but 512")


# The architecture

OTHERS = {
    "PhiMoEForCausalLM": "mixture of experts",
    "Phi3SmallForCausalLM": "blocksparse",
    "Phi3VForCausalLM": "images",
    "Phi4MMForCausalLM": "images and sound",
    "PhiForCausalLM": "Phi-2",
    "LlamaForCausalLM": "LlamaForCausalLM",
    "Phi3ForSequenceClassification": "classifier",
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_architectures_are_refused_by_name_and_told_what_is_supported(name: str) -> None:
    config = changed(architectures=[name])
    refuse(config, name, OTHERS[name], "Phi3ForCausalLM", error=UnsupportedError)


@pytest.mark.parametrize("value", [[], "Phi3ForCausalLM", [3], {}])
def test_architectures_of_the_wrong_kind_are_refused(value: object) -> None:
    refuse(changed(architectures=value), "architectures")


def test_a_config_without_architectures_is_refused() -> None:
    config = changed()
    del config["architectures"]
    refuse(config, "architectures is missing")


@pytest.mark.parametrize("method", ["awq", "gptq", "fp8", "bitsandbytes", "compressed-tensors"])
def test_quantized_sources_are_refused_by_their_method(method: str) -> None:
    config = changed(quantization_config={"quant_method": method, "bits": 4})
    refuse(config, "quantized already", method, "original", error=UnsupportedError)


# The tensors

Entries = dict[str, tuple[str, tuple[int, ...]]]


def entries(config: dict[str, Any]) -> Entries:
    spec = spec_from_config(config)
    return {tensor.source: ("BF16", tensor.shape) for tensor in spec.tensors}


def refuse_tensors(
    config: dict[str, Any], found: Entries, *words: str, error: type[PhiquantError] = FormatError
) -> None:
    with pytest.raises(error) as caught:
        check_tensors(spec_from_config(config), found, file="model")
    assert type(caught.value) is error
    for word in words:
        assert word in str(caught.value), str(caught.value)


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16", "bf16"])
def test_a_checkpoint_with_exactly_the_needed_tensors_is_accepted(dtype: str) -> None:
    found = {name: (dtype, shape) for name, (_, shape) in entries(PHI35).items()}
    spec = spec_from_config(PHI35)
    assert check_tensors(spec, found) == spec


def test_buffers_of_old_exports_are_ignored() -> None:
    found = entries(PHI35)
    found["model.layers.0.self_attn.rotary_emb.inv_freq"] = ("F32", (16,))
    check_tensors(spec_from_config(PHI35), found)


def test_missing_tensors_are_named() -> None:
    found = entries(PHI35)
    del found["model.layers.3.mlp.down_proj.weight"]
    refuse_tensors(PHI35, found, "lacks 'model.layers.3.mlp.down_proj.weight'", "shards")
    refuse_tensors(PHI35, {"transformer.wte.weight": ("BF16", (4, 4))}, "transformer.wte.weight")
    refuse_tensors(PHI35, {}, "lacks 'model.embed_tokens.weight'")


def test_unknown_tensors_are_named() -> None:
    found = entries(PHI35)
    found["model.layers.0.self_attn.qkv_proj.bias"] = ("BF16", (768,))
    refuse_tensors(PHI35, found, "model.layers.0.self_attn.qkv_proj.bias", "does not have")


def test_another_number_of_layers_is_said_in_words() -> None:
    found = {n: e for n, e in entries(PHI35).items() if not n.startswith("model.layers.5.")}
    refuse_tensors(PHI35, found, "config.json says 6 layers, the checkpoint has 5", "layer 5 is mi")
    found = entries(changed(num_hidden_layers=7))
    refuse_tensors(PHI35, found, "config.json says 6 layers, the checkpoint has 7", "one too many")


def test_wrong_shapes_say_both() -> None:
    found = entries(PHI35)
    name = "model.layers.0.self_attn.qkv_proj.weight"
    found[name] = ("BF16", (384, 256))
    refuse_tensors(PHI35, found, name, "[384, 256]", "[768, 256]", error=ShapeError)


def test_a_vocabulary_that_is_not_the_table_s_is_said_in_words() -> None:
    found = entries(PHI35)
    found["model.embed_tokens.weight"] = ("BF16", (4011, 256))
    refuse_tensors(PHI35, found, "has 4011 rows, but vocab_size is 4096", error=ShapeError)


@pytest.mark.parametrize("dtype", ["I32", "U8", "F64", "BOOL", "I8"])
def test_dtypes_that_are_no_weights_are_refused(dtype: str) -> None:
    found = entries(PHI35)
    found["model.norm.weight"] = (dtype, (256,))
    refuse_tensors(PHI35, found, f"dtype {dtype}", "F32, F16, BF16", error=UnsupportedError)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("model.layers.0.mlp.down_proj.qweight", "I32"),
        ("model.layers.0.mlp.down_proj.weight_scale", "F32"),
        ("model.layers.0.mlp.down_proj.weight.quant_state.bitsandbytes__nf4", "U8"),
        ("model.layers.0.mlp.down_proj.weight", "F8_E4M3"),
    ],
)
def test_tensors_of_quantized_checkpoints_are_recognized(name: str, dtype: str) -> None:
    found = {name: (dtype, (4, 4)), **{n: e for n, e in entries(PHI35).items() if n != name}}
    refuse_tensors(PHI35, found, "quantized already", name, error=UnsupportedError)


def test_adapters_are_recognized() -> None:
    found: Entries = {"base_model.model.lm_head.lora_A.weight": ("BF16", (8, 256))}
    refuse_tensors(PHI35, found, "adapter", "Merge", error=UnsupportedError)


def test_a_tied_model_needs_no_head_and_keeps_one_that_it_has() -> None:
    found = entries(PHI4MINI)
    assert "lm_head.weight" not in found
    spec = spec_from_config(PHI4MINI)
    assert check_tensors(spec, found).tied
    found["lm_head.weight"] = ("BF16", (4096, 256))
    with_head = check_tensors(spec, found)
    assert not with_head.tied
    assert with_head.tensors[-1].role == "output"


def test_an_untied_model_without_a_head_is_refused_and_told_about_tying() -> None:
    found = entries(PHI35)
    del found["lm_head.weight"]
    refuse_tensors(PHI35, found, "lacks 'lm_head.weight'", "tie_word_embeddings")
