#!/usr/bin/env python3
"""Measures one layer of a full-size model, and says what a whole calibration takes.

    calibrate.py MODEL TEXT [--tokens 8192] [--context 512] [--layers 32] [--threads N]

MODEL is a folder from make_full_size.py --layers 2. The time of the embedding and of the second layer, whose weights
nothing has touched yet, is taken; beside it stands the time of the same matrix products alone, which no forward pass
can go below. Memory is the process's peak.
"""

import argparse
import pathlib
import resource
import sys
import time

import numpy as np

import phiquant as pq
from phiquant.measure import SquaredSums
from phiquant.measure.windows import read_text, windows
from phiquant.reference import Decoder, blas


def products(decoder: Decoder, tokens: int) -> float:
    """Seconds of a layer's matrix products by BLAS, on noise."""
    random = np.random.default_rng(0)
    seconds = 0.0
    for tensor in decoder.spec.tensors:
        if tensor.layer != 0 or len(tensor.shape) != 2:
            continue
        weight = random.standard_normal(tensor.shape, dtype=np.float32)
        x = random.standard_normal((1024, tensor.shape[1]), dtype=np.float32)
        best = float("inf")
        with blas.threads(decoder.threads):
            for _ in range(3):
                begin = time.perf_counter()
                x @ weight.T
                best = min(best, time.perf_counter() - begin)
        seconds += best * tokens / len(x)
    return seconds


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("text", type=pathlib.Path)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--threads", type=int)
    chosen = parser.parse_args()

    checkpoint = pq.open(chosen.model)
    decoder = Decoder(checkpoint, threads=chosen.threads)
    ids = windows(
        checkpoint,
        read_text(chosen.text),
        vocabulary=decoder.spec.vocabulary,
        context=chosen.context,
        tokens=chosen.tokens,
    )
    begin = time.perf_counter()
    hidden = decoder.embed(ids)
    embedding = time.perf_counter() - begin
    collect = SquaredSums()
    times = []
    begin = time.perf_counter()
    for _ in decoder.run(hidden, on_linear_input=collect):
        times.append(time.perf_counter() - begin)
        begin = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )
    floor = products(decoder, ids.size)
    layer = min(times)
    whole = embedding + layer * chosen.layers
    print(
        f"{chosen.model.name}: {ids.size} tokens in windows of {chosen.context}, {decoder.threads} threads"
    )
    print(f"  embedding          {embedding:8.2f} s")
    print(f"  a layer            {layer:8.2f} s   (of {', '.join(f'{t:.2f}' for t in times)})")
    print(f"  its products alone {floor:8.2f} s   {layer / floor:.2f} times that")
    print(
        f"  {chosen.layers} layers         {whole:10.1f} s   = {whole / 60:.1f} minutes, from the layer"
    )
    print(
        f"  peak memory        {peak / 1e9:8.2f} GB  (decoder.memory: {decoder.memory(*ids.shape) / 1e9:.2f} GB)"
    )


if __name__ == "__main__":
    main()
