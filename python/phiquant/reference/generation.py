"""Greedy text of the reference run, with a cache of keys and values and guessed tokens."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from phiquant.errors import ShapeError, UsageError, ValueRangeError
from phiquant.reference import blas
from phiquant.reference.attention import Tables, rotate, rotation
from phiquant.reference.decoder import Decoder, _normalize

# Guessed tokens that go through the model behind a known one. Reading and decoding a weight takes
# as long as multiplying it with a hundred tokens: a few more cost little, and each that is right
# saves a pass.
_GUESSES = 7
# Tokens that must stand somewhere before for the ones after them to be a guess: the more, the
# better it is.
_MATCH = 3


class _Text:
    """One prompt and what follows it, with its keys and values.

    ``known`` are tokens that are settled, ``past`` how many of them have their keys and values.
    """

    def __init__(
        self, decoder: Decoder, prompt: Sequence[int], hints: Sequence[int], count: int
    ) -> None:
        shape, layers = decoder.spec.attention, decoder.spec.layers
        self.prompt = len(prompt)
        self.known = list(prompt)
        self.end = len(prompt) + count
        self.past = 0
        self.hints = list(hints)
        room = (layers, shape.kv_heads, self.end, shape.head_size)
        self.keys, self.values = np.empty(room, np.float32), np.empty(room, np.float32)
        self.fed: list[int] = []

    def feed(self) -> list[int]:
        """Tokens for the next pass: those without keys, and guesses of what follows."""
        guesses = self._guess() if self.past else []
        room = self.end - len(self.known) - 1
        self.fed = self.known[self.past :] + guesses[: max(0, room)]
        return self.fed

    def take(self, best: Sequence[int], ends: Collection[int]) -> None:
        """What the model says after the last known token and each guess; wrong guesses go."""
        settled = len(self.known)
        guesses = self.fed[settled - self.past :]
        self.past = settled
        for token, guess in zip(best, [*guesses, None], strict=True):
            self.known.append(token)
            if token in ends:
                self.end = len(self.known)
            if len(self.known) >= self.end or token != guess:
                return
            self.past += 1

    @property
    def done(self) -> bool:
        return len(self.known) >= self.end

    def _guess(self) -> list[int]:
        """What followed the last tokens where they stood before, or in the hints."""
        before = [*self.hints, *self.known]
        for length in range(_MATCH, 0, -1):
            tail = self.known[-length:]
            for at in range(len(before) - length - 1, -1, -1):
                if before[at : at + length] == tail:
                    return before[at + length : at + length + _GUESSES]
        return []


def greedy(
    decoder: Decoder,
    prompts: NDArray[np.integer],
    count: int,
    *,
    ends: Collection[int] = (),
    hints: Sequence[Sequence[int]] | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[list[int]]:
    """The most likely token after each prompt, then the one after that, and so on.

    All weights are read and decoded for every pass. A pass takes a token of each text, and guesses
    of the next ones (from places where the last tokens stood before): those that the model would
    have chosen are kept, so that a pass settles one to eight tokens of a text (prompt lookup
    decoding; Leviathan et al., arXiv:2211.17192, with greedy choice). The texts are the same as
    without guesses, but for near ties that rounding decides.

    Parameters
    ----------
    decoder : Decoder
    prompts : integer array, shape (texts, length)
    count : int
        Tokens to follow, of each text.
    ends : collection of int
        Tokens that end a text; they are part of it.
    hints : sequence of sequences of int, optional
        For each text, tokens that may well follow: what another model said.
    progress : callable, optional
        Called with the number of tokens settled, of ``texts * count``.

    Returns
    -------
    list of lists of int
        At most ``count`` tokens for each prompt.

    Raises
    ------
    phiquant.ShapeError
        ``prompts`` has other axes, or is empty.
    phiquant.UsageError
        The texts would be longer than the model's context.
    phiquant.ValueRangeError
        The activations or logits become NaN or infinite.
    """
    prompts = np.asarray(prompts)
    if prompts.ndim != 2 or not prompts.size or not np.issubdtype(prompts.dtype, np.integer):
        raise ShapeError("prompts must be integers of shape (texts, length), none of them 0")
    longest = prompts.shape[1] + count
    if count < 0 or longest > decoder.spec.context:
        raise UsageError(
            f"{count} tokens after {prompts.shape[1]} are not within the context of "
            f"{decoder.spec.context}",
            file=decoder.checkpoint.path,
        )
    guessed = hints or [()] * len(prompts)
    texts = [
        _Text(decoder, prompt.tolist(), hint, count)
        for prompt, hint in zip(prompts, guessed, strict=True)
    ]
    with np.errstate(all="ignore"):  # of a hostile file's factors
        # As elsewhere, the whole length decides between longrope's short and long factors.
        tables = rotation(decoder.spec.rope, longest)
    while going := [text for text in texts if not text.done]:
        with blas.threads(decoder.threads), np.errstate(over="ignore", invalid="ignore"):
            _pass(decoder, going, tables, ends)
        if progress is not None:
            left = sum(text.end - len(text.known) for text in texts)
            progress(len(texts) * count - left)
    return [text.known[text.prompt :] for text in texts]


def _pass(decoder: Decoder, texts: Sequence[_Text], tables: Tables, ends: Collection[int]) -> None:
    """Take each text's next tokens through all layers, and settle what follows."""
    fed = [text.feed() for text in texts]
    cuts = np.cumsum([0, *map(len, fed)])
    x = _embed(decoder, [token for tokens in fed for token in tokens])
    shape = decoder.spec.attention
    for index in range(decoder.spec.layers):
        layer = decoder._load(index)
        qkv = _normalize(x, layer.attn_norm, decoder.spec.norm.epsilon) @ layer.attn_qkv.T
        mixed = np.empty((len(x), shape.heads * shape.head_size), np.float32)
        for text, begin, end in zip(texts, cuts[:-1], cuts[1:], strict=True):
            mixed[begin:end] = _attend(decoder, text, index, qkv[begin:end], tables)
        x += mixed @ layer.attn_output.T
        decoder._mlp(layer, x, None)
        if not np.isfinite(x).all():
            raise ValueRangeError(
                "makes activations that are NaN or infinite in float32",
                file=decoder.checkpoint.path,
                tensor=layer.names["ffn_down"],
                remedy="Look for damaged weights in this layer and those before it.",
            )
        del layer
    rows = [
        np.arange(end - len(tokens) + len(text.known) - text.past - 1, end)
        for text, tokens, end in zip(texts, fed, cuts[1:], strict=True)
    ]
    best = _best(decoder, x[np.concatenate(rows)])
    pieces = np.split(best, np.cumsum([len(one) for one in rows])[:-1])
    for text, piece in zip(texts, pieces, strict=True):
        text.take(piece.tolist(), ends)


def _embed(decoder: Decoder, tokens: Sequence[int]) -> NDArray[np.float32]:
    # Row by row: a strip for each token of a large vocabulary would be most of the table.
    name = decoder._names["embedding", None]
    rows = {token: decoder.weights.rows(name, token, token + 1)[0] for token in set(tokens)}
    return np.stack([rows[token] for token in tokens])


def _attend(
    decoder: Decoder, text: _Text, layer: int, qkv: NDArray[np.float32], tables: Tables
) -> NDArray[np.float32]:
    """Attention of a text's new tokens to all before them, whose keys and values are kept."""
    shape, past = decoder.spec.attention, text.past
    new, size = len(qkv), shape.head_size
    there = past + new
    split = qkv.reshape(new, shape.heads + 2 * shape.kv_heads, size).transpose(1, 0, 2)
    q = np.ascontiguousarray(split[: shape.heads])
    k = np.ascontiguousarray(split[shape.heads : shape.heads + shape.kv_heads])
    here = tables[0][past:there], tables[1][past:there]
    rotate(q, here)
    rotate(k, here)
    q *= np.float32(size**-0.5)
    keys, values = text.keys[layer], text.values[layer]
    keys[:, past:there] = k
    values[:, past:there] = split[shape.heads + shape.kv_heads :]
    q = q.reshape(shape.kv_heads, shape.group * new, size)
    scores = q @ keys[:, :there].transpose(0, 2, 1)
    position = np.arange(past, there)[:, None]
    key = np.arange(there)[None, :]
    hidden = key > position
    if shape.window is not None:
        hidden |= key <= position - shape.window
    by_query = scores.reshape(shape.heads, new, there)
    np.copyto(by_query, np.float32(-np.inf), where=hidden)
    scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    mixed = scores @ values[:, :there]
    mixed /= scores.sum(axis=-1, keepdims=True)
    out: NDArray[np.float32] = mixed.reshape(shape.heads, new, size).transpose(1, 0, 2)
    return out.reshape(new, shape.heads * size)


def _best(decoder: Decoder, hidden: NDArray[np.float32]) -> NDArray[np.int64]:
    """The most likely token after each hidden state; of equals the first."""
    peak = np.full(len(hidden), -np.inf, np.float32)
    best = np.zeros(len(hidden), np.int64)
    for begin, strip in decoder.logit_strips(hidden):
        if not np.isfinite(strip).all():
            raise ValueRangeError(
                "makes logits that are NaN or infinite in float32",
                file=decoder.checkpoint.path,
                tensor=decoder.head,
                remedy="Look for damaged weights in it, and in the last norm.",
            )
        place = strip.argmax(axis=1)
        largest = np.take_along_axis(strip, place[:, None], axis=1)[:, 0]
        better = largest > peak
        best[better] = begin + place[better]
        peak[better] = largest[better]
    return best
