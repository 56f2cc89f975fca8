"""Arrays as bytes that go into files, without a copy; and where a checkpoint's links may lead."""

from __future__ import annotations

from pathlib import Path
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


def is_own(target: Path, folder: Path) -> bool:
    """Whether a link out of a checkpoint leads to what belongs to it.

    Parameters
    ----------
    target, folder : Path
        The real paths of the file and of the checkpoint's folder, with no link left in them.
    """
    if target.parent == folder:
        return True
    if folder.parent.name != "snapshots":
        return False
    # A hub cache: models--NAME/snapshots/REVISION/FILE is a link to models--NAME/blobs/ETAG, and
    # that one (a Xet file, since huggingface_hub 2) to the whole cache's blobs/2 DIGITS/HASH.
    repository = folder.parent.parent
    shared = repository.parent / "blobs" / target.name[:2]
    return target.parent in (repository / "blobs", shared)
