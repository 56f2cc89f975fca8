"""Tensors in memory: quantize one, look at the result, decode it again."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from phiquant import _core
from phiquant.codecs import Codec, affine_name, all_codecs, find_codec
from phiquant.errors import ShapeError, UnsupportedError, UsageError, ValueRangeError

if TYPE_CHECKING:
    from numpy.typing import DTypeLike, NDArray

Progress = Callable[[int], None]


def default_threads() -> int:
    """The number of processors that this process may run on."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on this platform
        return os.cpu_count() or 1


def check_threads(threads: int | None) -> int:
    """``threads`` as a number of workers: None means one a processor."""
    if threads is None:
        return default_threads()
    if not isinstance(threads, int) or isinstance(threads, bool) or not 1 <= threads <= 1024:
        raise UsageError(f"threads must be a number from 1 to 1024, not {threads!r}")
    return threads


def _squares(values: NDArray[np.float32]) -> float:
    """Sum of squares in float64: those of large or tiny values are no float32."""
    flat = values.ravel()
    return float(np.einsum("i,i->", flat, flat, dtype=np.float64))


@dataclass(frozen=True, eq=False, repr=False)
class QuantizedTensor:
    """A tensor as a codec's blocks.

    Attributes
    ----------
    data : uint8 array, shape (..., bytes of a row)
        The blocks, as the codec's own format stores them; a view where they were read from a file.
    shape : tuple of int
        Of the weights.
    codec : Codec
    planes : tuple of uint8 arrays
        Of affine codecs: codes, scales and zero points or biases as their format stores them, each
        as plain bytes; ``data`` is the first. Empty for codecs of blocks.
    column_scale : float32 array, shape (n,), or None
        What decoded columns are multiplied by, where they were scaled before they were encoded.
    """

    data: NDArray[np.uint8]
    shape: tuple[int, ...]
    codec: Codec
    planes: tuple[NDArray[np.uint8], ...] = ()
    column_scale: NDArray[np.float32] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the blocks, or of all planes."""
        return sum(plane.nbytes for plane in self.planes) if self.planes else self.data.nbytes

    @property
    def bits_per_weight(self) -> float:
        """Bits of the blocks, or of all planes, a weight."""
        return 8.0 * self.nbytes / max(1, int(np.prod(self.shape, dtype=np.int64)))

    @property
    def codes(self) -> NDArray[np.uint8]:
        """The codes of an affine codec, unpacked: shape (..., n), 0 to 2**bits - 1.

        Raises
        ------
        phiquant.UsageError
            The codec is not affine.
        """
        return self._elements()[0][:, : self.shape[-1]].reshape(self.shape)

    @property
    def scales(self) -> NDArray[np.float32]:
        """The scales of an affine codec: shape (..., groups).

        Raises
        ------
        phiquant.UsageError
            The codec is not affine.
        """
        return self._elements()[1].reshape(*self.shape[:-1], -1)

    @property
    def zero_points(self) -> NDArray[np.uint8] | None:
        """The zero points of an affine codec, as codes: shape (..., groups); None with biases
        and of small floats.

        Raises
        ------
        phiquant.UsageError
            The codec is not affine.
        """
        zeros = self._elements()[2].reshape(*self.shape[:-1], -1)
        # Codes of small floats are no integers to count from.
        floats = ("fp8_", "mxfp", "nvfp4", "nf4_")
        without = self.codec.has_biases or self.codec.name.startswith(floats)
        return None if without else zeros.astype(np.uint8)

    @property
    def biases(self) -> NDArray[np.float32] | None:
        """The biases of mlx's affine codecs: shape (..., groups); None with zero points.

        Raises
        ------
        phiquant.UsageError
            The codec is not affine.
        """
        zeros = self._elements()[2].reshape(*self.shape[:-1], -1)
        # Small floats have scales alone.
        return zeros if self.codec.has_biases and len(self.planes) == 3 else None

    def _matrix(self) -> tuple[int, int]:
        return int(np.prod(self.shape[:-1], dtype=np.int64)), self.shape[-1]

    def _elements(self) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.float32]]:
        if self.codec.affine is None:
            raise UsageError(f"{self.codec.name} is no affine codec: it has blocks, not codes")
        return _core.unpack_planes(self.planes, self.codec.name, *self._matrix())

    def dequantize(
        self, dtype: DTypeLike = np.float32, *, threads: int | None = None
    ) -> NDArray[Any]:
        """Decode to an array of ``shape``: float32, or rounded from it to float16 or bfloat16.

        Raises
        ------
        phiquant.UsageError
            Another dtype.
        phiquant.UnsupportedError
            Blocks read from a file, of a type that this version does not decode.
        """
        if not self.codec.grid:
            raise UnsupportedError(
                f"{self.codec.name} is not decoded in this version of phiquant",
                remedy="`phiquant formats` lists what is.",
            )
        wanted = np.dtype(dtype)
        if wanted.name not in ("float32", "float16", "bfloat16"):
            raise UsageError(
                f"dequantize gives float32, float16 or bfloat16, not {wanted.name}",
                remedy="Decode to float32 and convert that.",
            )
        if self.codec.has_planes:
            matrix = _core.dequantize_planes(
                self.planes, self.codec.name, *self._matrix(), check_threads(threads)
            )
            values = matrix.reshape(self.shape)
            if self.column_scale is not None:
                values *= self.column_scale
        else:
            values = _core.dequantize(
                self.data, self.codec.name, self.shape, check_threads(threads)
            )
        return values if wanted == np.float32 else values.astype(wanted)

    def error(self, w: Any) -> float:
        """Root mean square of the difference from ``w``, relative to that of ``w`` itself.

        Parameters
        ----------
        w : array_like, of this tensor's shape
            What was quantized.
        """
        original = np.asarray(w) if isinstance(w, np.ndarray) else as_float32(w)
        if original.shape != self.shape:
            raise ShapeError(f"w has the shape {original.shape}, and this tensor {self.shape}")
        rows = original.reshape(-1, self.shape[-1]) if original.ndim > 1 else original[None]
        # Codes in planes are decoded at once; blocks in steps, of 16 MiB of float32.
        whole = self.dequantize().reshape(rows.shape) if self.codec.has_planes else None
        error = signal = 0.0
        step = max(1, (1 << 22) // self.shape[-1])
        for begin in range(0, rows.shape[0], step):
            part = np.asarray(rows[begin : begin + step], dtype=np.float32)
            decoded = self._decoded(begin, part) if whole is None else whole[begin : begin + step]
            error += _squares(decoded - part)
            signal += _squares(part)
        return float(np.sqrt(error / signal)) if signal else float(np.sqrt(error))

    def _decoded(self, begin: int, part: NDArray[np.float32]) -> NDArray[np.float32]:
        """As many rows as ``part`` has, of blocks."""
        blocks = self.data.reshape(-1, self.data.shape[-1])[begin : begin + part.shape[0]]
        return QuantizedTensor(np.ascontiguousarray(blocks), part.shape, self.codec).dequantize()

    def _repr_html_(self) -> str:
        from phiquant.pages.tensor_display import tensor_display

        return tensor_display(self)

    def __repr__(self) -> str:
        return (
            f"QuantizedTensor({self.codec.name}, shape={self.shape}, {self.nbytes} bytes, "
            f"{self.bits_per_weight:.4g} bits per weight)"
        )


def as_float32(w: Any) -> NDArray[np.float32]:
    """Any tensor that phiquant reads, as a float32 array; for comparisons, so this one may copy."""
    facts = _core.tensor_facts(w)
    blocks = _core.quantize(w, "f32", default_threads())
    values: NDArray[np.float32] = blocks.view(np.float32).reshape(facts["shape"])
    return values


def quantize(
    w: Any,
    codec: str,
    *,
    importance: Any = None,
    quality: str = "reference",
    rule: str | None = None,
    scales: str | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> QuantizedTensor:
    """Quantize a matrix into blocks or groups along its last axis.

    Parameters
    ----------
    w : array_like, shape (..., n), float32, float16 or bfloat16
        NumPy, ml_dtypes or any object with ``__dlpack__``; read in place, never copied. Leading
        axes may have any strides; the last one must be contiguous.
    codec : str
        A name that ``phiquant formats`` lists, such as ``"q4_k"``, or an affine one:
        ``int{2,3,4,5,6,8}_{sym,asym}_{g16,g32,g64,g128,g256,channel}``.
    importance : array_like, shape (n,), optional
        Weight of each column's squared error, as mean squared activations. Codecs whose format's
        own tool ignores it (q8_0, the floats, ...) do so, too.
    quality : "reference" or "best"
        The bits of the format's own tool; or scales searched for the least squared error (each
        column's times its importance, if there is one), in as many bytes of the same format.
    rule : "ort", "qdq", "nncf", "mlx", "ct" or "portable", optional
        Of affine codecs: whose tool's bits; ONNX Runtime's by default.
    scales : "f32", "f16" or "bf16", optional
        Of affine codecs: the scales' type; by default what the rule's tool stores.
    threads : int, optional
        Workers; one a processor by default. The result does not depend on it.
    progress : callable, optional
        Called with the number of weights done so far, about ten times a second.

    Returns
    -------
    QuantizedTensor

    Raises
    ------
    phiquant.ShapeError
        ``n`` is no multiple of the codec's block size, or ``w`` cannot be read in place.
    phiquant.ValueRangeError
        ``w`` holds NaN, infinity, or values that the codec cannot hold.
    phiquant.UnsupportedError
        The codec has no ``"best"``.
    """
    options = rule is not None or scales is not None
    found = find_codec(affine_name(codec, rule=rule, scales=scales) if options else codec)
    best = check_quality(quality)
    if best:
        check_best(found)
    weights = None if importance is None else check_importance(importance)
    if found.has_planes:
        planes = _core.quantize_planes(
            w, found.name, check_threads(threads), progress, weights, best
        )
        shape = _core.tensor_facts(w)["shape"]
        return QuantizedTensor(planes[0], tuple(shape), found, tuple(planes))
    blocks = _core.quantize(w, found.name, check_threads(threads), progress, weights, best)
    shape = (*blocks.shape[:-1], blocks.shape[-1] // found.block_bytes * found.block_values)
    return QuantizedTensor(blocks, shape, found)


def check_importance(importance: Any) -> NDArray[np.float32]:
    """Importance as a float32 vector.

    Raises
    ------
    phiquant.ShapeError
        It is no vector.
    phiquant.ValueRangeError
        It holds NaN, infinity or negative weights.
    """
    weights = np.ascontiguousarray(importance, dtype=np.float32)
    if weights.ndim != 1:
        raise ShapeError(f"importance has the shape {weights.shape}; it must be a vector")
    if not bool(np.isfinite(weights).all()) or bool((weights < 0).any()):
        raise ValueRangeError(
            "importance holds NaN, infinity or negative weights", remedy="Calibrate again."
        )
    return weights


def check_quality(quality: str) -> bool:
    """Whether the quality is ``"best"``.

    Raises
    ------
    phiquant.UsageError
        There is no such quality.
    """
    if quality not in ("reference", "best"):
        raise UsageError(f"there is no quality {quality!r}", remedy='Choose "reference" or "best".')
    return quality == "best"


def check_best(codec: Codec, *, tensor: str | None = None) -> None:
    """Refuse a codec without the search: ``"best"`` is never another name for ``"reference"``.

    Raises
    ------
    phiquant.UnsupportedError
        The codec has none.
    """
    if not codec.has_best:
        known = ", ".join(other.name for other in all_codecs() if other.has_best)
        raise UnsupportedError(
            f'quality="best" is not to be had for {codec.name}',
            tensor=tensor,
            remedy=f'It is for {known}; quality="reference" is for all codecs.',
        )
