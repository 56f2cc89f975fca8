#!/usr/bin/env python3
"""Measures one layer of a full-size model, and says what a whole calibration takes.

    calibrate.py MODEL TEXT [--tokens 8192] [--context 512] [--layers 32] [--threads N]

MODEL is a folder from make_full_size.py --layers 2. The time of the embedding and of the second layer, whose weights
nothing has touched yet, is taken; beside it stands the time of the same matrix products alone, which no forward pass
can go below. Where other processes share the machine, the processors' seconds, divided by the threads, say what an
idle one needs. Memory is the process's peak.
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


def products(decoder: Decoder, tokens: int) -> tuple[float, float]:
    """Seconds of a layer's matrix products by BLAS, on noise: on the wall, and of processors."""
    random = np.random.default_rng(0)
    seconds = processors = 0.0
    for tensor in decoder.spec.tensors:
        if tensor.layer != 0 or len(tensor.shape) != 2:
            continue
        weight = random.standard_normal(tensor.shape, dtype=np.float32)
        x = random.standard_normal((1024, tensor.shape[1]), dtype=np.float32)
        best = least = float("inf")
        with blas.threads(decoder.threads):
            for _ in range(3):
                begin, busy = time.perf_counter(), time.process_time()
                x @ weight.T
                best = min(best, time.perf_counter() - begin)
                least = min(least, time.process_time() - busy)
        seconds += best * tokens / len(x)
        processors += least * tokens / len(x)
    return seconds, processors


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
    begin, busy = time.perf_counter(), time.process_time()
    for _ in decoder.run(hidden, on_linear_input=collect):
        times.append((time.perf_counter() - begin, time.process_time() - busy))
        begin, busy = time.perf_counter(), time.process_time()
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    floor = products(decoder, ids.size)
    layer = tuple(min(column) for column in zip(*times, strict=True))
    share = 1 / decoder.threads
    whole = [(embedding + seconds * chosen.layers) / 60 for seconds in (layer[0], layer[1] * share)]
    print(
        f"{chosen.model.name}: {ids.size} tokens in windows of {chosen.context}, {decoder.threads} threads"
    )
    print("                         wall       processors / threads")
    print(f"  embedding          {embedding:8.2f} s")
    print(f"  a layer            {layer[0]:8.2f} s   {layer[1] * share:8.2f} s")
    print(f"  its products alone {floor[0]:8.2f} s   {floor[1] * share:8.2f} s")
    print(f"  layer / products   {layer[0] / floor[0]:8.2f}     {layer[1] / floor[1]:8.2f}")
    print(
        f"  {chosen.layers:3} layers         {whole[0]:8.1f} min {whole[1]:8.1f} min, from the layer"
    )
    print(
        f"  peak memory        {peak / 1e9:8.2f} GB; Decoder.memory says {decoder.memory(*ids.shape) / 1e9:.2f} GB"
    )


if __name__ == "__main__":
    main()
