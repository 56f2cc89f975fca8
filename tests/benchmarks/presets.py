#!/usr/bin/env python3
"""Measures every GGUF preset of the trained fixtures, and writes the tables into docs/evaluation.md.

    presets.py [--threads N]

Each preset is converted from tests/data and evaluated beside its source on eight windows of the built-in text, of 512
tokens each. Presets that need an importance matrix get the fixture's own, which is of another text. The tables stand between the page's two marks; the numbers do not depend on how busy the machine is.
"""

import argparse
import pathlib
import platform
import re
import sys
import tempfile

import numpy as np

import phiquant as pq
from phiquant.evaluate import Evaluation, evaluate
from phiquant.targets.names import GGUF_PRESETS

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "evaluation.md"
TOKENS = 4096
BEGIN, END = "<!-- presets: tests/benchmarks/presets.py -->\n", "<!-- /presets -->\n"


def processor() -> str:
    """The processor's name, as far as the system tells it."""
    try:
        text = pathlib.Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    match = re.search(r"^model name\s*:\s*(.*)$", text, re.MULTILINE)
    return match[1] if match else platform.machine()


def convert(source: pathlib.Path, preset: str, folder: pathlib.Path) -> pathlib.Path:
    """The preset's file, marked where it was made with an importance matrix."""
    path = folder / f"{source.name}-{preset}.gguf"
    try:
        pq.convert(source, preset, path)
    except pq.UsageError:
        path = folder / f"{source.name}-{preset} (importance).gguf"
        pq.convert(source, preset, path, importance=source / "imatrix.gguf")
    return path


def markdown(fixture: str, result: Evaluation) -> str:
    """One fixture's table, the largest preset first."""
    lines = [
        f"`{fixture}`: perplexity {result.source_perplexity:.2f} ± "
        f"{result.source_perplexity_error:.2f}, {result.scored} tokens scored",
        "",
        "| preset | size | bits/weight | mean KLD | 99.9 % | rms Δp | same top | perplexity ratio |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for score in sorted(result.scores, key=lambda one: -one.nbytes):
        preset = pathlib.Path(score.model).stem.removeprefix(f"{fixture}-")
        lines.append(
            f"| {preset} | {score.nbytes / 1e6:.2f} MB | {score.bits_per_weight:.2f} "
            f"| {score.mean_kld:.5f} ± {score.mean_kld_error:.5f} | {score.p999_kld:.4f} "
            f"| {score.rms_dp:.2%} | {score.top1:.2%} "
            f"| {score.perplexity_ratio:.4f} ± {score.perplexity_ratio_error:.4f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Convert, evaluate and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int)
    chosen = parser.parse_args()
    tables = []
    with tempfile.TemporaryDirectory() as name:
        for fixture in ("phi35", "phi4mini"):
            source = ROOT / "tests" / "data" / fixture
            models = [convert(source, preset, pathlib.Path(name)) for preset in GGUF_PRESETS]
            result = evaluate(
                models,
                source,
                tokens=TOKENS,
                threads=chosen.threads,
                progress=sys.stderr.isatty(),
            )
            tables.append(markdown(fixture, result))
    machine = (
        f"Measured with phiquant {pq.__version__} and NumPy {np.__version__} on {processor()} "
        f"({platform.system()}, {platform.machine()}).\n"
    )
    page = PAGE.read_text()
    before, after = page.split(BEGIN)[0], page.split(END)[1]
    PAGE.write_text(before + BEGIN + "\n" + "\n".join([*tables, machine]) + "\n" + END + after)
    print(f"{PAGE}: {len(tables)} tables")


if __name__ == "__main__":
    main()
