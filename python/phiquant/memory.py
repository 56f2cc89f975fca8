"""Checkpoints made of tensors in memory: each tensor is a source of its own, read in place."""

from __future__ import annotations

import math
import shutil
import tempfile
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from phiquant import _core
from phiquant.checkpoint import Checkpoint, SourceFile, TensorEntry
from phiquant.errors import PhiquantError, ShapeError, UnsupportedError, UsageError

_ITEM_BYTES = {"f32": 4, "f16": 2, "bf16": 2}


@dataclass(frozen=True)
class ArraySource(SourceFile):
    """A tensor's memory in place of a file.

    Attributes
    ----------
    path : Path
        What errors call it.
    array : uint8 array, shape (bytes,)
        The tensor's own memory, and through its base what keeps that alive.
    """

    array: NDArray[np.uint8] = field(
        default_factory=lambda: np.empty(0, np.uint8), repr=False, compare=False
    )

    def read(self, offset: int, count: int) -> bytes:
        """Up to ``count`` bytes from ``offset``."""
        return self.array[offset : offset + count].tobytes()

    def for_executor(self) -> NDArray[np.uint8]:
        """The memory itself, kept alive while it is read."""
        return self.array

    def is_as_opened(self) -> bool:
        """Memory has no identity that would tell of a change."""
        return True

    def map(self) -> NDArray[np.uint8]:
        """The memory itself."""
        return self.array


class MemoryCheckpoint(Checkpoint):
    """Tensors in memory, with a temporary folder of the small files that go with a model.

    Parameters
    ----------
    label : str
        What errors, plans and reports call it.
    name : str
        The model's name, which outputs are named after.
    tensors : mapping of str to tensor
        NumPy, ml_dtypes, or whatever has ``__dlpack__``: float32, float16 or bfloat16, on the CPU,
        C-contiguous. They are kept alive, and not copied.

    Raises
    ------
    phiquant.ShapeError, phiquant.UnsupportedError
        A tensor that cannot be read in place; the remedy says how to make it one that can.
    """

    def __init__(self, label: str, name: str, tensors: Mapping[str, Any]) -> None:
        sources: list[SourceFile] = []
        entries: dict[str, TensorEntry] = {}
        for key, tensor in tensors.items():
            memory, kind, shape = borrow(tensor, name=key, label=label)
            entries[key] = TensorEntry(key, kind, shape, len(sources), 0, memory.nbytes)
            sources.append(ArraySource(Path(label), 0, 0, memory.nbytes, 0, memory))
        self._folder = Path(tempfile.mkdtemp(prefix="phiquant-"))
        # Also when it is forgotten, and when the interpreter ends.
        self._remove = weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        super().__init__("safetensors", Path(label), tuple(sources), entries, {}, name=name)

    @property
    def folder(self) -> Path:
        """Where config, tokenizer and generation settings stand, as in a model's folder."""
        return self._folder

    def memory_of(self, name: str) -> NDArray[np.uint8]:
        """The bytes of a tensor, where they stand."""
        return self._bytes(self.entries[name].file, 0, self.entries[name].nbytes)

    def close(self) -> None:
        """Remove the folder."""
        self._remove()


class _Lent:
    """Memory that belongs to another's tensor, as NumPy takes it."""

    def __init__(self, owner: Any, pointer: int, nbytes: int, writable: bool) -> None:
        self.owner = owner
        self.__array_interface__ = {
            "version": 3,
            "typestr": "|u1",
            "shape": (nbytes,),
            "data": (pointer, not writable),
        }


def borrow(
    tensor: Any, *, name: str, label: str, writable: bool = False
) -> tuple[NDArray[np.uint8], str, tuple[int, ...]]:
    """A tensor's own memory as bytes, its codec (``bf16``) and its shape.

    Parameters
    ----------
    writable : bool
        For tensors whose values shall be changed in place: NumPy's and torch's.

    Raises
    ------
    phiquant.UnsupportedError
        It has no values (a meta tensor), is on another device, or is not float.
    phiquant.ShapeError
        Its rows do not stand one after the other.
    phiquant.UsageError
        It cannot be written to.
    """
    _check_device(tensor, name, label)
    if getattr(tensor, "requires_grad", False):
        tensor = tensor.detach()  # the same memory; torch lends no tensor that is being learnt
    try:
        facts = _core.tensor_facts(tensor)
    except PhiquantError as error:
        raise type(error)(error.cause, file=label, tensor=name, remedy=error.remedy) from None
    kind, shape, strides = facts["codec"], tuple(facts["shape"]), tuple(facts["strides"])
    packed = _ITEM_BYTES[kind]
    for extent, stride in zip(reversed(shape), reversed(strides), strict=True):
        if extent > 1 and stride != packed:
            raise ShapeError(
                f"has strides of {strides} bytes: its rows do not stand one after the other",
                file=label,
                tensor=name,
                remedy="Make it contiguous: w.contiguous() or numpy.ascontiguousarray(w).",
            )
        packed *= extent
    if writable:
        _check_writable(tensor, name, label)
    nbytes = math.prod(shape) * _ITEM_BYTES[kind]
    return np.asarray(_Lent(tensor, facts["pointer"], nbytes, writable)), kind, shape


def _check_device(tensor: Any, name: str, label: str) -> None:
    # torch's own way to tell; what others tell by DLPack is refused where that is read.
    where = getattr(getattr(tensor, "device", None), "type", "cpu")
    if where == "meta":
        raise UnsupportedError(
            "has no values: it is on the meta device, offloaded or never loaded",
            file=label,
            tensor=name,
            remedy="Load the whole model into memory: from_pretrained without device_map.",
        )
    if isinstance(where, str) and where != "cpu":
        raise UnsupportedError(
            f"is on the device '{where}', and tensors are read in the processor's memory",
            file=label,
            tensor=name,
            remedy="Bring it there first: model.cpu().",
        )


def _check_writable(tensor: Any, name: str, label: str) -> None:
    if isinstance(tensor, np.ndarray):
        if tensor.flags.writeable:
            return
        raise UsageError(
            "is a read-only array, and its values are to be changed in place",
            file=label,
            tensor=name,
            remedy="Pass a copy: w.copy().",
        )
    if not hasattr(tensor, "data_ptr"):  # jax's and mlx's arrays never change
        raise UsageError(
            f"is a {type(tensor).__name__}, which does not change in place",
            file=label,
            tensor=name,
            remedy="Pass torch tensors or NumPy arrays.",
        )
