#!/usr/bin/env python3
"""Whole conversions to onnx:int4 of Phi-3.5-mini's shape, beside the model builder and a plain synced copy.

    python tests/benchmarks/onnx.py --work FOLDER [--builder-python PYTHON] [--layers N] [--runs 3]

FOLDER needs about 15 GB of free disk (a quarter of that with --layers 8). It gets a synthetic checkpoint from
make_full_size.py. The peer is `python -m onnxruntime_genai.models.builder -p int4 -e cpu`, run by an interpreter that has
onnxruntime-genai, onnx_ir, torch and transformers. The copy reads the source's bytes once and writes as many as the
result has, then syncs. Every figure is wall time and peak memory of a whole process with the source in the page cache;
runs take turns and the least are compared.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from convert import COPY, timed

HERE = Path(__file__).parent
FIXTURE = HERE.parent / "data" / "phi35"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--builder-python")
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--target", default="onnx:int4")
    asked = parser.parse_args()
    source, out = asked.work / f"phi-3.5-mini-{asked.layers}", asked.work / "out"
    if not source.exists():
        make = [sys.executable, str(HERE / "make_full_size.py"), str(source)]
        subprocess.run(
            [*make, "--layers", str(asked.layers), "--tokenizer-from", str(FIXTURE)], check=True
        )
    shards = sorted(map(str, source.glob("*.safetensors")))
    own = [
        sys.executable,
        "-m",
        "phiquant",
        "convert",
        str(source),
        "--to",
        asked.target,
        "-o",
        str(out),
        "-q",
    ]
    commands = {"phiquant": own}
    if asked.builder_python:
        words = [asked.builder_python, "-m", "onnxruntime_genai.models.builder", "-i", str(source)]
        words += ["-o", str(out), "-p", "int4", "-e", "cpu", "-c", str(asked.work / "cache")]
        commands["model builder"] = words
    results: dict[str, list[tuple[float, int]]] = {}
    sizes: dict[str, int] = {}
    for _ in range(asked.runs):
        for name, command in commands.items():
            shutil.rmtree(out, ignore_errors=True)
            results.setdefault(name, []).append(timed(command))
            sizes[name] = sum(file.stat().st_size for file in out.iterdir())
        shutil.rmtree(out, ignore_errors=True)
        copy = [
            sys.executable,
            "-c",
            COPY,
            str(asked.work / "copy"),
            str(sizes["phiquant"]),
            *shards,
        ]
        results.setdefault("synced copy", []).append(timed(copy))
        (asked.work / "copy").unlink()
    least = min(seconds for seconds, _ in results["phiquant"])
    print(f"{'':16} {'seconds':>8} {'of phiquant':>12} {'peak memory':>12} {'result':>10}")
    for name, runs in results.items():
        seconds = min(seconds for seconds, _ in runs)
        peak = max(memory for _, memory in runs)
        size = f"{sizes[name] / 1e9:.2f} GB" if name in sizes else ""
        print(f"{name:16} {seconds:8.1f} {seconds / least:12.2f} {peak / 1e6:9.0f} MB {size:>10}")


if __name__ == "__main__":
    main()
