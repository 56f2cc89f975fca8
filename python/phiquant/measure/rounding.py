"""How much matrices lose when they are rounded: a measurement that decides who gets more bits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from phiquant.checkpoint import Checkpoint
from phiquant.measure.content import tensor_digests
from phiquant.measure.store import Store, address
from phiquant.tensor import check_threads, quantize

#: What a list of measurements calls these.
ERRORS = "rounding errors"

# Weights that are float32 at a time.
_STRIP = 1 << 22


def row_errors(
    checkpoint: Checkpoint,
    names: Sequence[str],
    codec: str,
    *,
    store: Store | None = None,
    threads: int | None = None,
) -> dict[str, float]:
    """The largest mean squared error of a row, for each matrix, when it is stored as a codec.

    All of the matrices are read, once for their digests and once for their errors; what is known
    of a matrix is kept by its digest, whatever checkpoint it is in.

    Parameters
    ----------
    names : sequence of str
        Matrices of the checkpoint.
    codec : str
        As ``int8_asym_channel,rule=nncf,scales=f32``.
    store : Store, optional
        Where measurements are kept; the user's own by default.
    """
    threads = check_threads(threads)
    store = Store() if store is None else store
    digests = tensor_digests(checkpoint, store, threads=threads)
    key = address(ERRORS, codec=codec, matrices=[digests[name] for name in names])
    known = store.get(key)
    if known is not None:
        return dict(zip(names, known.facts["errors"], strict=True))
    # Imported here: most runs measure nothing, and would wait for the forward pass to load.
    from phiquant.reference.weights import Weights

    weights = Weights(checkpoint, threads=threads)
    found = {}
    for name in names:
        rows, columns = checkpoint.entries[name].shape
        step = max(1, _STRIP // columns)
        worst = 0.0
        for begin in range(0, rows, step):
            strip = weights.rows(name, begin, min(rows, begin + step))
            lost = quantize(strip, codec, threads=threads).dequantize(threads=threads)
            lost -= strip
            means = np.einsum("ij,ij->i", lost, lost, dtype=np.float64) / columns
            worst = max(worst, float(means.max()))
        found[name] = worst
    facts = {"errors": [found[name] for name in names]}
    store.put(key, what=ERRORS, source=str(checkpoint.path), facts=facts, arrays={})
    return found
