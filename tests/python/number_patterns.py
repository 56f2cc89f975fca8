"""Rows of numbers that encoders might take amiss: each kind of extreme, tie and emptiness."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Maker = Callable[[np.random.Generator, int], Floats]

TINY = np.float32(2.0**-149)
LARGEST = np.finfo(np.float32).max


def _finite(bits: NDArray[np.uint32]) -> Floats:
    """Floats of these bits, where infinities and NaNs lose their exponent's lowest bit."""
    full = (bits & 0x7F800000) == 0x7F800000
    return np.where(full, bits ^ 0x00800000, bits).astype(np.uint32).view(np.float32)


def _bits(random: np.random.Generator, count: int) -> Floats:
    return _finite(random.integers(0, 1 << 32, count, np.uint32))


def _scaled(random: np.random.Generator, count: int) -> Floats:
    power = random.integers(-140, 120)
    return np.ldexp(random.standard_normal(count), power).astype(np.float32)


def _weights(random: np.random.Generator, count: int) -> Floats:
    return (random.standard_normal(count) * 0.02).astype(np.float32)


def _heavy(random: np.random.Generator, count: int) -> Floats:
    return np.clip(random.standard_cauchy(count), -1e6, 1e6).astype(np.float32)


def _levels(random: np.random.Generator, count: int) -> Floats:
    """Few levels, evenly apart: every rounding is a tie or exact."""
    step = np.float32(2.0 ** random.integers(-12, 4)) * random.choice([0.5, 1, 3, 1 / 3])
    return (random.integers(-16, 17, count) * step).astype(np.float32)


def _constant(random: np.random.Generator, count: int) -> Floats:
    return np.full(count, _bits(random, 1)[0], np.float32)


def _zeros(random: np.random.Generator, count: int) -> Floats:
    return np.where(random.integers(2, size=count), 0.0, -0.0).astype(np.float32)


def _sparse(random: np.random.Generator, count: int) -> Floats:
    row = _zeros(random, count)
    some = random.integers(0, count, max(1, count // 40))
    row[some] = _scaled(random, len(some))
    return row


def _subnormal(random: np.random.Generator, count: int) -> Floats:
    codes = random.integers(0, 1 << int(random.integers(1, 24)), count, np.uint32)
    return (codes | random.integers(0, 2, count, np.uint32) << 31).view(np.float32)


def _outlier(random: np.random.Generator, count: int) -> Floats:
    row = _weights(random, count)
    row[random.integers(count)] = random.choice([LARGEST, -LARGEST, 1e30, 65504, 3e4, TINY])
    return row


def _extremes(random: np.random.Generator, count: int) -> Floats:
    some = [0, -0.0, 1, -1, TINY, -TINY, LARGEST, -LARGEST, 65504, 65520, -65520, 2**-14, 2**-24]
    return random.choice(np.array(some, np.float32), count)


def _one_sign(random: np.random.Generator, count: int) -> Floats:
    return np.abs(_weights(random, count)) * np.float32(random.choice([-1, 1])) + np.float32(
        random.choice([0, 1, -3])
    )


def _halves(random: np.random.Generator, count: int) -> Floats:
    """Numbers between two halves or two bfloats, which conversions have to round."""
    near = random.standard_normal(count).astype(np.float32).view(np.uint32)
    shift = random.choice([13, 16])
    near = (near >> shift << shift) + random.choice([-1, 0, 1], count).astype(np.uint32)
    return _finite((near + np.uint32(1 << (shift - 1))).astype(np.uint32))


def _mixed(random: np.random.Generator, count: int) -> Floats:
    """Another kind every few values, so that groups differ within a register."""
    width = int(random.choice([1, 4, 8, 16, 32]))
    kinds = [random.choice(_KINDS)(random, width) for _ in range(-(-count // width))]
    return np.concatenate(kinds)[:count]


_KINDS: list[Maker] = [
    _bits, _scaled, _weights, _heavy, _levels, _constant, _zeros, _sparse, _subnormal, _outlier,
    _extremes, _one_sign, _halves,
]  # fmt: skip


def matrix(random: np.random.Generator, rows: int, columns: int) -> Floats:
    """Finite float32 rows, each of a kind drawn at random."""
    kinds = [*_KINDS, _weights, _scaled, _levels, _mixed, _mixed]
    drawn = random.integers(0, len(kinds), rows)
    with np.errstate(all="ignore"):
        made = np.stack([kinds[kind](random, columns) for kind in drawn])
    assert made.dtype == np.float32
    assert np.isfinite(made).all()
    return made


def importance(random: np.random.Generator, columns: int) -> Floats:
    """Weights of columns: not negative, some zero, of any size that an importance matrix has."""
    kind = random.integers(4)
    if kind == 0:
        return np.square(random.standard_normal(columns)).astype(np.float32)
    if kind == 1:
        return np.zeros(columns, np.float32)
    if kind == 2:
        return np.ldexp(random.random(columns), random.integers(-40, 40, columns)).astype(
            np.float32
        )
    return (random.random(columns) * random.integers(0, 2, columns)).astype(np.float32)


def blocks(random: np.random.Generator, rows: int, row_bytes: int) -> NDArray[np.uint8]:
    """Any bytes at all as encoded rows: scales that are NaN, infinite and subnormal among them."""
    made = random.integers(0, 256, (rows, row_bytes), np.uint8)
    # Halves whose exponent is full or empty are rare among random bytes.
    for row in made[: rows // 2]:
        at = random.integers(0, row_bytes, max(1, row_bytes // 16))
        row[at] = random.choice(np.array([0x00, 0x7C, 0x7D, 0x7E, 0xFC, 0xFF, 0x80], np.uint8))
    return made
