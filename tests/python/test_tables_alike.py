"""Every instruction set's table gives the baseline's bytes, whatever the numbers."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
from number_patterns import blocks, importance, matrix

from phiquant import _core

#: Longer by hand: PHIQUANT_FUZZ_ROUNDS=1000 pytest tests/python/test_tables_alike.py
ROUNDS = int(os.environ.get("PHIQUANT_FUZZ_ROUNDS", "2"))
SEED = int(os.environ.get("PHIQUANT_FUZZ_SEED", "9"))

ARCHS = _core.available_archs()
#: Best first: the last is the one that every processor of the platform has.
BASELINE = ARCHS[-1]
OTHERS = ARCHS[:-1]

BLOCKS = _core.codecs()


def affine_names() -> list[str]:
    """Every affine grid that some rule is built for, by its shortest name."""
    names = []
    for rule in ("ort", "qdq", "nncf", "mlx", "ct", "portable"):
        for bits in (2, 3, 4, 5, 6, 8):
            for kind in ("sym", "asym"):
                for group in ("g16", "g32", "g64", "g128", "g256", "channel"):
                    for scales in ("f32", "f16", "bf16"):
                        names.append(f"int{bits}_{kind}_{group},rule={rule},scales={scales}")
    for scales in ("f32", "f16", "bf16"):
        names += [f"{mode},layout=mlx,scales={scales}" for mode in ("mxfp4", "mxfp8", "nvfp4")]
        packed = ("fp8_channel", "mxfp4,layout=packed", "nvfp4,layout=packed")
        names += [f"{mode},scales={scales}" for mode in packed]
        names.append(f"nvfp4,layout=packed,scales={scales},global=47520800")
    names += ["nf4_g32", "nf4_g64", "nf4_channel", "mxfp4,layout=openvino", "mxfp8,layout=openvino"]
    facts = {name: _core.made_codec(name) for name in names}
    return [name for name, fact in facts.items() if fact is not None and fact["is_built"]]


AFFINE = affine_names()


def largest_of(fact: dict[str, Any]) -> float:
    """What a codec surely holds. Beyond it, encodings are looked at and mostly refused, so that
    what a table made of them is nobody's business; fuzz_kernels.cpp goes there."""
    if fact["scale"] == "float16" or (fact["rule"] == "mlx" and fact["symmetric"]):
        return 32752.0 if fact["rule"] == "ct" else 65504.0
    return 2.0**126


def differing(a: Any, b: Any) -> Any:
    """Where two encodings differ. NaNs are equal: which of two operands' payload an
    instruction keeps is none of IEEE 754's business."""
    if a.dtype == np.float32:
        same = (a.view(np.uint32) == b.view(np.uint32)) | (np.isnan(a) & np.isnan(b))
        return np.argwhere(~same)
    return np.argwhere(a != b)


def told(codec: str, arch: str, seed: int, where: Any) -> str:
    return (
        f"{codec}: {arch} differs from {BASELINE} at {where[:4].tolist()} "
        f"({len(where)} places), PHIQUANT_FUZZ_SEED={seed} PHIQUANT_FUZZ_ROUNDS=1"
    )


def generators(codec: str) -> list[tuple[int, np.random.Generator]]:
    """A generator for every round; SEED and one round repeat a failure."""
    return [
        (seed, np.random.default_rng([seed, *codec.encode()]))
        for seed in range(SEED, SEED + ROUNDS)
    ]


@pytest.mark.skipif(not OTHERS, reason="this processor has one table only")
@pytest.mark.parametrize("fact", BLOCKS, ids=lambda fact: fact["name"])
def test_blocks_are_encoded_alike(fact: dict[str, Any]) -> None:
    codec, block = fact["name"], fact["block_values"]
    for seed, random in generators(codec):
        columns = block * int(random.integers(1, 5)) if block > 1 else int(random.integers(1, 300))
        rows = matrix(random, 24, columns)
        ways: list[dict[str, Any]] = [{"importance": importance(random, columns)}]
        if not fact["needs_importance"]:
            ways.append({})
        if fact["has_best"]:
            ways += [{**way, "best": True} for way in ways]
        for way in ways:
            baseline = _core.encode_blocks(codec, rows, arch=BASELINE, **way)
            for arch in OTHERS:
                other = _core.encode_blocks(codec, rows, arch=arch, **way)
                where = differing(baseline, other)
                assert not len(where), told(f"{codec} {sorted(way)}", arch, seed, where)


@pytest.mark.skipif(not OTHERS, reason="this processor has one table only")
@pytest.mark.parametrize("fact", BLOCKS, ids=lambda fact: fact["name"])
def test_any_bytes_are_decoded_alike(fact: dict[str, Any]) -> None:
    codec, block = fact["name"], fact["block_values"]
    for seed, random in generators(codec):
        count = int(random.integers(1, 7))
        coded = blocks(random, 200, count * fact["block_bytes"])
        baseline = _core.decode_blocks(codec, coded, count * block, arch=BASELINE)
        for arch in OTHERS:
            other = _core.decode_blocks(codec, coded, count * block, arch=arch)
            where = differing(baseline, other)
            assert not len(where), told(codec, arch, seed, where)


@pytest.mark.skipif(not OTHERS, reason="this processor has one table only")
@pytest.mark.parametrize("group", ["g16", "g32", "g64", "g128", "g256", "channel", "floats"])
def test_affine_groups_are_encoded_alike(group: str) -> None:
    mine = [name for name in AFFINE if (f"_{group}," in name or not name.startswith("int"))]
    mine = [name for name in mine if name.startswith("int") == (group != "floats")]
    assert len(mine) >= 9
    for codec in mine:
        fact = _core.made_codec(codec)
        assert fact is not None
        for seed, random in generators(codec):
            width = fact["group"] or 32
            columns = width * int(random.integers(1, 4))
            if fact["rule"] == "ort":
                columns += int(random.integers(0, width))  # the only layout of unfilled groups
            largest = np.float32(largest_of(fact))
            rows = np.clip(matrix(random, 16, columns), -largest, largest)
            ways: list[dict[str, Any]] = [{}]
            if fact["has_best"]:
                ways += [{"best": True}]
                ways += [{"best": True, "importance": importance(random, columns)}]
            for way in ways:
                baseline = _core.encode_affine(codec, rows, arch=BASELINE, **way)
                for arch in OTHERS:
                    other = _core.encode_affine(codec, rows, arch=arch, **way)
                    for part, a, b in zip(
                        ("codes", "scales", "zeros"), baseline, other, strict=True
                    ):
                        where = differing(a, b)
                        assert not len(where), told(f"{codec} {part} {way}", arch, seed, where)


@pytest.mark.parametrize("quality", [{}, {"best": True}], ids=["reference", "best"])
def test_equal_values_whose_scale_is_zero_have_codes_of_their_grid(quality: dict[str, Any]) -> None:
    # Found by the tests above: zero over zero was clamped to 128 by SSE2, beyond two bits.
    rows = np.full((2, 64), np.float32(-1.9e32))
    for arch in ARCHS:
        codes, scales, biases = _core.encode_affine(
            "int2_asym_g32,rule=mlx,scales=f32", rows, arch=arch, **quality
        )
        assert (codes == 0).all(), arch
        assert (scales == 0).all()
        assert (biases == rows[:, :2]).all()
