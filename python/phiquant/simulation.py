"""Any target's decoded weights in a model's own memory, so that any evaluation measures them."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from phiquant import _core
from phiquant.convert import plan
from phiquant.errors import PhiquantError, UnsupportedError, ValueRangeError
from phiquant.hf_model import open_model, plain_names, unwrap
from phiquant.measure.bar import Bar
from phiquant.memory import borrow
from phiquant.plan import Plan
from phiquant.recipes.mixes import MixName
from phiquant.targets.names import parse_target
from phiquant.tensor import check_threads, quantize

# Weights that are float32 at a time: work for 16 threads, and arrays that stay in the caches. Rows
# are taken 32 at a time, at which every plane begins a byte.
_STRIP = 1 << 20
_STEP = 32

_DTYPES: dict[str, np.dtype[Any]] = {
    "f32": np.dtype(np.float32),
    "f16": np.dtype(np.float16),
    "bf16": np.dtype(ml_dtypes.bfloat16),
}


@dataclass(frozen=True, eq=False)
class _Encoding:
    """What one run of a tensor's rows is encoded as; scales as :class:`PlannedTensor` has them."""

    rows: tuple[int, int] | None
    codec: str
    best: bool
    importance: NDArray[np.float32] | None
    column_scale: NDArray[np.float32] | None
    row_scale: NDArray[np.float32] | None
    scaled_in: str | None
    is_undone: bool

    @property
    def is_scaled(self) -> bool:
        """Whether weights are scaled before they are encoded."""
        return self.column_scale is not None or self.row_scale is not None

    def scaled(self, part: NDArray[Any], begin: int, end: int, threads: int) -> NDArray[np.float32]:
        """Rows ``begin`` to ``end`` (of ``rows``) as they are encoded, as the executor does it."""
        values = part.astype(np.float32)
        if self.column_scale is not None:
            values *= self.column_scale
        if self.row_scale is not None:
            values *= self.row_scale[begin:end, None]
        if self.scaled_in is not None:
            rounded = _core.quantize(values, self.scaled_in, threads)
            values = _core.dequantize(rounded, self.scaled_in, values.shape, threads)
        return values


class Simulation:
    """A model whose weights are those of a target, until :meth:`restore`.

    A context manager: leaving it restores the model.

    Attributes
    ----------
    target : str
        As ``gguf:q4_k_m``.
    nbytes : int
        Bytes of the files that the target would have, without the tokenizer of this model.
    codecs : dict of str to str
        What each tensor was encoded as, by its name in the model.
    errors : dict of str to float
        Root mean square of each tensor's change by rounding, relative to that of the tensor.
    """

    def __init__(self, target: str, nbytes: int) -> None:
        self.target = target
        self.nbytes = nbytes
        self.codecs: dict[str, str] = {}
        self.errors: dict[str, float] = {}
        self._saved: list[tuple[NDArray[np.uint8], NDArray[np.uint8]]] = []

    @property
    def kept_bytes(self) -> int:
        """Memory that the original weights take until they are restored."""
        return sum(original.nbytes for _, original in self._saved)

    def restore(self) -> None:
        """Put the original weights back, bit for bit; once is enough, twice does no harm."""
        while self._saved:
            memory, original = self._saved[-1]
            memory[:] = original
            self._saved.pop()

    def __enter__(self) -> Simulation:
        return self

    def __exit__(self, *_: object) -> None:
        self.restore()

    def __repr__(self) -> str:
        worst = max(self.errors.values(), default=0.0)
        return (
            f"Simulation({self.target!r}, {self.nbytes / 1e6:.1f} MB, {len(self._saved)} tensors "
            f"changed, relative error up to {worst:.3g}, {self.kept_bytes / 1e6:.1f} MB kept)"
        )


def simulate(
    model: Any,
    target: str,
    *,
    config: Any = None,
    quality: str = "reference",
    mix: MixName = "current",
    pure: bool = False,
    output_type: str | None = None,
    embedding_type: str | None = None,
    tensor: str | Iterable[str] = (),
    importance: str | os.PathLike[str] | None = None,
    grid: str = "native",
    threads: int | None = None,
    progress: bool | Callable[[int, int], None] = False,
) -> Simulation:
    """Put the weights that a target's files would hold into a model, in place.

    ``with pq.simulate(model, "gguf:q4_k_m"): ...`` undoes it at the end of the block; without
    ``with`` they stay until ``restore()``. The original weights of all tensors that change are kept
    in memory until then. Decoded weights are rounded to the model's own dtype: a float32 model
    holds exactly what the files decode to, a bfloat16 model the nearest bfloat16. Formats that
    quantize activations, too (w8a8, int8-dynamic), are simulated in their weights alone.

    Parameters
    ----------
    model : transformers model, or mapping of str to tensor
        On the CPU. A state dict may hold torch tensors and NumPy arrays.
    target : str
        One target, as :func:`phiquant.convert` takes it.
    config : config of transformers, mapping or path, optional
        Of a state dict.
    quality, mix, pure, output_type, embedding_type, tensor, importance, grid
        As :func:`phiquant.plan` takes them.
    threads : int, optional
        Workers; one a processor by default.
    progress : bool or callable
        True shows a bar; a callable gets (bytes done, bytes in all).

    Returns
    -------
    Simulation

    Raises
    ------
    phiquant.PhiquantError
        As :func:`phiquant.plan`, or a tensor that cannot be encoded or written to; the model is
        then as it was.
    """
    parsed = parse_target(target)
    if parsed.format == "onnx" and parsed.preset == "int8-static":
        raise UnsupportedError(
            f"{parsed} measures activations first, which is not simulated",
            remedy="Its weights are those of onnx:int8-dynamic.",
        )
    workers = check_threads(threads)
    opened = open_model(model, config=config, weights_only=True)
    try:
        planned = plan(
            opened,
            str(target),
            quality=quality,
            mix=mix,
            pure=pure,
            output_type=output_type,
            embedding_type=embedding_type,
            tensor=tensor,
            importance=importance,
            grid=grid,
        )
    finally:
        opened.close()
    simulation = Simulation(planned.targets[0].target, planned.nbytes)
    wanted = _encodings(planned)
    tensors = model if isinstance(model, Mapping) else unwrap(model).state_dict()
    tensors = plain_names(tensors, str(opened.path))
    total = sum(opened.entries[name].nbytes for name in wanted)
    done = 0
    try:
        with Bar(progress, total, about="simulating", unit="B", begin=0) as advance:
            for name, encodings in wanted.items():
                memory, kind, shape = borrow(
                    tensors[name], name=name, label=str(opened.path), writable=True
                )
                try:
                    _replace(simulation, name, memory, (kind, shape), encodings, workers)
                except PhiquantError as error:
                    raise _named(error, opened.path, name) from None
                done += memory.nbytes
                advance(done)
    except BaseException:
        simulation.restore()
        raise
    return simulation


def _named(error: PhiquantError, file: object, tensor: str) -> PhiquantError:
    return type(error)(error.cause, file=file, tensor=tensor, remedy=error.remedy)


def _encodings(planned: Plan) -> dict[str, list[_Encoding]]:
    """What the rows of each tensor are encoded as, by its name in the model."""
    tensors = [tensor for file in planned.targets[0].files for tensor in file.tensors]
    # Scales of columns are undone in the rows of other matrices where these are scaled; else at run
    # time, when the matrix' inputs are multiplied.
    is_folded = any(tensor.row_scale is not None for tensor in tensors)
    found: dict[str, list[_Encoding]] = {}
    for tensor in tensors:
        if tensor.source is None or tensor.plane > 0:
            continue
        known = found.setdefault(tensor.source, [])
        # Where codes are moved into another layout, they are those of the codec that they are from.
        codec = tensor.via or tensor.codec
        made = _Encoding(
            tensor.rows,
            codec,
            tensor.best,
            tensor.importance,
            tensor.column_scale,
            tensor.row_scale,
            tensor.scaled_in,
            tensor.column_scale is not None and not is_folded,
        )
        same = [e for e in known if e.rows == made.rows or None in (e.rows, made.rows)]
        if any(_grid(e) != _grid(made) for e in same):
            raise UnsupportedError(
                f"is stored in two ways ({made.codec} and {same[0].codec}), and a model holds one",
                tensor=tensor.source,
                remedy="Give the embedding and the output the same codec.",
            )
        if not same:
            known.append(made)
    return found


def _grid(encoding: _Encoding) -> tuple[str, bool]:
    """What decides the decoded values: not where the codes stand."""
    options = encoding.codec.split(",")
    return ",".join(o for o in options if not o.startswith("layout=")), encoding.best


def _replace(
    simulation: Simulation,
    name: str,
    memory: NDArray[np.uint8],
    described: tuple[str, tuple[int, ...]],
    encodings: list[_Encoding],
    threads: int,
) -> None:
    """Put a tensor's decoded values into its memory, and note what was there."""
    kind, shape = described
    values = memory.view(_DTYPES[kind]).reshape(-1, shape[-1])
    step = max(1, _STRIP // shape[-1] // _STEP) * _STEP
    error = signal = 0.0
    is_saved = False
    for encoding in encodings:
        begin, end = encoding.rows or (0, len(values))
        if encoding.codec.partition(",")[0] in (kind, "f32") and not encoding.is_scaled:
            continue  # it holds these very values
        encode = partial(
            quantize,
            codec=encoding.codec,
            importance=encoding.importance,
            quality="best" if encoding.best else "reference",
            threads=threads,
        )
        for at in range(begin, end, step):
            stop = min(at + step, end)
            part = values[at:stop]
            aim = encoding.scaled(part, at - begin, stop - begin, threads)
            try:
                decoded = encode(aim if encoding.is_scaled else part).dequantize(threads=threads)
            except ValueRangeError:
                encode(values[:stop])  # for an error that counts from the tensor's first row
                raise
            if encoding.is_undone and encoding.column_scale is not None:
                decoded *= np.float32(1) / encoding.column_scale
                aim = part.astype(np.float32)
            aim = aim.ravel()
            signal += float(np.dot(aim, aim))
            aim -= decoded.ravel()
            error += float(np.dot(aim, aim))
            rounded = decoded.astype(values.dtype)
            # By bytes: zeros have two signs.
            if np.array_equal(rounded.view(np.uint8), part.view(np.uint8)):
                continue
            if not is_saved:
                simulation._saved.append((memory, memory.copy()))
                is_saved = True
            part[:] = rounded
    simulation.codecs[name] = " ".join(dict.fromkeys(e.codec for e in encodings))
    simulation.errors[name] = math.sqrt(error / signal) if signal else math.sqrt(error)
