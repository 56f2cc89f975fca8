"""The state of an unfinished calibration in a file beside its result, so that a run can go on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from phiquant import gguf
from phiquant.architectures import ModelSpec
from phiquant.checkpoint import Checkpoint
from phiquant.errors import PhiquantError

_KIND = "phiquant.calibration"
_HIDDEN = "hidden"
_SUMS = "sums/"


@dataclass(frozen=True, eq=False)
class State:
    """Where a calibration stands between two layers.

    Attributes
    ----------
    done : int
        Layers that all windows have gone through.
    hidden : float32 array, shape (windows, context, hidden_size)
    sums : mapping of str to float64 array, shape (columns,)
        Squared activations of the finished layers, by source tensor.
    """

    done: int
    hidden: NDArray[np.float32]
    sums: Mapping[str, NDArray[np.float64]]


def identity(checkpoint: Checkpoint, spec: ModelSpec, ids: NDArray[np.int64]) -> str:
    """What a state belongs to, as a SHA-256: the source's files, the model, and every token."""
    facts = [[str(file.path.resolve()), file.size, file.modified_ns] for file in checkpoint.files]
    digest = hashlib.sha256(json.dumps([facts, repr(spec), ids.shape]).encode())
    digest.update(ids.astype("<i8").tobytes())
    return digest.hexdigest()


def place(out: Path) -> Path:
    """Where the state of a calibration into ``out`` stands."""
    return out.with_name(out.name + ".unfinished")


def save(path: Path, name: str, state: State) -> None:
    """Write the state; what stood there is replaced in one step, when all is written."""
    tensors = {
        _HIDDEN: state.hidden,
        **{_SUMS + tensor: values for tensor, values in state.sums.items()},
    }
    metadata = {"general.type": _KIND, "identity": name, "layers": state.done}
    gguf.write(path, tensors, metadata, overwrite=True)


def load(path: Path, name: str, spec: ModelSpec, shape: tuple[int, int]) -> State | None:
    """The state that belongs to ``name``; None where there is none, or it cannot be used.

    Parameters
    ----------
    shape : (windows, context)
    """
    try:
        if not path.exists():
            return None
        file = gguf.open_file(path)
        done = file.metadata.get("layers")
        if file.metadata.get("general.type") != _KIND or file.metadata.get("identity") != name:
            return None
        if not isinstance(done, int) or not 0 < done <= spec.layers:
            return None
        hidden = np.array(file[_HIDDEN], np.float32)
        sums = {
            tensor.removeprefix(_SUMS): np.array(file[tensor], np.float64)
            for tensor in file
            if tensor.startswith(_SUMS)
        }
    except (PhiquantError, OSError, KeyError, ValueError):
        return None  # a state is worth a few minutes: begin again
    finished = {
        tensor.source: tensor.shape[1:]
        for tensor in spec.tensors
        if tensor.layer is not None and tensor.layer < done and len(tensor.shape) == 2
    }
    if {tensor: values.shape for tensor, values in sums.items()} != finished:
        return None
    if hidden.shape != (*shape, spec.hidden_size) or not np.isfinite(hidden).all():
        return None
    return State(done, hidden, sums)
