"""Calibration: a text goes through the model, and what enters each matrix is summed up."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from phiquant.checkpoint import Checkpoint, open_checkpoint
from phiquant.errors import IoError, PhiquantError, UsageError, ValueRangeError
from phiquant.measure import resume
from phiquant.measure.bar import Bar
from phiquant.measure.imatrix import Activations, Importance, write_importance
from phiquant.measure.windows import read_text, windows
from phiquant.reference import Decoder
from phiquant.targets.gguf_metadata import tensor_name
from phiquant.texts import bytes_text

_log = logging.getLogger("phiquant")

# Rows that are squared and added in float32 before they go to float64: they fit into the cache.
_ROWS = 64
# A state is written when a layer is done and this many seconds have passed since the last one.
_SAVE_SECONDS = 30.0


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
        for begin in range(0, len(x), _ROWS):
            total += np.einsum("ij,ij->j", x[begin : begin + _ROWS], x[begin : begin + _ROWS])


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
    progress: bool | Callable[[int, int], None] = False,
) -> Calibration:
    """Make an importance matrix: mean squares of what enters each matrix of the layers.

    The file is a GGUF as llama-imatrix writes it, which llama-quantize and phiquant read. A run
    that is interrupted leaves ``OUT.unfinished`` with the layers that were done; the same call
    goes on from there, and removes it at the end.

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
    begin = time.perf_counter()
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
    _check_memory(decoder.memory(*ids.shape), ids.size)
    unfinished = resume.place(out)
    name = resume.identity(checkpoint, spec, ids)
    state = resume.load(unfinished, name, spec, (len(ids), context))
    resumed = state.done if state else 0
    state = state or resume.State(0, decoder.embed(ids), {})
    with Bar(
        progress,
        spec.layers * ids.size,
        about="calibrating",
        unit="tok",
        begin=resumed * ids.size,
    ) as watch:
        state = _layers(decoder, state, unfinished, name, watch)
    activations = {
        tensor_name(tensor): Activations(
            _finite(state.sums[tensor.source], tensor.source, checkpoint)[None],
            np.array([ids.size], np.float32),
        )
        for tensor in spec.tensors
        if tensor.source in state.sums
    }
    importance = Importance(activations, (os.fspath(text),), len(ids), context)
    write_importance(out, importance, overwrite=overwrite)
    with suppress(OSError):
        unfinished.unlink(missing_ok=True)
    return Calibration(
        path=out,
        source=str(checkpoint.path),
        text=os.fspath(text),
        windows=len(ids),
        context=context,
        matrices=len(activations),
        resumed=resumed,
        seconds=time.perf_counter() - begin,
    )


def _layers(
    decoder: Decoder,
    state: resume.State,
    unfinished: Path,
    name: str,
    watch: Callable[[int], None],
) -> resume.State:
    """Go through the layers from ``state`` on, and keep the last whole one if that is stopped."""
    tokens = state.hidden.shape[0] * state.hidden.shape[1]
    kept, kept_at = state.done, time.monotonic()
    collect = SquaredSums()
    layer = state.done
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
            state = resume.State(done, hidden, {**state.sums, **collect.sums})
            collect.sums = {}
            layer = done
            watch(layer * tokens)
            now = time.monotonic()
            if now - kept_at >= _SAVE_SECONDS and done < decoder.spec.layers:
                _keep(unfinished, name, state)
                kept, kept_at = done, time.monotonic()
    except BaseException:
        if state.done > kept:
            _keep(unfinished, name, state)
        raise
    return state


def _keep(unfinished: Path, name: str, state: resume.State) -> None:
    """Save the state; a full disk costs the chance to go on later, and not the run."""
    try:
        resume.save(unfinished, name, state)
    except (PhiquantError, OSError) as error:
        _log.warning("the unfinished state could not be kept: %s", error)


def _finite(sums: NDArray[np.float64], tensor: str, checkpoint: Checkpoint) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):
        values = sums.astype(np.float32)
    if not np.isfinite(values).all():
        raise ValueRangeError(
            "gets activations whose squares are beyond float32", file=checkpoint.path, tensor=tensor
        )
    return values


def _check_memory(needed: int, tokens: int) -> None:
    try:
        there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # not on this platform
        return
    if needed > there > 0:
        raise UsageError(
            f"{tokens} tokens need {bytes_text(needed)} of memory, and the machine has "
            f"{bytes_text(there)}",
            remedy="Read less of the text: --tokens 100000 (tokens=100000).",
        )


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
