"""Calibration: a text goes through the model, and what enters each matrix is summed up."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from phiquant.checkpoint import Checkpoint, open_checkpoint
from phiquant.errors import IoError, UsageError, ValueRangeError
from phiquant.measure.bar import Bar
from phiquant.measure.imatrix import Activations, Importance, write_importance
from phiquant.measure.layers import begin, check_memory, run_key, run_layers
from phiquant.measure.store import Store, address
from phiquant.measure.windows import read_text, windows
from phiquant.reference import Decoder
from phiquant.targets.gguf_metadata import tensor_name

# Rows that are squared and added in float32 before they go to float64: they fit into the cache.
_ROWS = 64


@dataclass(frozen=True)
class Calibration:
    """What a calibration did.

    Attributes
    ----------
    path : Path
        The importance matrix.
    source, text : str
    windows, context : int
        How many windows of text, and the tokens of each.
    matrices : int
        Of how many matrices there are activations.
    resumed : int
        Layers that an earlier run had done.
    seconds : float
        Of this run.
    """

    path: Path
    source: str
    text: str
    windows: int
    context: int
    matrices: int
    resumed: int
    seconds: float

    @property
    def tokens(self) -> int:
        """Tokens in all windows."""
        return self.windows * self.context

    def to_json(self) -> dict[str, Any]:
        """All of it as plain data."""
        return asdict(self) | {"path": str(self.path), "tokens": self.tokens}

    def __str__(self) -> str:
        earlier = f" (layers done before: {self.resumed})" if self.resumed else ""
        return (
            f"{self.path}: {self.matrices} matrices from {self.tokens} tokens, "
            f"{self.windows} windows of {self.context}, in {self.seconds:.1f} s{earlier}"
        )


class SquaredSums:
    """Sums of squared activations of each column, as ``on_linear_input`` takes it.

    Attributes
    ----------
    sums : dict of str to float64 array, shape (columns,)
    """

    def __init__(self) -> None:
        self.sums: dict[str, NDArray[np.float64]] = {}

    def __call__(self, name: str, x: NDArray[np.float32]) -> None:
        """Add activations, float32 of shape (tokens, columns)."""
        total = self.sums.get(name)
        if total is None:
            total = self.sums[name] = np.zeros(x.shape[1])
        for at in range(0, len(x), _ROWS):
            total += np.einsum("ij,ij->j", x[at : at + _ROWS], x[at : at + _ROWS])


def calibrate(
    source: str | os.PathLike[str] | Checkpoint,
    *,
    text: str | os.PathLike[str],
    out: str | os.PathLike[str],
    context: int = 512,
    tokens: int | None = None,
    parse_special: bool = False,
    tokenizer: str | os.PathLike[str] | None = None,
    threads: int | None = None,
    overwrite: bool = False,
    cache: bool | Store = True,
    progress: bool | Callable[[int, int], None] = False,
) -> Calibration:
    """Make an importance matrix: mean squares of what enters each matrix of the layers.

    The file is a GGUF as llama-imatrix writes it, which llama-quantize and phiquant read.

    Parameters
    ----------
    source : str, path or Checkpoint
        The model: a Hugging Face folder, a GGUF file, or a hub id.
    text : str or path
        A UTF-8 file, like what the model will read and write.
    out : str or path
        File to write, ``NAME.imatrix.gguf``.
    context : int
        Tokens of a window; each is read by itself.
    tokens : int, optional
        At most so many; all of the text by default.
    parse_special : bool
        Whether ``<|end|>`` and the like in the text are the special token, or plain text.
    tokenizer : str or path, optional
        The folder of ``tokenizer.json`` where it is not the model's own.
    threads : int, optional
        One a processor by default.
    overwrite : bool
        Replace an existing file.
    cache : bool or Store
        Whether to keep what is done in the user's cache folder, or another store, and to go on from
        what is there: a run that was stopped, or one with the same source and text. No bit of the
        result depends on it.
    progress : bool or callable
        True shows a bar; a function is called with what is done and what there is, in tokens times
        layers.

    Returns
    -------
    Calibration

    Raises
    ------
    phiquant.UsageError
        The file exists, or the text is shorter than a window.
    phiquant.UnsupportedError
        The model is none that phiquant can run, or has no ``tokenizer.json``.
    phiquant.FormatError
        Model, tokenizer or text are damaged.
    phiquant.ValueRangeError
        The model's activations become NaN or infinite.
    """
    start = time.perf_counter()
    out = Path(out)
    checkpoint = source if isinstance(source, Checkpoint) else open_checkpoint(source)
    _check_output(out, overwrite, [*(file.path for file in checkpoint.files), Path(text)])
    decoder = Decoder(checkpoint, threads=threads)
    spec = decoder.spec
    if not 2 <= context <= spec.context:
        raise UsageError(
            f"a context of {context} is not from 2 to {spec.context}, which the model is made for"
        )
    ids = windows(
        checkpoint,
        read_text(text),
        vocabulary=spec.vocabulary,
        context=context,
        tokens=tokens,
        parse_special=parse_special,
        tokenizer=tokenizer,
    )
    check_memory(
        decoder.memory(*ids.shape),
        ids.size,
        "Read less of the text: --tokens 100000 (tokens=100000).",
    )
    store = Store() if cache is True else cache or None
    sums, resumed = _sums(decoder, ids, store, progress)
    activations = {
        tensor_name(tensor): Activations(
            _finite(sums[tensor.source], tensor.source, checkpoint)[None],
            np.array([ids.size], np.float32),
        )
        for tensor in spec.tensors
        if tensor.source in sums
    }
    importance = Importance(activations, (os.fspath(text),), len(ids), context)
    write_importance(out, importance, overwrite=overwrite)
    return Calibration(
        path=out,
        source=str(checkpoint.path),
        text=os.fspath(text),
        windows=len(ids),
        context=context,
        matrices=len(activations),
        resumed=resumed,
        seconds=time.perf_counter() - start,
    )


def _sums(
    decoder: Decoder,
    ids: NDArray[np.int64],
    store: Store | None,
    progress: bool | Callable[[int, int], None],
) -> tuple[Mapping[str, NDArray[np.float64]], int]:
    """Squared activations by matrix, and how many layers an earlier run had done."""
    layers, source = decoder.spec.layers, str(decoder.checkpoint.path)
    run = key = ""
    if store is not None:
        key = address("squared sums", run=run_key(decoder, ids, store))
        run = address("squared sums, unfinished", of=key)
        known = store.get(key)
        if known is not None:
            return known.arrays, layers
    state = begin(decoder, ids, store, run)
    resumed = state.done
    done = resumed * ids.size
    with Bar(progress, layers * ids.size, about="calibrating", unit="tok", begin=done) as watch:
        state = run_layers(decoder, state, store=store, key=run, collect=SquaredSums(), watch=watch)
    if store is not None:
        about = f"{source}, {ids.size} tokens"
        store.put(key, what="calibration", source=about, facts={}, arrays=state.sums)
        store.drop(run)
    return state.sums, resumed


def _finite(sums: NDArray[np.float64], tensor: str, checkpoint: Checkpoint) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):
        values = sums.astype(np.float32)
    if not np.isfinite(values).all():
        raise ValueRangeError(
            "gets activations whose squares are beyond float32", file=checkpoint.path, tensor=tensor
        )
    return values


def _check_output(out: Path, overwrite: bool, inputs: list[Path]) -> None:
    if not out.parent.is_dir():
        raise IoError(
            "cannot be written: its folder does not exist",
            file=out,
            remedy=f"Create the folder first: mkdir -p {out.parent}",
        )
    if out.is_dir():
        raise UsageError("is a folder", file=out, remedy="Name a file as the output.")
    if out.resolve() in {path.resolve() for path in inputs}:
        raise UsageError("is an input itself", file=out, remedy="Choose another name.")
    if not overwrite and os.path.lexists(out):
        raise UsageError(
            "exists already",
            file=out,
            remedy="Choose another output, or pass --overwrite (overwrite=True).",
        )
