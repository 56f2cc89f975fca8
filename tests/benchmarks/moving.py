#!/usr/bin/env python3
"""Moves between quantized formats for a full-size Phi-3.5-mini shape, beside a plain copy of as many bytes.

    python tests/benchmarks/moving.py --work FOLDER [--layers N] [--runs 3]

FOLDER needs about 20 GB of free disk (a tenth of that with --layers 3). It gets a synthetic checkpoint from
make_full_size.py, and what is moved: a GPTQ folder on the portable grid. Every figure is wall time of a whole process with
the source in the page cache; runs take turns and the medians are compared. The copy reads the source once and
writes as many bytes as the result has, then syncs. Every weight is decoded and compared in each move, as always.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import statistics
import sys
from pathlib import Path

from convert import COPY, timed, warm
from formats import converted, make, say

import phiquant as pq

TARGETS = ("gguf:q4_1", "onnx:int4", "openvino:int4", "mlx:4bit", "hf:w4a16", "hf:awq")


def main() -> None:
    """Move one source to all targets."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--target", action="append")
    options = parser.parse_args()
    work: Path = options.work
    work.mkdir(parents=True, exist_ok=True)
    source = work / f"gptq-{options.layers}"
    if not source.exists():
        pq.convert(make(work, options.layers), "hf:gptq", source, grid="portable")
    shards = sorted(str(path) for path in source.glob("*.safetensors"))
    total = sum(map(os.path.getsize, shards))
    print(f"{platform.platform()}, {os.cpu_count()} cores, {total / 1e9:.2f} GB source")
    out, copy = work / "out", work / "copy.bin"
    for target in options.target or TARGETS:
        ours, copies, peak = [], [], 0
        for _ in range(options.runs):
            warm(shards)
            seconds, memory, read, written = converted(source, (target,), out)
            ours.append(seconds)
            peak = max(peak, memory)
            shutil.rmtree(out)
            warm(shards)
            copies.append(timed([sys.executable, "-c", COPY, str(copy), str(written), *shards])[0])
            copy.unlink()
        row = {"target": target, "bytes": written, "seconds": statistics.median(ours),
               "copy_seconds": statistics.median(copies), "peak_mb": peak / 1e6,
               "read_to_source": read / total}  # fmt: skip
        say({**row, "to_copy": row["seconds"] / row["copy_seconds"]})


if __name__ == "__main__":
    main()
