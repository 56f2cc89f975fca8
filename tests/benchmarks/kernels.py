#!/usr/bin/env python3
"""Kernels on one core: encoding beside ggml's reference, encoding and decoding beside memcpy, in one run.

    python tests/benchmarks/kernels.py [--mib 64] [--runs 5] [--arch avx2] [--codec q4_k ...] [--importance]

Prints millions of weights a second for ggml's quantize_row_*_ref and for each instruction set, their ratio, and
float32 bytes a second as a fraction of what memcpy copies a second, out of cache, on the same core. The best of the
runs counts, peers and phiquant taking turns. Needs llama-cpp-python, whose libggml-base is the peer.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from phiquant import _core

REFERENCE = {
    "q8_0": "quantize_row_q8_0_ref",
    "q4_0": "quantize_row_q4_0_ref",
    "q4_1": "quantize_row_q4_1_ref",
    "q5_0": "quantize_row_q5_0_ref",
    "q5_1": "quantize_row_q5_1_ref",
    "q2_k": "quantize_row_q2_K_ref",
    "q3_k": "quantize_row_q3_K_ref",
    "q4_k": "quantize_row_q4_K_ref",
    "q5_k": "quantize_row_q5_K_ref",
    "q6_k": "quantize_row_q6_K_ref",
    "iq4_nl": "quantize_row_iq4_nl_ref",
    "iq4_xs": "quantize_row_iq4_xs_ref",
}
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
    # The plain iq4 functions do not search; llama-quantize calls the others, importance or not.
    if importance is None and not codec.startswith("iq"):
        plain = getattr(peer, REFERENCE[codec])
        plain.argtypes, plain.restype = [pointer, pointer, count], None
        return lambda: plain(values.ctypes.data, out.ctypes.data, values.size)
    name = REFERENCE[codec].replace("_row", "").removesuffix("_ref")
    weighted = getattr(peer, name)
    weighted.argtypes = [pointer, pointer, count, count, pointer]
    weighted.restype = ctypes.c_size_t
    by = None if importance is None else importance.ctypes.data
    return lambda: weighted(values.ctypes.data, out.ctypes.data, *values.shape, by)


def best(run: Callable[[], object], runs: int) -> float:
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


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
    memcpy = best(
        lambda: ctypes.memmove(copy.ctypes.data, values.ctypes.data, values.nbytes),
        3 * options.runs,
    )
    print(f"{cpu()}, one core, {platform.platform()}")
    print(f"memcpy: {values.nbytes / memcpy / 1e9:.2f} GB/s copied, {options.mib} MiB")
    print(
        f"\n{'codec':6} {'arch':9} {'ggml Mw/s':>9} {'ours Mw/s':>9} {'ratio':>6} {'encode/memcpy':>13} {'decode/memcpy':>13}"
    )
    importance = rng.chisquare(3, COLUMNS).astype(np.float32) if options.importance else None
    for codec in options.codec or REFERENCE:
        # Searches are bound by arithmetic: a sixteenth of the data tells as much.
        searches = (
            codec.endswith("_k")
            or codec.startswith("iq")
            or (importance is not None and codec != "q8_0")
        )
        part = values[: max(1, rows // 16)] if searches else values
        blocks = _core.encode_blocks(codec, part, importance=importance)
        expected = np.zeros_like(blocks)
        runs = options.runs
        reference = peer_encoder(peer, codec, part, importance, expected)
        peer_seconds = best(reference, runs)
        out = np.zeros_like(blocks)
        for arch in archs:
            ours = best(lambda: _core.encode_blocks(codec, part, arch, out, importance), runs)
            if not np.array_equal(out, expected):
                raise SystemExit(f"{codec}, {arch}: the bytes differ from ggml's")
            # The peer once more, so that a machine that got slower meanwhile is seen by both.
            peer_seconds = min(peer_seconds, best(reference, 1))
            all_blocks = blocks if part is values else np.tile(blocks, (16, 1))
            decode = best(
                lambda: _core.decode_blocks(
                    codec, all_blocks, COLUMNS, arch, copy[: len(all_blocks)]
                ),
                runs,
            )
            bandwidth = values.nbytes / memcpy
            print(
                f"{codec:6} {arch:9} {part.size / peer_seconds / 1e6:9.1f} {part.size / ours / 1e6:9.1f}"
                f" {peer_seconds / ours:6.2f} {part.nbytes / ours / bandwidth:13.2f}"
                f" {4 * COLUMNS * len(all_blocks) / decode / bandwidth:13.2f}"
            )


def cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


if __name__ == "__main__":
    main()
