"""Samples of rows, read from a source and a result: errors of tensors, and weights to be drawn."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from phiquant.checkpoint import Checkpoint, open_checkpoint
from phiquant.codecs import find_codec
from phiquant.errors import PhiquantError
from phiquant.evaluate.comparison import corresponding_tensors
from phiquant.pages.modules import place_of
from phiquant.reference import Weights
from phiquant.report import TensorReport

# Rows that are read at once, and how many such strips of a matrix: planes are read by 16 rows.
_STRIP = 16
_STRIPS = 4
# Strips of a matrix from which its error is estimated: rows differ much in embeddings.
_ERROR_STRIPS = 8
# Weights of a group that are drawn: more lines than that run together.
_LINES = 64

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Sample:
    """Some rows of one matrix.

    Attributes
    ----------
    name : str
        In the source.
    codec : str
    weights, decoded : float32 arrays, shape (n,)
        What the source holds, and what the result holds in its place.
    group : int
        Weights that share a scale.
    group_weights, group_decoded : float32 arrays, shape (at most 64,)
        One group of them, of middling range.
    """

    name: str
    codec: str
    weights: Floats
    decoded: Floats
    group: int
    group_weights: Floats
    group_decoded: Floats

    @property
    def error(self) -> float:
        """Relative root mean square error of these rows."""
        return _relative(self.weights, self.decoded)


class Pair:
    """A source and a result, opened to be read side by side.

    Parameters
    ----------
    source, result : str, path or Checkpoint

    Raises
    ------
    phiquant.PhiquantError
        One of them cannot be opened, or is no model that phiquant knows.
    """

    def __init__(
        self,
        source: str | os.PathLike[str] | Checkpoint,
        result: str | os.PathLike[str] | Checkpoint,
    ) -> None:
        one, other = (
            x if isinstance(x, Checkpoint) else open_checkpoint(x) for x in (source, result)
        )
        self._source, self._result = Weights(one), Weights(other)
        self._names = corresponding_tensors(one, other)

    @property
    def names(self) -> dict[str, str]:
        """Names in the source, and what they are in the result."""
        return self._names

    def sample(self, name: str) -> Sample:
        """Rows of a matrix that the source calls ``name``."""
        weights, decoded = self._rows(name, _STRIPS)
        codec = self._result.checkpoint.entries[self._names[name]].type
        group = _group(codec, weights.shape[-1])
        return Sample(
            name,
            codec,
            weights.reshape(-1),
            decoded.reshape(-1),
            group,
            *_typical(weights, decoded, group),
        )

    def samples(self, count: int) -> list[Sample]:
        """Up to ``count`` matrices that differ in their parts of the model and their codecs."""
        entries = self._result.checkpoint.entries
        kinds: dict[tuple[str, str], list[str]] = {}
        for name, other in self._names.items():
            if len(entries[other].shape) > 1 and not _is_float(entries[other].type):
                kinds.setdefault((place_of(name).module, entries[other].type), []).append(name)
        # A layer in the middle stands for the others; the largest kinds come first.
        chosen = sorted(
            kinds.values(), key=lambda names: -sum(entries[self._names[n]].nbytes for n in names)
        )
        return [self.sample(names[len(names) // 2]) for names in chosen[:count]]

    def tensors(self) -> tuple[TensorReport, ...]:
        """The result's tensors, with errors as far as some of their rows tell."""
        checkpoint = self._result.checkpoint
        sources = {other: name for name, other in self._names.items()}
        found = []
        for name, entry in checkpoint.entries.items():
            source = sources.get(name)
            try:
                error = _relative(*self._rows(source, _ERROR_STRIPS)) if source else 0.0
            except PhiquantError:  # a type that is not decoded
                error = 0.0
            weights = math.prod(entry.shape) if source else 0
            found.append(
                TensorReport(
                    *(name, source, entry.type, entry.shape, entry.nbytes, "", error, weights)
                )
            )
        return tuple(found)

    def _rows(self, name: str, strips: int) -> tuple[Floats, Floats]:
        other = self._names[name]
        shape = self._source.checkpoint.entries[name].shape
        if len(shape) < 2:
            return self._source.whole(name), self._result.whole(other)
        rows = math.prod(shape[:-1])
        if rows <= strips * _STRIP:
            places: Iterable[tuple[int, int]] = [(0, rows)]
        else:
            # The middle of each part: the first rows of an embedding are no words.
            begins = (rows * (2 * part + 1) // (2 * strips) - _STRIP // 2 for part in range(strips))
            places = [(begin, begin + _STRIP) for begin in begins]
        mine = [self._source.rows(name, begin, end) for begin, end in places]
        its = [self._result.rows(other, begin, end) for begin, end in places]
        return np.concatenate(mine), np.concatenate(its)


def _is_float(codec: str) -> bool:
    return codec.partition(",")[0] in ("f32", "f16", "bf16", "f64")


def _group(codec: str, columns: int) -> int:
    """Weights that share a scale."""
    found = find_codec(codec)
    size = found.affine.group if found.affine else found.sub_block_values
    return min(columns, size or columns)


def _typical(weights: Floats, decoded: Floats, group: int) -> tuple[Floats, Floats]:
    """The group whose range is the median of all, or as much of it as can be drawn."""
    whole = weights.shape[-1] // group * group
    mine = weights[:, :whole].reshape(-1, group)
    its = decoded[:, :whole].reshape(-1, group)
    ranges = np.abs(mine).max(axis=1)
    index = int(np.argsort(ranges, kind="stable")[len(ranges) // 2])
    step = -(-group // _LINES)
    return mine[index, ::step], its[index, ::step]


def _relative(weights: Floats, decoded: Floats) -> float:
    difference = (decoded - weights).astype(np.float64).ravel()
    error = float(difference @ difference)
    original = weights.astype(np.float64).ravel()
    signal = float(original @ original)
    return math.sqrt(error / signal) if signal else 0.0
