"""Ranges of activations: what each matrix is applied to in a text, for static quantization."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from phiquant.architectures import ModelSpec
from phiquant.checkpoint import Checkpoint
from phiquant.evaluate.evaluation import BUILT_IN
from phiquant.measure.windows import read_text, windows
from phiquant.reference import Decoder

# ONNX Runtime's own calibration is usually given some hundred short texts.
_TOKENS, _CONTEXT = 4096, 512
# Share of the values within the range, and bins a side: those of ONNX Runtime's calibrator.
_PERCENTILE = 0.99999
_BINS = 2048


class _Histogram:
    """How often magnitudes occur; the range doubles when a value lies beyond it."""

    def __init__(self) -> None:
        self.least = self.most = 0.0
        self.limit = 0.0
        self.counts = np.zeros((2, _BINS), np.int64)  # of negative and positive values

    def add(self, values: NDArray[np.float32]) -> None:
        self.least = min(self.least, float(values.min()))
        self.most = max(self.most, float(values.max()))
        peak = max(-self.least, self.most)
        if self.limit == 0.0:
            self.limit = peak or 1.0
        while self.limit < peak:
            self.limit *= 2
            halves = self.counts.reshape(2, _BINS // 2, 2).sum(axis=-1)
            self.counts = np.concatenate([halves, np.zeros_like(halves)], axis=1)
        places = (np.abs(values) * np.float32(_BINS / self.limit)).astype(np.int64)
        np.minimum(places, _BINS - 1, out=places)
        for side, chosen in enumerate((values < 0, values >= 0)):
            self.counts[side] += np.bincount(places[chosen], minlength=_BINS)

    def percentile(self) -> tuple[float, float]:
        """The range that all but a hundred-thousandth of the values lie in, half of it a side."""
        beyond = self.counts.sum() * (1 - _PERCENTILE) / 2
        ends = []
        for side, extreme in zip(self.counts, (-self.least, self.most), strict=True):
            kept = np.flatnonzero(np.cumsum(side[::-1])[::-1] > beyond)
            end = (int(kept[-1]) + 1) * self.limit / _BINS if kept.size else 0.0
            ends.append(min(end, extreme))
        return -ends[0], ends[1]


def activation_ranges(
    checkpoint: Checkpoint,
    spec: ModelSpec,
    *,
    percentile: bool = False,
    threads: int | None = None,
) -> dict[str, tuple[float, float]]:
    """The least and the largest activation of each matrix's input, in the built-in text.

    One forward pass of 4096 tokens. ONNX Runtime's calibrators are the model: MinMax, and
    Percentile with its own share of 99.999 percent and 2048 bins.

    Parameters
    ----------
    percentile : bool
        Leave off the outermost hundred-thousandth.

    Returns
    -------
    dict
        By source name; the output matrix under its own name, or the tied embedding's.
    """
    ids = windows(
        checkpoint,
        read_text(BUILT_IN),
        vocabulary=spec.vocabulary,
        context=min(_CONTEXT, spec.context),
        tokens=_TOKENS,
    )
    found: dict[str, _Histogram] = {}

    def look(name: str, x: NDArray[np.float32]) -> None:
        found.setdefault(name, _Histogram()).add(x)

    decoder = Decoder(checkpoint, spec, threads=threads)
    hidden = decoder.hidden_states(ids, on_linear_input=look)
    for _ in decoder.logit_strips(hidden, on_linear_input=look):
        break  # the head's input is the same for all strips
    return {
        name: one.percentile() if percentile else (one.least, one.most)
        for name, one in found.items()
    }
