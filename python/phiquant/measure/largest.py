"""The largest magnitude of each matrix: what NVFP4 spreads its scales by."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from phiquant.checkpoint import Checkpoint
from phiquant.measure.content import tensor_digests
from phiquant.measure.store import Store, address
from phiquant.tensor import check_threads

#: What a list of measurements calls these.
LARGEST = "largest magnitudes"

# Weights that are float32 at a time.
_STRIP = 1 << 22


def largest_magnitudes(
    checkpoint: Checkpoint,
    names: Sequence[str],
    *,
    store: Store | None = None,
    threads: int | None = None,
) -> dict[str, float]:
    """The largest magnitude in each of some matrices.

    All of them are read, once for their digests and once for their values; what is known of them
    is kept by their digests, whatever checkpoint they are in.

    Parameters
    ----------
    names : sequence of str
        Matrices of the checkpoint.
    store : Store, optional
        Where measurements are kept; the user's own by default.
    """
    threads = check_threads(threads)
    store = Store() if store is None else store
    digests = tensor_digests(checkpoint, store, threads=threads)
    key = address(LARGEST, matrices=[digests[name] for name in names])
    known = store.get(key)
    if known is not None:
        return dict(zip(names, known.facts["largest"], strict=True))
    # Imported here: most runs measure nothing, and would wait for the forward pass to load.
    from phiquant.reference.weights import Weights

    weights = Weights(checkpoint, threads=threads)
    found = {}
    for name in names:
        rows, columns = checkpoint.entries[name].shape
        step = max(1, _STRIP // columns)
        found[name] = max(
            float(np.abs(weights.rows(name, begin, min(rows, begin + step))).max())
            for begin in range(0, rows, step)
        )
    facts = {"largest": [found[name] for name in names]}
    store.put(key, what=LARGEST, source=str(checkpoint.path), facts=facts, arrays={})
    return found
