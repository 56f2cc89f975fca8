"""Every instruction set's encoders and decoders give the bytes of ggml's reference functions.

The oracle is the ``libggml-base`` inside the installed llama-cpp-python. On x86-64 it is built
without instruction set flags, so without fused multiply-adds: its bits are the promise. Other
platforms' builds may fuse; there the tables are compared with the digests of the x86-64 oracle
through the other tests, and with each other here.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import platform
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from phiquant import _core

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

# codec: (ggml's encoder, ggml's decoder, values a block, bytes a block)
CODECS: dict[str, tuple[str, str, int, int]] = {
    "f16": ("ggml_fp32_to_fp16_row", "ggml_fp16_to_fp32_row", 1, 2),
    "bf16": ("ggml_fp32_to_bf16_row_ref", "ggml_bf16_to_fp32_row", 1, 2),
    "q8_0": ("quantize_row_q8_0_ref", "dequantize_row_q8_0", 32, 34),
    "q4_0": ("quantize_row_q4_0_ref", "dequantize_row_q4_0", 32, 18),
    "q4_1": ("quantize_row_q4_1_ref", "dequantize_row_q4_1", 32, 20),
    "q5_0": ("quantize_row_q5_0_ref", "dequantize_row_q5_0", 32, 22),
    "q5_1": ("quantize_row_q5_1_ref", "dequantize_row_q5_1", 32, 24),
    "q2_k": ("quantize_row_q2_K_ref", "dequantize_row_q2_K", 256, 84),
    "q3_k": ("quantize_row_q3_K_ref", "dequantize_row_q3_K", 256, 110),
    "q4_k": ("quantize_row_q4_K_ref", "dequantize_row_q4_K", 256, 144),
    "q5_k": ("quantize_row_q5_K_ref", "dequantize_row_q5_K", 256, 176),
    "q6_k": ("quantize_row_q6_K_ref", "dequantize_row_q6_K", 256, 210),
}
ARCHS = _core.available_archs()
FLOAT_MAX = float(np.finfo(np.float32).max)

# Odd counts of super-blocks, so that no table's batches come out even.
SHAPE = (29, 3 * 256)


@functools.lru_cache(maxsize=1)
def ggml() -> ctypes.CDLL:
    """``libggml-base`` of the installed llama_cpp."""
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or not spec.submodule_search_locations:
        pytest.fail("llama-cpp-python is not installed: pip install 'phiquant[test]'")
    folder = Path(spec.submodule_search_locations[0]) / "lib"
    names = {"win32": "ggml-base.dll", "darwin": "libggml-base.dylib"}
    return ctypes.CDLL(str(folder / names.get(sys.platform, "libggml-base.so")))


def ggml_encode(codec: str, values: Floats) -> Bytes:
    encoder, _, block_values, block_bytes = CODECS[codec]
    rows, columns = values.shape
    out = np.zeros((rows, columns // block_values * block_bytes), np.uint8)
    function = getattr(ggml(), encoder)
    function.restype = None
    function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    function(values.ctypes.data, out.ctypes.data, values.size)
    return out


def ggml_decode(codec: str, blocks: Bytes, columns: int) -> Floats:
    out = np.zeros((blocks.shape[0], columns), np.float32)
    function = getattr(ggml(), CODECS[codec][1])
    function.restype = None
    function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    function(blocks.ctypes.data, out.ctypes.data, out.size)
    return out


def to_bfloat(x: Floats) -> Floats:
    """float32 values that bfloat16 holds, as checkpoints have them (truncated)."""
    return (x.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)


def by_sub_block(rng: np.random.Generator, low: float, high: float) -> Floats:
    """One power of ten for each 16 values."""
    exponents = rng.uniform(low, high, (SHAPE[0], SHAPE[1] // 16, 1))
    return np.broadcast_to(10.0**exponents, (SHAPE[0], SHAPE[1] // 16, 16)).reshape(SHAPE)


def normal(rng: np.random.Generator, scale: float = 1.0) -> Floats:
    return (rng.standard_normal(SHAPE) * scale).astype(np.float32)


def clipped(x: npt.NDArray[np.float64]) -> Floats:
    return np.clip(x, -FLOAT_MAX, FLOAT_MAX).astype(np.float32)


def sparse(rng: np.random.Generator) -> Floats:
    return (normal(rng) * (rng.random(SHAPE) < 0.03)).astype(np.float32)


def any_bits(rng: np.random.Generator) -> Floats:
    """Finite floats whose bits are random: every exponent alike."""
    bits = rng.integers(0, 2**32, SHAPE, np.uint32)
    bits[(bits & 0x7F800000) == 0x7F800000] &= np.uint32(0xBFFFFFFF)
    return bits.view(np.float32)


def extremes(rng: np.random.Generator) -> Floats:
    choices = [0.0, -0.0, 1e-45, -1e-45, 1.17549435e-38, -1.17549435e-38, 1e-15, -1e-15, 1.0, -1.0]
    choices += [65504.0, 65520.0, -65520.0, 5.9604645e-8, 2.9802322e-8, FLOAT_MAX, -FLOAT_MAX]
    return rng.choice(np.array(choices, np.float32), SHAPE)


FAMILIES: dict[str, Callable[[np.random.Generator], Floats]] = {
    "weights": lambda rng: to_bfloat(normal(rng, 0.02)),
    "weights of float32": lambda rng: normal(rng, 0.02),
    "heavy tails": lambda rng: clipped(rng.standard_t(1.1, SHAPE) * 0.01),
    "uniform": lambda rng: rng.uniform(-1, 1, SHAPE).astype(np.float32),
    "all zero": lambda rng: np.zeros(SHAPE, np.float32),
    "all negative zero": lambda rng: -np.zeros(SHAPE, np.float32),
    "zeros of both signs": lambda rng: np.copysign(np.zeros(SHAPE, np.float32), normal(rng)),
    "zeros of both signs under positive values": lambda rng: np.copysign(
        np.maximum(normal(rng), 0), normal(rng) + np.float32(1e3) * (rng.random(SHAPE) < 0.5)
    ).astype(np.float32),
    "positive constant": lambda rng: np.full(SHAPE, 0.37, np.float32),
    "negative constant": lambda rng: np.full(SHAPE, -0.37, np.float32),
    "a constant for each sub-block": lambda rng: np.repeat(normal(rng)[:, ::16].copy(), 16, axis=1),
    "positive": lambda rng: np.abs(normal(rng)),
    "negative": lambda rng: -np.abs(normal(rng)),
    "offset far above the spread": lambda rng: (normal(rng, 1e-3) + 100).astype(np.float32),
    "offset far below the spread": lambda rng: (normal(rng, 1e-3) - 100).astype(np.float32),
    # Scales round to tiny halves under large minima: quotients past nearest_int's 22 bits.
    "huge minimum, tiny scale": lambda rng: (
        normal(rng, 1e-6) * by_sub_block(rng, -2, 1) - 3e4
    ).astype(np.float32),
    "minimum of one sub-block only": lambda rng: (
        normal(rng, 1e-4) - 1e4 * (by_sub_block(rng, 0, 1) > 8)
    ).astype(np.float32),
    "two values": lambda rng: np.where(normal(rng) > 0, 0.5, -0.25).astype(np.float32),
    "few levels": lambda rng: rng.integers(-8, 9, SHAPE).astype(np.float32),
    "halves between levels": lambda rng: (rng.integers(-31, 32, SHAPE) / 2).astype(np.float32),
    "equal and opposite extremes": lambda rng: np.clip(normal(rng), -1, 1),
    "sparse": sparse,
    "ramp": lambda rng: np.linspace(-1, 2, SHAPE[0] * SHAPE[1], dtype=np.float32).reshape(SHAPE),
    # Sub-blocks whose rounded scale is zero keep the search's codes.
    "scales far apart": lambda rng: clipped(normal(rng) * by_sub_block(rng, -6, 2)),
    "scales very far apart": lambda rng: clipped(normal(rng) * by_sub_block(rng, -30, 30)),
    "about float16's least": lambda rng: clipped(normal(rng) * by_sub_block(rng, -8, -3)),
    "about the negligible 1e-15": lambda rng: clipped(normal(rng) * by_sub_block(rng, -16, -14)),
    "past float16's largest": lambda rng: clipped(normal(rng) * by_sub_block(rng, 3, 10)),
    "subnormal": lambda rng: normal(rng, 1e-41),
    "few subnormal steps": lambda rng: (normal(rng, 2.0) * np.float32(1.4e-45)).astype(np.float32),
    "about the least normal": lambda rng: normal(rng, 1e-38),
    "below 1e-30": lambda rng: clipped(normal(rng) * by_sub_block(rng, -45, -30)),
    # Squares, sums and ranges overflow on the way.
    "squares overflow": lambda rng: clipped(normal(rng) * by_sub_block(rng, 17, 21)),
    "cubes overflow": lambda rng: clipped(normal(rng) * by_sub_block(rng, 11, 14)),
    "about the largest": lambda rng: clipped(normal(rng).astype(np.float64) * 1e38),
    "range overflows": lambda rng: rng.choice(
        np.array([FLOAT_MAX, -FLOAT_MAX, 1e38, 0], np.float32), SHAPE
    ),
    "every exponent": any_bits,
    "extremes": extremes,
    "every exponent, positive": lambda rng: np.abs(any_bits(rng)),
}


def describe(got: Bytes, want: Bytes, block_bytes: int) -> str:
    blocks = (got != want).reshape(-1, block_bytes).any(axis=1)
    return f"{blocks.sum()} of {blocks.size} blocks differ, the first is {blocks.argmax()}"


needs_unfused_oracle = pytest.mark.skipif(
    platform.machine().lower() not in {"x86_64", "amd64"},
    reason="ggml fuses multiply-adds on this platform: its own bits differ from the reference's",
)


@needs_unfused_oracle
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("arch", ARCHS)
def test_encoded_bytes_equal_ggml(arch: str, codec: str, family: str) -> None:
    values = np.ascontiguousarray(FAMILIES[family](np.random.default_rng(20240611)))
    assert np.isfinite(values).all()
    want = ggml_encode(codec, values)
    got = _core.encode_blocks(codec, values, arch)
    assert got.shape == want.shape
    assert np.array_equal(got, want), describe(got, want, CODECS[codec][3])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("codec", ["f32", *CODECS])
def test_all_instruction_sets_encode_alike(codec: str, family: str) -> None:
    values = np.ascontiguousarray(FAMILIES[family](np.random.default_rng(7)))
    first = _core.encode_blocks(codec, values, ARCHS[0])
    for arch in ARCHS[1:]:
        assert np.array_equal(_core.encode_blocks(codec, values, arch), first), arch


@pytest.mark.parametrize("codec", ["f32", *CODECS])
@pytest.mark.parametrize("arch", ARCHS)
def test_bytes_do_not_depend_on_how_rows_are_tiled(arch: str, codec: str) -> None:
    values = normal(np.random.default_rng(3))[:7]
    whole = _core.encode_blocks(codec, values, arch)
    rows = [_core.encode_blocks(codec, values[i : i + 1], arch) for i in range(len(values))]
    assert np.array_equal(np.concatenate(rows), whole)


@pytest.mark.parametrize("codec", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("arch", ARCHS)
def test_plain_floats_take_any_number_of_columns(arch: str, codec: str) -> None:
    values = normal(np.random.default_rng(5))[:1]
    whole = _core.encode_blocks(codec, values, arch)
    for columns in range(1, 70):
        part = np.ascontiguousarray(values[:, :columns])
        size = whole.shape[1] // values.shape[1]
        blocks = _core.encode_blocks(codec, part, arch)
        assert np.array_equal(blocks, whole[:, : columns * size])
        back = _core.decode_blocks(codec, blocks, columns, arch)
        assert np.array_equal(back, _core.decode_blocks(codec, whole, 768, arch)[:, :columns])


@pytest.mark.parametrize("family", ["weights", "heavy tails", "every exponent", "extremes"])
@pytest.mark.parametrize("arch", ARCHS)
def test_f32_is_a_copy(arch: str, family: str) -> None:
    values = np.ascontiguousarray(FAMILIES[family](np.random.default_rng(11)))
    blocks = _core.encode_blocks("f32", values, arch)
    assert np.array_equal(blocks, values.view(np.uint8))
    back = _core.decode_blocks("f32", blocks, values.shape[1], arch)
    assert np.array_equal(back.view(np.uint32), values.view(np.uint32))


def assert_same_floats(got: Floats, want: Floats) -> None:
    """Bit for bit; of a NaN only that it is one, as its sign is the processor's choice."""
    numbers = ~np.isnan(want)
    assert np.array_equal(np.isnan(got), ~numbers)
    assert np.array_equal(got.view(np.uint32)[numbers], want.view(np.uint32)[numbers])


@needs_unfused_oracle
@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("arch", ARCHS)
def test_decoded_random_bytes_equal_ggml(arch: str, codec: str) -> None:
    _, _, block_values, block_bytes = CODECS[codec]
    columns = 3 * 256
    shape = (301, columns // block_values * block_bytes)
    blocks = np.random.default_rng(13).integers(0, 256, shape, np.uint8)
    got = _core.decode_blocks(codec, blocks, columns, arch)
    assert_same_floats(got, ggml_decode(codec, blocks, columns))


@needs_unfused_oracle
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("arch", ARCHS)
def test_decoded_values_equal_ggml(arch: str, codec: str, family: str) -> None:
    values = np.ascontiguousarray(FAMILIES[family](np.random.default_rng(17)))
    blocks = ggml_encode(codec, values)
    got = _core.decode_blocks(codec, blocks, values.shape[1], arch)
    assert_same_floats(got, ggml_decode(codec, blocks, values.shape[1]))


@pytest.mark.parametrize("arch", ARCHS)
def test_every_float16_decodes_exactly(arch: str) -> None:
    halves = np.arange(1 << 16, dtype=np.uint16).reshape(1, -1)
    got = _core.decode_blocks("f16", halves.view(np.uint8), halves.size, arch)
    assert_same_floats(got, halves.view(np.float16).astype(np.float32))


@pytest.mark.parametrize("arch", ARCHS)
def test_float16_rounds_to_nearest_even_about_every_half(arch: str) -> None:
    halves = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    middles = ((halves[:-1].astype(np.float64) + halves[1:]) / 2).astype(np.float32)
    around = [halves, middles, np.nextafter(middles, np.float32(0))]
    around += [np.nextafter(middles, np.float32(1e9)), np.nextafter(halves, np.float32(1e9))]
    around += [np.array([65504, 65519.996, 65520, 1e30, FLOAT_MAX], np.float32)]
    positive = np.concatenate(around)
    values = np.concatenate([positive, -positive]).reshape(1, -1)
    got = _core.encode_blocks("f16", values, arch)
    with np.errstate(over="ignore"):
        want = values.astype(np.float16)
    assert np.array_equal(got.view(np.uint16), want.view(np.uint16))
