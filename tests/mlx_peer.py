"""mlx and mlx-lm themselves, on processors: quantized planes of a matrix, and converted folders."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

try:
    import mlx.core as mx
except ImportError as error:
    pytest.fail(f"{error}: pip install 'phiquant[mlx]'", pytrace=False)

mx.set_default_device(mx.cpu)

#: NumPy's and mlx's names of the types that weights have.
TYPES = {
    "f32": (np.dtype(np.float32), mx.float32),
    "f16": (np.dtype(np.float16), mx.float16),
    "bf16": (np.dtype(ml_dtypes.bfloat16), mx.bfloat16),
}


def to_mlx(values: np.ndarray) -> Any:
    """An array of float32, float16 or bfloat16 as mlx's own, bit for bit."""
    if values.dtype == np.float32:
        return mx.array(values)
    kind = mx.float16 if values.dtype == np.float16 else mx.bfloat16
    return mx.array(values.view(np.uint16)).view(kind)


def raw(array: Any) -> bytes:
    """The bytes of an mlx array."""
    words = {1: mx.uint8, 2: mx.uint16, 4: mx.uint32}[array.itemsize]
    return np.array(array.view(words)).tobytes()


def quantized(values: np.ndarray, **settings: Any) -> list[bytes]:
    """The planes of ``mx.quantize``: codes, scales and (affine) biases."""
    return [raw(plane) for plane in mx.quantize(to_mlx(values), **settings)]


def groups(length: int, kind: str, count: int = 60) -> np.ndarray:
    """Groups that quantizers get wrong: zeros, constants, one sign, ties, tiny and huge values.

    Shape (groups, length). None is below float32's normal numbers: there mlx's exponents of mxfp4
    and mxfp8 wrap around, and phiquant's do not.
    """
    random = np.random.default_rng(7)
    rows = [np.zeros(length), np.full(length, -0.0), np.full(length, 0.3), np.full(length, -0.3)]
    rows += [np.full(length, 1e-30), np.full(length, -1e-9), np.linspace(-1, 1, length)]
    for scale in (1e-33, 1e-30, 1e-12, 1e-8, 1e-7, 1e-6, 1e-3, 1.0, 100.0, 1e4):
        noise = random.normal(size=length) * scale
        rows += [noise, abs(noise), -abs(noise), scale + noise / 30, -(scale + noise / 30)]
    spike = np.zeros(length)
    spike[5] = 1.0
    rows += [spike, -spike, spike - spike[::-1], spike - 0.25]
    for _ in range(count):
        rows.append(random.normal(size=length) * 0.02)
        rows.append(random.standard_t(3, size=length) * 0.02)
        rows.append(random.integers(-7, 8, size=length) * 0.125)  # ties
    return np.clip(np.stack(rows), -65504, 65504).astype(TYPES[kind][0])


def tensors(folder: Path) -> dict[str, bytes]:
    """Type, shape and bytes of every tensor of a folder, by name."""
    import json

    found = {}
    for path in sorted(folder.glob("model*.safetensors")):
        content = path.read_bytes()
        (length,) = struct.unpack("<Q", content[:8])
        header: Mapping[str, Any] = json.loads(content[8 : 8 + length])
        for name, entry in header.items():
            if name != "__metadata__":
                begin, end = entry["data_offsets"]
                facts = f"{entry['dtype']} {entry['shape']}".encode()
                found[name] = facts + content[8 + length + begin : 8 + length + end]
    return found
