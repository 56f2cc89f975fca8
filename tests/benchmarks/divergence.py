#!/usr/bin/env python3
"""How far every target is from its source, in its own runtime, and what quality="best" gains there.

    python tests/benchmarks/divergence.py [--fixture phi35 ...] [--target 'onnx:*' ...] [--record]
    python tests/benchmarks/divergence.py --write

Each target is converted from the trained test models (tests/data), by the format's own rule and with quality="best" where
that is built. Squared errors are those of the conversion's report, of the matrices that were searched: best's relative to
the rule's, on average and of the worst matrix. Divergence and the share of positions with the same most likely token come
from the program that the target is made for, loaded as its users load it (mlx-lm with float32 activations), beside
phiquant's reference run of the source: the second halves of eight windows, of 512 tokens each, of the built-in text.
Nothing here is timed, so it does not matter what else the machine does. GGUF presets that need an importance matrix get the fixture's own, which is of another text.

--record keeps the figures in python/phiquant/advice/divergence.json, from which `phiquant advise` takes them; rows of other
targets stay. --write puts what is recorded there into the tables of docs/formats. Without either, tables are printed.
Needs the runtimes: pip install '.[test]'.
"""

from __future__ import annotations

import argparse
import datetime
import fnmatch
import json
import math
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import phiquant as pq
from phiquant.evaluate.evaluation import BUILT_IN
from phiquant.evaluate.processors import machine
from phiquant.measure.windows import read_text, windows
from phiquant.reference import Decoder
from phiquant.runtimes import runtime_of
from phiquant.targets.names import PRESETS

ROOT = Path(__file__).resolve().parents[2]
RECORD = ROOT / "python" / "phiquant" / "advice" / "divergence.json"
FIXTURES = {"phi35": "like Phi-3.5-mini", "phi4mini": "like Phi-4-mini"}
CONTEXT, WINDOWS = 512, 8
FLOATS = ("f32", "f16", "bf16", "i64")

# Besides every preset: the options that change what is lost.
OPTIONS = {
    "onnx": (
        *("int4,asym", "int4,mixed", "int4,block=128", "int4,down=int8,head=int8"),
        *("int4,positive-scales", "int8-static,ranges=percentile"),
    ),
    "openvino": (
        *("int4_sym,group=channel", "int4_sym,group=32", "int4_asym,ratio=0.8", "int4_asym,awq"),
    ),
    "mlx": ("4bit,group=32", "3bit,group=32"),
    "hf": ("w4a16,asym", "w4a16,group=32", "w4a16,group=32,asym", "w8a16,group=channel"),
}

HEAD = """\
| target | quality | {0}: size | squared error (worst) | divergence | same token \
| {1}: size | squared error (worst) | divergence | same token |
|---|---|--:|--:|--:|--:|--:|--:|--:|--:|
"""


def all_targets() -> list[str]:
    """Every preset, and the options above."""
    return [
        f"{kind}:{name}"
        for kind, presets in PRESETS.items()
        for name in (*presets, *OPTIONS.get(kind, ()))
    ]


def logarithms(logits: np.ndarray) -> np.ndarray:
    """Logarithms of probabilities, in float64."""
    values = logits.astype(np.float64)
    values -= values.max(axis=-1, keepdims=True)
    values -= np.log(np.exp(values).sum(axis=-1, keepdims=True))
    return values


def squared_errors(report: pq.Report) -> dict[tuple[str, str | None], float]:
    """Squared error of each matrix that is no float, relative to its weights."""
    return {
        (tensor.name, tensor.source): tensor.relative_error**2
        for file in report.files
        for tensor in file.tensors
        if tensor.weights and tensor.codec.partition(",")[0] not in FLOATS
    }


def convert(source: Path, target: str, quality: str, out: Path) -> tuple[pq.Report, bool, set[str]]:
    """A target's report, whether it needed an importance matrix, and the matrices searched."""
    important = False
    try:
        plan = pq.plan(source, target, quality=quality)
    except pq.UsageError as error:
        if "importance" not in str(error):
            raise
        plan = pq.plan(source, target, quality=quality, importance=source / "imatrix.gguf")
        important = True
    searched = {t.name for file in plan.targets[0].files for t in file.tensors if t.best}
    return plan.run(out, overwrite=True), important, searched


def in_runtime(path: Path, ids: np.ndarray, base: np.ndarray, threads: int) -> dict[str, Any]:
    """Mean divergence with its standard error, and the share of same top tokens."""
    runtime = runtime_of(path)
    half = CONTEXT // 2
    divergences, same = [], []
    # On processors mlx multiplies with bfloat16 activations some ten times slower than with floats.
    exact = runtime.name == "mlx-lm"
    with runtime.load(path, context=CONTEXT, threads=threads, exact=exact) as loaded:
        for window, wanted in zip(ids, base, strict=True):
            # The last position says what follows the text; the text does not tell.
            found = logarithms(loaded.logits(window, half + 1)[:-1])
            divergences.append((np.exp(wanted) * (wanted - found)).sum(axis=-1))
            same.append(found.argmax(axis=-1) == wanted.argmax(axis=-1))
    values = np.concatenate(divergences)
    if not np.isfinite(values).all():
        raise SystemExit(f"{path}: {runtime.name} gives no numbers")
    return {
        "divergence": float(f"{values.mean():.4g}"),
        "divergence_error": float(f"{values.std() / math.sqrt(values.size - 1):.2g}"),
        "same_top": round(float(np.concatenate(same).mean()), 4),
        "runtime": runtime.version(),
    }


def rows_of(fixture: str, targets: Sequence[str], threads: int) -> Iterable[dict[str, Any]]:
    """One row for each target and quality."""
    source = ROOT / "tests" / "data" / fixture
    decoder = Decoder(pq.open(source), threads=threads)
    ids = windows(
        decoder.checkpoint,
        read_text(BUILT_IN),
        vocabulary=decoder.spec.vocabulary,
        context=CONTEXT,
        tokens=CONTEXT * WINDOWS,
    )
    base = logarithms(decoder(ids, last=CONTEXT // 2 + 1)[:, :-1])
    with tempfile.TemporaryDirectory() as folder:
        for target in targets:
            reference: dict[tuple[str, str | None], float] = {}
            for quality in ("reference", "best"):
                out = Path(folder) / f"{fixture}{'.gguf' if target.startswith('gguf:') else ''}"
                try:
                    report, important, searched = convert(source, target, quality, out)
                except (pq.UsageError, pq.UnsupportedError, pq.ShapeError) as error:
                    if quality == "reference":
                        raise
                    print(f"{target}: {error.cause}", file=sys.stderr)
                    continue
                errors = squared_errors(report)
                if quality == "best" and not searched:  # floats have nothing to search for
                    continue
                row: dict[str, Any] = {"fixture": fixture, "target": target, "quality": quality}
                # The weights alone: headers and tokenizers are most of what is this small.
                row["nbytes"] = sum(t.nbytes for f in report.files for t in f.tensors if t.source)
                row["bits_per_weight"] = round(8 * row["nbytes"] / decoder.spec.parameters, 3)
                row["importance"] = important
                if quality == "best":
                    shares = [errors[k] / reference[k] for k in errors if k[0] in searched]
                    row["squared_error"] = round(float(np.mean(shares)), 4)
                    row["squared_error_worst"] = round(max(shares), 4)
                reference = errors
                try:
                    yield row | in_runtime(report.path, ids, base, threads)
                except (
                    pq.PhiquantError
                ) as error:  # a runtime that is missing, or refuses the format
                    print(f"{target}: {error.cause}", file=sys.stderr)
                (shutil.rmtree if report.path.is_dir() else os.unlink)(report.path)


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """A format's table, as the targets come."""
    found = {(row["target"], row["quality"], row["fixture"]): row for row in rows}
    text = HEAD.format(*FIXTURES.values())
    for target, quality in dict.fromkeys((row["target"], row["quality"]) for row in rows):
        cells = []
        for fixture in FIXTURES:
            row = found.get((target, quality, fixture))
            if row is None:
                cells += [""] * 4
                continue
            worst = row.get("squared_error_worst")
            cells += [
                f"{row['nbytes'] / 1e6:.1f} MB",
                "" if worst is None else f"{row['squared_error']:.3f} ({worst:.3f})",
                f"{row['divergence']:.5f}",
                f"{row['same_top']:.1%}",
            ]
        needs = any(
            row["importance"]
            for row in rows
            if (row["target"], row["quality"]) == (target, quality)
        )
        name = f"`{target.partition(':')[2]}`{' (importance)' if needs else ''}"
        text += f"| {name} | {quality} | {' | '.join(cells)} |\n".replace("|  |", "| |")
    return text


def page(kind: str) -> Path:
    """Where a format's table stands."""
    return ROOT / "docs" / "formats" / f"{kind}.md"


def marks(kind: str) -> tuple[str, str]:
    """What stands before and behind it."""
    begin = f"<!-- divergence of {kind}: tests/benchmarks/divergence.py --write -->\n"
    return begin, f"<!-- /divergence of {kind} -->"


def written(kind: str, record: dict[str, Any], text: str) -> str:
    """A page with the recorded table between its marks."""
    begin, end = marks(kind)
    rows = [row for row in record["rows"] if row["target"].startswith(f"{kind}:")]
    if not rows:
        return text
    used = sorted({row["runtime"] for row in rows})
    about = f"\nMeasured on {record['made']} in {' and '.join(used)}, on {record['machine']}.\n"
    pattern = re.compile(f"(?<={re.escape(begin)}).*(?={re.escape(end)})", re.DOTALL)
    return pattern.sub(lambda _: f"\n{markdown(rows)}{about}\n", text)


def recorded() -> dict[str, Any]:
    """What was measured before."""
    return json.loads(RECORD.read_text()) if RECORD.exists() else {"rows": []}


def merge(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The record with new rows in their places."""
    found = {(r["fixture"], r["target"], r["quality"]): r for r in [*recorded()["rows"], *rows]}
    order = {target: number for number, target in enumerate(all_targets())}
    listed = sorted(
        found.values(),
        key=lambda r: (order.get(r["target"], len(order)), r["quality"] == "best", r["fixture"]),
    )
    return {
        "about": "mean Kullback-Leibler divergence from the source, in nats, in each target's own runtime",
        "command": "python tests/benchmarks/divergence.py --record",
        "made": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "machine": machine(),
        "phiquant": pq.__version__,
        "positions": CONTEXT // 2 * WINDOWS,
        "fixtures": FIXTURES,
        "rows": listed,
    }


def record_text(record: dict[str, Any]) -> str:
    """JSON with a line for each row, which is easy to compare."""
    rows = ",\n".join("  " + json.dumps(row) for row in record["rows"])
    head = json.dumps(record | {"rows": []}, indent=1)
    return head.replace('"rows": []', f'"rows": [\n{rows}\n ]') + "\n"


def asked(wanted: Sequence[str] | None) -> list[str]:
    """The targets that are meant."""
    if wanted is None:
        return all_targets()
    found = [t for one in wanted for t in fnmatch.filter(all_targets(), one) or [one]]
    return list(dict.fromkeys(found))


def main() -> None:
    """Measure, keep, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--fixture", action="append", choices=FIXTURES)
    parser.add_argument("--target", action="append", help="or a glob, as 'onnx:*'; default: all")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for fixture in options.fixture or FIXTURES if options.target or not options.write else ():
        for row in rows_of(fixture, asked(options.target), options.threads):
            print(json.dumps(row), file=sys.stderr, flush=True)
            rows.append(row)
            if options.record:
                new = RECORD.with_suffix(f".{os.getpid()}")
                new.write_text(record_text(merge(rows)))
                new.replace(RECORD)
    if options.write:
        record = recorded()
        for kind in PRESETS:
            text = page(kind).read_text()
            page(kind).write_text(written(kind, record, text))
    if not options.record and not options.write:
        for kind in PRESETS:
            own = [row for row in rows if row["target"].startswith(f"{kind}:")]
            if own:
                print(f"\n{kind}\n\n{markdown(own)}")


if __name__ == "__main__":
    main()
