"""Measurements of a model's activations: calibration, and the importance matrices it makes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from phiquant.measure.imatrix import (
    Activations,
    Importance,
    read_importance,
    write_importance,
)

if TYPE_CHECKING:
    from phiquant.measure.calibration import Calibration, SquaredSums, calibrate

__all__ = [
    "Activations",
    "Calibration",
    "Importance",
    "SquaredSums",
    "calibrate",
    "read_importance",
    "write_importance",
]


def __getattr__(name: str) -> Any:
    # Whoever only reads importance files needs no forward pass.
    if name in ("Calibration", "SquaredSums", "calibrate"):
        from phiquant.measure import calibration

        return getattr(calibration, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
