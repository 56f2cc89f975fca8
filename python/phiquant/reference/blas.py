"""NumPy's matrix products: which kernels make them, and on how many threads while a run lasts."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np

# NumPy's wheels carry an OpenBLAS whose names have a prefix and, with 64-bit integers, a suffix.
_NAMES = tuple(
    tuple(
        f"{prefix}openblas_{name}{suffix}"
        for name in ("set_num_threads", "get_num_threads", "get_config")
    )
    for prefix in ("scipy_", "")
    for suffix in ("64_", "_64", "")
)


@cache
def _calls() -> tuple[Callable[[int], object], Callable[[], int], Callable[[], bytes]] | None:
    base = Path(np.__file__).parent
    for folder in (base.parent / "numpy.libs", base / ".dylibs"):
        for path in sorted(folder.glob("*openblas*")):
            try:
                library = ctypes.CDLL(str(path))  # NumPy has loaded it: this is the same one
            except OSError:
                continue
            for names in _NAMES:
                if all(hasattr(library, name) for name in names):
                    put, get, config = (getattr(library, name) for name in names)
                    config.restype = ctypes.c_char_p
                    return put, get, config
    return None


def identity() -> str:
    """OpenBLAS's version and the kernels it chose for this processor; the processor's name if it is
    another BLAS.
    """
    calls = _calls()
    return platform.processor() if calls is None else calls[2]().decode()


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let BLAS use ``count`` threads. Another BLAS than NumPy's own OpenBLAS is left as it is."""
    calls = _calls()
    if calls is None:
        yield
        return
    put, get, _ = calls
    before = int(get())
    put(count)
    try:
        yield
    finally:
        put(before)
