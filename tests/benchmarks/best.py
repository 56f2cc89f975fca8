#!/usr/bin/env python3
"""What quality="best" brings, and its speed beside ggml's own encoders, in one run on one core.

    python tests/benchmarks/best.py [--codec q4_k ...] [--runs 50] [--arch avx2 ...]

Error: over all whole matrices of the two trained test models, the squared error of "best" relative to the reference
bits', averaged over matrices, and of the worst matrix; with all columns alike, and with each column's squared errors
weighted by the models' importance matrices. Speed: times the function of ggml's that llama-quantize calls, on random weights; the
best of the runs counts, taking turns. Needs llama-cpp-python.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import kernels
import numpy as np

import phiquant as pq
from phiquant import _core
from phiquant.architectures.spec import TensorRole
from phiquant.description import describe
from phiquant.measure import read_importance
from phiquant.targets.gguf_metadata import tensor_name

CODECS = ("q2_k", "q3_k", "q4_0", "q4_k", "q5_k", "q6_k", "iq4_nl", "iq4_xs")
DATA = Path(__file__).parents[1] / "data"


def shares(codec: str, weighted: bool) -> list[float]:
    """Error of "best" relative to the reference's, a matrix each."""
    found = []
    for fixture in ("phi35", "phi4mini"):
        source = pq.open(DATA / fixture)
        matrix = read_importance(DATA / fixture / "imatrix.gguf")
        roles: tuple[TensorRole, ...] = describe(source).tensors
        for role in roles:
            if len(role.shape) < 2 or (weighted and tensor_name(role) not in matrix):
                continue
            importance = matrix[tensor_name(role)] if weighted else None
            w = np.asarray(source[role.source], np.float32)
            weights = np.float64(1) if importance is None else importance.astype(np.float64)
            errors = [
                float(np.sum((q.dequantize().astype(np.float64) - w) ** 2 * weights))
                for q in (
                    pq.quantize(w, codec, importance=importance, quality=quality)
                    for quality in ("best", "reference")
                )
            ]
            found.append(errors[0] / errors[1])
    return found


def speed(codec: str, arch: str, weighted: bool, runs: int) -> float:
    """Times ggml's speed."""
    rng = np.random.default_rng(0)
    # Few rows and many runs: on a machine that does other things, too, some runs are not disturbed.
    values = rng.standard_normal((8, kernels.COLUMNS), dtype=np.float32) * np.float32(0.02)
    values.view(np.uint32)[...] &= 0xFFFF0000
    importance = rng.chisquare(3, kernels.COLUMNS).astype(np.float32) if weighted else None
    out = _core.encode_blocks(codec, values)
    peer = kernels.peer_encoder(kernels.ggml(), codec, values, importance, np.zeros_like(out))
    theirs = ours = np.inf
    for _ in range(runs):
        theirs = min(theirs, kernels.best(peer, 1))
        ours = min(
            ours,
            kernels.best(
                lambda: _core.encode_blocks(codec, values, arch, out, importance, True), 1
            ),
        )
    return theirs / ours


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--codec", action="append", choices=CODECS)
    parser.add_argument("--arch", action="append")
    parser.add_argument("--runs", type=int, default=50)
    options = parser.parse_args()
    archs = options.arch or ["avx512bw", "avx2"]
    rows = []
    for codec in options.codec or CODECS:
        row = f"| `{codec}` |"
        for weighted in (False, True):
            found = shares(codec, weighted)
            row += f" {1 - np.mean(found):.1%} ({1 - max(found):.1%}) |"
        rows.append((codec, row))
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    print(f"{kernels.cpu()}, {', '.join(archs)}")
    print(
        "| codec | error less by (worst) | with importance | times ggml's speed | with importance |"
    )
    print("|---|---|---|---|---|")
    for codec, row in rows:
        for weighted in (False, True):
            row += " " + " / ".join(f"{speed(codec, a, weighted, options.runs):.1f}" for a in archs)
            row += " |"
        print(row, flush=True)


if __name__ == "__main__":
    main()
