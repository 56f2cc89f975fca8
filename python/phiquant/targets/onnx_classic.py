"""Products of 8-bit integers in ONNX graphs, as onnxruntime.quantization writes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from phiquant.onnx import Tensor

# ONNX's number of the type.
_FLOAT = 1


class MakeNode(Protocol):
    """Adds a node to a graph, and gives the name of its first output."""

    def __call__(
        self,
        op: str,
        name: str,
        inputs: Sequence[str],
        outputs: Sequence[str] | None = None,
        domain: str = "",
        **attributes: Any,
    ) -> str: ...


class Classic:
    """Nodes for matrices of 8-bit integers by columns, with a scale a row.

    Parameters
    ----------
    node : callable
    constants : dict of str to Tensor
        Small constants of the graph by name; those of activations' grids are added.
    ranges : mapping of str to (float, float), or None
        By a matrix's source name, the least and the largest value that it is applied to: as
        quantize_static has it. None finds them in each run, as quantize_dynamic.
    """

    def __init__(
        self,
        node: MakeNode,
        constants: dict[str, Tensor],
        ranges: Mapping[str, tuple[float, float]] | None,
    ) -> None:
        self._node = node
        self._constants = constants
        self._ranges = ranges
        # What enters several matrices is rounded once.
        self._rounded: dict[str, list[str]] = {}

    def product(
        self, name: str, x: str, source: str, codes: str, scales: str, outputs: Sequence[str]
    ) -> str:
        """Add the product of ``x``, rounded to 8 bits with one scale, and a matrix's transpose.

        Parameters
        ----------
        name, x : str
            The product's node, and the value that the matrix is applied to.
        source : str
            The matrix's name in the source.
        codes, scales : str
            Constants: int8 of shape (columns, rows), and float32 of shape (rows,).
        outputs : sequence of str
        """
        if self._ranges is not None:
            rounded = self._by_range(x, *self._ranges[source])
            weights = self._node("DequantizeLinear", f"{name}_dequant", [codes, scales], axis=1)
            return self._node("MatMul", name, [rounded, weights], outputs)
        quantized, scale, zero = self._by_run(x)
        whole = self._node("MatMulInteger", f"{name}_quant", [quantized, codes, zero])
        real = self._node("Cast", f"{name}_cast", [whole], to=_FLOAT)
        both = self._node("Mul", f"{name}_scale", [scale, scales])
        return self._node("Mul", f"{name}_rescale", [real, both], outputs)

    def lookup(self, name: str, ids: str, codes: str, scales: str) -> str:
        """Add the look-up of ids' rows in such a matrix: of tied embeddings, stored once."""
        columns = self._node("Gather", f"{name}/Gather", [codes, ids], axis=1)
        rows = self._node("Transpose", f"{name}/Transpose", [columns], perm=[1, 2, 0])
        whole = self._node("Cast", f"{name}/Cast", [rows], to=_FLOAT)
        steps = self._node("Gather", f"{name}/Gather_1", [scales, ids], axis=0)
        last = f"{name}/last_axis"
        self._constants[last] = Tensor.of(last, np.array([-1], np.int64))
        steps = self._node("Unsqueeze", f"{name}/Unsqueeze", [steps, last])
        return self._node("Mul", f"{name}/Mul", [whole, steps])

    def _by_run(self, x: str) -> list[str]:
        """Codes, scale and zero point by the range of each run."""
        if x not in self._rounded:
            base = x.removesuffix("/output_0")
            names = [f"{x}_{what}" for what in ("quantized", "scale", "zero_point")]
            self._node("DynamicQuantizeLinear", f"{base}_quantize", [x], names)
            self._rounded[x] = names
        return self._rounded[x]

    def _by_range(self, x: str, low: float, high: float) -> str:
        """``x`` after rounding to the numbers that 8 bits hold within a range."""
        if x not in self._rounded:
            base = x.removesuffix("/output_0")
            grid = []
            for what, value in zip(("scale", "zero_point"), _grid_of(low, high), strict=True):
                own = f"{x}_{what}"
                self._constants[own] = Tensor.of(own, np.asarray(value))
                grid.append(own)
            quantized = self._node("QuantizeLinear", f"{base}_QuantizeLinear", [x, *grid])
            self._rounded[x] = [
                self._node("DequantizeLinear", f"{base}_DequantizeLinear", [quantized, *grid])
            ]
        return self._rounded[x][0]


def _grid_of(low: float, high: float) -> tuple[np.float32, np.uint8]:
    """Scale and zero point of activations: compute_scale_zp of onnxruntime.quantization."""
    low, high = min(low, 0.0), max(high, 0.0)
    step = (high - low) / 255
    if step < np.finfo(np.float32).tiny:
        return np.float32(1), np.uint8(0)
    return np.float32(step), np.uint8(np.rint(-low / step))
