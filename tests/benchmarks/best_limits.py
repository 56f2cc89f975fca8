#!/usr/bin/env python3
"""How far below the rule's the errors can get at all: what exhaustive searches leave, beside "best".

    python tests/benchmarks/best_limits.py [--codec q3_k ...] [--rows 8]

As best.py, on some rows of each matrix. Two kinds of limits:

- Real scales, in formats without minima: the exact optimum of every sub-block, found by visiting every scale at which
  a code changes. No encoder can do better; where scales are rounded to six bits, none can do as well.
- Rounded scales, in Q2_K and Q3_K: for many float16 units (Q3_K: 400, of both signs; Q2_K: 32 x 32 pairs), all scales
  (and minima) that each sub-block can have, and the units fitted to the best of them again. No proof, but far more
  than an encoder has the time for.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from best import DATA

import phiquant as pq
from phiquant.description import describe
from phiquant.measure import read_importance
from phiquant.targets.gguf_metadata import tensor_name

Doubles = npt.NDArray[np.float64]
Floats = npt.NDArray[np.float32]
Chosen = npt.NDArray[np.intp]  # of each sub-block, which choice
Units = tuple[np.float32, ...]

IQ4_LEVELS = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113]
# codec: (levels, values a sub-block)
SCALED = {
    "q3_k": (np.arange(-4.0, 4.0), 16),
    "q4_0": (np.arange(-8.0, 8.0), 32),
    "iq4_nl": (np.array(IQ4_LEVELS, np.float64), 32),
    "iq4_xs": (np.array(IQ4_LEVELS, np.float64), 32),
    "int4_sym_g64,rule=nncf": (np.arange(-8.0, 8.0), 64),
    "int4_sym_g128,rule=nncf": (np.arange(-8.0, 8.0), 128),
}


def least_errors(x: Doubles, w: Doubles, levels: Doubles) -> Doubles:
    """Weighted squared error of each row of `x` with its best scale, any real number.

    Between two neighbouring scales at which some code changes, codes are fixed and the best error is
    Σ w x² - (Σ w x l)² / Σ w l². The sums are updated from change to change.
    """
    middles = (levels[1:] + levels[:-1]) / 2
    inner = np.where(middles > 0, levels[:-1], levels[1:])
    outer = np.where(middles > 0, levels[1:], levels[:-1])
    first = levels[np.searchsorted(middles, 0)]  # the code of all while 1 / scale is near 0
    most = np.zeros(len(x))
    for sign in (1.0, -1.0):
        y = sign * x[:, :, None]
        with np.errstate(divide="ignore", invalid="ignore"):
            inverse = middles / y
        reached = np.isfinite(inverse) & (inverse > 0)
        order = np.argsort(np.where(reached, inverse, np.inf).reshape(len(x), -1), axis=1)

        def summed(change: Doubles, start: Doubles, order: npt.NDArray[np.intp] = order) -> Doubles:
            changes = np.take_along_axis(change.reshape(len(change), -1), order, 1).cumsum(axis=1)
            return np.concatenate([start[:, None], start[:, None] + changes], axis=1)

        xl = summed(
            np.where(reached, w[:, :, None] * y * (outer - inner), 0), (w * sign * x).sum(1) * first
        )
        l2 = summed(
            np.where(reached, w[:, :, None] * (outer**2 - inner**2), 0), w.sum(1) * first**2
        )
        with np.errstate(divide="ignore", invalid="ignore"):
            gains = np.where((l2 > 0) & (xl > 0), xl * xl / l2, 0)
        most = np.maximum(most, gains.max(axis=1))
    return (w * x * x).sum(axis=1) - most


def half(value: float) -> np.float32:
    return np.float32(np.float16(value))


class Q2K:
    """A super-block (16 sub-blocks, 16 values), for which two units are sought."""

    def __init__(self, x: Floats, w: Floats) -> None:
        self.x, self.w = x, w

    def candidates(self) -> list[Units]:
        steepest = float(np.ptp(self.x, axis=1).max()) / 3 / 15
        deepest = max(float(-self.x.min()), 1e-6) / 15
        return [
            (half(steepest * scale), half(deepest * minimum))
            for scale in np.linspace(0.55, 1.1, 32)
            for minimum in np.linspace(0.6, 1.15, 32)
        ]

    def choices(self, units: Units) -> Floats:
        """Error of each sub-block with each of its 256 pairs of whole parameters."""
        s, m = (unit * np.arange(16, dtype=np.float32) for unit in units)
        s = s[:, None, None, None]
        shifted = self.x + m[:, None, None]
        off = np.rint(np.clip(shifted / np.maximum(s, np.float32(1e-20)), 0, 3))
        off *= s
        off -= shifted
        off *= off
        return np.einsum("smjv,jv->jsm", off, self.w, optimize=True).reshape(16, 256)

    def fitted(self, units: Units, chosen: Chosen) -> Units:
        """Least squares of the units, given all codes and whole parameters."""
        s, m = (part.astype(np.float64)[:, None] for part in (chosen // 16, chosen % 16))
        step = np.where(s > 0, units[0] * s, 1)
        codes = np.where(s > 0, np.rint(np.clip((self.x + units[1] * m) / step, 0, 3)), 0)
        root = np.sqrt(self.w.astype(np.float64))
        terms = np.stack([root * s * codes, -root * m], axis=-1).reshape(-1, 2)
        scale, minimum = np.linalg.lstsq(terms, (root * self.x).ravel(), rcond=None)[0]
        return half(scale), half(minimum)


class Q3K:
    """A super-block (16 sub-blocks, 16 values), for which one unit is sought."""

    def __init__(self, x: Floats, w: Floats) -> None:
        self.x, self.w = x, w

    def candidates(self) -> list[Units]:
        largest = float(np.abs(self.x).max()) / 4 / 32
        return [
            (half(largest * by * sign),) for by in np.linspace(0.6, 1.5, 200) for sign in (1, -1)
        ]

    def codes(self, units: Units, scales: Floats) -> tuple[Floats, Floats]:
        s = units[0] * scales
        return s, np.rint(np.clip(self.x / np.where(s == 0, np.float32(1e20), s), -4, 3))

    def choices(self, units: Units) -> Floats:
        s, codes = self.codes(units, np.arange(-32, 32, dtype=np.float32)[:, None, None])
        off = s * codes - self.x
        off *= off
        return np.einsum("sjv,jv->js", off, self.w)

    def fitted(self, units: Units, chosen: Chosen) -> Units:
        scales = (chosen.astype(np.float32) - 32)[:, None]
        levels = (scales * self.codes(units, scales)[1]).astype(np.float64)
        below = float(np.sum(self.w * levels * levels))
        return (half(float(np.sum(self.w * levels * self.x)) / below if below > 0 else 0.0),)


def least_of(block: Q2K | Q3K) -> float:
    """Weighted squared error of a super-block, after the longest search of all."""
    tried = [(float(block.choices(units).min(axis=1).sum()), units) for units in block.candidates()]
    tried.sort()
    least = tried[0][0]
    for error, units in tried[:12]:
        while True:
            units = block.fitted(units, block.choices(units).argmin(axis=1))
            refitted = float(block.choices(units).min(axis=1).sum())
            if not refitted < error:
                break
            error = refitted
        least = min(least, error)
    return least


def with_real_scales(codec: str, x: Floats, w: Floats) -> float:
    levels, size = SCALED[codec]
    blocks = x.reshape(-1, size).astype(np.float64), w.reshape(-1, size).astype(np.float64)
    parts = range(0, len(blocks[0]), 1024)
    return sum(
        float(least_errors(*(b[part : part + 1024] for b in blocks), levels).sum())
        for part in parts
    )


def with_rounded_scales(codec: str, x: Floats, w: Floats) -> float:
    pairs = zip(x.reshape(-1, 16, 16), w.reshape(-1, 16, 16), strict=True)
    return sum(least_of(ROUNDED[codec](values, weights)) for values, weights in pairs)


ROUNDED: dict[str, type[Q2K] | type[Q3K]] = {"q2_k": Q2K, "q3_k": Q3K}


def matrices(rows: int, weighted: bool) -> Iterator[tuple[Floats, Floats | None]]:
    """Evenly spread rows of the trained models' matrices, with their importance."""
    for fixture in ("phi35", "phi4mini"):
        source = pq.open(DATA / fixture)
        matrix = read_importance(DATA / fixture / "imatrix.gguf")
        for role in describe(source).tensors:
            if len(role.shape) < 2 or (weighted and tensor_name(role) not in matrix):
                continue
            w = np.asarray(source[role.source], np.float32)
            w = np.ascontiguousarray(w[:: max(1, len(w) // rows)][:rows])
            yield w, matrix[tensor_name(role)] if weighted else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--codec", action="append", choices=("q2_k", *SCALED))
    parser.add_argument("--rows", type=int, default=8, help="of each matrix")
    options = parser.parse_args()
    print(f"{options.rows} rows of each matrix; error below that of the rule's bits, mean (worst)")
    print("| codec | importance | best | rounded scales | real scales |\n|---|---|---|---|---|")
    for codec in options.codec or ("q2_k", *SCALED):
        for weighted in (False, True):
            shares: list[list[float]] = [[], [], []]
            for w, importance in matrices(options.rows, weighted):
                weights = np.ones(w.shape[1], np.float32) if importance is None else importance
                best, reference = (
                    float(np.sum((q.dequantize().astype(np.float64) - w) ** 2 * weights))
                    for q in (
                        pq.quantize(w, codec, importance=importance, quality=quality)
                        for quality in ("best", "reference")
                    )
                )
                spread = np.ascontiguousarray(np.broadcast_to(weights, w.shape))
                shares[0].append(best / reference)
                if codec in ROUNDED:
                    shares[1].append(with_rounded_scales(codec, w, spread) / reference)
                if codec in SCALED:
                    shares[2].append(with_real_scales(codec, w, spread) / reference)
            shown = (f"{1 - np.mean(s):.2%} ({1 - max(s):.2%})" if s else "" for s in shares)
            row = " | ".join((f"`{codec}`", "yes" if weighted else "no", *shown))
            print(f"| {row} |", flush=True)


if __name__ == "__main__":
    main()
