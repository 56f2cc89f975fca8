"""Measurements of a model's activations: calibration, and the importance matrices it makes."""

from __future__ import annotations

from phiquant.measure.calibration import Calibration, SquaredSums, calibrate
from phiquant.measure.imatrix import (
    Activations,
    Importance,
    read_importance,
    write_importance,
)

__all__ = [
    "Activations",
    "Calibration",
    "Importance",
    "SquaredSums",
    "calibrate",
    "read_importance",
    "write_importance",
]
