"""Affine codecs under hypothesis: shapes, groups, edge values; codes, scales and zero points tell all."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import phiquant as pq

RULES = {
    "ort": ("rows", "transposed", "gptq", "awq"),
    "nncf": ("openvino",),
    "mlx": ("mlx",),
    "ct": ("packed", "gptq", "awq"),
    "portable": ("rows", "openvino", "packed", "gptq", "awq", "transposed"),
}
BITS = {
    "rows": (2, 3, 4, 5, 6, 8),
    "openvino": (4, 8),
    "mlx": (2, 3, 4, 5, 6, 8),
    "packed": (2, 3, 4, 8),
    "transposed": (2, 4, 8),
    "gptq": (2, 3, 4, 8),
    "awq": (4,),
}


@st.composite
def codecs(draw: Any) -> tuple[str, str, str, int, bool]:
    """Name, rule, layout, group and whether it is symmetric."""
    rule = draw(st.sampled_from(sorted(RULES)))
    layout = draw(st.sampled_from(RULES[rule]))
    bits = draw(st.sampled_from([b for b in BITS[layout] if rule != "portable" or b <= 4]))
    group = draw(st.sampled_from((32, 64, 128)))
    symmetric = rule != "mlx" and draw(st.booleans())
    name = f"int{bits}_{'sym' if symmetric else 'asym'}_g{group}"
    return name, rule, layout, group, symmetric


@st.composite
def weights(draw: Any, group: int) -> NDArray[np.float32]:
    """Rows of groups: of usual weights, and of what is seldom."""
    rows = 32 * draw(st.integers(1, 3))
    groups = draw(st.integers(1, 3))
    made = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    size = 10.0 ** draw(st.integers(-6, 1))
    values = made.normal(0, size, (rows, groups * group)).astype(np.float32)
    for _ in range(draw(st.integers(0, 6))):
        row, first = draw(st.integers(0, rows - 1)), group * draw(st.integers(0, groups - 1))
        part = values[row, first : first + group]
        kind = draw(st.sampled_from(["zero", "equal", "positive", "negative", "spike", "-0"]))
        if kind == "zero":
            part[:] = 0
        elif kind == "-0":
            part[:] = np.float32(-0.0)
        elif kind == "equal":
            part[:] = part[0]
        elif kind == "positive":
            part[:] = np.abs(part)
        elif kind == "negative":
            part[:] = -np.abs(part)
        else:
            part[draw(st.integers(0, group - 1))] *= 1000
    return values


@given(st.data())
@settings(max_examples=120, deadline=None)
def test_codes_scales_and_zero_points_are_the_weights(data: st.DataObject) -> None:
    name, rule, layout, group, _ = data.draw(codecs())
    values = data.draw(weights(group))
    q = pq.quantize(values, f"{name},rule={rule},layout={layout}")
    rows, columns = values.shape
    codes = q.codes.astype(np.float64).reshape(rows, columns // group, group)
    scales = q.scales.astype(np.float64)[..., None]
    if rule == "mlx":
        decoded = codes * scales + q.biases.astype(np.float64)[..., None]
    else:
        zeros = q.zero_points
        middle = 2.0 ** (int(name[3]) - 1)
        own = (
            np.full(scales.shape, middle) if zeros is None else zeros.astype(np.float64)[..., None]
        )
        decoded = (codes - own) * scales
    assert np.array_equal(decoded.astype(np.float32).reshape(rows, columns), q.dequantize())


@given(st.data())
@settings(max_examples=120, deadline=None)
def test_no_weight_goes_further_than_its_grid_lets_it(data: st.DataObject) -> None:
    name, rule, layout, group, symmetric = data.draw(codecs())
    values = data.draw(weights(group))
    q = pq.quantize(values, f"{name},rule={rule},layout={layout}")
    parts = values.reshape(values.shape[0], -1, group)
    off = np.abs(q.dequantize().reshape(parts.shape) - parts).max(axis=-1)
    bits = int(name[3])
    steps = 2**bits - 1
    largest = np.abs(parts).max(axis=-1)
    low, high = np.minimum(parts.min(axis=-1), 0), np.maximum(parts.max(axis=-1), 0)
    # A symmetric grid spans twice the largest weight, and the end that has no code is a step away;
    # mlx moves its grid by up to half a step. Scales and biases are rounded to 7 bits at the least,
    # and are no smaller than float16's smallest.
    span = 2 * largest if symmetric else high - low
    bound = (
        span / steps * (1.02 if symmetric or rule == "mlx" else 0.55)
        + span * 2.0**-6
        + 2.0**-7 * largest
    )
    assert (off <= bound + 2.0**-9 * (rule == "ct") + 2.0**-16).all()


@pytest.mark.parametrize("rule", sorted(RULES))
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_layouts_of_a_rule_hold_the_same_numbers(rule: str, data: st.DataObject) -> None:
    bits, group = 4, data.draw(st.sampled_from((32, 64, 128)))
    values = data.draw(weights(group))
    for sign in ("asym",) if rule == "mlx" else ("sym", "asym"):
        same = [
            pq.quantize(values, f"int{bits}_{sign}_g{group},rule={rule},scales=f16,layout={layout}")
            for layout in RULES[rule]
        ]
        for other in same[1:]:
            assert np.array_equal(other.codes, same[0].codes)
            assert np.array_equal(other.dequantize(), same[0].dequantize())
