"""How large matrices' columns are: a measurement, of which AWQ without data makes scales."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from phiquant.checkpoint import Checkpoint
from phiquant.measure.content import tensor_digests
from phiquant.measure.store import Store, address
from phiquant.tensor import check_threads

#: What a list of measurements calls these.
MAGNITUDES = "column magnitudes"

# Weights that are float32 at a time, for each thread.
_STRIP = 1 << 20


def column_magnitudes(
    checkpoint: Checkpoint,
    names: Sequence[str],
    *,
    store: Store | None = None,
    threads: int | None = None,
) -> dict[str, NDArray[np.float32]]:
    """The mean magnitude of each column of each matrix, in float32.

    Only these matrices are read, once for their digests and once for their sums, which are kept by
    the digests. Rows are added one after the other, each sum rounded to float32: so NumPy computes
    the mean along the first axis, and NNCF with it.

    Parameters
    ----------
    names : sequence of str
        Matrices of the checkpoint.
    store : Store, optional
        Where measurements are kept; the user's own by default.

    Returns
    -------
    dict of str to float32 array, shape (columns,)
    """
    threads = check_threads(threads)
    store = Store() if store is None else store
    entries = {name: checkpoint.entries[name] for name in names}
    part = Checkpoint(checkpoint.format, checkpoint.path, checkpoint.files, entries, {})
    digests = tensor_digests(part, store, threads=threads)
    key = address(MAGNITUDES, matrices=[digests[name] for name in names])
    known = store.get(key)
    if known is not None:
        return {name: known.arrays[str(number)] for number, name in enumerate(names)}
    # Imported here: most runs measure nothing, and would wait for the forward pass to load.
    from phiquant.reference.weights import Weights

    weights = Weights(checkpoint, threads=1)

    def means(name: str) -> NDArray[np.float32]:
        rows, columns = entries[name].shape
        step = max(1, _STRIP // columns)
        # The sum so far stands before each strip's rows, as one of them.
        strip = np.zeros((step + 1, columns), np.float32)
        for begin in range(0, rows, step):
            end = min(rows, begin + step)
            np.abs(weights.rows(name, begin, end), out=strip[1 : 1 + end - begin])
            strip[0] = np.add.reduce(strip[: 1 + end - begin], axis=0)
        mean: NDArray[np.float32] = strip[0] / np.float32(rows)
        return mean

    with ThreadPoolExecutor(threads) as pool:
        found = list(pool.map(means, names))
    arrays = {str(number): mean for number, mean in enumerate(found)}
    store.put(key, what=MAGNITUDES, source=str(checkpoint.path), facts={}, arrays=arrays)
    return dict(zip(names, found, strict=True))
