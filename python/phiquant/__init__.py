"""phiquant: Phi models quantized for devices, with the bits of each format's own tool."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from phiquant._core import version as __version__
from phiquant.checkpoint import Checkpoint, open_checkpoint
from phiquant.codecs import Codec, all_codecs
from phiquant.convert import convert, plan
from phiquant.errors import (
    ChangedError,
    FormatError,
    InternalError,
    IoError,
    PhiquantError,
    ShapeError,
    UnsupportedError,
    UsageError,
    ValueRangeError,
)
from phiquant.plan import Plan
from phiquant.report import Report
from phiquant.tensor import QuantizedTensor, quantize

if TYPE_CHECKING:
    from phiquant import gguf, onnx, safetensors
    from phiquant.advice import advise
    from phiquant.measure import calibrate, read_importance
    from phiquant.registry import models
    from phiquant.simulation import Simulation, simulate

open = open_checkpoint

__all__ = [
    "ChangedError",
    "Checkpoint",
    "Codec",
    "FormatError",
    "InternalError",
    "IoError",
    "PhiquantError",
    "Plan",
    "QuantizedTensor",
    "Report",
    "ShapeError",
    "Simulation",
    "UnsupportedError",
    "UsageError",
    "ValueRangeError",
    "__version__",
    "advise",
    "all_codecs",
    "calibrate",
    "convert",
    "gguf",
    "models",
    "onnx",
    "open",
    "plan",
    "quantize",
    "read_importance",
    "safetensors",
    "simulate",
]


def __getattr__(name: str) -> Any:
    if name == "advise":
        from phiquant.advice import advise

        return advise
    # Serializers and the forward pass are for few: they are loaded when they are asked for.
    if name in ("gguf", "onnx", "safetensors"):
        return import_module(f"phiquant.{name}")
    if name in ("calibrate", "read_importance"):
        from phiquant import measure

        return getattr(measure, name)
    if name == "models":
        from phiquant.registry import models

        return models
    if name in ("Simulation", "simulate"):
        from phiquant import simulation

        return getattr(simulation, name)
    raise AttributeError(f"module 'phiquant' has no attribute {name!r}")
