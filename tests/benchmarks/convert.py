#!/usr/bin/env python3
"""Whole conversions of a full-size Phi-3.5-mini shape, beside llama.cpp's own tools and a plain synced copy.

    python tests/benchmarks/convert.py --work FOLDER --converter LLAMA_CPP/convert_hf_to_gguf.py
                                       [--converter-python PYTHON] [--layers N] [--runs 3] [--preset q4_k_m ...]

FOLDER needs about 30 GB of free disk (a tenth of that with --layers 3). It gets a synthetic checkpoint from
make_full_size.py. The peers: convert_hf_to_gguf.py --outtype bf16, run by an interpreter that has torch and
transformers, and llama_model_quantize (what llama-quantize calls) of the installed llama-cpp-python, on all cores.
The copy reads the source's bytes once and writes as many as the result has, then syncs. Every figure is wall time of
a whole process with the source in the page cache; runs take turns and the medians are compared. Without --converter
only phiquant and the copy are timed. Results are held against the peer's, tensor by tensor.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
PRESETS = ("q4_k_m", "q8_0", "q4_0", "bf16")

COPY = """
import os, sys
out, size, sources = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
buffer = memoryview(bytearray(1 << 20))
with open(out, "wb", buffering=0) as target:
    for source in sources:
        with open(source, "rb", buffering=0) as file:
            while count := file.readinto(buffer):
                if size > 0:
                    target.write(buffer[: min(count, size)])
                    size -= count
    os.fsync(target.fileno())
"""

QUANTIZE = """
import ctypes, os, sys
import llama_cpp
source, out, ftype = sys.argv[1], sys.argv[2], int(sys.argv[3])
params = llama_cpp.llama_model_quantize_default_params()
params.ftype, params.nthread = ftype, os.cpu_count()
status = llama_cpp.llama_model_quantize(source.encode(), out.encode(), ctypes.byref(params))
sys.exit(status)
"""


def timed(command: list[str]) -> tuple[float, int]:
    """Wall seconds and peak resident bytes of a process."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    errors = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status != 0:
        raise SystemExit(f"{command[:3]} failed:\n{errors.decode()[-2000:]}")
    return seconds, usage.ru_maxrss * 1024


SAME = """
import sys
import phiquant as pq
a, b = pq.open(sys.argv[1]), pq.open(sys.argv[2])
same = sorted(a) == sorted(b) if sys.argv[3] == "bf16" else list(a) == list(b)
x, y = (checkpoint.files[0].path.open("rb") for checkpoint in (a, b))
for name, entry in a.entries.items() if same else ():
    other = b.entries[name]
    x.seek(entry.offset)
    y.seek(other.offset)
    same = same and (entry.type, entry.shape) == (other.type, other.shape)
    same = same and x.read(entry.nbytes) == y.read(other.nbytes)
sys.exit(not same)
"""


def warm(paths: list[str]) -> None:
    """Bring files into the page cache, where writing others may have pushed them out."""
    for path in paths:
        with open(path, "rb", buffering=0) as file:
            while file.read(1 << 24):
                pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--converter", type=Path)
    parser.add_argument("--converter-python", default=sys.executable)
    parser.add_argument("--layers", type=int)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--preset", action="append")
    options = parser.parse_args()
    from phiquant.recipes.llama_quantize import ftype_number

    work: Path = options.work
    work.mkdir(parents=True, exist_ok=True)
    source = work / f"phi-3.5-mini-{options.layers or 32}"
    if not (source / "config.json").exists():
        make = [sys.executable, str(HERE / "make_full_size.py"), str(source)]
        make += ["--tokenizer-from", str(HERE.parent / "data" / "phi35")]
        subprocess.run(
            make + (["--layers", str(options.layers)] if options.layers else []), check=True
        )
    shards = sorted(str(path) for path in source.glob("*.safetensors"))
    warm(shards)
    print(
        f"{platform.platform()}, {os.cpu_count()} cores, {sum(map(os.path.getsize, shards)) / 1e9:.2f} GB source"
    )
    ours, theirs, middle, copy = (
        work / name for name in ("ours.gguf", "theirs.gguf", "bf16.gguf", "copy.bin")
    )
    convert_times: list[float] = []
    if options.converter:
        command = [
            options.converter_python,
            str(options.converter),
            str(source),
            "--outtype",
            "bf16",
            "--outfile",
            str(middle),
        ]
        for _ in range(options.runs if options.runs < 3 else 2):
            middle.unlink(missing_ok=True)
            warm(shards)
            seconds, memory = timed(command)
            convert_times.append(seconds)
        print(
            f"convert_hf_to_gguf.py: {statistics.median(convert_times):.1f} s, {memory / 1e6:.0f} MB"
        )
    rows = []
    for preset in options.preset or PRESETS:
        size = None
        times: dict[str, list[float]] = {"ours": [], "copy": [], "quantize": []}
        peak = 0
        for _ in range(options.runs):
            ours.unlink(missing_ok=True)
            warm(shards)
            seconds, memory = timed(
                [
                    sys.executable,
                    "-m",
                    "phiquant",
                    "convert",
                    str(source),
                    "--to",
                    preset,
                    "-o",
                    str(ours),
                    "-q",
                ]
            )
            times["ours"].append(seconds)
            peak = max(peak, memory)
            size = ours.stat().st_size
            copy.unlink(missing_ok=True)
            warm(shards)
            times["copy"].append(
                timed([sys.executable, "-c", COPY, str(copy), str(size), *shards])[0]
            )
            copy.unlink(missing_ok=True)
            if options.converter and preset != "bf16" and not times["quantize"]:
                theirs.unlink(missing_ok=True)
                quantize = [
                    sys.executable,
                    "-c",
                    QUANTIZE,
                    str(middle),
                    str(theirs),
                    str(ftype_number(preset)),
                ]
                times["quantize"].append(timed(quantize)[0])
        row = {"preset": preset, "bytes": size, "seconds": statistics.median(times["ours"]),
               "copy_seconds": statistics.median(times["copy"]), "peak_mb": peak / 1e6}  # fmt: skip
        row["to_copy"] = row["seconds"] / row["copy_seconds"]
        if convert_times:
            row["peer_seconds"] = statistics.median(convert_times) + sum(times["quantize"])
            row["speedup"] = row["peer_seconds"] / row["seconds"]
            # The converter's own file has another order; llama-quantize sorts the tensors.
            peer_file = str(middle if preset == "bf16" else theirs)
            compare = [sys.executable, "-c", SAME, str(ours), peer_file, preset]
            row["same_bytes"] = subprocess.run(compare).returncode == 0
        rows.append(row)
        print(
            json.dumps(
                {
                    key: round(value, 3) if isinstance(value, float) else value
                    for key, value in row.items()
                }
            ),
            flush=True,
        )
    for path in (ours, theirs, middle):
        path.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
