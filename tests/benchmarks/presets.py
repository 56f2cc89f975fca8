#!/usr/bin/env python3
"""Measures every GGUF preset of the trained fixtures, and writes the tables into docs/evaluation.md.

    presets.py [--threads N]

Each preset is converted from tests/data, evaluated beside its source on eight windows of the built-in text, of 512 tokens
each, and run in llama.cpp on one thread. Presets that need an importance matrix get the fixture's own, which is of another
text. The tables stand between the page's two marks; tokens per second depend on how busy the machine is, all else does not.
"""

import argparse
import pathlib
import sys
import tempfile

import numpy as np

import phiquant as pq
from phiquant.evaluate import Benchmark, Evaluation, bench, evaluate
from phiquant.evaluate.processors import machine
from phiquant.targets.names import GGUF_PRESETS

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "evaluation.md"
TOKENS, REPETITION = 4096, 32
BEGIN, END = "<!-- presets: tests/benchmarks/presets.py -->\n", "<!-- /presets -->\n"


def convert(source: pathlib.Path, preset: str, folder: pathlib.Path) -> pathlib.Path:
    """The preset's file, marked where it was made with an importance matrix."""
    path = folder / f"{source.name}-{preset}.gguf"
    try:
        pq.convert(source, preset, path)
    except pq.UsageError:
        path = folder / f"{source.name}-{preset} (importance).gguf"
        pq.convert(source, preset, path, importance=source / "imatrix.gguf")
    return path


def markdown(fixture: str, result: Evaluation, speeds: Benchmark) -> str:
    """One fixture's table, the largest preset first."""
    assert result.source_repetition is not None
    by_model = {one.output: one for one in speeds.outputs}
    lines = [
        f"`{fixture}`: perplexity {result.source_perplexity:.2f} ± "
        f"{result.source_perplexity_error:.2f}, {result.scored} tokens scored; "
        f"repeats: {result.source_repetition.share:.1%}",
        "",
        "| preset | size | bits/weight | mean KLD | 99.9 % | rms Δp | same top | perplexity ratio "
        "| repeats | prompt tokens/s | decode tokens/s |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for score in sorted(result.scores, key=lambda one: -one.nbytes):
        assert score.repetition is not None
        speed = by_model[score.model]
        preset = pathlib.Path(score.model).stem.removeprefix(f"{fixture}-")
        lines.append(
            f"| {preset} | {score.nbytes / 1e6:.2f} MB | {score.bits_per_weight:.2f} "
            f"| {score.mean_kld:.5f} ± {score.mean_kld_error:.5f} | {score.p999_kld:.4f} "
            f"| {score.rms_dp:.2%} | {score.top1:.2%} "
            f"| {score.perplexity_ratio:.4f} ± {score.perplexity_ratio_error:.4f} "
            f"| {score.repetition.share:.1%} | {speed.prompt.median:.0f} | {speed.decode.median:.0f} |"
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
                repetition=REPETITION,
                threads=chosen.threads,
                progress=sys.stderr.isatty(),
            )
            speeds = bench(models, threads=1, progress=sys.stderr.isatty())
            tables.append(markdown(fixture, result, speeds))
    about = (
        f"Measured with phiquant {pq.__version__} and NumPy {np.__version__} on {machine()}. Tokens per second: "
        f"{speeds.outputs[0].runtime}, 1 thread, a prompt of {speeds.prompt_tokens} tokens and {speeds.decode_tokens} "
        f"decoded after it, the median of {speeds.repeats} runs after {speeds.warmup} that does not count.\n"
    )
    page = PAGE.read_text()
    before, after = page.split(BEGIN)[0], page.split(END)[1]
    PAGE.write_text(before + BEGIN + "\n" + "\n".join([*tables, about]) + "\n" + END + after)
    print(f"{PAGE}: {len(tables)} tables")


if __name__ == "__main__":
    main()
