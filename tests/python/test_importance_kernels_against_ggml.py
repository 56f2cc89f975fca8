"""With an importance matrix's weights, too, every instruction set's encoders give ggml's bytes.

The oracle is ``quantize_TYPE`` in the ``libggml-base`` of the installed llama-cpp-python, built
without fused multiply-adds on x86-64 (see test_kernels_against_ggml).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import numpy as np
import pytest
from test_kernels_against_ggml import (
    ARCHS,
    CODECS,
    Bytes,
    Floats,
    by_sub_block,
    describe,
    ggml,
    needs_unfused_oracle,
)
from test_kernels_against_ggml import (
    FAMILIES as PLAIN_FAMILIES,
)

from phiquant import _core

ENCODERS = {
    "q4_0": "quantize_q4_0",
    "q4_1": "quantize_q4_1",
    "q5_0": "quantize_q5_0",
    "q5_1": "quantize_q5_1",
    "q8_0": "quantize_q8_0",
    "q2_k": "quantize_q2_K",
    "q3_k": "quantize_q3_K",
    "q4_k": "quantize_q4_K",
    "q5_k": "quantize_q5_K",
    "q6_k": "quantize_q6_K",
}
COLUMNS = 3 * 256


def ggml_encode(codec: str, values: Floats, importance: Floats) -> Bytes:
    _, _, block_values, block_bytes = CODECS[codec]
    rows, columns = values.shape
    out = np.zeros((rows, columns // block_values * block_bytes), np.uint8)
    function = getattr(ggml(), ENCODERS[codec])
    function.restype = ctypes.c_size_t
    pointer, count = ctypes.c_void_p, ctypes.c_int64
    function.argtypes = [pointer, pointer, count, count, pointer]
    function(values.ctypes.data, out.ctypes.data, rows, columns, importance.ctypes.data)
    return out


def activations(rng: np.random.Generator, columns: int) -> Floats:
    """What imatrix files hold: mean squares, a few of them a thousand times the others."""
    scales = rng.lognormal(0, 1, columns) * np.where(rng.random(columns) < 0.01, 1e3, 1)
    return (rng.chisquare(3, columns) * scales).astype(np.float32)


IMPORTANCES: dict[str, Callable[[np.random.Generator, int], Floats]] = {
    "activations": activations,
    "uniform": lambda rng, n: rng.random(n, np.float32),
    "zero in places": lambda rng, n: activations(rng, n) * (rng.random(n) < 0.5).astype(np.float32),
    "zero but in places": lambda rng, n: (
        activations(rng, n) * (rng.random(n) < 0.05).astype(np.float32)
    ),
    "all zero": lambda rng, n: np.zeros(n, np.float32),
    "all one": lambda rng, n: np.ones(n, np.float32),
    "over forty powers of ten": lambda rng, n: (10.0 ** rng.uniform(-20, 20, n)).astype(np.float32),
    "subnormal": lambda rng, n: rng.random(n, np.float32) * np.float32(1e-39),
    "zero for whole sub-blocks": lambda rng, n: (
        activations(rng, n) * np.repeat(rng.random(n // 16) < 0.5, 16).astype(np.float32)
    ),
}

FAMILIES = PLAIN_FAMILIES | {
    "rows far apart": lambda rng: np.clip(
        rng.standard_normal((29, COLUMNS)) * 10.0 ** rng.uniform(-6, 6, (29, 1)), -1e30, 1e30
    ).astype(np.float32),
    "one large value a row": lambda rng: np.where(
        np.arange(COLUMNS) == 17, 1e4, rng.standard_normal((29, COLUMNS))
    ).astype(np.float32),
    "scales of both signs": lambda rng: (
        rng.standard_normal((29, COLUMNS)) * by_sub_block(rng, -1, 1)
    ).astype(np.float32),
}


@needs_unfused_oracle
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("codec", ENCODERS)
@pytest.mark.parametrize("arch", ARCHS)
def test_encoded_bytes_equal_ggml(arch: str, codec: str, family: str) -> None:
    rng = np.random.default_rng(20240611)
    values = np.ascontiguousarray(FAMILIES[family](rng))
    for name, make in IMPORTANCES.items():
        importance = make(rng, values.shape[1])
        want = ggml_encode(codec, values, importance)
        got = _core.encode_blocks(codec, values, arch, importance=importance)
        assert np.array_equal(got, want), f"{name}: {describe(got, want, CODECS[codec][3])}"


@needs_unfused_oracle
@pytest.mark.parametrize(
    ("codec", "columns"),
    [
        (codec, columns)
        for codec in ENCODERS
        for columns in (32, 256, 320, 1024, 3072, 8192)
        if columns % CODECS[codec][2] == 0
    ],
)
@pytest.mark.parametrize("arch", ARCHS)
def test_rows_of_any_length_and_number(arch: str, codec: str, columns: int) -> None:
    rng = np.random.default_rng(columns)
    importance = activations(rng, columns)
    for rows in (1, 2, 3, 7, 16, 17, 33):
        values = (rng.standard_normal((rows, columns)) * 0.02).astype(np.float32)
        want = ggml_encode(codec, values, importance)
        got = _core.encode_blocks(codec, values, arch, importance=importance)
        assert np.array_equal(got, want), f"{rows}: {describe(got, want, CODECS[codec][3])}"


@pytest.mark.parametrize("codec", ENCODERS)
def test_all_instruction_sets_encode_alike(codec: str) -> None:
    rng = np.random.default_rng(7)
    for make in FAMILIES.values():
        values = np.ascontiguousarray(make(rng))
        importance = activations(rng, values.shape[1])
        first = _core.encode_blocks(codec, values, ARCHS[0], importance=importance)
        for arch in ARCHS[1:]:
            got = _core.encode_blocks(codec, values, arch, importance=importance)
            assert np.array_equal(got, first), arch


@pytest.mark.parametrize("codec", ["f32", "f16", "bf16", "q8_0"])
def test_importance_changes_nothing_where_nothing_is_searched(codec: str) -> None:
    rng = np.random.default_rng(11)
    values = rng.standard_normal((5, COLUMNS), np.float32)
    plain = _core.encode_blocks(codec, values)
    importance = activations(rng, COLUMNS)
    assert np.array_equal(_core.encode_blocks(codec, values, importance=importance), plain)
