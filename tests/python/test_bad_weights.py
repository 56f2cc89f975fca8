"""Weights that no codec can hold are refused by name and place; all others convert."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from refusal import Refusal

import phiquant as pq
from tiny_model import config_of, weights_of, write_model

QUANTIZED = ("q8_0", "q4_0", "q5_0", "q5_1", "q4_k_s", "q4_k_m", "q5_k_s", "q5_k_m", "q6_k")
UP = "model.layers.0.mlp.gate_up_proj.weight"
NORM = "model.norm.weight"


@pytest.fixture
def out(tmp_path: Path) -> Iterator[Path]:
    """Where results would go."""
    folder = tmp_path / "out"
    folder.mkdir()
    yield folder


@pytest.fixture
def refused(out: Path) -> Refusal:
    return Refusal(out)


def changed(
    name: str, index: tuple[int, ...] | int, value: float, dtype: Any = ml_dtypes.bfloat16
) -> dict[str, Any]:
    """Sound weights but for one value."""
    weights = weights_of(config_of(), dtype)
    weights[name][index] = value
    return weights


# Rows 33 to 35: values.
@pytest.mark.parametrize("to", ["f32", "f16", "bf16", *QUANTIZED])
@pytest.mark.parametrize(
    ("value", "word"), [(np.nan, "NaN"), (np.inf, "infinity"), (-np.inf, "-infinity")]
)
def test_row_33_a_value_that_is_not_finite_is_named_by_tensor_and_index(
    value: float, word: str, to: str, tmp_path: Path, refused: Refusal
) -> None:
    model = write_model(tmp_path / "model", changed(UP, (300, 77), value))
    error = refused(model, pq.ValueRangeError, f"holds {word} at [300, 77]", to=to)
    assert error.tensor == UP
    assert Path(error.file).name == "model.safetensors"


@pytest.mark.parametrize("name", [NORM, "model.embed_tokens.weight"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_row_33_a_value_that_is_not_finite_in_any_dtype(
    name: str, dtype: Any, tmp_path: Path, refused: Refusal
) -> None:
    model = write_model(tmp_path / "model", changed(name, -1, np.nan, dtype=dtype))
    error = refused(model, pq.ValueRangeError, "holds NaN at [")
    assert error.tensor == name


@pytest.mark.parametrize("to", ["f32", "f16", "bf16", *QUANTIZED])
@pytest.mark.parametrize("fill", [0.0, -0.0, 1e-40, -1e-45])
def test_rows_34_and_35_zeros_and_subnormals_convert(
    fill: float, to: str, tmp_path: Path, out: Path
) -> None:
    weights = weights_of(config_of(), np.float32)
    for array in weights.values():
        array[:] = fill
    model = write_model(tmp_path / "model", weights)
    done = pq.open(pq.convert(model, to, out).path)
    for name in done:
        values = done[name]
        if isinstance(values, pq.QuantizedTensor):
            values = values.dequantize()
        # Rounding to a grid of scales that underflow gives zero, never a NaN.
        assert np.all(np.abs(values.astype(np.float32)) <= abs(fill) * 1.01), name


@pytest.mark.parametrize("to", ["f16", *QUANTIZED])
def test_row_35_a_value_past_the_codec_s_range_is_refused(
    to: str, tmp_path: Path, refused: Refusal
) -> None:
    model = write_model(tmp_path / "model", changed(UP, (5, 9), 1e38))
    error = refused(model, pq.ValueRangeError, "e+", "[5, 9]", "bf16", to=to)
    assert error.tensor == UP


@pytest.mark.parametrize("to", ["f32", "bf16"])
def test_row_35_a_value_in_the_codec_s_range_converts(to: str, tmp_path: Path, out: Path) -> None:
    model = write_model(tmp_path / "model", changed(UP, (5, 9), 1e38))
    done = pq.open(pq.convert(model, to, out).path)
    assert done["blk.0.ffn_up.weight"][5, 9] == ml_dtypes.bfloat16(1e38)


def test_row_35_a_float32_that_bf16_rounds_to_infinity_is_refused(
    tmp_path: Path, refused: Refusal
) -> None:
    largest = np.finfo(np.float32).max
    model = write_model(tmp_path / "model", changed(UP, (0, 0), largest, dtype=np.float32))
    refused(model, pq.ValueRangeError, "[0, 0]", "f32", to="bf16")
