"""Greedy repetition: whether models run into loops in which their source does not."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from phiquant.checkpoint import Checkpoint
from phiquant.measure.layers import run_key
from phiquant.measure.store import Store, address
from phiquant.reference import Decoder
from phiquant.reference.generation import greedy

# Where nobody says how many tokens to generate: one for so many of the text, so that it takes an
# eighth of the time that reading takes, about; no more than are looked at anyway, and none where
# they are too few to show a loop.
_TEXT, _MOST = 640, 32
# Prompts go through the model together: one more costs little, and a token more costs a pass. With
# these, keys and values of 64 tokens each take less than a layer in float32.
_PROMPTS, _PROMPT = 8, 32
# Runs of so many tokens that stood before are repetition: seq-rep-4 of Welleck et al.,
# arXiv:1908.04319.
_RUN = 4
# A loop is a piece that stands at least so often at the end of a text, and so many tokens in all.
_TIMES, _LEAST = 3, 8
# Roles of tokens that end a text, a turn, or a message.
_ENDS = ("eos", "eot", "eom")
# Multiplications in whose time a weight is read and decoded, for the time that is left.
_WEIGHT = 100


def default_count(tokens: int) -> int:
    """Tokens to generate after each prompt, where a text of so many tokens is read."""
    count = min(_MOST, tokens // _TEXT)
    return count if count >= _LEAST else 0


@dataclass(frozen=True)
class Loop:
    """A text that repeats the same tokens up to its end.

    Attributes
    ----------
    prompt : int
        Which one, from 0.
    begin, period : int
        Generated tokens before the loop, and tokens of the piece that it repeats.
    in_source : bool
        Whether the source runs into a loop after this prompt, too.
    """

    prompt: int
    begin: int
    period: int
    in_source: bool


@dataclass(frozen=True)
class Repetition:
    """What a model's greedy texts repeat.

    Attributes
    ----------
    share : float
        Mean share, from 0 to 1, of runs of four tokens that stand earlier in the same text
        (seq-rep-4 of arXiv:1908.04319).
    loops : tuple of Loop
        Texts that end in a piece that stands there three times or more, 8 tokens at least.
    """

    share: float
    loops: tuple[Loop, ...]

    @property
    def new(self) -> tuple[Loop, ...]:
        """Loops after prompts where the source has none."""
        return tuple(loop for loop in self.loops if not loop.in_source)


def loop_of(text: Sequence[int]) -> tuple[int, int] | None:
    """Begin and period of the loop that a text ends in; None where there is none.

    Of several periods it is the shortest.
    """
    for period in range(1, len(text) // _TIMES + 1):
        begin = len(text) - period
        while begin > 0 and text[begin - 1] == text[begin - 1 + period]:
            begin -= 1
        if len(text) - begin >= max(_TIMES * period, _LEAST):
            return begin, period
    return None


def repeated(text: Sequence[int]) -> float:
    """Share of runs of four tokens that stood before; 0 of a text without such runs."""
    runs = [tuple(text[at : at + _RUN]) for at in range(len(text) - _RUN + 1)]
    return (len(runs) - len(set(runs))) / len(runs) if runs else 0.0


def ends_of(
    checkpoint: Checkpoint, vocabulary: int, tokenizer: str | os.PathLike[str] | None = None
) -> frozenset[int]:
    """Tokens that end a text or a turn: what follows them is no continuation.

    Parameters
    ----------
    checkpoint : Checkpoint
    vocabulary : int
        Rows of the embedding.
    tokenizer : str or path, optional
        The folder of ``tokenizer.json`` where it is not the checkpoint's own.
    """
    if checkpoint.format == "gguf":
        get = checkpoint.metadata.get
        found = [get(f"tokenizer.ggml.{role}_token_id") for role in _ENDS]
    else:
        from phiquant.tokenizer import load

        folder = checkpoint.folder if tokenizer is None else Path(tokenizer)
        special = load(folder, vocab_size=vocabulary).special_ids
        found = [special.get(role) for role in _ENDS]
    return frozenset(token for token in found if type(token) is int)


class Texts:
    """Greedy texts of a source and models after the same prompts.

    The source goes first: what it said is the guess of what the models will say, which saves most
    of their passes.

    Parameters
    ----------
    source : Decoder
    models : sequence of Decoder
    ids : int64 array, shape (windows, context)
        Prompts are the beginnings of up to eight windows, evenly chosen.
    count : int
        Tokens after each prompt, where the model's context has room for them; 0 asks for none.
    ends : frozenset of int
        Tokens that end a text.
    store : Store, optional
        Where texts are kept; None keeps nothing and finds nothing.

    Attributes
    ----------
    begun, total : int
        What the store has already, and all there is to do, in multiplications.
    """

    def __init__(
        self,
        source: Decoder,
        models: Sequence[Decoder],
        ids: NDArray[np.int64],
        count: int,
        *,
        ends: frozenset[int] = frozenset(),
        store: Store | None = None,
    ) -> None:
        self._decoders = [source, *models]
        chosen = np.arange(min(_PROMPTS, len(ids))) * len(ids) // min(_PROMPTS, len(ids))
        self._prompts = np.ascontiguousarray(ids[chosen, :_PROMPT])
        length = self._prompts.shape[1]
        self._count = min([count, *(one.spec.context - length for one in self._decoders)])
        self._ends = ends
        self._store = store
        self._keys: list[str] = []
        if store is not None and self._count > 0:
            self._keys = [self._key(decoder) for decoder in self._decoders]
            # Rounding may decide near ties in another way where guesses are others.
            self._keys[1:] = [address("text", source=self._keys[0], of=k) for k in self._keys[1:]]
        works = [self._work(decoder) for decoder in self._decoders]
        self.total = sum(works)
        self.begun = sum(
            work
            for at, work in enumerate(works)
            if self._keys and store and store.has(self._keys[at])
        )

    @property
    def memory(self) -> int:
        """Bytes of all prompts' keys and values, of one model at a time."""
        texts, length = self._prompts.shape
        each = max(
            2 * 4 * one.spec.layers * one.spec.attention.kv_heads * one.spec.attention.head_size
            for one in self._decoders
        )
        return int(texts * (length + max(0, self._count)) * each)

    def run(self, watch: Callable[[int], None]) -> list[Repetition | None]:
        """What the source's texts repeat, and each model's; None where no token was asked for.

        Parameters
        ----------
        watch : callable
            Called with what is done, of ``total``.

        Raises
        ------
        phiquant.ValueRangeError
            A model's activations or logits become NaN or infinite.
        """
        if self._count < 1:
            return [None] * len(self._decoders)
        tokens = self._prompts.shape[0] * self._count
        done = 0
        hints: list[list[int]] | None = None
        found: list[Repetition | None] = []
        for at, decoder in enumerate(self._decoders):
            work = self._work(decoder)
            texts = self._kept(at)
            if texts is None:
                first = done

                def report(settled: int, first: int = first, work: int = work) -> None:
                    watch(first + work * settled // tokens)

                texts = greedy(
                    decoder,
                    self._prompts,
                    self._count,
                    ends=self._ends,
                    hints=hints,
                    progress=report,
                )
                self._keep(at, texts)
            done += work
            watch(done)
            hints = texts if hints is None else hints
            found.append(_judge(texts, hints))
        return found

    def _work(self, decoder: Decoder) -> int:
        return int(max(0, self._count) * decoder.spec.parameters * _WEIGHT)

    def _key(self, decoder: Decoder) -> str:
        return address(
            "text",
            run=run_key(decoder, self._prompts, self._store),
            count=self._count,
            ends=sorted(self._ends),
        )

    def _kept(self, at: int) -> list[list[int]] | None:
        found = self._store.get(self._keys[at]) if self._store is not None else None
        if found is None:
            return None
        rows, lengths = found.arrays["tokens"], found.arrays["lengths"]
        return [row[:length].tolist() for row, length in zip(rows, lengths, strict=True)]

    def _keep(self, at: int, texts: Sequence[Sequence[int]]) -> None:
        if self._store is None:
            return
        rows = np.zeros((len(texts), self._count), np.int64)
        for row, text in zip(rows, texts, strict=True):
            row[: len(text)] = text
        lengths = np.array([len(text) for text in texts], np.int64)
        self._store.put(
            self._keys[at],
            what="greedy texts",
            source=f"{self._decoders[at].checkpoint.path}, {rows.size} tokens",
            facts={},
            arrays={"tokens": rows, "lengths": lengths},
        )


def _judge(texts: Sequence[Sequence[int]], source: Sequence[Sequence[int]]) -> Repetition:
    loops = []
    for prompt, (text, its) in enumerate(zip(texts, source, strict=True)):
        loop = loop_of(text)
        if loop is not None:
            loops.append(Loop(prompt, *loop, in_source=loop_of(its) is not None))
    return Repetition(float(np.mean([repeated(text) for text in texts])), tuple(loops))
