"""Matrices in ONNX graphs: their codes, scales and zero points, and the nodes that apply them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from phiquant.architectures import TensorRole
from phiquant.codecs import affine_name
from phiquant.onnx import Node, Tensor, TensorInfo
from phiquant.targets.onnx_classic import Classic
from phiquant.targets.onnx_options import Grid, Settings

DTYPES = {"f32": "float32", "f16": "float16"}
CAST_TO = {"f32": 1, "f16": 10, "int32": 6, "int64": 7}
MICROSOFT = "com.microsoft"


@dataclass(frozen=True)
class Stored:
    """A constant in the external file.

    Attributes
    ----------
    name, dtype, shape
        As the graph has it.
    source : str or None
        The checkpoint's tensor that it is made from; None where ``literal`` holds its bytes.
    codec : str
    plane : int
        Of the codec: codes, scales or zero points.
    rows : tuple of int, or None
        Only these rows of the source.
    weights : int
        How many of the model's weights the codes are.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    source: str | None
    codec: str
    plane: int = 0
    rows: tuple[int, int] | None = None
    literal: bytes = field(default=b"", repr=False)
    weights: int = 0


class Matrices:
    """Nodes and constants of a graph under construction.

    Parameters
    ----------
    settings : Settings
    grids : mapping
        Of every matrix by source name; None for floats.
    ranges : mapping
        Of the classic static preset: the least and the largest value that each matrix is applied
        to.
    """

    def __init__(
        self,
        settings: Settings,
        grids: Mapping[str, Grid | None],
        ranges: Mapping[str, tuple[float, float]],
    ) -> None:
        self.settings = settings
        self.grids = grids
        self.float = DTYPES[settings.activations]
        self.nodes: list[Node] = []
        self.stored: list[Stored] = []
        self.constants: dict[str, Tensor] = {}
        self.values: list[TensorInfo] = []
        static = settings.classic == "static"
        self.classic = Classic(self._node, self.constants, ranges if static else None)

    def _node(
        self,
        op: str,
        name: str,
        inputs: Sequence[str],
        outputs: Sequence[str] | None = None,
        domain: str = "",
        **attributes: Any,
    ) -> str:
        outputs = outputs or [f"{name}/output_0"]
        self.nodes.append(Node(op, inputs, outputs, name, domain, attributes))
        return outputs[0]

    def _known(self, value: str, width: int) -> str:
        """Say the type of what ONNX Runtime's own operators give: no other tool infers it."""
        shape = ("batch_size", "sequence_length", width)
        self.values.append(TensorInfo(value, self.float, shape))
        return value

    def _integers(self, value: int | list[int]) -> str:
        """A small constant, which stays in the model's file for shape inference."""
        name = f"/model/constants/INT64/{value}"
        self.constants[name] = Tensor.of(name, np.array(value, np.int64))
        return name

    def _matmul(
        self,
        name: str,
        weight: str,
        x: str,
        tensor: TensorRole,
        rows: tuple[int, int] | None = None,
        outputs: Sequence[str] | None = None,
    ) -> str:
        """``x`` times the matrix's (or some of its rows') transpose."""
        grid = self.grids[tensor.source]
        count = tensor.shape[0] if rows is None else rows[1] - rows[0]
        columns = tensor.shape[1]
        outputs = outputs or [f"{name}/output_0"]
        if grid is None:
            codec = f"{self.settings.activations},layout=transposed"
            self.stored.append(
                Stored(
                    *(weight, self.float, (columns, count), tensor.source, codec, 0, rows),
                    weights=count * columns,
                )
            )
            return self._node("MatMul", name, [x, weight], outputs)
        if self.settings.classic:
            codes, scales = self._eight_bits(weight, tensor, rows)
            return self.classic.product(name, x, tensor.source, codes, scales, outputs)
        if self.settings.qdq:
            inputs = self._dequantized(weight, tensor, grid, rows, (columns, count))
            unpacked = self._node(
                "DequantizeLinear",
                f"{name}_dequant",
                inputs,
                axis=0,
                block_size=grid.block,
            )
            return self._node("MatMul", name, [x, unpacked], outputs)
        inputs = [x, *self._packed(weight, tensor, grid, rows)]
        level = {"accuracy_level": self.settings.accuracy} if self.settings.accuracy else {}
        if outputs[0] != "logits":
            self._known(outputs[0], count)
        return self._node(
            "MatMulNBits",
            f"{name}_Q{grid.bits}",
            inputs,
            outputs,
            MICROSOFT,
            K=columns,
            N=count,
            **level,
            bits=grid.bits,
            block_size=grid.block,
        )

    def _packed(
        self, weight: str, tensor: TensorRole, grid: Grid, rows: tuple[int, int] | None
    ) -> list[str]:
        """Codes, scales and zero points as MatMulNBits has them."""
        count = tensor.shape[0] if rows is None else rows[1] - rows[0]
        groups = -(-tensor.shape[1] // grid.block)
        codec = self._codec(grid)
        packed = (count, groups, grid.block * grid.bits // 8)
        planes = [
            Stored(
                *(f"{weight}_Q{grid.bits}", "uint8", packed, tensor.source, codec, 0, rows),
                weights=count * tensor.shape[1],
            ),
            self._scales(f"{weight}_scales", (count, groups), tensor, codec, rows),
        ]
        if not grid.symmetric:
            shape = (count, -(-groups * grid.bits // 8))
            name = f"{weight}_zero_points"
            planes.append(Stored(name, "uint8", shape, tensor.source, codec, 2, rows))
        self.stored += planes
        names = [plane.name for plane in planes]
        names[1] = self._as_activations(names[1])
        return names

    def _dequantized(
        self,
        weight: str,
        tensor: TensorRole,
        grid: Grid,
        rows: tuple[int, int] | None,
        shape: tuple[int, int],
    ) -> list[str]:
        """Codes, scales and zero points as DequantizeLinear has them, columns first."""
        codec = self._codec(grid, layout="transposed")
        dtype = f"{'' if grid.symmetric else 'u'}int{grid.bits}"
        groups = (shape[0] // grid.block, shape[1])
        planes = [
            Stored(
                *(f"{weight}_Q{grid.bits}", dtype, shape, tensor.source, codec, 0, rows),
                weights=shape[0] * shape[1],
            ),
            self._scales(f"{weight}_scales", groups, tensor, codec, rows),
        ]
        if not grid.symmetric:
            name = f"{weight}_zero_points"
            planes.append(Stored(name, dtype, groups, tensor.source, codec, 2, rows))
        self.stored += planes
        names = [plane.name for plane in planes]
        names[1] = self._as_activations(names[1])
        return names

    def _codec(self, grid: Grid, layout: str | None = None) -> str:
        scales = None if self.settings.scales == "f32" else self.settings.scales
        # Scales of asymmetric codes are positive by either rule.
        rule = None if self.settings.rule == "ort" or not grid.symmetric else self.settings.rule
        return affine_name(grid.codec, rule=rule, scales=scales, layout=layout)

    def _eight_bits(
        self, weight: str, tensor: TensorRole, rows: tuple[int, int] | None
    ) -> tuple[str, str]:
        """Codes by columns, and a scale a row."""
        grid = self.grids[tensor.source]
        assert grid is not None
        columns = tensor.shape[1]
        count = tensor.shape[0] if rows is None else rows[1] - rows[0]
        codec = self._codec(grid, layout="transposed")
        codes = Stored(
            *(f"{weight}_Q8", "int8", (columns, count), tensor.source, codec, 0, rows),
            weights=columns * count,
        )
        scales = Stored(f"{weight}_scales", "float32", (count,), tensor.source, codec, 1, rows)
        # The output matrix may serve as the embedding's table.
        if codes.name not in {item.name for item in self.stored}:
            self.stored += [codes, scales]
        return codes.name, scales.name

    def _scales(
        self,
        name: str,
        shape: tuple[int, int],
        tensor: TensorRole,
        codec: str,
        rows: tuple[int, int] | None,
    ) -> Stored:
        dtype = DTYPES[self.settings.scales]
        return Stored(name, dtype, shape, tensor.source, codec, 1, rows)

    def _as_activations(self, scales: str) -> str:
        """Scales in the activations' type: ONNX Runtime widens them once, when it loads."""
        if self.settings.scales == self.settings.activations:
            return scales
        name = f"/{scales}/Cast"
        return self._node("Cast", name, [scales], to=CAST_TO[self.settings.activations])
