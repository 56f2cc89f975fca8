"""How many threads NumPy's matrix products use, for as long as a run lasts."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np

# NumPy's wheels carry an OpenBLAS whose names have a prefix and, with 64-bit integers, a suffix.
_NAMES = tuple(
    (f"{prefix}openblas_set_num_threads{suffix}", f"{prefix}openblas_get_num_threads{suffix}")
    for prefix in ("scipy_", "")
    for suffix in ("64_", "_64", "")
)


@cache
def _calls() -> tuple[Callable[[int], object], Callable[[], int]] | None:
    base = Path(np.__file__).parent
    for folder in (base.parent / "numpy.libs", base / ".dylibs"):
        for path in sorted(folder.glob("*openblas*")):
            try:
                library = ctypes.CDLL(str(path))  # NumPy has loaded it: this is the same one
            except OSError:
                continue
            for setter, getter in _NAMES:
                if hasattr(library, setter) and hasattr(library, getter):
                    return getattr(library, setter), getattr(library, getter)
    return None


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let BLAS use ``count`` threads. Another BLAS than NumPy's own OpenBLAS is left as it is."""
    calls = _calls()
    if calls is None:
        yield
        return
    put, get = calls
    before = int(get())
    put(count)
    try:
        yield
    finally:
        put(before)
