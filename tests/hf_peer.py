"""compressed-tensors and torch themselves, on processors: a matrix's tensors as they publish them."""

from __future__ import annotations

import sys
import warnings
from typing import Any

import ml_dtypes
import numpy as np
import pytest

if sys.version_info < (3, 11):
    pytest.skip("transformers 5 needs Python 3.11", allow_module_level=True)
try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, of deprecated parts of torch
        import torch
        from compressed_tensors.compressors import BaseCompressor
        from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
        from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam
except ImportError as error:
    pytest.fail(f"{error}: pip install 'phiquant[hf]'", pytrace=False)

#: NumPy's and torch's names of the types that weights have.
TYPES = {
    "f32": (np.dtype(np.float32), torch.float32),
    "f16": (np.dtype(np.float16), torch.float16),
    "bf16": (np.dtype(ml_dtypes.bfloat16), torch.bfloat16),
}


def to_torch(values: np.ndarray) -> torch.Tensor:
    """An array of float32, float16 or bfloat16 as torch's own, bit for bit."""
    if values.dtype == np.float32:
        return torch.from_numpy(values.copy())
    kind = torch.float16 if values.dtype == np.float16 else torch.bfloat16
    return torch.from_numpy(values.view(np.int16).copy()).view(kind)


def raw(tensor: torch.Tensor) -> bytes:
    """The bytes of a tensor."""
    return tensor.flatten().contiguous().view(torch.uint8).numpy().tobytes()


def scheme(bits: int, symmetric: bool, group: int | None, kind: str = "int") -> QuantizationScheme:
    """How weights are held; a group of None is a whole row."""
    settings: dict[str, Any] = {"strategy": "channel"}
    if group is not None:
        settings = {"strategy": "group", "group_size": group}
    weights = QuantizationArgs(num_bits=bits, type=kind, symmetric=symmetric, **settings)
    return QuantizationScheme(targets=["Linear"], weights=weights)


def powers_of_two() -> QuantizationScheme:
    """MXFP4: groups of 32 4-bit floats."""
    settings = {"scale_dtype": torch.uint8, "zp_dtype": torch.uint8}
    weights = QuantizationArgs(
        num_bits=4, type="float", symmetric=True, strategy="group", group_size=32, **settings
    )
    return QuantizationScheme(targets=["Linear"], weights=weights)


def eight_bit_scales() -> QuantizationScheme:
    """NVFP4: groups of 16 4-bit floats with an 8-bit one, under a scale of the tensor."""
    weights = QuantizationArgs(
        num_bits=4,
        type="float",
        symmetric=True,
        strategy="tensor_group",
        group_size=16,
        scale_dtype=torch.float8_e4m3fn,
        zp_dtype=torch.float8_e4m3fn,
    )
    return QuantizationScheme(targets=["Linear"], weights=weights)


def compressed(values: np.ndarray, how: QuantizationScheme, format: str) -> dict[str, torch.Tensor]:
    """The tensors that compressed-tensors makes of a matrix, round to nearest.

    Extremes of each group as llm-compressor's observer of weights takes them (observers/min_max.py:
    the smallest and the largest value), everything else by compressed-tensors itself.
    """
    weight = to_torch(values)
    args = how.weights
    grouped = weight.unflatten(-1, (-1, args.group_size or weight.shape[-1]))
    spread = None
    if args.strategy == "tensor_group":
        spread = generate_gparam(weight.amin(), weight.amax())
    scale, zero_point = calculate_qparams(grouped.amin(-1), grouped.amax(-1), args, spread)
    state = {"weight": weight, "weight_scale": scale, "weight_zero_point": zero_point}
    if spread is not None:
        state["weight_global_scale"] = spread
    return BaseCompressor.get_value_from_registry(format).compress(state, how)


def decompressed(
    tensors: dict[str, torch.Tensor], how: QuantizationScheme, format: str
) -> np.ndarray:
    """The matrix that compressed-tensors makes of them again, in the scales' type."""
    made = BaseCompressor.get_value_from_registry(format).decompress(tensors, how)
    return made["weight"].float().numpy()


def groups(length: int, kind: str, count: int = 60) -> np.ndarray:
    """Groups that quantizers get wrong: zeros, constants, one sign, ties, tiny and huge values.

    Shape (groups, length).
    """
    random = np.random.default_rng(7)
    rows = [np.zeros(length), np.full(length, -0.0), np.full(length, 0.3), np.full(length, -0.3)]
    rows += [np.full(length, 1e-30), np.full(length, -1e-9), np.linspace(-1, 1, length)]
    for scale in (1e-41, 1e-38, 1e-30, 1e-12, 1e-7, 1e-6, 1e-3, 1.0, 100.0, 1e4):
        noise = random.normal(size=length) * scale
        rows += [noise, abs(noise), -abs(noise), scale + noise / 30, -(scale + noise / 30)]
    spike = np.zeros(length)
    spike[5] = 1.0
    rows += [spike, -spike, spike - spike[::-1], spike - 0.25]
    for _ in range(count):
        rows.append(random.normal(size=length) * 0.02)
        rows.append(random.standard_t(3, size=length) * 0.02)
        rows.append(random.integers(-7, 8, size=length) * 0.125)  # ties
    # Rows for whole words of zero points.
    rows += [np.ones(length)] * (-len(rows) % 32)
    return np.clip(np.stack(rows), -30000, 30000).astype(TYPES[kind][0])
