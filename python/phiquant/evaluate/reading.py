"""Models read a text beside their source, some windows at a time; what is done is kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from phiquant.errors import ValueRangeError
from phiquant.evaluate.tokens import Divergences, Likelihoods, score
from phiquant.measure.layers import begin, run_key, run_layers
from phiquant.measure.store import Store, address
from phiquant.reference import Decoder

# Tokens that go through a model together: with 3072 numbers each, their hidden states twice are
# 200 MB, less than half of a layer; and reading the layers once for so many costs a few percent.
_CHUNK = 8192
# Models that are scored together; the source's head is run once for all of them.
_TOGETHER = 2
# Matrix products are of so many tokens at a time: chunks are whole ones, and change no bit.
_GROUP = 1024


@dataclass(frozen=True, eq=False)
class _Chunk:
    """Some windows, and under what keys the store has them."""

    ids: NDArray[np.int64]
    targets: NDArray[np.int64]
    runs: Sequence[str]
    states: Sequence[str]
    scores: Sequence[str]


class Reading:
    """The way of a text through a source and models.

    Of the source, the hidden states after the last layer are kept, of the positions that are
    scored: its logits are the head's product with them, to the last bit, and they take less room
    than those of the 2000 most likely tokens. Of a model, they are kept until it is scored.

    Parameters
    ----------
    source : Decoder
    models : sequence of Decoder
        With the source's vocabulary and hidden size.
    ids : int64 array, shape (windows, context)
        The second half of each window is scored.
    store : Store, optional
        None keeps nothing and finds nothing.

    Attributes
    ----------
    begun, total : int
        What earlier runs have left in the store, and all there is to do, in multiplications.
    reused : int
        Of what was done by :meth:`run`, how much had been left there.
    """

    def __init__(
        self,
        source: Decoder,
        models: Sequence[Decoder],
        ids: NDArray[np.int64],
        store: Store | None,
    ) -> None:
        self._decoders = [source, *models]
        self._store = store
        self._first = ids.shape[1] // 2
        # Keys of states that go when their model is scored.
        self._temporary: set[str] = set()
        self._chunks = [self._chunk(part) for part in _cut(ids)]
        self.total = self.begun = self.reused = 0
        for chunk in self._chunks:
            self._count(chunk)

    @staticmethod
    def memory(source: Decoder, models: Sequence[Decoder], ids: NDArray[np.int64]) -> int:
        """Bytes that a run holds at most, about."""
        chunk = max(_cut(ids), key=len)
        decoders = [source, *models]
        scored = chunk.size // 2 * source.spec.hidden_size * min(len(decoders), _TOGETHER + 1)
        numbers = ids.size // 2 * 5 * len(models)
        return max(one.memory(*chunk.shape) for one in decoders) + 4 * scored + 8 * numbers

    def run(self, watch: Callable[[int], None]) -> tuple[Likelihoods, list[Divergences]]:
        """All models' numbers for each scored token, and the source's.

        Parameters
        ----------
        watch : callable
            Called with what is done, of ``total``.

        Raises
        ------
        phiquant.ValueRangeError
            A model's activations or logits become NaN or infinite.
        """
        self._done, self._watch = self.begun, watch
        self.reused = self.begun
        parts = [self._read(chunk) for chunk in self._chunks]
        count = len(self._decoders) - 1
        return _join([part[0][0] for part in parts]), [
            _join_divergences([part[model][1] for part in parts]) for model in range(count)
        ]

    def _chunk(self, ids: NDArray[np.int64]) -> _Chunk:
        runs: list[str] = []
        if self._store is not None:
            runs = [run_key(decoder, ids, self._store) for decoder in self._decoders]
        states = [address("states", run=run, first=self._first) for run in runs]
        scores = [address("scores", source=states[0], model=model) for model in states[1:]]
        targets = np.ascontiguousarray(ids[:, self._first + 1 :]).reshape(-1)
        return _Chunk(ids, targets, runs, states, scores)

    def _count(self, chunk: _Chunk) -> None:
        count = len(self._decoders) - 1
        missing = [at for at in range(count) if not self._has(chunk.scores, at)]
        self.total += self._heads(chunk, count)
        self.begun += self._heads(chunk, count) - self._heads(chunk, len(missing))
        needed = {0, *(at + 1 for at in missing)} if missing else set()
        for at, decoder in enumerate(self._decoders):
            work = _layer(decoder) * decoder.spec.layers * chunk.ids.size
            self.total += work
            if at not in needed or self._has(chunk.states, at):
                self.begun += work

    def _heads(self, chunk: _Chunk, models: int) -> int:
        spec = self._decoders[0].spec
        runs = models + -(-models // _TOGETHER)
        return runs * chunk.targets.size * spec.hidden_size * spec.vocabulary

    def _has(self, keys: Sequence[str], at: int) -> bool:
        return self._store is not None and self._store.has(keys[at])

    def _read(self, chunk: _Chunk) -> list[tuple[Likelihoods, Divergences]]:
        """The source's numbers and a model's, for each model."""
        count = len(self._decoders) - 1
        found = {at: self._known(chunk, at) for at in range(count)}
        missing = [at for at in range(count) if found[at] is None]
        base = self._states(chunk, 0) if missing else None
        for first in range(0, len(missing), _TOGETHER):
            some = missing[first : first + _TOGETHER]
            assert base is not None
            hidden = [base, *(self._states(chunk, at + 1) for at in some)]
            source, models = self._decoders[0], [self._decoders[at + 1] for at in some]
            heads, done = self._heads(chunk, len(some)), self._done

            def report(tokens: int, heads: int = heads, done: int = done) -> None:
                self._advance(done + heads * tokens // chunk.targets.size)

            likelihoods, scores = score(source, models, hidden, chunk.targets, report)
            for at, divergences in zip(some, scores, strict=True):
                _check_finite(source, likelihoods)
                _check_finite(self._decoders[at + 1], divergences)
                found[at] = likelihoods, divergences
                self._keep(chunk, at, likelihoods, divergences)
        return [pair for pair in found.values() if pair is not None]

    def _advance(self, done: int) -> None:
        self._done = done
        self._watch(min(done, self.total))

    def _states(self, chunk: _Chunk, at: int) -> NDArray[np.float32]:
        """Hidden states of the positions that are scored, shape (tokens, hidden_size)."""
        decoder, store = self._decoders[at], self._store
        run, key = (chunk.runs[at], chunk.states[at]) if store is not None else ("", "")
        known = store.get(key) if store is not None else None
        if known is not None and (at or not known.facts["temporary"]):
            if known.facts["temporary"]:
                self._temporary.add(key)
            return known.arrays["hidden"]
        before, tokens, each = self._done, chunk.ids.size, _layer(decoder)
        state = begin(decoder, chunk.ids, store, run)
        self.reused += state.done * tokens * each
        state = run_layers(
            decoder,
            state,
            store=store,
            key=run,
            watch=lambda done: self._advance(before + done * each),
        )
        # The last position's logits foretell the next window, which is no continuation.
        scored = np.ascontiguousarray(state.hidden[:, self._first : -1])
        hidden: NDArray[np.float32] = scored.reshape(-1, scored.shape[-1])
        if store is not None:
            store.put(
                key,
                what="model's states" if at else "source's states",
                source=f"{decoder.checkpoint.path}, {tokens} tokens",
                facts={"temporary": at > 0},
                arrays={"hidden": hidden},
            )
            store.drop(run)
            if at:
                self._temporary.add(key)
        return hidden

    def _known(self, chunk: _Chunk, at: int) -> tuple[Likelihoods, Divergences] | None:
        known = self._store.get(chunk.scores[at]) if self._store is not None else None
        if known is None:
            return None
        get = known.arrays
        return (
            Likelihoods(get["source_surprise"], get["source_top"]),
            Divergences(get["surprise"], get["top"], get["kld"]),
        )

    def _keep(self, chunk: _Chunk, at: int, base: Likelihoods, model: Divergences) -> None:
        if self._store is None:
            return
        arrays = {
            "source_surprise": base.surprise,
            "source_top": base.top,
            "surprise": model.surprise,
            "top": model.top,
            "kld": model.kld,
        }
        about = f"{self._decoders[at + 1].checkpoint.path}, {chunk.ids.size} tokens"
        self._store.put(chunk.scores[at], what="evaluation", source=about, facts={}, arrays=arrays)
        if chunk.states[at + 1] != chunk.states[0]:
            self._store.drop(chunk.states[at + 1])


def _cut(ids: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """The windows in chunks of about the same size."""
    windows, context = ids.shape
    group = max(1, _GROUP // context)
    count = -(-ids.size // max(_CHUNK, context * group))
    step = -(-windows // count)
    step += -step % group
    return [ids[at : at + step] for at in range(0, windows, step)]


def _layer(decoder: Decoder) -> int:
    """Weights that each token meets in a layer."""
    return sum(t.elements for t in decoder.spec.tensors if t.layer == 0 and len(t.shape) == 2)


def _check_finite(decoder: Decoder, likelihoods: Likelihoods) -> None:
    values = [likelihoods.surprise]
    if isinstance(likelihoods, Divergences):
        values.append(likelihoods.kld)
    if not all(np.isfinite(one).all() for one in values):
        raise ValueRangeError(
            "makes logits that are NaN or infinite in float32",
            file=decoder.checkpoint.path,
            tensor=decoder.head,
            remedy="Look for damaged weights in it, and in the last norm.",
        )


def _join(parts: Sequence[Likelihoods]) -> Likelihoods:
    return Likelihoods(
        np.concatenate([part.surprise for part in parts]),
        np.concatenate([part.top for part in parts]),
    )


def _join_divergences(parts: Sequence[Divergences]) -> Divergences:
    joined = _join(parts)
    kld = np.concatenate([part.kld for part in parts])
    return Divergences(joined.surprise, joined.top, kld)
