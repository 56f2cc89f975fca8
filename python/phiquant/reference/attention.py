"""Rotary embedding and causal attention, in query blocks so that scores never need much memory."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from phiquant.architectures import Attention, Rope

# Scores of a block of queries: 64 MiB as float32.
_SCORES = 1 << 24
# Longer blocks would mask more than they save.
_BLOCK = 256

Tables = tuple[NDArray[np.float32], NDArray[np.float32]]


def rotation(rope: Rope, length: int, begin: int = 0, end: int | None = None) -> Tables:
    """Cosines and sines for the positions of a sequence, shapes (length, dimensions / 2).

    Of all its positions, or of those from ``begin`` to ``end``.

    With longrope the whole sequence takes the long factors where it is longer than the original
    context, and the short ones elsewhere, as transformers decides. All is float32, as there: at
    position 100,000 the rounding of the angles shows in the result.
    """
    exponents = np.arange(0, rope.dimensions, 2, dtype=np.float32) / np.float32(rope.dimensions)
    wave = np.power(np.float32(rope.base), exponents, dtype=np.float32)
    scale = np.float32(1)
    if rope.scaling is not None:
        longer = length > rope.original_context
        factors = rope.scaling.long_factors if longer else rope.scaling.short_factors
        wave = wave * np.asarray(factors, np.float32)
        scale = np.float32(rope.scaling.attention_factor)
    positions = np.arange(begin, length if end is None else end, dtype=np.float32)
    angles = positions[:, None] * (np.float32(1) / wave)
    return np.cos(angles) * scale, np.sin(angles) * scale


def rotate(x: NDArray[np.float32], tables: Tables) -> None:
    """Rotate the first dimensions of each head in place, pairing halves (as GPT-NeoX does).

    Parameters
    ----------
    x : float32 array, shape (heads, length, head_size)
    tables : see :func:`rotation`
    """
    cos, sin = tables
    half = cos.shape[1]
    first, second = x[..., :half], x[..., half : 2 * half]
    turned = first * cos
    turned -= second * sin
    second *= cos
    second += first * sin
    first[...] = turned


def attend(
    qkv: NDArray[np.float32],
    shape: Attention,
    tables: Tables,
    out: NDArray[np.float32],
    first: int = 0,
    last: int | None = None,
) -> None:
    """Causal grouped-query attention of one sequence.

    Parameters
    ----------
    qkv : float32 array, shape (length, (heads + 2 * kv_heads) * head_size)
        Queries, keys and values, not yet rotated.
    shape : Attention
    tables : see :func:`rotation`
    out : float32 array, shape (length, heads * head_size)
        Takes the result.
    first, last : int, optional
        Only these KV heads and the query heads that share them: work for one thread.
    """
    length, size, group = len(qkv), shape.head_size, shape.group
    last = shape.kv_heads if last is None else last
    count = last - first
    split = qkv.reshape(length, shape.heads + 2 * shape.kv_heads, size)

    def heads(begin: int, end: int) -> NDArray[np.float32]:
        # One contiguous (length, size) matrix a head, for BLAS.
        return np.ascontiguousarray(split[:, begin:end].transpose(1, 0, 2))

    q = heads(first * group, last * group)
    k = heads(shape.heads + first, shape.heads + last)
    v = heads(shape.heads + shape.kv_heads + first, shape.heads + shape.kv_heads + last)
    rotate(q, tables)
    rotate(k, tables)
    q *= np.float32(size**-0.5)
    q = q.reshape(count, group, length, size)
    by_head = out.reshape(length, shape.kv_heads, group, size)[:, first:last]
    step = max(1, min(_BLOCK, _SCORES // max(1, shape.heads * length)))
    for begin in range(0, length, step):
        end = min(length, begin + step)
        start = 0 if shape.window is None else max(0, begin + 1 - shape.window)
        block = np.ascontiguousarray(q[:, :, begin:end]).reshape(count, -1, size)
        scores = block @ k[:, start:end].transpose(0, 2, 1)
        _mask(scores.reshape(-1, end - begin, end - start), begin, start, shape.window)
        scores -= scores.max(axis=-1, keepdims=True)
        np.exp(scores, out=scores)
        mixed = scores @ v[:, start:end]
        mixed /= scores.sum(axis=-1, keepdims=True)
        by_head[begin:end] = mixed.reshape(count, group, end - begin, size).transpose(2, 0, 1, 3)


def _mask(scores: NDArray[np.float32], begin: int, start: int, window: int | None) -> None:
    """Hide what a query cannot see: later keys, and those a window or more before it."""
    queries, keys = scores.shape[1:]
    position = np.arange(begin, begin + queries)[:, None]
    # Without a window the keys before the block are seen by all its queries.
    first = 0 if window is not None else begin - start
    key = np.arange(start + first, start + keys)[None, :]
    hidden = key > position
    if window is not None:
        hidden |= key <= position - window
    np.copyto(scores[:, :, first:], np.float32(-np.inf), where=hidden)
