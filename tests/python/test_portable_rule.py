"""The portable rule: one rounding, the same weights in every layout and in float16 arithmetic."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

import phiquant as pq
from phiquant import _core
from phiquant.errors import UsageError, ValueRangeError

LAYOUTS = ("rows", "openvino", "mlx", "packed", "transposed", "gptq", "gptq_v1", "awq")


def edges(length: int = 32, count: int = 200) -> np.ndarray:
    """Groups that quantizers get wrong, of all magnitudes that float16 holds, and below."""
    random = np.random.default_rng(3)
    rows = [np.zeros(length), np.full(length, 0.3), np.full(length, -0.3), np.full(length, -0.0)]
    for power in range(-40, 15):
        noise = random.normal(size=length) * 2.0**power
        rows += [noise, abs(noise), -abs(noise), noise + 2.0**power]
    spike = np.zeros(length)
    spike[5] = 1
    rows += [spike, -spike, spike * 2.0**-24, spike * 2.0**-25, spike * 2.0**-26, spike * 2e-9]
    rows += [random.standard_t(3, size=length) * 0.02 for _ in range(count)]
    rows += [np.ones(length)] * (-len(rows) % 32)
    return np.clip(np.stack(rows), -29000, 29000).astype(np.float32)


def check_exact(q: pq.QuantizedTensor) -> None:
    """What any runtime computes from the parts, in float16 or wider, is the same number."""
    codes, scales, zeros = q.codes, q.scales, q.zero_points
    if zeros is None:
        return
    for kind in (np.float16, ml_dtypes.bfloat16):
        assert (scales.astype(kind).astype(np.float32) == scales).all()
    each = np.repeat(np.arange(scales.shape[1]), codes.shape[1] // scales.shape[1])
    s, z, c = scales[:, each], zeros[:, each].astype(np.float32), codes.astype(np.float32)
    wanted = (c - z) * s
    half = [array.astype(np.float16) for array in (s, z, c)]
    with np.errstate(over="raise"):
        assert ((half[2] - half[1]) * half[0] == wanted).all()
        assert (half[2] * half[0] - half[1] * half[0] == wanted).all()
    assert (q.dequantize() == wanted).all()


@pytest.mark.parametrize("sign", ["asym", "sym"])
@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("length", [32, 64])
def test_every_layout_holds_the_same_weights(sign, bits, length):
    w = edges(length).reshape(-1, 2 * length)
    w = w[: len(w) // 32 * 32]
    first = pq.quantize(w, f"int{bits}_{sign}_g{length},rule=portable")
    check_exact(first)
    wanted = first.dequantize()
    for layout in LAYOUTS:
        if (layout == "awq" and bits != 4) or (layout == "mlx" and sign == "sym"):
            continue
        q = pq.quantize(w, f"int{bits}_{sign}_g{length},rule=portable,layout={layout}")
        assert q.codec.affine.scale == "float16"
        assert (q.dequantize() == wanted).all(), layout
        assert (q.codes == first.codes).all() and (q.scales == first.scales).all()
        if layout == "mlx":
            assert q.zero_points is None
            biases = -first.zero_points.astype(np.float32) * first.scales
            assert (q.biases == biases).all()
        else:
            assert (q.zero_points == first.zero_points).all()


def test_scales_of_other_types_are_the_same_numbers():
    w = edges()
    kinds = [
        pq.quantize(w, "int4_asym_g32,rule=portable", scales=s) for s in ("f16", "bf16", "f32")
    ]
    for one in kinds[1:]:
        assert (one.scales == kinds[0].scales).all()
        assert (one.dequantize() == kinds[0].dequantize()).all()


def test_zeros_stay_zeros_and_small_groups_are_never_worse_than_zeros():
    w = edges()
    for sign in ("sym", "asym"):
        found = pq.quantize(w, f"int4_{sign}_g32,rule=portable").dequantize()
        assert (found[0] == 0).all()
        error = ((found - w).astype(np.float64) ** 2).sum(1)
        assert (error <= (w.astype(np.float64) ** 2).sum(1) * (1 + 1e-5)).all()


@pytest.mark.parametrize("sign", ["asym", "sym"])
def test_the_error_is_near_that_of_exact_scales(sign):
    """Of normal weights; 7 bits of a scale instead of 24."""
    w = np.random.default_rng(1).normal(size=(2048, 256)).astype(np.float32) * 0.02
    exact = pq.quantize(w, f"int4_{sign}_g32", rule="ort", scales="f32").error(w)
    portable = pq.quantize(w, f"int4_{sign}_g32", rule="portable").error(w)
    assert portable < 1.002 * exact


@pytest.mark.parametrize("sign", ["asym", "sym"])
def test_every_instruction_set_gives_the_same(sign):
    w = np.ascontiguousarray(edges().reshape(-1, 64))
    found = [
        _core.encode_affine(f"int4_{sign}_g32,rule=portable", w, arch)
        for arch in _core.available_archs()
    ]
    for one in found[1:]:
        assert all((a == b).all() for a, b in zip(one, found[0], strict=True))


@pytest.mark.parametrize("seed", range(40))
def test_any_group_is_exact(seed):
    """Any bits that make a number within float16's range."""
    random = np.random.default_rng(seed)
    w = random.integers(0, 1 << 32, (4096,), np.uint32).view(np.float32)
    w = np.where(np.isfinite(w) & (abs(w) < 29000), w, 0).astype(np.float32)
    # Half of them in groups of one magnitude each.
    w[2048:] = (random.normal(size=(64, 32)) * 2.0 ** random.integers(-30, 13, (64, 1))).reshape(-1)
    w = np.clip(w, -29000, 29000).reshape(64, 64)
    bits = (2, 3, 4)[seed % 3]
    for sign in ("asym", "sym"):
        first = pq.quantize(w, f"int{bits}_{sign}_g32,rule=portable", threads=1)
        check_exact(first)
    second = pq.quantize(w, f"int{bits}_asym_g32,rule=portable,layout=mlx", threads=1)
    first = pq.quantize(w, f"int{bits}_asym_g32,rule=portable", threads=1)
    assert (second.dequantize() == first.dequantize()).all()


@pytest.mark.parametrize(
    "codec",
    [
        "int8_asym_g32,rule=portable",  # products would need more bits than float16 has
        "int4_asym_g32,rule=portable,scales=bf16,layout=mlx",  # and biases than bfloat16
        "int4_sym_g32,rule=portable,layout=mlx",
    ],
)
def test_what_cannot_be_exact_does_not_exist(codec):
    with pytest.raises(UsageError, match="no codec"):
        pq.quantize(edges(), codec)


def test_weights_beyond_float16_are_refused():
    w = edges()
    w[3, 3] = 1e6
    with pytest.raises(ValueRangeError, match="1000000"):
        pq.quantize(w, "int4_asym_g32,rule=portable")
