"""Ranges of activations: what each matrix is applied to in a text, for static quantization."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from phiquant.architectures import ModelSpec
from phiquant.checkpoint import Checkpoint
from phiquant.evaluate.evaluation import BUILT_IN
from phiquant.measure.bar import Bar
from phiquant.measure.layers import begin, check_memory, run_key, run_layers
from phiquant.measure.store import Arrays, Store, address
from phiquant.measure.windows import read_text, windows
from phiquant.reference import Decoder

#: Tokens that are read where no number is given; ONNX Runtime's calibration is usually given some
#: hundred short texts.
TOKENS = 4096
_CONTEXT = 512
# Share of the values that lie within the range, and bins a side: those of ONNX Runtime's own.
_PERCENTILE = 0.99999
_BINS = 2048
# Values that are counted together: they stay in the cache.
_TOGETHER = 1 << 16
# A matrix's measurement: its extremes, the end of the last bin, and the bins' counts.
_LEAST, _MOST, _END, _COUNTS = 0, 1, 2, 3

_Values = NDArray[np.float64]


class Ranges:
    """Extremes and histograms of activations, as ``on_linear_input`` takes it.

    Attributes
    ----------
    sums : dict of str to float64 array, shape (3 + 2 * 2048,)
        The least and the largest value, where the last bin ends, and how many negative values and
        others there are by magnitude. Bins become twice as wide when a value lies beyond the last.
    """

    def __init__(self, sums: Arrays | None = None) -> None:
        self.sums: dict[str, _Values] = dict(sums or {})

    def __call__(self, name: str, x: NDArray[np.float32]) -> None:
        """Add activations, float32 of shape (tokens, columns)."""
        known = self.sums.get(name)
        if known is None:
            known = self.sums[name] = np.zeros(_COUNTS + 2 * _BINS)
            known[:_END] = np.inf, -np.inf
        known[_LEAST] = min(known[_LEAST], float(x.min()))
        known[_MOST] = max(known[_MOST], float(x.max()))
        counts = known[_COUNTS:].reshape(2, _BINS)
        peak = max(-known[_LEAST], known[_MOST])
        if known[_END] == 0.0:
            known[_END] = peak
        while known[_END] < peak:
            known[_END] *= 2
            counts[:, : _BINS // 2] = counts.reshape(2, _BINS // 2, 2).sum(axis=-1)
            counts[:, _BINS // 2 :] = 0
        if peak == 0.0:
            return
        factor = np.float32(_BINS / known[_END])
        step = max(1, _TOGETHER // x.shape[1])
        for at in range(0, len(x), step):
            some = x[at : at + step].reshape(-1)
            places = (np.abs(some) * factor).astype(np.int64)
            np.minimum(places, _BINS - 1, out=places)
            places += _BINS * (some >= 0)
            counts += np.bincount(places, minlength=2 * _BINS).reshape(2, _BINS)

    def extremes(self, name: str) -> tuple[float, float]:
        """The least and the largest value that a matrix was applied to."""
        return float(self.sums[name][_LEAST]), float(self.sums[name][_MOST])

    def within(self, name: str) -> tuple[float, float]:
        """The range, from 0 to both sides, that all but a hundred-thousandth of them lie in."""
        values = self.sums[name]
        counts = values[_COUNTS:].reshape(2, _BINS)
        beyond = counts.sum() * (1 - _PERCENTILE) / 2
        ends = []
        for side, extreme in zip(counts, (-values[_LEAST], values[_MOST]), strict=True):
            kept = np.flatnonzero(np.cumsum(side[::-1])[::-1] > beyond)
            end = (int(kept[-1]) + 1) * values[_END] / _BINS if kept.size else 0.0
            ends.append(min(float(end), max(0.0, float(extreme))))
        return -ends[0], ends[1]


def activation_ranges(
    checkpoint: Checkpoint,
    spec: ModelSpec,
    *,
    percentile: bool = False,
    text: str | os.PathLike[str] | None = None,
    tokens: int = TOKENS,
    threads: int | None = None,
    cache: bool | Store = True,
    progress: bool | Callable[[int, int], None] = False,
) -> dict[str, tuple[float, float]]:
    """The least and the largest activation of each matrix's input, in a text.

    One forward pass in float32, which the store keeps. ONNX Runtime's calibrators are the model:
    MinMax, and Percentile with its own share of 99.999 percent and 2048 bins.

    Parameters
    ----------
    percentile : bool
        Leave off the outermost hundred-thousandth, half of it a side.
    text : path, optional
        A UTF-8 file; phiquant's built-in text by default.
    tokens : int
        So many of it at most, in windows of 512.
    threads : int, optional
        One a processor by default.
    cache : bool or Store
        As :func:`phiquant.measure.calibrate` has it.
    progress : bool or callable
        The same.

    Returns
    -------
    dict
        By source name; the output matrix under its own name, or the tied embedding's.

    Raises
    ------
    phiquant.UsageError
        The text, or ``tokens``, is less than one window, or the memory too small for so many.
    phiquant.FormatError
        The text is no UTF-8, or tokenizer or weights are damaged.
    """
    decoder = Decoder(checkpoint, spec, threads=threads)
    ids = windows(
        checkpoint,
        read_text(BUILT_IN if text is None else text),
        vocabulary=spec.vocabulary,
        context=min(_CONTEXT, spec.context, tokens),
        tokens=tokens,
    )
    check_memory(decoder.memory(*ids.shape), ids.size, "Read less of the text: tokens=1024.")
    found = _measured(decoder, ids, Store() if cache is True else cache or None, progress)
    range_of = found.within if percentile else found.extremes
    return {name: range_of(name) for name in found.sums}


def _measured(
    decoder: Decoder,
    ids: NDArray[np.int64],
    store: Store | None,
    progress: bool | Callable[[int, int], None],
) -> Ranges:
    run = key = ""
    if store is not None:
        key = address("activation ranges", run=run_key(decoder, ids, store), bins=_BINS)
        run = address("activation ranges, unfinished", of=key)
        known = store.get(key)
        if known is not None:
            return Ranges(known.arrays)
    state = begin(decoder, ids, store, run)
    total, done = decoder.spec.layers * ids.size, state.done * ids.size
    with Bar(progress, total, about="calibrating", unit="tok", begin=done) as watch:
        state = run_layers(decoder, state, store=store, key=run, collect=Ranges(), watch=watch)
        head = Ranges()
        for _ in decoder.logit_strips(state.hidden, on_linear_input=head):
            break  # what enters the head is the same for all strips
    arrays = {**state.sums, **head.sums}
    if store is not None:
        about = f"{decoder.checkpoint.path}, {ids.size} tokens"
        store.put(key, what="activation ranges", source=about, facts={}, arrays=arrays)
        store.drop(run)
    return Ranges(arrays)
