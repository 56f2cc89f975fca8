"""phiquant's mlx codecs give the bytes of mlx.core.quantize on processors, and decode as mlx does."""

from __future__ import annotations

import numpy as np
import pytest

import mlx_peer as peer
import phiquant as pq
from mlx_peer import mx
from phiquant import _core
from places import DATA

BITS = (2, 3, 4, 5, 6, 8)
GROUPS = (32, 64, 128)
MODES = ("mxfp4", "mxfp8", "nvfp4")


def affine(bits: int, group: int, kind: str) -> str:
    return f"int{bits}_asym_g{group},rule=mlx,scales={kind}"


def small_floats(mode: str, kind: str) -> str:
    return f"{mode},layout=mlx,scales={kind}"


def planes(tensor: pq.QuantizedTensor) -> list[bytes]:
    return [plane.tobytes() for plane in tensor.planes]


@pytest.mark.parametrize("kind", peer.TYPES)
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("bits", BITS)
def test_affine_planes_are_those_of_mlx(bits, group, kind):
    weights = peer.groups(group, kind)
    ours = pq.quantize(weights, affine(bits, group, kind))
    assert planes(ours) == peer.quantized(weights, group_size=group, bits=bits)


@pytest.mark.parametrize("kind", peer.TYPES)
@pytest.mark.parametrize("mode", MODES)
def test_small_floats_planes_are_those_of_mlx(mode, kind):
    weights = peer.groups(32, kind)
    ours = pq.quantize(weights, small_floats(mode, kind))
    assert planes(ours) == peer.quantized(weights, mode=mode)


@pytest.mark.parametrize("mode", ("mxfp4", "mxfp8"))
def test_groups_below_all_scales_stay_small_where_mlx_wraps_around(mode):
    weights = np.full((1, 32), 1e-39, np.float32)
    codes, scales = mx.quantize(mx.array(weights), mode=mode)
    theirs = np.array(mx.dequantize(codes, scales, mode=mode).astype(mx.float32))
    assert abs(theirs).max() > 1e30
    ours = pq.quantize(weights, small_floats(mode, "f32")).dequantize()
    assert abs(ours - weights).max() <= 1e-38


def test_weights_are_rounded_to_the_scales_type_first_as_mlx_lm_does():
    weights = peer.groups(64, "f32")
    ours = pq.quantize(weights, affine(4, 64, "bf16"))
    assert planes(ours) == peer.quantized(weights.astype(peer.TYPES["bf16"][0]), group_size=64)


@pytest.mark.parametrize("codec", [affine(b, 64, "bf16") for b in BITS] + [
    small_floats(mode, "bf16") for mode in MODES
])  # fmt: skip
def test_every_instruction_set_gives_the_same(codec):
    weights = peer.groups(64, "bf16").astype(np.float32)
    found = [_core.encode_affine(codec, weights, arch) for arch in _core.available_archs()]
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            assert one.tobytes() == two.tobytes()


@pytest.mark.parametrize("bits", BITS)
def test_every_instruction_set_finds_the_same_best(bits):
    weights = peer.groups(64, "bf16").astype(np.float32)
    importance = np.linspace(0, 2, 64, dtype=np.float32)
    for weights_of_columns in (None, importance):
        found = [
            _core.encode_affine(affine(bits, 64, "bf16"), weights, arch, weights_of_columns, True)
            for arch in _core.available_archs()
        ]
        for other in found[1:]:
            for one, two in zip(found[0], other, strict=True):
                assert one.tobytes() == two.tobytes()


@pytest.mark.parametrize("kind", peer.TYPES)
@pytest.mark.parametrize("bits", BITS)
def test_affine_planes_decode_as_in_mlx(bits, kind):
    weights = peer.groups(64, kind)
    ours = pq.quantize(weights, affine(bits, 64, kind)).dequantize()
    codes, *parameters = mx.quantize(peer.to_mlx(weights), group_size=64, bits=bits)
    wide = [plane.astype(mx.float32) for plane in parameters]
    theirs = np.array(mx.dequantize(codes, *wide, group_size=64, bits=bits))
    # The same operations in float32; a compiler may fuse multiplication and addition.
    assert (abs(ours - theirs) <= 1e-6 * abs(theirs).max(axis=1, keepdims=True)).all()


@pytest.mark.parametrize("mode", MODES)
def test_small_floats_decode_as_in_mlx(mode):
    weights = peer.groups(32, "bf16")
    ours = pq.quantize(weights, small_floats(mode, "bf16")).dequantize()
    theirs = mx.dequantize(*mx.quantize(peer.to_mlx(weights), mode=mode), mode=mode)
    # The products have few bits: bfloat16 holds them exactly.
    assert ours.tobytes() == np.array(theirs.astype(mx.float32)).tobytes()


def matrices(fixture: str) -> dict[str, np.ndarray]:
    checkpoint = pq.open(DATA / fixture)
    return {name: checkpoint[name] for name in checkpoint if len(checkpoint[name].shape) == 2}


# Squared error of the search, of mlx's: the issue asks for 15 % less at 4 bits, and 20 % at 3.
@pytest.mark.parametrize("fixture", ("phi35", "phi4mini"))
@pytest.mark.parametrize(("bits", "most"), [(2, 0.70), (3, 0.80), (4, 0.85), (6, 0.85), (8, 0.60)])
def test_best_quality_loses_less_on_trained_weights_and_nowhere_more(fixture, bits, most):
    ratios = []
    for weights in matrices(fixture).values():
        codec = affine(bits, 64, "bf16")
        best = pq.quantize(weights, codec, quality="best").error(weights) ** 2
        ratios.append(best / pq.quantize(weights, codec).error(weights) ** 2)
    assert max(ratios) < 1
    assert np.mean(ratios) <= most


@pytest.mark.parametrize("bits", BITS)
def test_best_quality_is_no_worse_for_any_group(bits):
    weights = peer.groups(64, "bf16").astype(np.float32)
    codec = affine(bits, 64, "bf16")

    def errors(quality: str) -> np.ndarray:
        decoded = pq.quantize(weights, codec, quality=quality).dequantize()
        return ((decoded.astype(np.float64) - weights) ** 2).sum(axis=1)

    # Sums of float32 decide in the search, of float64 here.
    assert (errors("best") <= errors("reference") * (1 + 1e-5) + 1e-76).all()
