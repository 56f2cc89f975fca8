"""NNCF's AWQ without data: scales that make all columns of a matrix as large on average."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from phiquant.architectures import ModelSpec
from phiquant.architectures.spec import TensorRole
from phiquant.checkpoint import Checkpoint

_Vector = NDArray[np.float32]

# In what float NNCF keeps scaled weights before it compresses them, by the source's type. It has
# OpenVINO round to bfloat16, which is not quite to the nearest.
_SCALED_IN: Final = {"bf16": "bf16,rule=nncf", "f16": "f16"}
_LEAST: Final = np.finfo(np.float32).eps
# Where scales are undone in rows, no row becomes so many times smaller or larger than the median.
_FURTHEST: Final = np.float32(64)


class Scaling:
    """What AWQ changes of a model before it is encoded, by source name.

    With quality "reference" everything is as in nncf 3.4 (awq.py): columns are multiplied by one
    over their mean magnitude, and the graph multiplies the matrix' inputs by the inverse. With
    "best" the inverse goes into the rows of the up projection, which makes these inputs, and both
    stay about as large as they were: the scales of small rows have fewer digits as halves.

    Parameters
    ----------
    magnitudes : mapping of str to float32 array, shape (columns,)
        The mean magnitude of the columns of each down projection that is scaled.
    best : bool

    Attributes
    ----------
    columns, rows : dict of str to float32 array
        What the columns of down projections, and (``best``) the rows of gate and up, are
        multiplied by.
    input_scales : dict of str to float32 array
        What the graph multiplies the inputs of down projections by.
    """

    def __init__(
        self, checkpoint: Checkpoint, spec: ModelSpec, magnitudes: Mapping[str, _Vector], best: bool
    ) -> None:
        self.best = best
        self.columns: dict[str, _Vector] = {}
        self.rows: dict[str, _Vector] = {}
        self.input_scales: dict[str, _Vector] = {}
        self._types = {name: checkpoint.entries[name].type for name in magnitudes}
        ups = {role.layer: role.source for role in spec.tensors if role.role == "ffn_gate_up"}
        for role in spec.tensors:
            if role.source not in magnitudes:
                continue
            scale = np.float32(1) / np.maximum(magnitudes[role.source], _LEAST)
            if best:
                scale /= np.median(scale)
                scale = np.clip(scale, 1 / _FURTHEST, _FURTHEST)
            undone = np.float32(1) / scale
            self.columns[role.source] = scale
            if best:
                self.rows[ups[role.layer]] = np.concatenate([np.ones_like(undone), undone])
            else:
                self.input_scales[role.source] = undone

    def scaled_in(self, source: str) -> str | None:
        """The float that scaled weights are rounded to; None where they are not."""
        return None if self.best else _SCALED_IN.get(self._types.get(source, ""))

    def importance(self, role: TensorRole, weights: _Vector | None) -> _Vector | None:
        """Weights of the columns' errors, such that those of the source's columns are weighed."""
        scale = self.columns.get(role.source)
        if scale is None or not self.best:
            return weights
        undone: _Vector = np.float32(1) / (scale * scale)
        return undone if weights is None else weights * undone
