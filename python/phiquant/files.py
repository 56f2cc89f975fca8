"""Arrays as the bytes that go into files, without a copy."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from phiquant.errors import ShapeError


def array_bytes(array: Any, name: str) -> NDArray[np.uint8]:
    """A C-contiguous array's own memory as bytes.

    Raises
    ------
    phiquant.ShapeError
        It is not C-contiguous, or not in little-endian order.
    """
    if not isinstance(array, np.ndarray) or not array.flags.c_contiguous:
        raise ShapeError(
            "is not a C-contiguous NumPy array",
            tensor=name,
            remedy="numpy.ascontiguousarray(w) makes one.",
        )
    if not array.dtype.isnative or np.little_endian is False:
        raise ShapeError("is not in little-endian order", tensor=name)
    return array.reshape(-1).view(np.uint8)
