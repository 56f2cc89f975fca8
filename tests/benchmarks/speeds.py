#!/usr/bin/env python3
"""Tokens per second of full-size results in their own runtimes, for `phiquant advise`.

    python tests/benchmarks/speeds.py --work FOLDER [--layers 32] [--target TARGET ...] [--threads N] [--record]

FOLDER needs about 12 GB of free disk, and the machine as much memory as the largest result (less with fewer --layers). It
gets a synthetic checkpoint of Phi-3.5-mini's shape from make_full_size.py; each target is converted, run by `phiquant bench`
and removed. Speeds are of this machine: nothing else should run. Targets are those that processors run; mlx on a processor
and packed weights in transformers are not what their users have, and are left out.

--record keeps medians in python/phiquant/advice/speed.json; rows of other targets stay, if they are of the same model,
machine and threads. Needs the runtimes: pip install '.[test]'.
"""

from __future__ import annotations

import argparse
import datetime
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from formats import make

import phiquant as pq
from phiquant.evaluate import bench

ROOT = Path(__file__).resolve().parents[2]
RECORD = ROOT / "python" / "phiquant" / "advice" / "speed.json"
TARGETS = (
    *(f"gguf:{name}" for name in ("q8_0", "q6_k", "q5_k_m", "q4_k_m", "q4_0", "iq4_xs", "q3_k_m")),
    *("openvino:int8", "openvino:int8_sym", "openvino:int4_asym", "openvino:int4_sym"),
    *("onnx:int8", "onnx:int8-dynamic", "onnx:int4,mixed", "onnx:int4"),
)


def keep(facts: dict[str, Any], row: dict[str, Any]) -> None:
    """Put a row into the record."""
    old = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    same = all(old.get(key) == facts[key] for key in ("model", "machine", "threads", "prompt"))
    rows = [one for one in old.get("rows", []) if one["target"] != row["target"]] if same else []
    lines = ",\n".join("  " + json.dumps(one) for one in [*rows, row])
    head = json.dumps(facts | {"rows": []}, indent=1)
    RECORD.write_text(head.replace('"rows": []', f'"rows": [\n{lines}\n ]') + "\n")


def main() -> None:
    """Convert, run, tell."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--target", action="append")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--decode", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    source = make(options.work, options.layers)
    print("| target | size | load | peak memory | prompt tokens/s | decode tokens/s |")
    print("|---|--:|--:|--:|--:|--:|")
    for target in options.target or TARGETS:
        out = options.work / ("result.gguf" if target.startswith("gguf:") else "result")
        report = pq.convert(source, target, out, overwrite=True)
        found = bench(
            out,
            prompt=options.prompt,
            decode=options.decode,
            repeats=options.repeats,
            threads=options.threads,
            progress=sys.stderr.isatty(),
        )
        (one,) = found.outputs
        peak = "" if one.resident_peak is None else f"{one.resident_peak / 1e9:.2f} GB"
        print(
            f"| `{target}` | {report.nbytes / 1e9:.2f} GB | {one.load_seconds:.1f} s | {peak} "
            f"| {one.prompt} | {one.decode} |",
            flush=True,
        )
        if options.record:
            facts = {
                "about": "tokens per second, medians, each target in its own runtime",
                "command": "python tests/benchmarks/speeds.py --work FOLDER --record",
                "made": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
                "machine": found.machine,
                "threads": found.threads,
                "phiquant": pq.__version__,
                "model": f"Phi-3.5-mini's shape with {options.layers} layers",
                "prompt": f"{options.prompt} tokens, and {options.decode} decoded",
            }
            row: dict[str, Any] = {"target": target, "nbytes": report.nbytes}
            row |= {"prompt": round(one.prompt.median, 2), "decode": round(one.decode.median, 2)}
            keep(facts, row | {"peak": one.resident_peak, "runtime": one.runtime})
        (shutil.rmtree if out.is_dir() else Path.unlink)(out)


if __name__ == "__main__":
    main()
