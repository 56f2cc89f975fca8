"""Names that users give: targets, overrides, outputs."""

from __future__ import annotations

import pytest

from phiquant.errors import UsageError
from phiquant.targets.names import (
    GGUF_CODECS,
    GGUF_PRESETS,
    Override,
    Target,
    default_output,
    gguf_codec,
    parse_override,
    parse_target,
)


@pytest.mark.parametrize(
    "text", ["q4_k_m", "Q4_K_M", "gguf:q4_k_m", "GGUF:Q4_K_M", "gguf: Q4_k_m", "Q4_K", " q4_k_m "]
)
def test_every_spelling_of_q4_k_m_is_one_target(text: str) -> None:
    assert parse_target(text) == Target("gguf", "q4_k_m")
    assert str(parse_target(text)) == "gguf:q4_k_m"


def test_q5_k_is_q5_k_m_as_in_llama_quantize() -> None:
    assert parse_target("Q5_K").preset == "q5_k_m"


@pytest.mark.parametrize("preset", GGUF_PRESETS)
def test_every_built_preset_is_taken_bare_and_with_its_format(preset: str) -> None:
    assert parse_target(preset) == parse_target(f"gguf:{preset.upper()}") == Target("gguf", preset)


def test_copying_is_no_target() -> None:
    with pytest.raises(UsageError, match="no conversion"):
        parse_target("COPY")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("q4km", "Did you mean q4_k_m"),
        ("gguf:q4_k_n", r"Did you mean .*q4_k_m"),
        ("q8", "Did you mean q8_0"),
        ("ggf:q4_k_m", "Did you mean gguf:q4_k_m"),
        ("fp16", "Did you mean onnx:fp16"),
        ("int4", "onnx:int4|openvino:int4"),
        ("gguf", "names a format without a preset"),
        ("onnx", "names a format without a preset"),
        ("gguf:", "no preset"),
        ("", "no target"),
        (":q4_k_m", "no format"),
        ("zzzzzz", "phiquant formats"),
    ],
)
def test_unknown_targets_get_a_guess(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        parse_target(text)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("text", ["q4_k_m,block=32", "gguf:q8_0,sym", "q8_0,"])
def test_options_that_gguf_does_not_have_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="no option"):
        parse_target(text)


def test_targets_print_their_options() -> None:
    assert str(Target("onnx", "int4", (("block", "32"), ("sym", True)))) == "onnx:int4,block=32,sym"


def test_options_are_flags_and_pairs_in_the_order_of_their_names() -> None:
    target = parse_target("OpenVINO:INT4_SYM, ratio=1.0,GROUP=64")
    assert target == Target("openvino", "int4_sym", (("group", "64"), ("ratio", "1.0")))
    assert str(target) == "openvino:int4_sym,group=64,ratio=1.0"
    with pytest.raises(UsageError, match="given twice"):
        parse_target("openvino:int4,group=64,group=32")


def test_overrides_are_a_glob_and_a_codec() -> None:
    assert parse_override("*.down_proj.weight=Q6_K") == Override("*.down_proj.weight", "q6_k")
    assert parse_override("gguf:lm_head*=f16") == Override("lm_head*", "f16", "gguf")
    assert parse_override("a=b*=q8_0").glob == "a=b*"
    assert parse_override("openvino:lm_head*=f16") == Override("lm_head*", "f16", "openvino")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("*.down_proj.weight", "Write GLOB=CODEC"),
        ("=q6_k", "Write GLOB=CODEC"),
        ("*=", "Write GLOB=CODEC"),
        ("*=q6", "Did you mean q6_k"),
        ("*=q4_k_m", "is a mix of codecs"),
    ],
)
def test_overrides_that_make_no_sense_are_refused(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        parse_override(text)


def test_built_codecs_are_taken_in_any_case() -> None:
    assert [gguf_codec(name.upper()) for name in GGUF_CODECS] == list(GGUF_CODECS)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("phi35", "phi35-q4_k_m.gguf"),
        ("/models/Phi-4-mini-instruct/", "Phi-4-mini-instruct-q4_k_m.gguf"),
        ("microsoft/Phi-4-mini-instruct@main", "Phi-4-mini-instruct-q4_k_m.gguf"),
        ("old.bf16.gguf", "old.bf16-q4_k_m.gguf"),
        ("model.safetensors", "model-q4_k_m.gguf"),
    ],
)
def test_the_default_output_is_name_and_preset(source: str, name: str) -> None:
    assert default_output(source, parse_target("Q4_K_M")) == name


def test_the_default_output_of_a_folder_names_its_format() -> None:
    assert default_output("phi35", parse_target("openvino:int4")) == "phi35-openvino-int4"
