"""phiquant's ct codecs give the bytes of compressed-tensors on processors, and decode as it does."""

from __future__ import annotations

import numpy as np
import pytest

import hf_peer as peer
import phiquant as pq

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
