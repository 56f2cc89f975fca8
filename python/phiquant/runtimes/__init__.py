"""The programs that run phiquant's outputs, one a file; see :mod:`phiquant.runtimes.registry`."""

from __future__ import annotations

from phiquant.runtimes.protocol import LoadedModel, Runtime
from phiquant.runtimes.registry import runtime_of, runtimes

__all__ = ["LoadedModel", "Runtime", "runtime_of", "runtimes"]
