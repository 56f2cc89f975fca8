#!/usr/bin/env python3
"""Measures the reference run on a full-size model: its time beside that of its matrix products alone, and its memory.

    reference_run.py MODEL TEXT [--tokens 4096] [--context 512] [--layers 32] [--threads N] [--repeats 3]

MODEL is a folder from make_full_size.py --layers 2. One layer is run over the text, without and with calibration's sums, and
two models' heads are scored as evaluation does it; beside each stands the time of the same matrix products in NumPy, on
noise, which no forward pass can go below. They take turns, and minima count. Where other processes share the machine, the
processors' seconds, divided by the threads, say what an idle one needs at least. Memory is the peak of a process that evaluates MODEL against itself; beside it stand two layers in float32
and a window's logits.
"""

import argparse
import math
import pathlib
import resource
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

import phiquant as pq
from phiquant.evaluate import evaluate
from phiquant.evaluate.tokens import score
from phiquant.measure import SquaredSums
from phiquant.measure.windows import read_text, windows
from phiquant.reference import Decoder, blas

# Tokens that the reference run multiplies at a time.
GROUP = 1024


def products(shapes: list[tuple[int, ...]], tokens: int, threads: int) -> Callable[[], None]:
    """Matrix products as a run over so many tokens makes them, as a function to be timed."""
    random = np.random.default_rng(0)
    pairs = [
        (
            random.standard_normal((GROUP, shape[1]), dtype=np.float32),
            random.standard_normal(shape, dtype=np.float32),
        )
        for shape in shapes
    ]

    def run() -> None:
        with blas.threads(threads):
            for x, weight in pairs:
                for _ in range(tokens // GROUP):
                    x @ weight.T

    return run


def least(parts: dict[str, Callable[[], object]], repeats: int) -> dict[str, NDArray[np.float64]]:
    """Least seconds of each part, on the wall and of all processors; the parts take turns."""
    found = {name: np.full(2, np.inf) for name in parts}
    for _ in range(repeats):
        for name, part in parts.items():
            begin = np.array([time.perf_counter(), time.process_time()])
            part()
            end = np.array([time.perf_counter(), time.process_time()])
            found[name] = np.minimum(found[name], end - begin)
    return found


def peak(model: pathlib.Path, text: pathlib.Path, context: int, tokens: int, threads: int) -> int:
    """Bytes that a process has at most while it evaluates the model against itself."""
    code = [sys.executable, __file__, "--child", str(model), str(text), "--context", str(context)]
    code += ["--tokens", str(tokens), "--threads", str(threads)]
    return int(subprocess.run(code, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("text", type=pathlib.Path)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()

    if chosen.child:
        evaluate(
            chosen.model,
            chosen.model,
            text=chosen.text,
            context=chosen.context,
            tokens=chosen.tokens,
            threads=chosen.threads,
            cache=False,
        )
        unit = 1 if sys.platform == "darwin" else 1024
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)
        return

    checkpoint = pq.open(chosen.model)
    decoder = Decoder(checkpoint, threads=chosen.threads)
    spec, threads = decoder.spec, decoder.threads
    ids = windows(
        checkpoint,
        read_text(chosen.text),
        vocabulary=spec.vocabulary,
        context=chosen.context,
        tokens=chosen.tokens,
    )
    hidden = decoder.embed(ids)
    scored = np.ascontiguousarray(hidden.reshape(-1, spec.hidden_size)[:GROUP])
    targets = ids.reshape(-1)[:GROUP]
    layer = [
        tensor.shape for tensor in spec.tensors if tensor.layer == 0 and len(tensor.shape) == 2
    ]
    head = [(spec.vocabulary, spec.hidden_size)]

    def scoring() -> None:
        score(decoder, [decoder], [scored, scored], targets, lambda tokens: None)

    parts: dict[str, Callable[[], object]] = {
        "products": products(layer, ids.size, threads),
        "a layer": lambda: next(decoder.run(hidden)),
        "a layer, calibrating": lambda: next(decoder.run(hidden, on_linear_input=SquaredSums())),
    }
    # First of all: Linux counts what a parent has when it forks as the child's, too.
    memory = peak(chosen.model, chosen.text, chosen.context, chosen.tokens, threads)
    found = least(parts, chosen.repeats)
    heads = least(
        {"products": products(head, 2 * GROUP, threads), "scoring": scoring}, chosen.repeats
    )
    print(
        f"{chosen.model.name}: {ids.size} tokens in windows of {chosen.context}, {threads} threads"
    )
    print(f"  {'':40}  on the wall                  processors / threads")
    print(f"  {'':40}  seconds  products  ratio     seconds  products  ratio")
    for name, seconds, floor in (
        ("a layer", found["a layer"], found["products"]),
        ("a layer, calibrating", found["a layer, calibrating"], found["products"]),
        (f"two heads and scores, {GROUP} tokens", heads["scoring"], heads["products"]),
    ):
        columns = [
            f"{one:9.2f} {other:9.2f} {one / other:6.2f}"
            for one, other in zip(seconds / (1, threads), floor / (1, threads), strict=True)
        ]
        print(f"  {name:40}{'   '.join(columns)}")
    whole = found["a layer"] * chosen.layers + heads["scoring"] * ids.size / (4 * GROUP)
    wall, processors = whole / (60, 60 * threads)
    print(
        f"  {chosen.layers} layers and a head: {wall:.1f} minutes; of processors {processors:.1f}"
    )
    weights = 4 * sum(math.prod(shape) for shape in layer)
    logits = 4 * chosen.context * spec.vocabulary
    print(
        f"  peak memory {memory / 1e9:.2f} GB; two layers {2 * weights / 1e9:.2f} GB, "
        f"a window's logits {logits / 1e9:.2f} GB"
    )


if __name__ == "__main__":
    main()
