"""Codecs without K-quants' sub-blocks: every instruction set gives the bytes of ggml's quantizers.

The oracle is the ``libggml-base`` inside the installed llama-cpp-python, as in
test_kernels_against_ggml.py: its ``quantize_*`` functions, which take an importance of the columns.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from test_kernels_against_ggml import (
    ARCHS,
    FAMILIES,
    SHAPE,
    assert_same_floats,
    clipped,
    describe,
    ggml,
    needs_unfused_oracle,
    normal,
)

from phiquant import _core

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

ROWS = {row["name"]: row for row in _core.codecs()}
WITHOUT_IMPORTANCE = ["q1_0", "q2_0", "tq1_0", "tq2_0", "mxfp4", "nvfp4"]
WITH_IMPORTANCE = [
    "iq4_nl", "iq4_xs", "iq3_s", "iq3_xxs", "iq2_s", "iq2_xs", "iq2_xxs", "iq1_m", "iq1_s",
]  # fmt: skip
CODECS = WITHOUT_IMPORTANCE + WITH_IMPORTANCE

# Where sums of squares overflow, ggml's searches end in NaNs, some by aborting the process.
WILD = {
    "squares overflow", "cubes overflow", "about the largest", "range overflows", "every exponent",
    "extremes", "every exponent, positive", "scales very far apart", "past float16's largest",
    "just below powers of two",
}  # fmt: skip


def powers_of_two(rng: np.random.Generator) -> Floats:
    return (2.0 ** rng.integers(-20, 20, SHAPE)).astype(np.float32)


def just_below_powers(rng: np.random.Generator) -> Floats:
    """Blocks whose largest value is one of the last 60 floats below a power of two."""
    shape = (SHAPE[0], SHAPE[1] // 32)
    powers = (2.0 ** rng.integers(-110, 110, shape)).astype(np.float32)
    largest = (powers.view(np.uint32) - rng.integers(0, 60, shape, np.uint32)).view(np.float32)
    return (largest.repeat(32, axis=1) * rng.choice(
        np.array([1.0, 0.3, -0.7, 0.5, 0.0], np.float32), SHAPE
    )).astype(np.float32)  # fmt: skip


VALUES: dict[str, Callable[[np.random.Generator], Floats]] = FAMILIES | {
    "powers of two": powers_of_two,
    "just below powers of two": just_below_powers,
    "groups of eight zeros": lambda rng: (
        normal(rng) * np.repeat(rng.random((SHAPE[0], SHAPE[1] // 8)) < 0.3, 8, axis=1)
    ).astype(np.float32),
    "about the negligible 1e-8": lambda rng: clipped(
        normal(rng)
        * np.repeat(10.0 ** rng.uniform(-10, -6, (SHAPE[0], SHAPE[1] // 16)), 16, axis=1)
    ),
}

IMPORTANCES: dict[str, Callable[[np.random.Generator], Floats]] = {
    "as measured": lambda rng: (rng.standard_normal(SHAPE[1]) ** 2 + 1e-3).astype(np.float32),
    "of a few columns": lambda rng: np.exp(4 * rng.standard_normal(SHAPE[1])).astype(np.float32),
    "all one": lambda rng: np.ones(SHAPE[1], np.float32),
    "half of it zero": lambda rng: (
        rng.standard_normal(SHAPE[1]) ** 2 * (rng.random(SHAPE[1]) < 0.5)
    ).astype(np.float32),
}


def ggml_encode(codec: str, values: Floats, importance: Floats | None) -> Bytes:
    rows, columns = values.shape
    ggml().ggml_quantize_init(ROWS[codec]["ggml_type"])
    out = np.zeros((rows, _core.block_bytes(codec, 1, columns)), np.uint8)
    function = getattr(ggml(), f"quantize_{codec}")
    function.restype = ctypes.c_size_t
    function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64]
    function.argtypes += [ctypes.c_void_p]
    weights = None if importance is None else importance.ctypes.data
    assert function(values.ctypes.data, out.ctypes.data, rows, columns, weights) == out.size
    return out


def ggml_decode(codec: str, blocks: Bytes, columns: int) -> Floats:
    out = np.zeros((blocks.shape[0], columns), np.float32)
    function = getattr(ggml(), f"dequantize_row_{codec}")
    function.restype = None
    function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    function(blocks.ctypes.data, out.ctypes.data, out.size)
    return out


def values_of(family: str) -> Floats:
    return np.ascontiguousarray(VALUES[family](np.random.default_rng(20240611)))


def importance_for(codec: str) -> Floats | None:
    """For tests whose claim is not about importance: only where the codec cannot do without."""
    if not ROWS[codec]["needs_importance"]:
        return None
    return IMPORTANCES["as measured"](np.random.default_rng(5))


@needs_unfused_oracle
@pytest.mark.parametrize("family", VALUES)
@pytest.mark.parametrize("codec", WITHOUT_IMPORTANCE)
def test_codecs_without_search_equal_ggml(codec: str, family: str) -> None:
    values = values_of(family)
    want = ggml_encode(codec, values, None)
    for arch in ARCHS:
        got = _core.encode_blocks(codec, values, arch)
        assert np.array_equal(got, want), arch + describe(got, want, ROWS[codec]["block_bytes"])


@needs_unfused_oracle
@pytest.mark.parametrize("importance", [None, *IMPORTANCES])
@pytest.mark.parametrize("family", [family for family in VALUES if family not in WILD])
@pytest.mark.parametrize("codec", WITH_IMPORTANCE)
def test_searched_codecs_equal_ggml(codec: str, family: str, importance: str | None) -> None:
    if importance is None:
        weights = importance_for(codec)
    else:
        weights = IMPORTANCES[importance](np.random.default_rng(9))
    values = values_of(family)
    want = ggml_encode(codec, values, weights)
    for arch in ARCHS:
        got = _core.encode_blocks(codec, values, arch, importance=weights)
        assert np.array_equal(got, want), arch + describe(got, want, ROWS[codec]["block_bytes"])


@pytest.mark.parametrize("family", sorted(WILD))
@pytest.mark.parametrize("codec", WITH_IMPORTANCE)
def test_instruction_sets_agree_where_sums_overflow(codec: str, family: str) -> None:
    values = values_of(family)
    weights = importance_for(codec)
    first = _core.encode_blocks(codec, values, ARCHS[0], importance=weights)
    for arch in ARCHS[1:]:
        got = _core.encode_blocks(codec, values, arch, importance=weights)
        assert np.array_equal(got, first), arch


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("arch", ARCHS)
def test_bytes_do_not_depend_on_how_rows_are_tiled(arch: str, codec: str) -> None:
    rng = np.random.default_rng(3)
    values = normal(rng)[:7]
    takes = codec in WITH_IMPORTANCE
    weights = IMPORTANCES["as measured"](rng) if takes else None
    whole = _core.encode_blocks(codec, values, arch, importance=weights)
    rows = [
        _core.encode_blocks(codec, values[i : i + 1], arch, importance=weights)
        for i in range(len(values))
    ]
    assert np.array_equal(np.concatenate(rows), whole)


@needs_unfused_oracle
@pytest.mark.parametrize("codec", CODECS)
def test_decoded_random_bytes_equal_ggml(codec: str) -> None:
    columns = SHAPE[1]
    shape = (301, _core.block_bytes(codec, 1, columns))
    blocks = np.random.default_rng(13).integers(0, 256, shape, np.uint8)
    want = ggml_decode(codec, blocks, columns)
    for arch in ARCHS:
        assert_same_floats(_core.decode_blocks(codec, blocks, columns, arch), want)


@needs_unfused_oracle
@pytest.mark.parametrize("family", ["weights", "heavy tails", "all zero", "scales far apart"])
@pytest.mark.parametrize("codec", CODECS)
def test_decoded_values_equal_ggml(codec: str, family: str) -> None:
    blocks = ggml_encode(codec, values_of(family), importance_for(codec))
    want = ggml_decode(codec, blocks, SHAPE[1])
    for arch in ARCHS:
        assert_same_floats(_core.decode_blocks(codec, blocks, SHAPE[1], arch), want)


@pytest.mark.parametrize("codec", [c for c in CODECS if ROWS[c]["needs_importance"]])
def test_codecs_that_need_importance_refuse_to_guess(codec: str) -> None:
    with pytest.raises(Exception, match="importance"):
        _core.encode_blocks(codec, np.zeros((1, 256), np.float32))
