"""Codes, scales and zero points are NNCF's, in hard groups and in optimum-intel's exports."""

from __future__ import annotations

import hashlib
import json
from functools import cache

import numpy as np
import pytest

import phiquant as pq
from phiquant import _core
from places import DATA, FIXTURES, GOLDEN

EXPORTS = json.loads((GOLDEN / "openvino-exports.json").read_text(encoding="utf-8"))["exports"]
PRESETS = ("int8", "int8_sym", "int4_sym,group=64", "int4_asym,group=64")


@cache
def recorded() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "nncf-groups.npz") as arrays:
        return dict(arrays)


CODECS = sorted({name.split(".")[1] for name in recorded() if name.endswith(".codes")})


@pytest.mark.parametrize("arch", _core.available_archs())
@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("size", ["small", "large"])
def test_hard_groups_get_nncfs_codes_scales_and_zero_points(size, codec, arch):
    arrays = recorded()
    codes, scales, zeros = _core.encode_affine(
        f"{codec},rule=nncf", arrays[f"{size}.weights"], arch=arch
    )
    assert np.array_equal(codes.reshape(-1), arrays[f"{size}.{codec}.codes"])
    stored = scales.reshape(-1).astype(np.float16)
    assert stored.tobytes() == arrays[f"{size}.{codec}.scales"].tobytes()
    if "asym" in codec:
        assert np.array_equal(zeros.reshape(-1), arrays[f"{size}.{codec}.zero_points"])


def test_hard_groups_are_recorded():
    weights = recorded()["small.weights"]
    assert not weights[0].any()  # all zero
    assert (weights[1] == weights[1, 0]).all()  # constant
    assert (weights[3] >= 0).all()  # of one sign
    assert (weights[4] <= 0).all()
    assert len(CODECS) == 14


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("fixture", FIXTURES)
def test_every_weight_is_that_of_optimum_intels_export(tmp_path, fixture, preset):
    pq.convert(DATA / fixture, f"openvino:{preset}", tmp_path / "out")
    written = pq.open(tmp_path / "out")
    wanted = EXPORTS[fixture][preset]["weights"]
    planes = {
        name: [
            hashlib.sha256(plane.tobytes()).hexdigest()[:24] for plane in written.planes_of(entry)
        ]
        for name, entry in written.entries.items()
        if entry.planes
    }
    assert len(wanted) > 8
    assert planes == wanted
