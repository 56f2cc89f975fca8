"""The programs that run phiquant's outputs, called to see whether they do."""

from __future__ import annotations
