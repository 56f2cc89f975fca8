"""phiquant's ct codecs give the bytes of compressed-tensors on processors, and decode as it does."""

from __future__ import annotations

import numpy as np
import pytest

import hf_peer as peer
import phiquant as pq
from phiquant import _core
from phiquant.errors import ValueRangeError

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


def test_weights_are_rounded_to_the_scales_type_first():
    weights = peer.groups(64, "f32")
    ours = pq.quantize(weights, codec(4, "asym", 64, "bf16"))
    same = pq.quantize(weights.astype(peer.TYPES["bf16"][0]), codec(4, "asym", 64, "bf16"))
    assert packed(ours) == packed(same)


@pytest.mark.parametrize("sign", SIGNS)
@pytest.mark.parametrize("bits", BITS)
def test_every_instruction_set_gives_the_same(bits, sign):
    for kind in peer.TYPES:
        weights = matrix(64, kind).astype(np.float32)
        name = codec(bits, sign, 64, kind)
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
