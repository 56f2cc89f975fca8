"""GGUF metadata: the pairs that llama.cpp's converter and llama-quantize write, and the tensors' names and order."""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from phiquant.architectures import ModelSpec, read_config, spec_from_config
from phiquant.errors import UnsupportedError
from phiquant.targets.gguf_metadata import (
    Kv,
    SourceFacts,
    file_tensors,
    general,
    head,
    metadata,
    read_source_facts,
    rope_tensors,
    tail,
)
from phiquant.targets.model_card import parse_front_matter, read_card
from phiquant.targets.model_names import name_parts, size_label, title

DATA = Path(__file__).parents[1] / "data"
GOLDEN = Path(__file__).parents[1] / "golden"
CONVERTED: dict[str, Any] = json.loads((GOLDEN / "converter-metadata.json").read_text())["models"]
DIGESTS: dict[str, Any] = json.loads((GOLDEN / "llama-quantize-digests.json").read_text())
GENERAL: dict[str, Any] = json.loads((GOLDEN / "general-metadata.json").read_text())["cases"]
FIXTURES = ("phi35", "phi4mini", "phi3win")
MOVED = ("general.quantization_version", "general.file_type")


def stored(pair: Any) -> tuple[str, str, object]:
    """A pair as a GGUF file holds it: float32 rounded."""
    key, kind, value = pair
    if kind == "float32":
        value = struct.unpack("<f", struct.pack("<f", value))[0]
    return key, kind, value


def fixture(name: str, config: str = "config.json") -> tuple[ModelSpec, SourceFacts]:
    values = read_config(DATA / name / config)
    return spec_from_config(values), read_source_facts(DATA / name, values)


@pytest.mark.parametrize("config", ["config.json", "config.transformers5.json"])
@pytest.mark.parametrize("name", FIXTURES)
def test_keys_types_values_and_order_are_the_converter_s(name: str, config: str) -> None:
    recorded = [
        (row["key"], row["type"], row["value"])
        for row in CONVERTED[name]["metadata"]
        if not row["key"].startswith("tokenizer.") and row["key"] not in MOVED
    ]
    assert [stored(pair) for pair in head(*fixture(name, config))] == recorded


def test_llama_quantize_s_two_keys_stand_last_and_the_tokenizer_before_them() -> None:
    tokenizer: list[Kv] = [("tokenizer.ggml.model", "string", "llama")]
    pairs = metadata(*fixture("phi35"), "Q4_K_M", tokenizer)
    assert pairs[-3:] == [
        *tokenizer,
        ("general.quantization_version", "uint32", 2),
        ("general.file_type", "uint32", 15),
    ]
    assert tail("BF16")[-1] == ("general.file_type", "uint32", 32)
    keys = [key for key, _, _ in pairs]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("name", FIXTURES)
def test_tensors_stand_in_llama_quantize_s_order_with_the_converter_s_shapes(name: str) -> None:
    spec, _ = fixture(name)
    files = file_tensors(spec)
    assert [entry.name for entry in files] == list(DIGESTS[name]["Q4_K_M"])
    shapes = {row["name"]: row["shape"] for row in CONVERTED[name]["tensors"]}
    for entry in files:
        shape = entry.tensor.shape if entry.tensor else (len(entry.values),)
        assert list(reversed(shape)) == shapes[entry.name]


def test_layers_are_ordered_by_number_not_by_spelling() -> None:
    spec = spec_from_config(read_config(DATA / "configs/phi-4.json"))
    layers = [entry.name.split(".")[1] for entry in file_tensors(spec) if entry.name[:4] == "blk."]
    assert list(dict.fromkeys(layers)) == [str(layer) for layer in range(40)]


@pytest.mark.parametrize("name", ["phi35", "phi4mini"])
def test_rope_factors_have_the_converter_s_bytes(name: str) -> None:
    digests = {row["name"]: row["sha256"] for row in CONVERTED[name]["tensors"]}
    found = rope_tensors(fixture(name)[0])
    assert [key for key, _ in found] == ["rope_factors_long.weight", "rope_factors_short.weight"]
    for key, values in found:
        packed = struct.pack(f"<{len(values)}f", *values)
        assert hashlib.sha256(packed).hexdigest() == digests[key]


def test_models_without_longrope_have_no_rope_factors() -> None:
    assert rope_tensors(fixture("phi3win")[0]) == []


def sized(parameters: int) -> ModelSpec:
    """A spec with a given number of weights, and no rope factors beside them."""
    spec, _ = fixture("phi3win")
    norm = replace(spec.tensors[-2], shape=(parameters,))
    return replace(spec, tensors=(norm,))


@pytest.mark.parametrize("case", GENERAL)
def test_general_keys_are_what_the_converter_makes_of_name_config_and_card(
    case: str, tmp_path: Path
) -> None:
    row = GENERAL[case]
    folder = tmp_path / row["name"]
    folder.mkdir()
    if row["generation"] is not None:
        (folder / "generation_config.json").write_text(json.dumps(row["generation"]))
    if row["card"] is not None:
        (folder / "README.md").write_text(row["card"])
    facts = read_source_facts(folder, row["config"])
    pairs = general(sized(row["parameters"]), facts)
    assert [stored(pair) for pair in pairs] == [stored(pair) for pair in row["metadata"]]


def test_the_caller_can_name_the_model() -> None:
    spec, facts = fixture("phi35")
    assert ("general.name", "string", "phi-3 of mine") in head(spec, facts, name="phi-3 of mine")


def test_a_hub_download_is_named_after_the_model_not_the_commit(tmp_path: Path) -> None:
    folder = tmp_path / "0123456789abcdef"
    folder.mkdir()
    facts = read_source_facts(folder, {}, name="Phi-4-mini-instruct")
    pairs = {key: value for key, _, value in general(sized(3_836_021_856), facts)}
    assert pairs["general.name"] == "Phi 4 Mini Instruct"
    assert pairs["general.size_label"] == "mini"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"---\n",
        b"---\nlicense: mit\n",
        b"# no card\n---\nlicense: mit\n---\n",
        b"---\n\xff\n---\n",
    ],
)
def test_a_card_that_cannot_be_read_gives_no_keys(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_bytes(content)
    assert read_card(tmp_path) == {}


def test_front_matter_keeps_scalars_as_text_and_leaves_nested_values_out() -> None:
    lines = """\
a: 1.0
b: 'it''s'   # a comment
c: "say \\"no\\""
d: [x, 'y, z', "w"]
e:
  - one
  - "two"  # second
f:
  inner: value
g:
- name: nested
h: null
i: |-
  first
  second
j: {flow: map}
k: a # b
l: a#b
""".splitlines()
    assert parse_front_matter(lines) == {
        "a": "1.0",
        "b": "it's",
        "c": 'say "no"',
        "d": ["x", "y, z", "w"],
        "e": ["one", "two"],
        "i": "first\nsecond",
        "k": "a",
        "l": "a#b",
    }


def test_sampling_settings_of_the_wrong_kind_are_left_out() -> None:
    bad = {"top_k": 2**40, "top_p": "0.9", "temperature": True, "min_p": 1e300, "mirostat": 1.5}
    pairs = general(sized(1000), SourceFacts("x", {}, bad))
    assert [key for key, _, _ in pairs] == ["general.name", "general.size_label"]


def test_size_labels_have_two_digits_at_least() -> None:
    sizes = (
        0,
        999,
        512_345,
        1_000_000,
        1_000_001,
        7_212_288,
        99_600_000,
        3_821_079_552,
        2 * 10**12,
    )
    labels = [size_label(size) for size in sizes]
    assert labels == ["0.00K", "1.0K", "512K", "1000K", "1.0M", "7.2M", "100M", "3.8B", "2.0T"]


def test_names_are_titled_and_taken_apart() -> None:
    assert title("phi-4-mini-v1.2") == "Phi 4 Mini v1.2"
    parts = name_parts("microsoft/Phi-3-mini-4k-instruct", 3_821_079_552)
    assert (parts.organization, parts.basename, parts.size_label) == ("microsoft", "Phi-3", "mini")
    assert parts.finetune == "4k-instruct"


def test_a_decoder_that_llama_cpp_has_no_graph_for_is_refused() -> None:
    spec, facts = fixture("phi35")
    halved = tuple(tensor for tensor in spec.tensors if tensor.role != "attn_qkv")
    with pytest.raises(UnsupportedError, match="no architecture"):
        head(replace(spec, tensors=halved), facts)
