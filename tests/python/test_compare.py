"""Comparison names what differs between two checkpoints, and measures decoded weights as gguf-py decodes them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from cli_process import phiquant

import phiquant as pq
from phiquant.evaluate import compare
from places import DATA, FIXTURES
from tiny_model import config_of, safetensors_bytes, weights_of, write_model


@pytest.mark.parametrize("fixture", FIXTURES)
def test_a_folder_and_its_gguf_correspond_by_what_tensors_do(fixture: str, converted: Any) -> None:
    result = compare(DATA / fixture, converted(fixture, "bf16"))
    source = pq.open(DATA / fixture)
    assert {tensor.a for tensor in result.tensors} == set(source)
    assert result.only_a == ()
    assert all(name.startswith("rope_factors_") for name in result.only_b)
    assert result.same_weights
    assert {(t.relative_error, t.max_error) for t in result.tensors} == {(0.0, 0.0)}
    assert result.metadata == {}  # the same model, whichever file tells it
    pairs = {tensor.a: tensor.b for tensor in result.tensors}
    assert pairs["model.layers.1.mlp.down_proj.weight"] == "blk.1.ffn_down.weight"
    assert pairs["model.norm.weight"] == "output_norm.weight"


def test_errors_are_those_of_gguf_py_s_decoding(converted: Any) -> None:
    one, other = converted("phi35", "f32"), converted("phi35", "q4_k_m")
    result = compare(one, other)
    decoded = [
        {
            tensor.name: gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float64)
            for tensor in gguf.GGUFReader(path).tensors
        }
        for path in (one, other)
    ]
    assert [tensor.a for tensor in result.tensors] == list(decoded[0])
    for tensor in result.tensors:
        a, b = (side[tensor.a] for side in decoded)
        assert tensor.shape == a.shape
        wanted = math.sqrt(np.square(b - a).sum() / np.square(a).sum())
        assert tensor.relative_error == pytest.approx(wanted, rel=1e-5)  # float32 differences
        assert tensor.max_error == pytest.approx(np.abs(b - a).max(), rel=1e-5)
    assert not result.same_weights


def test_recipes_and_bytes_are_the_files_(converted: Any) -> None:
    one, other = converted("phi4mini", "q8_0"), converted("phi4mini", "q4_k_m")
    result = compare(one, other)
    files = pq.open(one), pq.open(other)
    assert (result.a_bytes, result.b_bytes) == tuple(file.nbytes for file in files)
    for tensor in result.tensors:
        entries = [file.entries[tensor.a] for file in files]
        assert [entry.type for entry in entries] == [tensor.a_codec, tensor.b_codec]
        assert [entry.nbytes for entry in entries] == [tensor.a_bytes, tensor.b_bytes]
    assert result.metadata == {"general.file_type": (7, 15)}


def test_a_checkpoint_is_like_itself(converted: Any) -> None:
    for path in (DATA / "phi35", converted("phi35", "q4_0")):
        result = compare(path, path)
        assert result.same_weights and not result.metadata
        assert str(result).endswith("Both hold the same weights.")


def test_models_of_other_facts_are_told(tmp_path: Path) -> None:
    one = write_model(tmp_path / "one")
    other = write_model(tmp_path / "other", rope_theta=500000.0, rms_norm_eps=1e-6)
    result = compare(one, other)
    assert result.metadata == {
        "norm.epsilon": (float(np.float32(1e-5)), float(np.float32(1e-6))),
        "rope.base": (10000.0, 500000.0),
    }
    assert result.same_weights
    assert "rope.base" in str(result)


def test_what_only_one_has_and_what_has_no_number(tmp_path: Path) -> None:
    weights = weights_of(config_of())
    small = {name: weights[name] for name in list(weights)[:3]}
    (name, *_) = small
    for file, changes in (
        ("a", {"x": np.ones(3, np.float32), "n": np.arange(4, dtype=np.int32)}),
        ("b", {"y": np.ones(3, np.float32), "n": np.arange(4, dtype=np.int32)}),
    ):
        (tmp_path / f"{file}.safetensors").write_bytes(safetensors_bytes(small | changes))
    result = compare(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    assert (result.only_a, result.only_b) == (("x",), ("y",))
    found = {tensor.a: tensor for tensor in result.tensors}
    assert found[name].max_error == 0
    assert found["n"].relative_error is None
    assert "no number" in str(result) and "Only in B: y" in str(result)
    bad = small[name].copy()
    bad[0, 0], bad[1, 1] = np.nan, np.inf
    (tmp_path / "c.safetensors").write_bytes(safetensors_bytes(small | {name: bad}))
    result = compare(tmp_path / "a.safetensors", tmp_path / "c.safetensors")
    assert result.tensors[0].max_error is None
    json.dumps(result.to_json(), allow_nan=False)


def test_different_models_are_refused(tmp_path: Path, converted: Any) -> None:
    with pytest.raises(pq.FormatError, match="versions of different models") as caught:
        compare(converted("phi35", "q8_0"), converted("phi3win", "q8_0"))
    assert caught.value.tensor
    (tmp_path / "x.safetensors").write_bytes(safetensors_bytes({"x": np.ones(3, np.float32)}))
    with pytest.raises(pq.UsageError, match="no tensor in common"):
        compare(DATA / "phi35", tmp_path / "x.safetensors")


def test_the_command_shows_tables_and_json(converted: Any) -> None:
    model = converted("phi35", "q4_k_m")
    done = phiquant("compare", DATA / "phi35", model)
    assert (done.returncode, done.stderr) == (0, "")
    rows = [line.split() for line in done.stdout.splitlines() if "mlp.down_proj" in line]
    assert len(rows) == 6  # in a pipe, a row for each tensor
    assert {tuple(row[2:4]) for row in rows} == {("bf16", "q4_k"), ("bf16", "q6_k")}
    assert all(row[8].endswith("%") for row in rows)
    done = phiquant("compare", DATA / "phi35", model, "--json")
    facts = json.loads(done.stdout)
    assert facts["only_b"] == ["rope_factors_long.weight", "rope_factors_short.weight"]
    assert len(facts["tensors"]) == 39
    assert set(facts["tensors"][0]) == {
        "a", "b", "shape", "a_codec", "b_codec", "a_bytes", "b_bytes", "relative_error", "max_error",
    }  # fmt: skip
