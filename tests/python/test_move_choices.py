"""What the user chooses beside a quantized source: overrides, presets, qualities, grids."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import phiquant as pq
from phiquant.measure.content import tensor_digests
from phiquant.plan import PlannedTarget
from phiquant.reference.weights import Weights

DATA = Path(__file__).parents[2] / "tests" / "data"
MODEL = DATA / "phi35"
DOWN = "model.layers.0.mlp.down_proj.weight"


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed") / "w4a16"
    pq.convert(MODEL, "hf:w4a16,group=32", folder)
    return folder


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Mostly 4 bits, and 6 in some matrices, which only MLX has."""
    folder = tmp_path_factory.mktemp("mixed") / "mlx"
    pq.convert(MODEL, "mlx:4bit", folder, tensor=["mlx:*.down_proj.weight=6bit"])
    return folder


def _codecs(target: PlannedTarget) -> dict[str | None, str]:
    return {t.source: t.codec for file in target.files for t in file.tensors}


@pytest.mark.parametrize(
    ("to", "override", "codec"),
    [
        ("onnx:int4", "onnx:*.down_proj.weight=int8_sym_g32", "int8_sym_g32"),
        ("gguf:q4_0", "gguf:*.down_proj.weight=q8_0", "q8_0"),
        ("mlx:4bit", "mlx:*.down_proj.weight=8bit_g32", "int8_asym_g32,rule=mlx"),
    ],
)
def test_the_users_overrides_come_before_the_sources_codecs(
    packed: Path, to: str, override: str, codec: str, tmp_path: Path
) -> None:
    made = pq.plan(packed, to, tensor=override)
    assert _codecs(made.targets[0])[DOWN] == codec
    out = tmp_path / ("out.gguf" if to.startswith("gguf") else "out")
    report = made.run(out)
    assert report.is_lossless
    name = "blk.0.ffn_down.weight" if to.startswith("gguf") else DOWN
    theirs = Weights(pq.open(packed)).whole(DOWN)
    assert np.array_equal(Weights(pq.open(out)).whole(name), theirs)


def test_codecs_of_head_and_table_are_the_users(packed: Path) -> None:
    made = pq.plan(packed, "gguf:q4_0", output_type="q8_0", embedding_type="q6_k")
    codecs = _codecs(made.targets[0])
    assert codecs["lm_head.weight"] == "q8_0"
    assert codecs["model.embed_tokens.weight"] == "q6_k"
    pure = _codecs(pq.plan(packed, "gguf:q4_0", pure=True).targets[0])
    assert pure["lm_head.weight"] == pure["model.embed_tokens.weight"] == "q4_0"


@pytest.mark.parametrize(
    "to", ["hf:w8a8", "hf:fp8", "hf:mxfp4", "openvino:nf4", "mlx:nvfp4", "q4_k_m", "q2_k"]
)
def test_no_preset_is_made_of_codes_of_another_kind(packed: Path, to: str, tmp_path: Path) -> None:
    with pytest.raises(pq.UnsupportedError, match="holds symmetric codes of 4 bits") as caught:
        pq.convert(packed, to, tmp_path / "out")
    assert caught.value.remedy is not None
    assert "--requantize" in caught.value.remedy


@pytest.mark.parametrize("to", ["onnx:int4", "onnx:int8-dynamic", "openvino:int4", "hf:w4a16"])
def test_bits_that_a_format_lacks_are_no_error_of_the_users(mixed: Path, to: str) -> None:
    # 6 bits in 8, whose numbers are then compared.
    assert _codecs(pq.plan(mixed, to).targets[0])[DOWN].startswith("int8")


def test_five_bits_become_eight_in_gptq(tmp_path: Path) -> None:
    pq.convert(MODEL, "q5_0", tmp_path / "x.gguf", pure=True)
    made = pq.plan(tmp_path / "x.gguf", "hf:gptq", tokenizer=MODEL)
    assert _codecs(made.targets[0])[DOWN].startswith("int8_sym_g32")


def test_parts_in_several_codecs_are_refused(tmp_path: Path) -> None:
    pq.convert(MODEL, "onnx:int4", tmp_path / "onnx")
    checkpoint = pq.open(tmp_path / "onnx")
    name, entry = next((n, e) for n, e in checkpoint.entries.items() if e.parts)
    first, *others = entry.parts
    float_first = replace(first, type="f32", planes=())
    for parts in ((*others, replace(first, type="int8_sym_g32")), (float_first, *others)):
        checkpoint.entries[name] = replace(entry, parts=tuple(parts))
        with pytest.raises(pq.UnsupportedError, match="parts in several codecs"):
            pq.plan(checkpoint, "onnx:int4")


def test_a_quality_that_changes_nothing_is_told(packed: Path) -> None:
    assert not any("moved as" in note for note in pq.plan(packed, "gguf:q4_0").targets[0].notes)
    notes = pq.plan(packed, "gguf:q4_0", quality="best").targets[0].notes
    assert any("moved as the source has them" in note for note in notes)


@pytest.mark.parametrize("requantize", [False, True])
def test_the_portable_grid_is_for_weights_that_are_not_quantized(
    packed: Path, requantize: bool, tmp_path: Path
) -> None:
    with pytest.raises(pq.UnsupportedError, match="is quantized already"):
        pq.convert(packed, "mlx:4bit", tmp_path / "out", grid="portable", requantize=requantize)


@pytest.mark.parametrize(
    "wishes",
    [{"importance": MODEL / "imatrix.gguf"}, {"output_type": "q6_k"}, {"embedding_type": "q8_0"}],
)
def test_choices_that_part_the_portable_targets_are_refused(
    wishes: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(pq.UsageError, match="would make the targets"):
        pq.convert(MODEL, "gguf:q4_1", tmp_path / "x.gguf", grid="portable", **wishes)


@pytest.mark.parametrize("target", ["hf:w8a8", "onnx:int4", "openvino:int4_sym,group=64,awq"])
def test_every_place_of_a_matrix_counts_for_its_digest(target: str, tmp_path: Path) -> None:
    # The planes of a matrix stand apart, so that codes and what follows them are not all of it.
    pq.convert(MODEL, target, tmp_path / "x")
    checkpoint = pq.open(tmp_path / "x")
    before = tensor_digests(checkpoint, None, threads=1)
    assert before.keys() == checkpoint.entries.keys()
    entry = max(checkpoint.entries.values(), key=lambda e: (e.column_scale is not None, e.name))
    entry = entry if entry.column_scale else checkpoint.entries[DOWN]
    places = [plane for part in entry.parts or (entry,) for plane in part.planes or (part,)]
    if entry.column_scale is not None:
        places.append(entry.column_scale)
    assert len(places) > 1
    for place in places:
        path = checkpoint.files[place.file].path
        data = bytearray(path.read_bytes())
        data[place.offset + place.nbytes - 1] ^= 1
        path.write_bytes(data)
        after = tensor_digests(pq.open(tmp_path / "x"), None, threads=1)
        assert {name for name in before if before[name] != after[name]} == {entry.name}
        data[place.offset + place.nbytes - 1] ^= 1
        path.write_bytes(data)


def test_a_split_gguf_is_to_be_merged_first(tmp_path: Path) -> None:
    pq.convert(MODEL, "q4_0", tmp_path / "x.gguf", split_size="2M")
    first = min(tmp_path.glob("x-00001-of-*.gguf"))
    for to, tokenizer in (("q8_0", None), ("onnx:int4", MODEL)):
        with pytest.raises(pq.UnsupportedError, match="one of several split files"):
            pq.plan(first, to, tokenizer=tokenizer)
