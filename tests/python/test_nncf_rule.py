"""Codes, scales and zero points are NNCF's, in hard groups and in optimum-intel's exports."""

from __future__ import annotations

import hashlib
import json
from functools import cache

import numpy as np
import pytest

import phiquant as pq
from phiquant import _core
from phiquant.evaluate import evaluate
from places import DATA, FIXTURES, GOLDEN

EXPORTS = json.loads((GOLDEN / "openvino-exports.json").read_text(encoding="utf-8"))["exports"]
PRESETS = (
    "int8",
    "int8_sym",
    "int4_sym,group=64",
    "int4_asym,group=64",
    "int4_sym,group=64,ratio=0.6",
)


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


BEST = ("int4_sym_g128", "int4_asym_g128", "int4_sym_g64", "int4_asym_g64")
# Of squared error less than the rule's, on average over a fixture's matrices.
LESS = {"int4_sym_g128": 0.11, "int4_asym_g128": 0.08, "int4_sym_g64": 0.09, "int4_asym_g64": 0.08}


def matrices(fixture: str, codec: str) -> list[np.ndarray]:
    checkpoint = pq.open(DATA / fixture)
    group = int(codec.partition("_g")[2])
    found = [np.asarray(checkpoint[name], np.float32) for name in checkpoint if "layers" in name]
    return [matrix for matrix in found if matrix.ndim == 2 and matrix.shape[1] % group == 0]


@pytest.mark.parametrize("codec", BEST)
@pytest.mark.parametrize("fixture", ["phi35", "phi4mini"])
def test_best_has_less_error_in_the_same_bytes_and_no_matrix_more(fixture, codec):
    ratios = []
    for matrix in matrices(fixture, codec):
        tensors = [
            pq.quantize(matrix, codec, rule="nncf", quality=quality)
            for quality in ("reference", "best")
        ]
        assert tensors[0].nbytes == tensors[1].nbytes
        errors = [float(((tensor.dequantize() - matrix) ** 2).sum()) for tensor in tensors]
        ratios.append(errors[1] / errors[0])
    assert max(ratios) <= 1
    assert 1 - np.mean(ratios) >= LESS[codec]


@pytest.mark.parametrize("codec", BEST)
def test_best_weighs_columns_by_importance(codec):
    matrix = matrices("phi35", codec)[0]
    importance = np.random.default_rng(3).lognormal(0, 1.5, matrix.shape[1]).astype(np.float32)
    errors = []
    for weights in (None, importance):
        tensor = pq.quantize(matrix, codec, rule="nncf", quality="best", importance=weights)
        errors.append(float((((tensor.dequantize() - matrix) ** 2) * importance).sum()))
    assert errors[1] < errors[0]


@pytest.mark.parametrize("codec", BEST)
def test_best_is_the_same_on_every_instruction_set(codec):
    matrix = np.concatenate([recorded()["small.weights"], recorded()["large.weights"]])
    found = [
        _core.encode_affine(f"{codec},rule=nncf", matrix, arch=arch, best=True)
        for arch in _core.available_archs()
    ]
    for other in found[1:]:
        assert all(a.tobytes() == b.tobytes() for a, b in zip(found[0], other, strict=True))


def test_best_runs_closer_to_the_source(tmp_path):
    divergences = []
    for quality in ("reference", "best"):
        out = tmp_path / quality
        pq.convert(DATA / "phi35", "openvino:int4_sym,group=128", out, quality=quality)
        text = DATA / "eval.txt"
        result = evaluate([out], DATA / "phi35", text=text, tokens=1024, context=128)
        divergences.append(result.scores[0].mean_kld)
    assert divergences[1] < divergences[0]


def test_best_is_refused_where_rows_share_one_scale():
    for target in ("openvino:int8", "openvino:int8_sym", "openvino:int4,group=channel"):
        with pytest.raises(pq.UsageError, match="one scale a row"):
            pq.plan(DATA / "phi35", target, quality="best")
