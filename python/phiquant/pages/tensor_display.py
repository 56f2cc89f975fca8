"""What notebooks show of one quantized tensor, and of an open checkpoint."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from phiquant.inspection import layers_apart
from phiquant.pages.distribution import histogram
from phiquant.pages.markup import Html, join, table, tag
from phiquant.pages.page import display
from phiquant.texts import bytes_text

if TYPE_CHECKING:
    from phiquant.checkpoint import Checkpoint, TensorEntry
    from phiquant.tensor import QuantizedTensor

# Weights that are decoded for the picture, about.
_DECODED = 1 << 18
# Rows of the table of a checkpoint's tensors.
_ROWS = 60


def tensor_display(tensor: QuantizedTensor) -> str:
    """Codec, shape and size, and a histogram of decoded weights."""
    codec = tensor.codec
    facts = [
        ("shape", " × ".join(map(str, tensor.shape))),
        ("size", f"{bytes_text(tensor.nbytes)}, {tensor.bits_per_weight:.4g} bits per weight"),
    ]
    if codec.affine:
        kind = "symmetric" if codec.affine.symmetric else "asymmetric"
        group = codec.affine.group or "a whole row"
        facts.append(("grid", f"{codec.affine.bits} bits, {kind}, groups of {group}"))
    elif codec.grid:
        facts.append(
            ("grid", f"{codec.grid}; blocks of {codec.block_values}, scales of "
             f"{codec.sub_block_values}")
        )  # fmt: skip
    return display(
        tag("p", tag("b", "QuantizedTensor "), tag("code", codec.name)),
        tag("dl", (join(tag("dt", name), tag("dd", value)) for name, value in facts),
            class_="pq-facts"),
        _weights(tensor),
    )  # fmt: skip


def _weights(tensor: QuantizedTensor) -> Html | None:
    """A histogram of the first rows' decoded weights."""
    if not tensor.codec.grid or 0 in tensor.shape:
        return None
    values = _first_rows(tensor)
    finite = values[np.isfinite(values)]
    limit = float(np.quantile(np.abs(finite), 0.998)) * 1.08 if finite.size else 0.0
    rms = math.sqrt(float(np.mean(np.square(finite, dtype=np.float64)))) if finite.size else 0.0
    whole = values.size == math.prod(tensor.shape)
    words = "decoded weights" if whole else f"the first {values.size} decoded weights"
    return tag(
        "figure",
        tag(
            "svg",
            tag("title", f"Histogram of {words}"),
            histogram(values, None, limit or 1.0, 0),
            viewBox="0 0 340 122",
            role="img",
            class_="pq-svg",
        ),
        tag("p", f"{words}, root mean square {rms:.4g}", class_="pq-note"),
    )


def _first_rows(tensor: QuantizedTensor) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """Some decoded rows; all of them of codecs with planes, whose rows share bytes."""
    from phiquant.tensor import QuantizedTensor

    if tensor.codec.has_planes or len(tensor.shape) < 2:
        return tensor.dequantize().reshape(-1)
    rows = max(1, _DECODED // tensor.shape[-1])
    blocks = tensor.data.reshape(-1, tensor.data.shape[-1])[:rows]
    piece = QuantizedTensor(
        np.ascontiguousarray(blocks), (len(blocks), tensor.shape[-1]), tensor.codec
    )
    return piece.dequantize().reshape(-1)


def checkpoint_display(checkpoint: Checkpoint) -> str:
    """Format, model, and tensors, those of all layers in one row."""
    groups: dict[tuple[str, str, tuple[int, ...]], list[TensorEntry]] = {}
    for entry in checkpoint.entries.values():
        key = (layers_apart(entry.name), entry.type, entry.shape)
        groups.setdefault(key, []).append(entry)
    rows = [
        (
            name,
            " × ".join(map(str, shape)),
            str(len(members)),
            type_name,
            bytes_text(sum(entry.nbytes for entry in members)),
        )
        for (name, type_name, shape), members in groups.items()
    ]
    weights = sum(math.prod(entry.shape) for entry in checkpoint.entries.values())
    bits = f", {8 * checkpoint.nbytes / weights:.2f} bits per weight" if weights else ""
    files = f"{len(checkpoint.files)} file{'s' * (len(checkpoint.files) != 1)}"
    return display(
        tag("p", tag("b", checkpoint.name), " ", tag("code", str(checkpoint.path))),
        tag(
            "p",
            f"{checkpoint.format}, {files}, {len(checkpoint)} tensors, {weights / 1e6:.4g} M "
            f"weights, {bytes_text(checkpoint.nbytes)}{bits}",
        ),
        _model(checkpoint),
        table(("tensor", "shape", "count", "type", "size"), rows[:_ROWS], "lrrlr"),
        tag("p", f"and {len(rows) - _ROWS} more rows", class_="pq-note")
        if len(rows) > _ROWS
        else None,
    )


def _model(checkpoint: Checkpoint) -> Html | None:
    """What the model is, where phiquant knows it."""
    from phiquant.description import describe
    from phiquant.errors import PhiquantError

    try:
        spec = describe(checkpoint)
    except PhiquantError:
        return None
    heads = f"{spec.attention.heads} heads"
    if spec.attention.kv_heads != spec.attention.heads:
        heads += f" ({spec.attention.kv_heads} of keys and values)"
    return tag(
        "p",
        f"{spec.layers} layers of {spec.hidden_size}, {heads}, MLP {spec.mlp.size}, "
        f"{spec.vocabulary} tokens, context {spec.context}",
        ", embedding and output tied" if spec.tied else None,
    )
