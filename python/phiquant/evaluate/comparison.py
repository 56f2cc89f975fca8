"""Comparison: two checkpoints' metadata, codecs, bytes and decoded weights, tensor by tensor."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from phiquant.architectures import ModelSpec
from phiquant.checkpoint import Checkpoint, open_checkpoint
from phiquant.description import describe
from phiquant.errors import FormatError, UnsupportedError, UsageError
from phiquant.inspection import layers_apart, plain
from phiquant.measure.bar import Bar
from phiquant.reference import Weights
from phiquant.texts import bytes_text, table

Source = str | os.PathLike[str] | Checkpoint

# Weights of a strip: 16 MiB as float32 of each checkpoint.
_STRIP = 1 << 22
# Characters of a value in the table of metadata.
_VALUE = 40


@dataclass(frozen=True)
class TensorDifference:
    """One tensor that both checkpoints have.

    Attributes
    ----------
    a, b : str
        Its names.
    shape : tuple of int
    a_codec, b_codec : str
    a_bytes, b_bytes : int
    relative_error : float or None
        Root mean square of the difference of the decoded weights, relative to A's own root mean
        square (absolute where that is 0). None where a type is not decoded, or weights are NaN or
        infinite.
    max_error : float or None
        Largest absolute difference.
    """

    a: str
    b: str
    shape: tuple[int, ...]
    a_codec: str
    b_codec: str
    a_bytes: int
    b_bytes: int
    relative_error: float | None
    max_error: float | None


@dataclass(frozen=True, repr=False)
class Comparison:
    """What two checkpoints share, and what not.

    Attributes
    ----------
    a, b : str
    a_bytes, b_bytes : int
        Of all tensors.
    metadata : dict of str to (value of A, value of B)
        What differs; None where a side does not have it. Of two GGUFs their keys; of other pairs
        the facts of their models.
    tensors : tuple of TensorDifference
        In A's order.
    only_a, only_b : tuple of str
        Tensors that the other has not.
    """

    a: str
    b: str
    a_bytes: int
    b_bytes: int
    metadata: dict[str, tuple[Any, Any]]
    tensors: tuple[TensorDifference, ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """All of it as plain data."""
        return asdict(self) | {
            "metadata": {key: [plain(one) for one in pair] for key, pair in self.metadata.items()}
        }

    def text(self, *, every: bool = False) -> str:
        """Tables for people.

        Parameters
        ----------
        every : bool
            A row for each tensor: layers that are alike share rows else.
        """
        lines = [
            f"A: {self.a}, {bytes_text(self.a_bytes)}",
            f"B: {self.b}, {bytes_text(self.b_bytes)}",
            "",
        ]
        if self.metadata:
            rows = [
                (key, _short(one), _short(other)) for key, (one, other) in self.metadata.items()
            ]
            lines += ["Metadata that differs", table(("key", "A", "B"), rows, "lll"), ""]
        groups: dict[tuple[str, ...], list[TensorDifference]] = {}
        for tensor in self.tensors:
            name = tensor.a if every else layers_apart(tensor.a)
            groups.setdefault((name, tensor.a_codec, tensor.b_codec), []).append(tensor)
        rows_of_tensors = [
            (
                *(name, str(len(members)), one, other),
                bytes_text(sum(tensor.a_bytes for tensor in members)),
                bytes_text(sum(tensor.b_bytes for tensor in members)),
                *_errors(members),
            )
            for (name, one, other), members in groups.items()
        ]
        head = ("tensor", "count", "A", "B", "A's size", "B's size", "rms error", "largest")
        if rows_of_tensors:
            lines += ["Tensors", table(head, rows_of_tensors, "lrllrrrr"), ""]
        for side, names in (("A", self.only_a), ("B", self.only_b)):
            if names:
                lines.append(f"Only in {side}: {', '.join(names)}")
        if not (self.metadata or self.only_a or self.only_b) and self.same_weights:
            lines.append("Both hold the same weights.")
        return "\n".join(lines).rstrip("\n")

    @property
    def same_weights(self) -> bool:
        """Whether all shared tensors decode to the same numbers."""
        return all(tensor.max_error == 0 for tensor in self.tensors)

    def __str__(self) -> str:
        return self.text()

    __repr__ = __str__


def compare(
    a: Source,
    b: Source,
    *,
    threads: int | None = None,
    progress: bool | Callable[[int, int], None] = False,
) -> Comparison:
    """Compare two checkpoints: metadata, codecs, bytes and decoded weights.

    Tensors of one format correspond by name; those of a GGUF and a Hugging Face folder by what they
    do in the model.

    Parameters
    ----------
    a, b : str, path or Checkpoint
        Whatever :func:`phiquant.open` opens. Errors are relative to ``a``.
    threads : int, optional
        For decoding; one a processor by default.
    progress : bool or callable
        True shows a bar; a function is called with weights done and weights in all.

    Returns
    -------
    Comparison

    Raises
    ------
    phiquant.UsageError
        They have no tensor in common.
    phiquant.FormatError, phiquant.UnsupportedError
        A file is damaged; or formats differ, and one is no model that phiquant knows.
    """
    one, other = (x if isinstance(x, Checkpoint) else open_checkpoint(x) for x in (a, b))
    pairs = corresponding_tensors(one, other)
    if not pairs:
        raise UsageError(f"{one.path} and {other.path} have no tensor in common")
    for first, second in pairs.items():
        shapes = one.entries[first].shape, other.entries[second].shape
        if shapes[0] != shapes[1]:
            raise FormatError(
                f"has the shape {shapes[1]}, and {shapes[0]} in {one.path}: these are versions of "
                "different models",
                file=other.path,
                tensor=second,
            )
    readers = Weights(one, threads=threads), Weights(other, threads=threads)
    total = sum(math.prod(one.entries[name].shape) for name in pairs)
    tensors = []
    with Bar(progress, total, about="comparing", unit="weights", begin=0) as watch:
        done = 0
        for first, second in pairs.items():
            mine, its = one.entries[first], other.entries[second]
            relative, largest = _difference(readers, first, second)
            tensors.append(
                TensorDifference(
                    *(first, second, mine.shape, mine.type, its.type, mine.nbytes, its.nbytes),
                    relative,
                    largest,
                )
            )
            done += math.prod(mine.shape)
            watch(done)
    seconds = set(pairs.values())
    return Comparison(
        a=str(one.path),
        b=str(other.path),
        a_bytes=one.nbytes,
        b_bytes=other.nbytes,
        metadata=_metadata(one, other),
        tensors=tuple(tensors),
        only_a=tuple(name for name in one if name not in pairs),
        only_b=tuple(name for name in other if name not in seconds),
    )


def corresponding_tensors(a: Checkpoint, b: Checkpoint) -> dict[str, str]:
    """Names in A, and what they are in B: in two files of one format the same name.

    Raises
    ------
    phiquant.FormatError, phiquant.UnsupportedError
        Formats differ, and one is no model that phiquant knows.
    """
    if a.format == b.format:
        return {name: name for name in a if name in b}
    names = {(tensor.role, tensor.layer): tensor.source for tensor in describe(b).tensors}
    return {
        tensor.source: names[tensor.role, tensor.layer]
        for tensor in describe(a).tensors
        if (tensor.role, tensor.layer) in names
    }


def _difference(
    readers: tuple[Weights, Weights], first: str, second: str
) -> tuple[float | None, float | None]:
    """Relative root mean square and largest of the decoded weights' differences."""
    error = signal = largest = 0.0
    try:
        for mine, its in zip(_strips(readers[0], first), _strips(readers[1], second), strict=True):
            signal += _squares(mine)
            with np.errstate(invalid="ignore", over="ignore"):  # of infinite weights
                its -= mine
            error += _squares(its)
            largest = max(largest, float(np.abs(its).max(initial=0)))
    except UnsupportedError:
        return None, None
    if not (math.isfinite(error) and math.isfinite(signal)):
        return None, None
    count = max(1, math.prod(readers[0].checkpoint.entries[first].shape))
    return math.sqrt(error / signal) if signal else math.sqrt(error / count), largest


def _strips(weights: Weights, name: str) -> Iterator[NDArray[np.float32]]:
    shape = weights.checkpoint.entries[name].shape
    if len(shape) < 2:
        yield weights.whole(name)
        return
    rows = math.prod(shape[:-1])
    step = max(1, _STRIP // max(1, shape[-1]))
    for begin in range(0, rows, step):
        yield weights.rows(name, begin, min(rows, begin + step))


def _squares(values: NDArray[np.float32]) -> float:
    """Sum of squares in double precision, a piece at a time."""
    flat = values.reshape(-1)
    step = 1 << 16
    return float(
        sum(
            np.square(flat[begin : begin + step], dtype=np.float64).sum()
            for begin in range(0, flat.size, step)
        )
    )


def _metadata(a: Checkpoint, b: Checkpoint) -> dict[str, tuple[Any, Any]]:
    mine, its = (dict(one.metadata) for one in (a, b))
    if not (a.format == b.format == "gguf"):
        try:
            mine, its = _facts(describe(a)), _facts(describe(b))
        except (FormatError, UnsupportedError):  # weights alone, of one format
            pass
    return {
        key: (mine.get(key), its.get(key))
        for key in {**mine, **its}
        if plain(mine.get(key)) != plain(its.get(key))
    }


def _facts(spec: ModelSpec) -> dict[str, Any]:
    """A model's facts without its tensors, by dotted names."""
    found: dict[str, Any] = {}

    def add(prefix: str, values: dict[str, Any]) -> None:
        for key, value in values.items():
            if isinstance(value, dict):
                add(f"{prefix}{key}.", value)
            else:
                # A GGUF has floats in 32 bits.
                found[prefix + key] = _single(value)

    # The source's dtype says nothing that the tensors' codecs do not.
    facts = asdict(spec)
    add("", {key: value for key, value in facts.items() if key not in ("tensors", "dtype")})
    return found


def _single(value: Any) -> Any:
    if isinstance(value, float):
        return float(np.float32(value))
    return [_single(item) for item in value] if isinstance(value, (tuple, list)) else value


def _errors(members: list[TensorDifference]) -> tuple[str, str]:
    """The largest errors of a group, as a share and as a number."""
    relative = [one.relative_error for one in members if one.relative_error is not None]
    largest = [one.max_error for one in members if one.max_error is not None]
    if not relative or not largest:
        return "no number", ""
    return f"{max(relative):.3%}", f"{max(largest):.3g}"


def _short(value: Any) -> str:
    text = "none" if value is None else str(plain(value))
    return text if len(text) <= _VALUE else text[: _VALUE - 3] + "..."
