#!/usr/bin/env python3
"""Kernels on one core: encoding beside ggml's, encoding and decoding beside memcpy, in one run.

    python tests/benchmarks/kernels.py [--mib 64] [--runs 5] [--arch avx2] [--codec q4_k ...] [--importance]

Prints millions of weights a second for ggml's quantizer and for each instruction set, their ratio, and float32 bytes a
second as a fraction of what memcpy copies a second, out of cache, on the same core. ggml's is quantize_row_*_ref, or
quantize_* where that one searches or takes an importance. Peers and phiquant take turns, and each one's best run
counts, in processor time of the thread: what else the machine does counts as little as it can. Needs llama-cpp-python,
whose libggml-base is the peer.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import os
import platform
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from phiquant import _core

ROWS = {row["name"]: row for row in _core.codecs()}
CODECS = (
    *("q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k"),
    *("iq4_nl", "iq4_xs", "iq3_s", "iq3_xxs", "iq2_s", "iq2_xs", "iq2_xxs", "iq1_m", "iq1_s"),
    *("q1_0", "q2_0", "tq1_0", "tq2_0", "mxfp4", "nvfp4"),
)
COLUMNS = 4096


def ggml() -> ctypes.CDLL:
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or spec.origin is None:
        raise SystemExit("the peer is missing: pip install llama-cpp-python")
    folder = Path(spec.origin).parent / "lib"
    return ctypes.CDLL(str(next(folder.glob("libggml-base.*"))))


def peer_encoder(
    peer: ctypes.CDLL,
    codec: str,
    values: np.ndarray,
    importance: np.ndarray | None,
    out: np.ndarray,
) -> Callable[[], object]:
    pointer, count = ctypes.c_void_p, ctypes.c_int64
    name = codec.replace("_k", "_K")
    # The plain iq functions do not search; llama-quantize calls the others, importance or not.
    if importance is None and not codec.startswith("iq"):
        plain = getattr(peer, f"quantize_row_{name}_ref")
        plain.argtypes, plain.restype = [pointer, pointer, count], None
        return lambda: plain(values.ctypes.data, out.ctypes.data, values.size)
    peer.ggml_quantize_init(ROWS[codec]["ggml_type"])
    weighted = getattr(peer, f"quantize_{name}")
    weighted.argtypes = [pointer, pointer, count, count, pointer]
    weighted.restype = ctypes.c_size_t
    by = None if importance is None else importance.ctypes.data
    return lambda: weighted(values.ctypes.data, out.ctypes.data, *values.shape, by)


def best(runs: int, *takers: Callable[[], object]) -> list[float]:
    """The least seconds of each of what takes turns."""
    times = [float("inf")] * len(takers)
    for _ in range(runs):
        for i, run in enumerate(takers):
            start = time.thread_time()
            run()
            times[i] = min(times[i], time.thread_time() - start)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument(
        "--mib", type=int, default=256, help="float32 MiB a run (memory-bound codecs)"
    )
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--arch", action="append")
    parser.add_argument("--codec", action="append")
    parser.add_argument(
        "--importance", action="store_true", help="by weights of columns; the peer is quantize_*"
    )
    options = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    peer = ggml()
    archs = options.arch or _core.available_archs()
    rows = options.mib * 1024 * 1024 // 4 // COLUMNS
    rng = np.random.default_rng(0)
    values = rng.standard_normal((rows, COLUMNS), dtype=np.float32) * np.float32(0.02)
    values.view(np.uint32)[...] &= 0xFFFF0000  # what bf16 checkpoints hold
    copy = np.empty_like(values)
    copy[...] = 0

    def copied() -> None:
        ctypes.memmove(copy.ctypes.data, values.ctypes.data, values.nbytes)

    (memcpy,) = best(3 * options.runs, copied)
    print(f"{cpu()}, one core, {platform.platform()}")
    print(f"memcpy: {values.nbytes / memcpy / 1e9:.2f} GB/s copied, {options.mib} MiB")
    print(
        f"\n{'codec':10} {'arch':9} {'ggml Mw/s':>9} {'ours Mw/s':>9} {'ratio':>6} {'encode/memcpy':>13} {'decode/memcpy':>13}"
    )
    measured = rng.chisquare(3, COLUMNS).astype(np.float32)
    for codec in options.codec or CODECS:
        row = ROWS[codec]
        importance = measured if options.importance or row["needs_importance"] else None
        # Searches are bound by arithmetic: a part of the data tells as much.
        lattice = codec.startswith(("iq1", "iq2", "iq3"))
        searches = (
            codec.endswith("_k")
            or codec.startswith("iq")
            or (importance is not None and codec in ("q4_0", "q4_1", "q5_0", "q5_1"))
        )
        share = 128 if lattice else 16 if searches else 1
        part = values[: max(1, rows // share)]
        blocks = _core.encode_blocks(codec, part, importance=importance)
        expected = np.zeros_like(blocks)
        outs = [np.zeros_like(blocks) for _ in archs]
        peer_seconds, *ours = best(
            options.runs,
            peer_encoder(peer, codec, part, importance, expected),
            *(
                partial(_core.encode_blocks, codec, part, arch, out, importance)
                for arch, out in zip(archs, outs, strict=True)
            ),
        )
        if any(not np.array_equal(out, expected) for out in outs):
            raise SystemExit(f"{codec}: the bytes differ from ggml's")
        all_blocks = np.tile(blocks, (share, 1)) if share > 1 else blocks
        decoded = copy[: len(all_blocks)]
        again, *decodes = best(
            options.runs,
            copied,
            *(
                partial(_core.decode_blocks, codec, all_blocks, COLUMNS, arch, decoded)
                for arch in archs
            ),
        )
        memcpy = min(memcpy, again)
        bandwidth = values.nbytes / memcpy
        for arch, encode, decode in zip(archs, ours, decodes, strict=True):
            print(
                f"{codec + ('+im' if importance is not None else ''):10} {arch:9}"
                f" {part.size / peer_seconds / 1e6:9.2f} {part.size / encode / 1e6:9.1f}"
                f" {peer_seconds / encode:6.2f} {part.nbytes / encode / bandwidth:13.2f}"
                f" {decoded.nbytes / decode / bandwidth:13.2f}",
                flush=True,
            )


def cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


if __name__ == "__main__":
    main()
