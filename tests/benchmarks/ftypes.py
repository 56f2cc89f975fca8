#!/usr/bin/env python3
"""Every ftype's time beside llama-quantize's, from the same bfloat16 weights, as a table.

    python tests/benchmarks/ftypes.py --work FOLDER [--layers N] [--ftype q4_k_m ...] [--once] [--no-peer]

Writes a synthetic checkpoint of Phi-3.5-mini's shape (--layers 32 is the whole; the default 1 keeps the slow ftypes of
the peer bearable) and its BF16 GGUF, which the peer starts from: llama_model_quantize of the installed llama-cpp-python,
which the program llama-quantize is a shell around, on all cores. phiquant starts from the safetensors. Ftypes that need
or heed an importance matrix get the same random one on both sides, marked +im; with --once, only those that need one.
One run each: seconds of processor time, of all threads together, and the ratio of those (wall time would tell what else
the machine does); results are compared tensor by tensor.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

IMPORTANCE = (
    *("q4_0", "q5_0", "q4_1", "q5_1", "q2_k", "q2_k_s", "q3_k_m", "q4_k_m", "q5_k_m", "q6_k"),
    *("iq4_nl", "iq4_xs", "iq3_m", "iq3_s", "iq3_xs", "iq3_xxs", "iq2_m", "iq2_s", "iq2_xs"),
    *("iq2_xxs", "iq1_m", "iq1_s"),
)


def same_tensors(a: Path, b: Path) -> bool:
    import phiquant as pq

    x, y = pq.open(a), pq.open(b)
    if list(x) != list(y):
        return False
    for name, entry in x.entries.items():
        other = y.entries[name]
        if entry.type != other.type:
            return False
        if x.files[0].read(entry.offset, entry.nbytes) != y.files[0].read(
            other.offset, other.nbytes
        ):
            return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--ftype", action="append")
    parser.add_argument("--once", action="store_true", help="importance only where it is needed")
    parser.add_argument("--no-peer", action="store_true")
    options = parser.parse_args()
    import phiquant as pq
    from phiquant.measure import Activations, Importance, write_importance
    from phiquant.recipes.llama_quantize import ftype_number
    from phiquant.targets.names import GGUF_PRESETS

    work: Path = options.work
    work.mkdir(parents=True, exist_ok=True)
    source = work / f"phi-3.5-mini-{options.layers}"
    if not (source / "config.json").exists():
        make = [sys.executable, str(HERE / "make_full_size.py"), str(source)]
        make += [
            "--layers",
            str(options.layers),
            "--tokenizer-from",
            str(HERE.parent / "data" / "phi35"),
        ]
        subprocess.run(make, check=True)
    bf16, ours, theirs = (work / name for name in ("bf16.gguf", "ours.gguf", "theirs.gguf"))
    pq.convert(source, "bf16", bf16, overwrite=True)
    rng = np.random.default_rng(0)
    sums = {}
    for entry in pq.open(bf16).entries.values():
        if len(entry.shape) == 2 and entry.name.startswith("blk."):
            squares = rng.gamma(0.5, 2.0, (1, entry.shape[1])).astype(np.float32) + np.float32(0.01)
            sums[entry.name] = Activations(squares, np.ones(1, np.float32))
    matrix = work / "random.imatrix.gguf"
    importance = Importance(sums, ("random",), 1, 512)
    write_importance(matrix, importance, overwrite=True)
    print(
        f"{os.cpu_count()} cores, {options.layers} of 32 layers, {bf16.stat().st_size / 1e9:.2f} GB of bfloat16"
    )
    print(
        f"\n| {'ftype':13} | {'size':>8} | {'phiquant':>9} | {'llama-quantize':>14} | {'ratio':>6} | bytes |"
    )
    print("|---|--:|--:|--:|--:|---|", flush=True)
    wanted = options.ftype or GGUF_PRESETS
    plain: set[str] = set()
    for preset, weighted in [(p, False) for p in wanted] + [
        (p, True) for p in wanted if p in IMPORTANCE
    ]:
        if weighted and options.once and preset in plain:
            continue
        start = time.process_time()
        try:
            pq.convert(
                source, preset, ours, importance=matrix if weighted else None, overwrite=True
            )
        except pq.UsageError:
            continue  # not to be had without importance
        plain.add(preset)
        seconds = time.process_time() - start
        row = f"| {preset + ('+im' if weighted else ''):13} | {ours.stat().st_size / 1e6:5.0f} MB | {seconds:7.2f} s |"
        if options.no_peer:
            print(row, flush=True)
            continue
        from llama_cpp_peer import quantize

        start = time.process_time()
        quantize(bf16, theirs, ftype_number(preset), importance=importance if weighted else None)
        peer = time.process_time() - start
        equal = "equal" if same_tensors(ours, theirs) else "DIFFERENT"
        print(f"{row} {peer:12.2f} s | {peer / seconds:6.1f} | {equal} |", flush=True)
    for path in (bf16, ours, theirs, matrix):
        path.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
