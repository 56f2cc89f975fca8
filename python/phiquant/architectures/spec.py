"""ModelSpec: one neutral description of a decoder, which every target is made from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Role = Literal[
    "embedding",
    "output",
    "norm",
    "attn_norm",
    "attn_qkv",
    "attn_output",
    "ffn_norm",
    "ffn_gate_up",
    "ffn_down",
]


@dataclass(frozen=True)
class TensorRole:
    """One tensor of the checkpoint and what it does in the model.

    Attributes
    ----------
    role : str
        ``attn_qkv`` holds queries, keys and values in that order along its rows, ``ffn_gate_up``
        the gate and then the up projection. ``norm`` is the last norm, before the output.
    layer : int or None
        Index of the decoder layer; None for the tensors outside the layers.
    source : str
        The tensor's name in the checkpoint.
    shape : tuple of int
        Rows, columns of a matrix that is applied as ``x @ w.T``; or the length of a vector.
    """

    role: Role
    layer: int | None
    source: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Norm:
    """Normalization before attention, before the MLP and before the output."""

    kind: Literal["rms"]
    epsilon: float


@dataclass(frozen=True)
class LongRope:
    """LongRoPE (arXiv:2402.13753): one divisor of the frequency for every pair of dimensions.

    Attributes
    ----------
    short_factors, long_factors : tuple of float, rotary dimensions / 2 each
        The short ones apply to sequences up to the rope's original context, the long ones beyond
        it.
    attention_factor : float
        Multiplies sines and cosines, in both cases.
    """

    short_factors: tuple[float, ...]
    long_factors: tuple[float, ...]
    attention_factor: float


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding of the first dimensions of each head, in halves (as in GPT-NeoX).

    Attributes
    ----------
    base : float
        The wave lengths are ``2 pi base ** (2 i / dimensions)`` tokens.
    dimensions : int
        How many of a head's dimensions rotate; even.
    original_context : int
        Context in tokens that the model was first trained with.
    scaling : LongRope or None
        None where the frequencies are used as they are.
    """

    base: float
    dimensions: int
    original_context: int
    scaling: LongRope | None


@dataclass(frozen=True)
class Attention:
    """Causal grouped-query attention without biases.

    Attributes
    ----------
    window : int or None
        How many positions each token sees, itself included, in every layer; None for all before it.
    """

    heads: int
    kv_heads: int
    head_size: int
    window: int | None

    @property
    def group(self) -> int:
        """How many query heads share one key and value head."""
        return self.heads // self.kv_heads


@dataclass(frozen=True)
class Mlp:
    """Gated MLP: ``down(activation(gate(x)) * up(x))``, of ``size`` hidden units."""

    size: int
    activation: Literal["silu"]


@dataclass(frozen=True)
class ModelSpec:
    """Neutral description of one decoder; no consumer asks for more than stands here.

    Attributes
    ----------
    context : int
        Longest sequence in tokens that the model is made for.
    tied : bool
        The output layer reads the embedding table; then no tensor has the role ``output``.
    dtype : str or None
        The dtype that the source says its weights have (``bfloat16`` ...). Headers know better.
    tensors : tuple of TensorRole
        Every tensor that the model needs: embedding, layers in order, norm, output.
    """

    hidden_size: int
    layers: int
    vocabulary: int
    context: int
    norm: Norm
    attention: Attention
    rope: Rope
    mlp: Mlp
    tied: bool
    dtype: str | None
    tensors: tuple[TensorRole, ...]

    @property
    def parameters(self) -> int:
        """Number of weights in all tensors."""
        return sum(tensor.elements for tensor in self.tensors)

    def by_source(self) -> dict[str, TensorRole]:
        """The tensors by their names in the checkpoint."""
        return {tensor.source: tensor for tensor in self.tensors}
