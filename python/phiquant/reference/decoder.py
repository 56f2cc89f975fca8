"""The forward pass: embedding, one layer after the other over all sequences, head in strips."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from phiquant.architectures import ModelSpec, Role
from phiquant.checkpoint import Checkpoint
from phiquant.description import describe
from phiquant.errors import FormatError, ShapeError, UnsupportedError, ValueRangeError
from phiquant.reference import blas
from phiquant.reference.attention import Tables, attend, rotation
from phiquant.reference.weights import Weights
from phiquant.tensor import check_threads

OnLinearInput = Callable[[str, NDArray[np.float32]], None]

_ROLES: tuple[Role, ...] = ("attn_qkv", "attn_output", "ffn_gate_up", "ffn_down")
# Tokens that go through a matrix together: enough for BLAS, and little memory.
_TOKENS = 1024
# Weights of the head that are float32 at a time: 64 MiB.
_STRIP = 1 << 24


@dataclass(frozen=True)
class _Layer:
    """One layer's weights in float32, matrices as (rows, columns), and their source names."""

    attn_norm: NDArray[np.float32]
    attn_qkv: NDArray[np.float32]
    attn_output: NDArray[np.float32]
    ffn_norm: NDArray[np.float32]
    ffn_gate_up: NDArray[np.float32]
    ffn_down: NDArray[np.float32]
    names: dict[Role, str]


class Decoder:
    """Runs a model in float32, with one layer's weights in memory at a time.

    All sequences go through a layer before the next one is read, so that each weight is read and
    decoded once whatever the number of tokens. Hidden states are float32 arrays of shape
    (sequences, length, hidden_size).

    Parameters
    ----------
    checkpoint : Checkpoint
        A safetensors folder or a GGUF file, as :func:`phiquant.open` gives it; quantized weights
        are decoded.
    spec : ModelSpec, optional
        What :func:`phiquant.reference.describe` says by default.
    threads : int, optional
        For decoding and matrix products; one a processor by default.

    Raises
    ------
    phiquant.UnsupportedError, phiquant.FormatError
        The checkpoint is no model that phiquant can run.
    """

    def __init__(
        self, checkpoint: Checkpoint, spec: ModelSpec | None = None, *, threads: int | None = None
    ) -> None:
        self.checkpoint = checkpoint
        self.spec = describe(checkpoint) if spec is None else spec
        self.threads = check_threads(threads)
        self.weights = Weights(checkpoint, threads=self.threads)
        _check(self.spec, checkpoint)
        self._names: dict[tuple[Role, int | None], str] = {
            (tensor.role, tensor.layer): tensor.source for tensor in self.spec.tensors
        }

    @property
    def head(self) -> str:
        """Source name of the output matrix: the embedding's where they are tied."""
        return self._names["embedding" if self.spec.tied else "output", None]

    def embed(self, ids: NDArray[np.integer]) -> NDArray[np.float32]:
        """The first hidden states.

        Parameters
        ----------
        ids : integer array, shape (sequences, length)

        Raises
        ------
        phiquant.ShapeError
            ``ids`` has other axes, or is empty.
        phiquant.UsageError
            An id has no embedding.
        """
        ids = np.asarray(ids)
        if ids.ndim != 2 or not ids.size or not np.issubdtype(ids.dtype, np.integer):
            raise ShapeError("ids must be integers of shape (sequences, length), none of them 0")
        return self.weights.gather(self._names["embedding", None], ids)

    def run(
        self,
        hidden: NDArray[np.float32],
        *,
        first: int = 0,
        on_linear_input: OnLinearInput | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Go through the layers; each step yields how many are done, and the hidden states then.

        A run that stopped goes on from any pair that was yielded: ``run(hidden, first=done)``.

        Parameters
        ----------
        hidden : float32 array, shape (sequences, length, hidden_size)
            Before layer ``first``. It is overwritten only when the layer after that is done.
        first : int
        on_linear_input : callable, optional
            Called with the source name of a matrix and what it is applied to, float32 of shape
            (tokens, columns), in pieces that together are all tokens in order. The array is only
            lent.
        progress : callable, optional
            Called with the number of tokens that have gone through this layer, often.

        Yields
        ------
        done : int
        hidden : float32 array
            The run writes to it again once the next pair was yielded: copy what is to last.

        Raises
        ------
        phiquant.ValueRangeError
            The activations become NaN or infinite.
        """
        hidden = np.ascontiguousarray(hidden, np.float32)
        spare = np.empty_like(hidden)
        with np.errstate(all="ignore"):  # of a hostile file's factors
            tables = rotation(self.spec.rope, hidden.shape[1])
        for index in range(first, self.spec.layers):
            # Overflow is no warning: it is looked for, and named, where activations leave a layer.
            with blas.threads(self.threads), np.errstate(over="ignore", invalid="ignore"):
                layer = self._load(index)
                self._through(layer, hidden, spare, tables, on_linear_input, progress)
            del layer
            hidden, spare = spare, hidden
            yield index + 1, hidden

    def hidden_states(
        self, ids: NDArray[np.integer], *, on_linear_input: OnLinearInput | None = None
    ) -> NDArray[np.float32]:
        """The hidden states of token ids after the last layer: :meth:`embed`, then :meth:`run`."""
        result = self.embed(ids)
        for _, after in self.run(result, on_linear_input=on_linear_input):
            result = after
        return result

    def logit_strips(
        self, hidden: NDArray[np.float32], *, on_linear_input: OnLinearInput | None = None
    ) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """The logits, some rows of the vocabulary at a time.

        Parameters
        ----------
        hidden : float32 array, shape (..., hidden_size)
            After the last layer; any positions of it.
        on_linear_input : callable, optional
            Called once with the output matrix's source name.

        Yields
        ------
        begin : int
            First token of the strip.
        logits : float32 array, shape (tokens, rows of the strip)
        """
        width = self.spec.hidden_size
        x = _normalize(
            hidden.reshape(-1, width),
            self.weights.whole(self._names["norm", None]),
            self.spec.norm.epsilon,
        )
        if on_linear_input is not None:
            on_linear_input(self.head, x)
        step = max(1, _STRIP // width)
        for begin in range(0, self.spec.vocabulary, step):
            end = min(self.spec.vocabulary, begin + step)
            with blas.threads(self.threads):
                strip = x @ self.weights.rows(self.head, begin, end).T
            yield begin, strip

    def logits(
        self, hidden: NDArray[np.float32], *, on_linear_input: OnLinearInput | None = None
    ) -> NDArray[np.float32]:
        """All logits, shape (..., vocabulary); see :meth:`logit_strips`."""
        out = np.empty((hidden.size // self.spec.hidden_size, self.spec.vocabulary), np.float32)
        for begin, strip in self.logit_strips(hidden, on_linear_input=on_linear_input):
            out[:, begin : begin + strip.shape[1]] = strip
        return out.reshape(*hidden.shape[:-1], self.spec.vocabulary)

    def __call__(self, ids: NDArray[np.integer], *, last: int | None = None) -> NDArray[np.float32]:
        """Logits of token ids, from the embedding to the head.

        Parameters
        ----------
        ids : integer array, shape (sequences, length)
        last : int, optional
            Of the last positions only.

        Returns
        -------
        float32 array, shape (sequences, positions, vocabulary)
        """
        hidden = self.hidden_states(ids)
        return self.logits(hidden if last is None else hidden[:, -last:])

    def memory(self, sequences: int, length: int) -> int:
        """Bytes that a run holds at most, about: weights, hidden states twice, and activations."""
        spec = self.spec
        layer = sum(tensor.elements for tensor in spec.tensors if tensor.layer == 0)
        group = max(1, _TOKENS // length) * length
        qkv = (spec.attention.heads + 2 * spec.attention.kv_heads) * spec.attention.head_size
        inner = max(2 * qkv, 3 * spec.mlp.size) + 3 * spec.hidden_size
        return 4 * (layer + 2 * sequences * length * spec.hidden_size + group * inner + _STRIP * 2)

    def _load(self, index: int) -> _Layer:
        def name(role: Role) -> str:
            return self._names[role, index]

        def weight(role: Role) -> NDArray[np.float32]:
            return self.weights.whole(name(role))

        return _Layer(
            attn_norm=weight("attn_norm"),
            attn_qkv=weight("attn_qkv"),
            attn_output=weight("attn_output"),
            ffn_norm=weight("ffn_norm"),
            ffn_gate_up=weight("ffn_gate_up"),
            ffn_down=weight("ffn_down"),
            names={role: name(role) for role in _ROLES},
        )

    def _through(
        self,
        layer: _Layer,
        hidden: NDArray[np.float32],
        out: NDArray[np.float32],
        tables: Tables,
        on_linear_input: OnLinearInput | None,
        progress: Callable[[int], None] | None,
    ) -> None:
        sequences, length, width = hidden.shape
        step = max(1, _TOKENS // length)
        for begin in range(0, sequences, step):
            group = hidden[begin : begin + step].reshape(-1, width)
            result = out[begin : begin + step].reshape(-1, width)
            self._attention(layer, group, result, length, tables, on_linear_input)
            for at in range(0, len(result), _TOKENS):
                self._mlp(layer, result[at : at + _TOKENS], on_linear_input)
                if progress is not None:
                    progress(begin * length + min(len(result), at + _TOKENS))
            if not np.isfinite(result).all():
                raise ValueRangeError(
                    "makes activations that are NaN or infinite in float32",
                    file=self.checkpoint.path,
                    tensor=layer.names["ffn_down"],
                    remedy="Look for damaged weights in this layer and those before it.",
                )

    def _share(self, tasks: int, work: Callable[[int], None]) -> None:
        """Run ``work(0)`` to ``work(tasks - 1)``, each on one thread: small products of matrices
        are slower on several.
        """

        def quietly(task: int) -> None:
            with np.errstate(over="ignore", invalid="ignore"):  # of this thread
                work(task)

        with blas.threads(1):
            if self.threads == 1 or tasks == 1:
                for task in range(tasks):
                    quietly(task)
            else:
                with ThreadPoolExecutor(min(self.threads, tasks)) as pool:
                    list(pool.map(quietly, range(tasks)))

    def _attention(
        self,
        layer: _Layer,
        x: NDArray[np.float32],
        out: NDArray[np.float32],
        length: int,
        tables: Tables,
        on_linear_input: OnLinearInput | None,
    ) -> None:
        """``out = x + output(attention(qkv(norm(x))))``, shapes (sequences * length, hidden)."""
        normed = _normalize(x, layer.attn_norm, self.spec.norm.epsilon)
        if on_linear_input is not None:
            on_linear_input(layer.names["attn_qkv"], normed)
        qkv = normed @ layer.attn_qkv.T
        del normed
        shape = self.spec.attention
        mixed = np.empty((len(x), shape.heads * shape.head_size), np.float32)
        parts = min(shape.kv_heads, self.threads)
        cuts = [shape.kv_heads * part // parts for part in range(parts + 1)]

        def work(task: int) -> None:
            sequence, part = divmod(task, parts)
            rows = slice(sequence * length, (sequence + 1) * length)
            attend(qkv[rows], shape, tables, mixed[rows], cuts[part], cuts[part + 1])

        self._share(len(x) // length * parts, work)
        if on_linear_input is not None:
            on_linear_input(layer.names["attn_output"], mixed)
        np.matmul(mixed, layer.attn_output.T, out=out)
        out += x

    def _mlp(
        self, layer: _Layer, x: NDArray[np.float32], on_linear_input: OnLinearInput | None
    ) -> None:
        """``x += down(silu(gate(norm(x))) * up(norm(x)))`` in place, shape (tokens, hidden)."""
        normed = _normalize(x, layer.ffn_norm, self.spec.norm.epsilon)
        if on_linear_input is not None:
            on_linear_input(layer.names["ffn_gate_up"], normed)
        both = normed @ layer.ffn_gate_up.T
        inner = np.empty((len(x), self.spec.mlp.size), np.float32)
        step = 64  # rows that stay in a core's cache from one operation to the next

        def work(task: int) -> None:
            rows = slice(task * step, (task + 1) * step)
            _gate(both[rows], inner[rows])

        self._share(-(-len(x) // step), work)
        if on_linear_input is not None:
            on_linear_input(layer.names["ffn_down"], inner)
        x += inner @ layer.ffn_down.T


def _gate(both: NDArray[np.float32], out: NDArray[np.float32]) -> None:
    """``out = silu(gate) * up``, of gate and up side by side."""
    gate, up = both[:, : out.shape[1]], both[:, out.shape[1] :]
    np.negative(gate, out=out)
    np.exp(out, out=out)  # infinite for a very negative gate: the result is -0
    out += np.float32(1)
    np.divide(gate, out, out=out)
    out *= up


def _normalize(
    x: NDArray[np.float32], weight: NDArray[np.float32], epsilon: float
) -> NDArray[np.float32]:
    """RMSNorm of each row, shape (tokens, hidden)."""
    mean = np.einsum("ij,ij->i", x, x)[:, None] / np.float32(x.shape[1])
    scaled: NDArray[np.float32] = x * (np.float32(1) / np.sqrt(mean + np.float32(epsilon)))
    scaled *= weight
    return scaled


def _check(spec: ModelSpec, checkpoint: Checkpoint) -> None:
    """What the arithmetic relies on; configs are checked for it, GGUF's metadata are not."""
    rope, size = spec.rope, spec.attention.head_size
    if not (0 < rope.dimensions <= size and rope.dimensions % 2 == 0):
        raise FormatError(
            f"makes {rope.dimensions} of a head's {size} dimensions rotate", file=checkpoint.path
        )
    if spec.norm.kind != "rms" or spec.mlp.activation != "silu":
        raise UnsupportedError("has another norm or activation", file=checkpoint.path)
