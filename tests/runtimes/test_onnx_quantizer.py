"""Affine codecs of the rule ort, against ONNX Runtime's own quantizer."""

from __future__ import annotations

import numpy as np
import pytest

import phiquant as pq
from onnx_peer import quantized, quantized_by_scripts
from phiquant import _core
from places import DATA

BLOCKS = (16, 32, 64, 128, 256)


def matrices(dtype: type) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(5)
    made: dict[str, np.ndarray] = {}
    for rows, columns in ((33, 256), (5, 100), (1, 16), (64, 96)):
        normal = rng.standard_normal((rows, columns))
        key = f"{rows}x{columns}"
        made[f"normal {key}"] = normal * 0.02
        made[f"positive {key}"] = np.abs(normal)
        made[f"negative {key}"] = -np.abs(normal)
        made[f"zero {key}"] = normal * 0
        made[f"negative zero {key}"] = -(np.abs(normal) * 0)
        made[f"ties {key}"] = rng.integers(-8, 8, (rows, columns))
        made[f"signs {key}"] = rng.choice([-1.0, 1.0], (rows, columns))
        if dtype == np.float32:
            made[f"huge {key}"] = normal * 1e37
            made[f"subnormal {key}"] = normal * 1e-40
            made[f"wide {key}"] = normal * np.exp(10 * rng.standard_normal((rows, columns)))
        else:
            made[f"subnormal {key}"] = normal * 1e-6
    return {name: w.astype(np.float32).astype(dtype) for name, w in made.items()}


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False], ids=["sym", "asym"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_planes_are_those_of_onnx_runtime(bits: int, symmetric: bool, dtype: type) -> None:
    scales = "f16" if dtype == np.float16 else None
    for name, w in matrices(dtype).items():
        for block in BLOCKS:
            codec = f"int{bits}_{'sym' if symmetric else 'asym'}_g{block}"
            mine = pq.quantize(w, codec, rule="ort", scales=scales)
            codes, steps, zeros = quantized(w, bits, block, symmetric)
            where = f"{name} {codec}"
            if bits == 2 and w.shape[1] % 4:
                continue  # its 2-bit quantizer reads beyond the row's end then
            assert mine.planes[0].tobytes() == codes.tobytes(), where
            assert mine.planes[1].tobytes() == steps.tobytes(), where
            if symmetric:
                continue
            # What fills up a row's last byte is no zero point, and ours is 0.
            shifts = np.arange(0, 8, bits, dtype=np.uint8)
            unpacked = (zeros[..., None] >> shifts & ((1 << bits) - 1)).reshape(len(w), -1)
            assert np.array_equal(mine.zero_points, unpacked[:, : steps.shape[1]]), where


@pytest.mark.parametrize("arch", _core.available_archs())
@pytest.mark.parametrize(("bits", "block"), [(8, None), (8, 32), (4, 16), (4, 32), (4, 256)])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_positive_scales_are_those_of_onnx_runtimes_scripts(
    bits: int, block: int | None, dtype: type, arch: str
) -> None:
    """Whole rows as quantize_dynamic and quantize_static have them, and DequantizeLinear's blocks."""
    group = f"g{block}" if block else "channel"
    scales = ",scales=f16" if dtype == np.float16 else ""
    codec = f"int{bits}_sym_{group},rule=qdq{scales}"
    for name, w in matrices(dtype).items():
        wanted, steps = quantized_by_scripts(w, bits, block)
        codes, found, _ = _core.encode_affine(codec, w.astype(np.float32), arch=arch)
        where = f"{name} {codec}"
        assert found.astype(dtype).tobytes() == steps.tobytes(), where
        signed = codes.reshape(len(w), -1)[:, : w.shape[1]].astype(np.int16) - 2 ** (bits - 1)
        assert np.array_equal(signed, wanted), where


@pytest.mark.parametrize("fixture", ["phi35", "phi4mini"])
@pytest.mark.parametrize("block", BLOCKS)
def test_best_loses_8_percent_less_than_onnx_runtime_on_every_trained_matrix(
    fixture: str, block: int
) -> None:
    checkpoint = pq.open(DATA / fixture)
    for name in checkpoint:
        w = np.asarray(checkpoint[name]).astype(np.float32)
        if w.ndim != 2 or w.shape[1] % block:
            continue
        codes, steps, zeros = quantized(w, 4, block, False)
        unpacked = np.stack([codes & 15, codes >> 4], -1).reshape(*steps.shape, block)
        zero = np.stack([zeros & 15, zeros >> 4], -1).reshape(len(zeros), -1)[:, : steps.shape[1]]
        theirs = (unpacked.astype(np.float32) - zero[..., None]) * steps[..., None]
        lost = np.square(theirs.reshape(w.shape) - w).sum(dtype=np.float64)
        best = pq.quantize(w, f"int4_asym_g{block}", quality="best")
        assert best.nbytes == codes.nbytes + steps.nbytes + zeros.nbytes
        mine = np.square(best.dequantize() - w).sum(dtype=np.float64)
        assert mine <= 0.92 * lost, f"{name}: {mine / lost:.3f}"


@pytest.mark.parametrize(
    "codec", ["int4_sym_g32", "int8_asym_g32", "int8_sym_g128", "int2_asym_g64"]
)
@pytest.mark.parametrize("scales", ["f32", "f16"])
def test_best_is_never_worse_with_importance_and_short_groups(codec: str, scales: str) -> None:
    rng = np.random.default_rng(6)
    for columns in (256, 200):
        w = rng.standard_normal((64, columns)).astype(np.float32)
        importance = rng.random(columns).astype(np.float32) + 0.01
        plain = pq.quantize(w, codec, scales=scales).dequantize()
        best = pq.quantize(w, codec, scales=scales, quality="best", importance=importance)
        errors = [
            (importance * np.square(found - w)).sum(dtype=np.float64)
            for found in (best.dequantize(), plain)
        ]
        assert errors[0] < errors[1]
