"""A GGUF as the source of a conversion: what llama-quantize makes of the same file, byte for byte."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import llama_cpp_peer as peer
import phiquant as pq
from phiquant.recipes.llama_quantize import ftype_number
from places import DATA, FIXTURES, PRESETS

Metadata = dict[str, Any]


def typed(path: Path) -> Metadata:
    """A GGUF's metadata with their types, as ``pq.gguf.write`` takes them."""
    checkpoint = pq.open(path)
    return {key: (checkpoint.metadata_types[key], v) for key, v in checkpoint.metadata.items()}


def rewritten(
    source: Path,
    out: Path,
    *,
    metadata: Mapping[str, Any] | None = None,
    tensors: Mapping[str, Any] | None = None,
) -> Path:
    """A copy with some keys or tensors changed, added, or (None) left out."""
    merged = [typed(source) | dict(metadata or {}), dict(pq.open(source)) | dict(tensors or {})]
    keys, arrays = ({k: v for k, v in both.items() if v is not None} for both in merged)
    return pq.gguf.write(out, arrays, keys)


def converted_by_both(source: Path, preset: str, folder: Path, **options: Any) -> None:
    """Convert with phiquant and with llama.cpp, and hold the whole files against each other."""
    ours, theirs = folder / "ours.gguf", folder / "theirs.gguf"
    pq.convert(source, preset, ours, overwrite=True, **options)
    peer.quantize(source, theirs, ftype_number(preset), **options)
    assert ours.read_bytes() == theirs.read_bytes()


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("source", ["bf16", "f32"])
@pytest.mark.parametrize("fixture", FIXTURES)
def test_through_a_lossless_gguf_the_file_is_the_direct_one(
    fixture: str, source: str, preset: str, converted: Any, tmp_path: Path
) -> None:
    path = tmp_path / "x.gguf"
    pq.convert(converted(fixture, source), preset, path)
    assert path.read_bytes() == converted(fixture, preset).read_bytes()


@pytest.mark.parametrize("preset", ["q4_k_m", "q5_1", "f32", "bf16", "f16"])
@pytest.mark.parametrize("fixture", FIXTURES)
def test_from_f16_the_file_is_llama_quantizes(
    fixture: str, preset: str, converted: Any, tmp_path: Path
) -> None:
    converted_by_both(converted(fixture, "f16"), preset, tmp_path)


@pytest.mark.parametrize(
    ("source", "preset"),
    [
        ("q8_0", "q4_k_m"),
        ("q4_k_m", "q4_k_s"),  # most tensors have their type already and stay as they are
        ("q6_k", "q4_0"),
        ("q5_1", "q5_k_m"),
        ("q5_0", "q6_k"),
        ("q5_k_m", "q8_0"),
        ("q4_0", "f16"),
        ("q4_k_s", "f32"),
    ],
)
@pytest.mark.parametrize("fixture", FIXTURES)
def test_requantizing_is_llama_quantizes(
    fixture: str, source: str, preset: str, converted: Any, tmp_path: Path
) -> None:
    converted_by_both(converted(fixture, source), preset, tmp_path, requantize=True)


@pytest.mark.parametrize("preset", ["q4_k_m", "iq4_xs"])
def test_quantized_sources_are_refused_unless_the_loss_is_accepted(
    preset: str, converted: Any, tmp_path: Path
) -> None:
    source = converted("phi35", "q8_0")
    with pytest.raises(RuntimeError, match="requantizing from type q8_0 is disabled"):
        peer.quantize(source, tmp_path / "theirs.gguf", ftype_number(preset))
    with pytest.raises(pq.UnsupportedError, match="quantized already") as caught:
        pq.convert(source, preset, tmp_path / "ours.gguf")
    error = caught.value
    assert (error.exit_code, error.file, error.tensor) == (3, str(source), "output.weight")
    assert error.remedy is not None
    assert "--requantize" in error.remedy
    assert not (tmp_path / "ours.gguf").exists()


def test_float32_holds_what_was_quantized(converted: Any, tmp_path: Path) -> None:
    source = converted("phi35", "q4_k_m")
    report = pq.convert(source, "f32", tmp_path / "x.gguf")
    assert report.is_lossless
    theirs, ours = pq.open(source), pq.open(tmp_path / "x.gguf")
    for name in theirs:
        values = theirs[name]
        wanted = values.dequantize() if hasattr(values, "dequantize") else values
        assert np.array_equal(wanted, ours[name])


def test_the_command_line_says_so_too(converted: Any, tmp_path: Path) -> None:
    out = tmp_path / "x.gguf"
    command = [sys.executable, "-m", "phiquant", "convert", str(converted("phi35", "q8_0"))]
    command += ["--to", "q4_k_m", "-o", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (3, "")
    assert "output.weight" in done.stderr
    assert "--requantize" in done.stderr
    assert list(tmp_path.iterdir()) == []
    subprocess.run([*command, "--requantize", "-q"], check=True)
    assert out.exists()


@pytest.mark.parametrize("preset", ["q8_0", "q4_k_m"])
def test_what_is_quantized_so_already_is_copied(
    preset: str, converted: Any, tmp_path: Path
) -> None:
    source = converted("phi4mini", preset)
    pq.convert(source, preset, tmp_path / "x.gguf")
    assert (tmp_path / "x.gguf").read_bytes() == source.read_bytes()


@pytest.mark.parametrize("fixture", FIXTURES)
def test_other_tools_orders_become_llama_quantizes(
    fixture: str, converted: Any, tmp_path: Path
) -> None:
    """As the converter writes: tensors in the checkpoint's order, the file's type among the keys."""
    source = converted(fixture, "bf16")
    keys, tensors = typed(source), dict(pq.open(source))
    moved = {"general.architecture": keys.pop("general.architecture")}
    moved |= {key: keys.pop(key) for key in ("general.file_type", "general.quantization_version")}
    names = sorted(tensors, key=lambda name: name[::-1])
    path = pq.gguf.write(tmp_path / "x.gguf", {name: tensors[name] for name in names}, moved | keys)
    converted_by_both(path, "q4_k_m", tmp_path)
    assert (tmp_path / "ours.gguf").read_bytes() == converted(fixture, "q4_k_m").read_bytes()


def test_keys_that_phiquant_does_not_know_stay_as_they_are(converted: Any, tmp_path: Path) -> None:
    unknown: Metadata = {
        "x.string": "naïve 🙂",
        "x.uint8": ("uint8", 255),
        "x.int8": ("int8", -128),
        "x.uint16": ("uint16", 65535),
        "x.int16": ("int16", -5),
        "x.uint32": ("uint32", 2**32 - 1),
        "x.int32": ("int32", -(2**31)),
        "x.uint64": ("uint64", 2**64 - 1),
        "x.int64": ("int64", -(2**63)),
        "x.float32": ("float32", 0.1),
        "x.float64": ("float64", 0.1),
        "x.bool": True,
        "x.strings": ["a", "", "é"],
        "x.numbers": ("array:int16", [1, -1]),
        "x.reals": np.array([1.5, float("nan")]),
        "x.bools": ("array:bool", [True, False]),
        "x.nothing": ("array:string", []),
    }
    source = rewritten(converted("phi35", "bf16"), tmp_path / "x.gguf", metadata=unknown)
    converted_by_both(source, "q4_0", tmp_path)
    metadata = pq.open(tmp_path / "ours.gguf").metadata
    assert metadata["x.uint64"] == 2**64 - 1
    assert metadata["x.strings"] == ["a", "", "é"]


def test_a_larger_alignment_is_kept(converted: Any, tmp_path: Path) -> None:
    """llama-quantize keeps the key, but not the alignment, and so cannot be the oracle here."""
    source = tmp_path / "aligned.gguf"
    checkpoint = pq.open(converted("phi35", "bf16"))
    metadata = typed(converted("phi35", "bf16")) | {"general.alignment": ("uint32", 4096)}
    pq.gguf.write(source, dict(checkpoint), metadata, alignment=4096)
    path = tmp_path / "x.gguf"
    pq.convert(source, "q4_k_m", path)
    found, wanted = pq.open(path), pq.open(converted("phi35", "q4_k_m"))
    assert all(entry.offset % 4096 == 0 for entry in found.entries.values())
    for name, tensor in wanted.items():
        assert bytes_of(found[name]) == bytes_of(tensor)
    with peer.running(path, n_ctx=256) as run:
        assert np.isfinite(run.logits([1, 2, 3], 3)).all()


def bytes_of(tensor: Any) -> bytes:
    return (tensor.data if isinstance(tensor, pq.QuantizedTensor) else tensor).tobytes()


# What is changed in phi35's BF16 file, the error, and words that it must hold.
WRONG: dict[str, tuple[Metadata, dict[str, Any], type[pq.PhiquantError], str]] = {
    "another architecture": (
        {"general.architecture": "llama"}, {}, pq.UnsupportedError, "'llama'.*llama-quantize",
    ),
    "no architecture": ({"general.architecture": None}, {}, pq.UnsupportedError, "architecture"),
    "an adapter": ({"general.type": "adapter"}, {}, pq.UnsupportedError, "no model.*'adapter'"),
    "one of several files": ({"split.count": ("uint16", 2)}, {}, pq.UnsupportedError, "--merge"),
    "a number of files that is none": (
        {"split.count": "two"}, {}, pq.UnsupportedError, "split files",
    ),
    "no number of layers": ({"phi3.block_count": None}, {}, pq.FormatError, "block_count is None"),
    "too many layers": (
        {"phi3.block_count": ("uint32", 2**32 - 1)}, {}, pq.FormatError, "4294967295 layers",
    ),
    "a missing layer": ({"phi3.block_count": 7}, {}, pq.FormatError, "blk.6.attn_norm.*missing"),
    "a layer too many": ({"phi3.block_count": 5}, {}, pq.UnsupportedError, "blk.5.*no tensor"),
    "no heads": ({"phi3.attention.head_count": 0}, {}, pq.FormatError, "0 heads"),
    "heads that do not divide": (
        {"phi3.attention.head_count": 7}, {}, pq.FormatError, "7 heads.*256",
    ),
    "heads in words": ({"phi3.attention.head_count": "8"}, {}, pq.FormatError, "head_count is '8'"),
    "another width": (
        {"phi3.embedding_length": 512}, {}, pq.FormatError, r"token_embd.weight.*\(4096, 512\)",
    ),
    "no embedding": ({}, {"token_embd.weight": None}, pq.FormatError, "token_embd.weight"),
    "no norm": ({}, {"output_norm.weight": None}, pq.FormatError, "output_norm.weight.*missing"),
    "a bias": (
        {}, {"output.bias": np.zeros(4096, np.float32)}, pq.UnsupportedError, "output.bias",
    ),
    "half the rope factors": (
        {}, {"rope_factors_long.weight": None}, pq.FormatError, "one of the two rope_factors",
    ),
    "too few rope factors": (
        {}, {"rope_factors_short.weight": np.ones(8, np.float32)}, pq.FormatError,
        "rope_factors_short.weight.*16 finite",
    ),
    "rope factors that are no numbers": (
        {}, {"rope_factors_long.weight": np.full(16, np.nan, np.float32)}, pq.FormatError,
        "rope_factors_long.weight.*16 finite",
    ),
    "rope factors of another type": (
        {}, {"rope_factors_long.weight": np.ones(16, np.float16)}, pq.FormatError, "float32",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_what_is_no_phi_is_refused_in_words(what: str, converted: Any, tmp_path: Path) -> None:
    metadata, tensors, error, words = WRONG[what]
    source = tmp_path / "wrong.gguf"
    rewritten(converted("phi35", "bf16"), source, metadata=metadata, tensors=tensors)
    with pytest.raises(error, match=words) as caught:
        pq.convert(source, "q4_k_m", tmp_path / "x.gguf")
    assert caught.value.exit_code == 3
    assert caught.value.file == str(source)
    assert list(tmp_path.iterdir()) == [source]


def test_an_importance_matrix_is_no_model() -> None:
    with pytest.raises(pq.UnsupportedError, match=r"no model.*'imatrix'"):
        pq.plan(DATA / "phi35" / "imatrix.gguf", "q4_k_m")


def test_non_finite_weights_are_found(converted: Any, tmp_path: Path) -> None:
    weights = np.array(pq.open(converted("phi35", "f32"))["blk.2.ffn_down.weight"])
    weights[3, 5] = np.inf
    source = tmp_path / "x.gguf"
    rewritten(converted("phi35", "f32"), source, tensors={"blk.2.ffn_down.weight": weights})
    with pytest.raises(pq.ValueRangeError, match=r"blk\.2\.ffn_down\.weight") as caught:
        pq.convert(source, "q4_k_m", tmp_path / "y.gguf")
    assert caught.value.file == str(source)
    assert list(tmp_path.iterdir()) == [source]
