"""phiquant's ct codecs give the bytes of compressed-tensors on processors, and decode as it does."""

from __future__ import annotations

import numpy as np
import pytest

import hf_peer as peer
import phiquant as pq
from phiquant import _core
from phiquant.errors import ShapeError, UnsupportedError, UsageError, ValueRangeError
from places import DATA

NVFP4 = "nvfp4,layout=packed,scales=f32,global=42280000"
BITS = (2, 4, 8)
GROUPS = (16, 32, 64, 128, None)
SIGNS = {"sym": True, "asym": False}


def codec(bits: int, sign: str, group: int | None, kind: str) -> str:
    length = "channel" if group is None else f"g{group}"
    return f"int{bits}_{sign}_{length},rule=ct,scales={kind}"


def packed(tensor: pq.QuantizedTensor) -> list[bytes]:
    return [plane.tobytes() for plane in tensor.planes]


def matrix(group: int | None, kind: str) -> np.ndarray:
    """Two groups a row."""
    return peer.groups(2 * (group or 96), kind)


@pytest.mark.parametrize("kind", peer.TYPES)
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("sign", SIGNS)
@pytest.mark.parametrize("bits", BITS)
def test_packed_planes_are_those_of_compressed_tensors(bits, sign, group, kind):
    weights = matrix(group, kind)
    how = peer.scheme(bits, SIGNS[sign], group)
    theirs = peer.compressed(weights, how, "pack-quantized")
    names = ["weight_packed", "weight_scale", "weight_zero_point"][: 2 if SIGNS[sign] else 3]
    ours = pq.quantize(weights, codec(bits, sign, group, kind))
    assert packed(ours) == [peer.raw(theirs[name]) for name in names]
    assert theirs["weight_shape"].tolist() == list(weights.shape)


@pytest.mark.parametrize("bits", [3, 5, 6])
def test_codes_that_cross_words_are_those_of_compressed_tensors(bits):
    weights = matrix(32, "bf16")
    theirs = peer.compressed(weights, peer.scheme(bits, True, 32), "pack-quantized")
    ours = pq.quantize(weights, codec(bits, "sym", 32, "bf16"))
    assert packed(ours) == [peer.raw(theirs["weight_packed"]), peer.raw(theirs["weight_scale"])]


@pytest.mark.parametrize("rows", [32, 96, 1024])
@pytest.mark.parametrize("group", [32, 128])
@pytest.mark.parametrize("bits", [3, 5, 6])
def test_zero_points_that_cross_words_are_those_of_compressed_tensors(bits, group, rows):
    weights = matrix(group, "bf16")
    weights = np.tile(weights, (-(-rows // len(weights)), 1))[:rows]
    how = peer.scheme(bits, False, group)
    theirs = peer.compressed(weights, how, "pack-quantized")
    ours = pq.quantize(weights, codec(bits, "asym", group, "bf16"), threads=2)
    names = ["weight_packed", "weight_scale", "weight_zero_point"]
    assert packed(ours) == [peer.raw(theirs[name]) for name in names]
    decoded = peer.decompressed(theirs, how, "pack-quantized")
    found = ours.dequantize(threads=2).astype(peer.TYPES["bf16"][0]).astype(np.float32)
    assert (found == decoded).all()


def test_zero_points_that_cross_words_come_in_32_rows():
    with pytest.raises(ShapeError, match="32"):
        pq.quantize(np.ones((40, 64), np.float32), "int3_asym_g32,rule=ct")


@pytest.mark.parametrize("rows", [1, 5, 27])
@pytest.mark.parametrize("bits", BITS)
def test_zero_points_of_rows_that_do_not_fill_a_word(bits, rows):
    weights = matrix(32, "bf16")[40 : 40 + rows]
    theirs = peer.compressed(weights, peer.scheme(bits, False, 32), "pack-quantized")
    ours = pq.quantize(weights, codec(bits, "asym", 32, "bf16"))
    names = ["weight_packed", "weight_scale", "weight_zero_point"]
    assert packed(ours) == [peer.raw(theirs[name]) for name in names]


@pytest.mark.parametrize("kind", peer.TYPES)
def test_signed_bytes_are_those_of_compressed_tensors(kind):
    weights = matrix(None, kind)
    theirs = peer.compressed(weights, peer.scheme(8, True, None), "int-quantized")
    ours = pq.quantize(weights, codec(8, "sym", None, kind) + ",layout=openvino")
    assert packed(ours) == [peer.raw(theirs["weight"]), peer.raw(theirs["weight_scale"])]


@pytest.mark.parametrize("group", [32, None])
def test_signed_zero_points_are_those_of_compressed_tensors(group):
    weights = matrix(group, "bf16")
    how = peer.scheme(8, False, group)
    theirs = peer.compressed(weights, how, "int-quantized")
    ours = pq.quantize(weights, codec(8, "asym", group, "bf16") + ",layout=bytes")
    names = ["weight", "weight_scale", "weight_zero_point"]
    assert packed(ours) == [peer.raw(theirs[name]) for name in names]
    decoded = peer.decompressed(theirs, how, "int-quantized")
    found = ours.dequantize().astype(peer.TYPES["bf16"][0]).astype(np.float32)
    assert (found == decoded).all()


@pytest.mark.parametrize("kind", peer.TYPES)
def test_small_floats_are_those_of_compressed_tensors(kind):
    weights = peer.groups(100, kind)
    how = peer.scheme(8, True, None, "float")
    theirs = peer.compressed(weights, how, "float-quantized")
    ours = pq.quantize(weights, "fp8_channel", scales=kind)
    assert packed(ours) == [peer.raw(theirs["weight"]), peer.raw(theirs["weight_scale"])]
    decoded = peer.decompressed(theirs, how, "float-quantized")
    assert (ours.dequantize().astype(peer.TYPES[kind][0]).astype(np.float32) == decoded).all()
    assert ours.zero_points is None


@pytest.mark.parametrize("kind", peer.TYPES)
def test_mxfp4_is_that_of_compressed_tensors(kind):
    weights = peer.groups(64, kind)
    theirs = peer.compressed(weights, peer.powers_of_two(), "mxfp4-pack-quantized")
    ours = pq.quantize(weights, f"mxfp4,layout=packed,scales={kind}")
    assert packed(ours) == [peer.raw(theirs["weight_packed"]), peer.raw(theirs["weight_scale"])]
    assert ours.zero_points is None


@pytest.mark.parametrize("kind", ["bf16", "f32"])
@pytest.mark.parametrize("largest", [30000, 1.0, 0.05])
def test_nvfp4_is_that_of_compressed_tensors(kind, largest):
    weights = peer.groups(64, kind)
    weights = np.clip(weights, -largest, largest).astype(weights.dtype)
    how = peer.eight_bit_scales()
    theirs = peer.compressed(weights, how, "nvfp4-pack-quantized")
    spread = theirs["weight_global_scale"].numpy().view(np.uint32)[0]
    ours = pq.quantize(weights, f"nvfp4,layout=packed,scales={kind},global={spread:08x}")
    assert packed(ours) == [peer.raw(theirs["weight_packed"]), peer.raw(theirs["weight_scale"])]
    assert ours.zero_points is None
    # The tool's own result is bfloat16, whatever the weights were.
    decoded = peer.decompressed(theirs, how, "nvfp4-pack-quantized")
    found = ours.dequantize().astype(peer.TYPES["bf16"][0]).astype(np.float32)
    assert (found == decoded).all()


@pytest.mark.parametrize("digits", ["", "1", "00000000", "7f800000", "bf800000", "3f80000g"])
def test_scales_of_a_tensor_are_positive_numbers(digits):
    with pytest.raises(UsageError, match="no codec"):
        pq.quantize(np.ones((2, 16), np.float32), f"nvfp4,layout=packed,global={digits}")


def test_weights_are_rounded_to_the_scales_type_first():
    weights = peer.groups(64, "f32")
    ours = pq.quantize(weights, codec(4, "asym", 64, "bf16"))
    same = pq.quantize(weights.astype(peer.TYPES["bf16"][0]), codec(4, "asym", 64, "bf16"))
    assert packed(ours) == packed(same)


@pytest.mark.parametrize("sign", SIGNS)
@pytest.mark.parametrize("bits", BITS)
def test_every_instruction_set_gives_the_same(bits, sign):
    names = [(codec(bits, sign, 64, kind), kind) for kind in peer.TYPES]
    for name, kind in [
        *names,
        ("fp8_channel", "bf16"),
        ("mxfp4,layout=packed", "bf16"),
        (NVFP4, "f32"),
    ]:
        weights = matrix(64, kind).astype(np.float32)
        found = [_core.encode_affine(name, weights, arch) for arch in _core.available_archs()]
        for other in found[1:]:
            for one, two in zip(found[0], other, strict=True):
                assert one.tobytes() == two.tobytes()


@pytest.mark.parametrize("kind", peer.TYPES)
@pytest.mark.parametrize("sign", SIGNS)
@pytest.mark.parametrize("bits", BITS)
def test_planes_decode_as_in_compressed_tensors(bits, sign, kind):
    weights = matrix(64, kind)
    how = peer.scheme(bits, SIGNS[sign], 64)
    theirs = peer.decompressed(
        peer.compressed(weights, how, "pack-quantized"), how, "pack-quantized"
    )
    ours = pq.quantize(weights, codec(bits, sign, 64, kind)).dequantize()
    # compressed-tensors multiplies in the scales' type.
    with np.errstate(over="ignore"):
        assert (ours.astype(peer.TYPES[kind][0]).astype(np.float32) == theirs).all()


def test_ranges_that_float16_cannot_hold_are_refused():
    weights = np.array([[-40000.0, 40000.0] * 16], np.float32)
    with pytest.raises(ValueRangeError, match=r"float16|range|hold"):
        pq.quantize(weights, codec(4, "asym", 32, "f16"))
    assert pq.quantize(weights, codec(4, "asym", 32, "bf16")).error(weights) < 0.1


# Squared error of the search, of compressed-tensors'.
@pytest.mark.parametrize(("sign", "most"), [("sym", 0.78), ("asym", 0.92)])
def test_best_quality_loses_less_on_trained_weights_and_nowhere_more(sign, most):
    checkpoint = pq.open(DATA / "phi35")
    importance = np.linspace(0.1, 2, 256, dtype=np.float32)
    ratios, weighted = [], []
    for name in checkpoint:
        if not name.endswith(("qkv_proj.weight", "o_proj.weight")):
            continue
        weights = np.asarray(checkpoint[name], np.float32)
        how = codec(4, sign, 64, "bf16")

        def lost(tensor, weights=weights):
            return (tensor.dequantize() - weights) ** 2

        reference = lost(pq.quantize(weights, how))
        best = lost(pq.quantize(weights, how, quality="best"))
        ratios.append(best.sum() / reference.sum())
        groups = (len(weights), -1, 64)
        worse = best.reshape(groups).sum(-1) > reference.reshape(groups).sum(-1) * (1 + 1e-5)
        assert not worse.any()
        tuned = lost(pq.quantize(weights, how, quality="best", importance=importance))
        weighted.append((tuned * importance).sum() / (best * importance).sum())
    assert np.mean(ratios) < most
    assert np.mean(weighted) < 1


@pytest.mark.parametrize("name", ["int4_sym_channel,rule=ct", "fp8_channel", "mxfp4,layout=packed"])
def test_whole_rows_and_small_floats_have_no_best_quality(name):
    with pytest.raises(UnsupportedError, match="best"):
        pq.quantize(np.ones((1, 64), np.float32), name, quality="best")
