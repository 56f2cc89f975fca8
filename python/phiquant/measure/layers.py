"""Text through all layers of a model, in steps that the store keeps when a run is stopped."""

from __future__ import annotations

import hashlib
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Protocol
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

import phiquant.reference
from phiquant._core import version
from phiquant.errors import UsageError
from phiquant.measure.content import content
from phiquant.measure.store import Arrays, Store, address
from phiquant.reference import Decoder, blas
from phiquant.texts import bytes_text

# A state is written when a layer is done and this many seconds have passed since the last one,
_SAVE_SECONDS = 30.0
# and more where writing is slow: at most a twentieth of the time goes there.
_SAVE_SHARE = 20.0
_HIDDEN, _SUMS = "hidden", "sums/"

#: What a list of measurements calls the state of a run.
UNFINISHED = "unfinished run"


@dataclass(frozen=True, eq=False)
class State:
    """Where a run stands between two layers.

    Attributes
    ----------
    done : int
        Layers that all windows have gone through.
    hidden : float32 array, shape (windows, context, hidden_size)
    sums : mapping of str to array
        What was collected in the finished layers.
    """

    done: int
    hidden: NDArray[np.float32]
    sums: Arrays


class Collector(Protocol):
    """What a run collects of what enters matrices, as ``on_linear_input`` takes it.

    Attributes
    ----------
    sums : dict of str to float64 array
        By the matrix's source name; replaced by an empty one after every layer.
    """

    sums: dict[str, NDArray[np.float64]]

    def __call__(self, name: str, x: NDArray[np.float32]) -> None:
        """Add activations, float32 of shape (tokens, columns)."""


@cache
def arithmetic() -> tuple[str, ...]:
    """What decides the last bits of a run's numbers, but for threads and the model.

    The version, the source of the reference run itself, NumPy's version, and which of its kernels
    BLAS has chosen for this processor.
    """
    digest = hashlib.sha256()
    for path in sorted(Path(phiquant.reference.__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return version, digest.hexdigest(), np.__version__, platform.machine(), blas.identity()


# Of files that were just written the store knows nothing; one look at them is enough for a run,
# whose every read checks that they are the same.
_contents: WeakKeyDictionary[Decoder, str] = WeakKeyDictionary()


def run_key(decoder: Decoder, ids: NDArray[np.int64], store: Store | None) -> str:
    """The address of a text's way through a model: its weights, every token, and the arithmetic."""
    weights = _contents.get(decoder)
    if weights is None:
        weights = content(decoder.checkpoint, store, threads=decoder.threads)
        _contents[decoder] = weights
    return address(
        "layers",
        arithmetic=arithmetic(),
        threads=decoder.threads,
        weights=weights,
        model=repr(decoder.spec),
        shape=ids.shape,
        ids=hashlib.sha256(ids.astype("<i8").tobytes()).hexdigest(),
    )


def begin(decoder: Decoder, ids: NDArray[np.int64], store: Store | None, key: str) -> State:
    """Where an earlier run under this key was stopped, or the state before the first layer.

    Parameters
    ----------
    decoder : Decoder
    ids : int64 array, shape (windows, context)
    store : Store or None
    key : str
        Of the run; what is collected is part of it.
    """
    found = None if store is None else store.get(key)
    if found is None:
        return State(0, decoder.embed(ids), {})
    sums = {
        name.removeprefix(_SUMS): array
        for name, array in found.arrays.items()
        if name.startswith(_SUMS)
    }
    return State(int(found.facts["layers"]), found.arrays[_HIDDEN], sums)


def run_layers(
    decoder: Decoder,
    state: State,
    *,
    store: Store | None,
    key: str,
    collect: Collector | None = None,
    watch: Callable[[int], None] = lambda tokens: None,
) -> State:
    """The layers that are left; gives the state after the last one.

    If the run is stopped, by Ctrl-C or an error, the last whole layer stays in the store, and
    :func:`begin` finds it; from time to time it is written there in any case, for a process that is
    killed. The caller drops the key when what was made of the state is safe.

    Parameters
    ----------
    decoder : Decoder
    state : State
        From :func:`begin`.
    store, key
        As given there.
    collect : Collector, optional
    watch : callable
        Called with the number of tokens done, times layers.
    """
    layers = decoder.spec.layers
    tokens = state.hidden.shape[0] * state.hidden.shape[1]
    layer = kept = state.done
    kept_at, pause = time.monotonic(), _SAVE_SECONDS

    def keep() -> None:
        if store is None:
            return
        sums = {_SUMS + name: values for name, values in state.sums.items()}
        about = f"{decoder.checkpoint.path}, {state.done} of {layers} layers"
        store.put(
            key,
            what=UNFINISHED,
            source=about,
            facts={"layers": state.done},
            arrays={_HIDDEN: state.hidden, **sums},
        )

    run = decoder.run(
        state.hidden,
        first=state.done,
        on_linear_input=collect,
        progress=lambda done: watch(layer * tokens + done),
    )
    try:
        for done, hidden in run:
            # One assignment: Ctrl-C finds either the layer before or this one, and all of it. The
            # run writes to other memory until the next layer is done.
            state = State(done, hidden, {**state.sums, **(collect.sums if collect else {})})
            if collect:
                collect.sums = {}
            layer = done
            watch(layer * tokens)
            if done < layers and (now := time.monotonic()) - kept_at >= pause:
                keep()
                kept, kept_at = done, time.monotonic()
                pause = max(_SAVE_SECONDS, _SAVE_SHARE * (kept_at - now))
    except BaseException:
        if state.done > kept:
            keep()
        raise
    return state


def check_memory(needed: int, tokens: int, remedy: str) -> None:
    """Refuse what the machine's memory cannot hold, before it is tried.

    Parameters
    ----------
    needed : int
        Bytes.
    tokens : int
    remedy : str

    Raises
    ------
    phiquant.UsageError
        The machine has less.
    """
    try:
        there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # not on this platform
        return
    if needed > there > 0:
        raise UsageError(
            f"{tokens} tokens need {bytes_text(needed)} of memory, and the machine has "
            f"{bytes_text(there)}",
            remedy=remedy,
        )
