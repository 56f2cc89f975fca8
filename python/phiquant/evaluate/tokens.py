"""Two models' logits, a strip of the vocabulary at a time, as a few numbers for each token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from phiquant.reference import Decoder

# Tokens that go through the heads together. A head is decoded once for all of them, and each model
# holds their logits for one strip of the vocabulary: 22 MB where the hidden size is 3072.
_TOKENS = 1024
# Rows whose logits stay in a core's cache from one operation to the next.
_ROWS = 32

Doubles = NDArray[np.float64]
Strip = tuple[int, NDArray[np.float32]]


@dataclass(frozen=True, eq=False)
class Likelihoods:
    """What a model says of each token that was scored; arrays of shape (tokens,).

    Attributes
    ----------
    surprise : float64 array
        Negative logarithm of the probability of the token that the text has, in nats.
    top : int64 array
        The most likely token.
    """

    surprise: Doubles
    top: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Divergences(Likelihoods):
    """The same of a model beside its source.

    Attributes
    ----------
    kld : float64 array
        Kullback-Leibler divergence of the model's probabilities from the source's, in nats. Where
        it is nothing, rounding may make it -1e-9.
    """

    kld: Doubles


class _Softmax:
    """Sums over a vocabulary that comes in strips; the largest logit so far is taken off."""

    def __init__(self, targets: NDArray[np.int64]) -> None:
        self.targets = targets
        self.peak = np.full(len(targets), -np.inf)
        self.total = np.zeros(len(targets))
        self.top = np.zeros(len(targets), np.int64)
        self.target = np.zeros(len(targets))

    def add(
        self, rows: slice, begin: int, logits: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], Doubles]:
        """Add a strip's logits; gives their exponentials, and what scales earlier sums to them."""
        before = self.peak[rows]
        place = logits.argmax(axis=1)
        largest = np.take_along_axis(logits, place[:, None], axis=1)[:, 0].astype(np.float64)
        # Of equals the first one counts, as in llama-perplexity.
        self.top[rows] = np.where(largest > before, begin + place, self.top[rows])
        peak = np.maximum(before, largest)
        scale = np.exp(before - peak)
        powers = logits - peak.astype(np.float32)[:, None]
        np.exp(powers, out=powers)
        self.total[rows] = self.total[rows] * scale + powers.sum(axis=1)
        self.peak[rows] = peak
        column = self.targets[rows] - begin
        here = np.flatnonzero((column >= 0) & (column < logits.shape[1]))
        self.target[rows][here] = logits[here, column[here]]
        return powers, scale

    @property
    def normalizer(self) -> Doubles:
        """Logarithm of the sum of all exponentials."""
        values: Doubles = self.peak + np.log(self.total)
        return values


def score(
    source: Decoder,
    models: Sequence[Decoder],
    hidden: Sequence[NDArray[np.float32]],
    targets: NDArray[np.int64],
    progress: Callable[[int], None],
) -> tuple[Likelihoods, list[Divergences]]:
    """Compare models with their source on tokens of a text.

    No more than a strip of any logits is ever held: softmax and divergence are sums over the
    vocabulary, and both models' strips are the same tokens.

    Parameters
    ----------
    source : Decoder
    models : sequence of Decoder
        With the source's vocabulary and hidden size.
    hidden : sequence of float32 arrays, shape (tokens, hidden_size)
        After the last layer, of the source and then each model.
    targets : int64 array, shape (tokens,)
        What the text has after each.
    progress : callable
        Called with the number of tokens done.
    """
    decoders = [source, *models]
    pieces = []
    with ThreadPoolExecutor(source.threads) as pool:
        for begin in range(0, len(targets), _TOKENS):
            part = slice(begin, begin + _TOKENS)
            pieces.append(_part(decoders, [h[part] for h in hidden], targets[part], pool))
            progress(min(len(targets), begin + _TOKENS))
    surprise, top, kld = (np.concatenate(all_, axis=1) for all_ in zip(*pieces, strict=True))
    return Likelihoods(surprise[0], top[0]), [
        Divergences(surprise[i + 1], top[i + 1], kld[i]) for i in range(len(models))
    ]


def _part(
    decoders: Sequence[Decoder],
    hidden: Sequence[NDArray[np.float32]],
    targets: NDArray[np.int64],
    pool: ThreadPoolExecutor,
) -> tuple[Doubles, NDArray[np.int64], Doubles]:
    """Surprises, top tokens (decoders, tokens) and divergences (models, tokens) of some tokens."""
    sums = [_Softmax(targets) for _ in decoders]
    # Sum of exp(a) * (a - b) for the source's logits a and a model's b.
    cross = np.zeros((len(decoders) - 1, len(targets)))
    runs = [decoder.logit_strips(states) for decoder, states in zip(decoders, hidden, strict=True)]
    for strips in zip(*runs, strict=True):
        begin = strips[0][0]

        def work(first: int, begin: int = begin, strips: Sequence[Strip] = strips) -> None:
            rows = slice(first, first + _ROWS)
            with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # of this thread
                logits = [strip[rows] for _, strip in strips]
                powers, scale = sums[0].add(rows, begin, logits[0])
                for model in range(1, len(logits)):
                    sums[model].add(rows, begin, logits[model])
                    difference = logits[0] - logits[model]
                    difference *= powers
                    cross[model - 1, rows] *= scale
                    cross[model - 1, rows] += difference.sum(axis=1)

        list(pool.map(work, range(0, len(targets), _ROWS)))
    with np.errstate(invalid="ignore", divide="ignore"):  # NaN is looked for by the caller
        normal = np.stack([one.normalizer for one in sums])
        surprise = normal - np.stack([one.target for one in sums])
        kld = cross / sums[0].total - (normal[0] - normal[1:])
    return surprise, np.stack([one.top for one in sums]), kld
