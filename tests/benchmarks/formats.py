#!/usr/bin/env python3
"""Whole conversions of a full-size Phi-3.5-mini shape to ONNX, OpenVINO and MLX, alone and together.

    python tests/benchmarks/formats.py --work FOLDER [--layers N] [--runs 3] [--target TARGET ...]
        [--onnx-python PYTHON] [--openvino-python PYTHON] [--mlx-python PYTHON] [--peer-layers N]

FOLDER needs about 30 GB of free disk (a tenth of that with --layers 3). It gets a synthetic checkpoint from
make_full_size.py. Every figure is wall time of a whole process with the source in the page cache; runs take turns and
the medians are compared. The copy reads the source once and writes as many bytes as the result has, then syncs. The
run of all targets together is compared with the sum of the single runs, and the bytes that it reads (by the system's
count for the process, rchar) with the source's.

The peers are run where an interpreter that has them is named: `onnxruntime_genai.models.builder -p int4 -e cpu`,
`optimum-cli export openvino --weight-format int4`, `mlx_lm convert -q`. They hold the whole model in memory:
--peer-layers gives them, and phiquant beside them, a shape of fewer layers.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

from convert import COPY, timed, warm

HERE = Path(__file__).parent
TARGETS = ("onnx:int4", "openvino:int4", "mlx:4bit")
TOGETHER = ("gguf:q4_k_m", *TARGETS)

# phiquant's command, and what the system counted: bytes that the process asked to read.
CONVERT = """
import sys
from phiquant.cli import main
try:
    main()
finally:
    with open("/proc/self/io") as counts:
        sys.stderr.write("rchar " + counts.readline().split()[1] + "\\n")
"""


def peers(options: argparse.Namespace, source: Path, out: Path) -> dict[str, list[str]]:
    """The peers' commands, by target."""
    found = {}
    if options.onnx_python:
        builder = [options.onnx_python, "-m", "onnxruntime_genai.models.builder"]
        cache = str(out.parent / "cache")
        found["onnx:int4"] = [
            *builder, "-i", str(source), "-o", str(out), "-p", "int4", "-e", "cpu", "-c", cache,
        ]  # fmt: skip
    if options.openvino_python:
        tool = str(Path(options.openvino_python).parent / "optimum-cli")
        found["openvino:int4"] = [
            tool, "export", "openvino", "-m", str(source), "--task", "text-generation-with-past",
            "--weight-format", "int4", str(out),
        ]  # fmt: skip
    if options.mlx_python:
        found["mlx:4bit"] = [
            options.mlx_python, "-m", "mlx_lm", "convert", "--hf-path", str(source),
            "--mlx-path", str(out), "-q",
        ]  # fmt: skip
    return found


def make(work: Path, layers: int) -> Path:
    """A checkpoint of so many layers."""
    source = work / f"phi-3.5-mini-{layers}"
    if not (source / "config.json").exists():
        command = [sys.executable, str(HERE / "make_full_size.py"), str(source)]
        command += ["--tokenizer-from", str(HERE.parent / "data" / "phi35")]
        subprocess.run([*command, "--layers", str(layers)], check=True)
    return source


def size_of(path: Path) -> int:
    """Bytes of a file, or of a folder's files."""
    return sum(p.stat().st_size for p in ([path] if path.is_file() else path.iterdir()))


def converted(source: Path, targets: tuple[str, ...], out: Path) -> tuple[float, int, int, int]:
    """Seconds, peak resident bytes, bytes read and bytes written of one run."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    errors = out.parent / "errors.txt"
    command = [sys.executable, "-c", CONVERT, "convert", str(source), "-o", f"{out}/", "-q"]
    for target in targets:
        command += ["--to", target]
    # The words on stderr go through a file: timed() reads a pipe to its end.
    shell = ["sh", "-c", 'exec "$@" 2>"$0"', str(errors), *command]
    seconds, memory = timed(shell)
    read = int(errors.read_text().rsplit("rchar ", 1)[1])
    errors.unlink()
    return seconds, memory, read, sum(size_of(path) for path in out.iterdir())


def say(row: dict[str, object]) -> None:
    """One result as a line of JSON."""
    print(
        json.dumps({k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()}),
        flush=True,
    )


def main() -> None:
    """Run everything that was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--peer-layers", type=int, default=4)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--target", action="append")
    for name in ("onnx", "openvino", "mlx"):
        parser.add_argument(f"--{name}-python")
    options = parser.parse_args()
    work: Path = options.work
    work.mkdir(parents=True, exist_ok=True)
    source = make(work, options.layers)
    shards = sorted(str(path) for path in source.glob("*.safetensors"))
    total = sum(map(os.path.getsize, shards))
    print(f"{platform.platform()}, {os.cpu_count()} cores, {total / 1e9:.2f} GB source")
    out, copy = work / "out", work / "copy.bin"
    single = {}
    for targets in [*((t,) for t in options.target or TARGETS), TOGETHER]:
        if options.target and targets == TOGETHER:
            continue
        if targets == TOGETHER:
            seconds = []
            for _ in range(options.runs):
                warm(shards)
                seconds.append(converted(source, TOGETHER[:1], out)[0])
            single[TOGETHER[0]] = statistics.median(seconds)
        ours, copies, peak = [], [], 0
        for _ in range(options.runs):
            warm(shards)
            seconds, memory, read, written = converted(source, targets, out)
            ours.append(seconds)
            peak = max(peak, memory)
            shutil.rmtree(out)
            warm(shards)
            copies.append(timed([sys.executable, "-c", COPY, str(copy), str(written), *shards])[0])
            copy.unlink()
        row = {"targets": " ".join(targets), "bytes": written, "seconds": statistics.median(ours),
               "copy_seconds": statistics.median(copies), "peak_mb": peak / 1e6,
               "read_to_source": read / total}  # fmt: skip
        row["to_copy"] = row["seconds"] / row["copy_seconds"]
        if len(targets) == 1:
            single[targets[0]] = row["seconds"]
        else:
            row["to_single_runs"] = row["seconds"] / sum(single[target] for target in targets)
        say(row)
    small = make(work, options.peer_layers)
    shards = sorted(str(path) for path in small.glob("*.safetensors"))
    for target, command in peers(options, small, work / "peer").items():
        ours, theirs = [], []
        for _ in range(options.runs):
            warm(shards)
            ours.append(converted(small, (target,), out)[0])
            shutil.rmtree(work / "peer", ignore_errors=True)
            warm(shards)
            seconds, memory = timed(command)
            theirs.append(seconds)
        say({"target": target, "layers": options.peer_layers, "seconds": statistics.median(ours),
             "peer_seconds": statistics.median(theirs), "peer_peak_mb": memory / 1e6,
             "speedup": statistics.median(theirs) / statistics.median(ours)})  # fmt: skip
    for folder in (out, work / "peer", work / "cache"):
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
