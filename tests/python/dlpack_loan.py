"""A DLPack producer built with ctypes, which can lie about itself and counts what is given back."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

CPU, CUDA = 1, 2
INT, UINT, FLOAT, BFLOAT, COMPLEX = 0, 1, 2, 4, 5


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("dimensions", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _Managed(ctypes.Structure):
    _fields_ = (("tensor", _Tensor), ("manager", ctypes.c_void_p), ("deleter", ctypes.c_void_p))


class _ManagedVersioned(ctypes.Structure):
    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("manager", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", _Tensor),
    )


_Deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
# With the GIL, and with a plain pointer: the capsule is being destroyed and must not be revived.
_Destructor = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)
_new = ctypes.pythonapi.PyCapsule_New
_new.restype, _new.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
_is_valid = ctypes.pythonapi.PyCapsule_IsValid
_is_valid.restype, _is_valid.argtypes = ctypes.c_int, (ctypes.c_void_p, ctypes.c_char_p)
_is_named = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_IsValid", ctypes.pythonapi)
)


class Loan:
    """One tensor lent by DLPack.

    Keep it until the tests are done: the C structs live in it. ``returned`` counts the deleter's
    calls, whoever makes them: the borrower, or the capsule that nobody took.
    """

    def __init__(
        self,
        array: np.ndarray[Any, Any],
        *,
        versioned: bool = True,
        major: int = 1,
        device: int = CPU,
        dtype: tuple[int, int, int] = (FLOAT, 32, 1),
        shape: tuple[int, ...] | None = None,
        strides: tuple[int, ...] | None = None,
        byte_offset: int = 0,
    ) -> None:
        self.array = array
        self.name = b"dltensor_versioned" if versioned else b"dltensor"
        shape = array.shape if shape is None else shape
        self._shape = (ctypes.c_int64 * len(shape))(*shape)
        self._strides = None if strides is None else (ctypes.c_int64 * len(strides))(*strides)
        self._returned = returned = [0]
        name, is_valid = self.name, _is_valid

        # Closures over no part of this object: it must go when its last reference goes.
        def give_back(managed: int) -> None:
            returned[0] += 1

        def destroy(capsule: int) -> None:
            if is_valid(capsule, name):
                returned[0] += 1

        self._deleter = _Deleter(give_back)
        self._destructor = _Destructor(destroy)
        managed: _Managed | _ManagedVersioned
        managed = _ManagedVersioned(major=major, minor=3) if versioned else _Managed()
        managed.deleter = ctypes.cast(self._deleter, ctypes.c_void_p).value
        tensor = managed.tensor
        tensor.data = array.ctypes.data
        tensor.device_type, tensor.device_id = device, 0
        tensor.dimensions = len(shape)
        tensor.code, tensor.bits, tensor.lanes = dtype
        tensor.shape = self._shape
        if self._strides is not None:
            tensor.strides = self._strides
        tensor.byte_offset = byte_offset
        self._managed = managed
        destructor = ctypes.cast(self._destructor, ctypes.c_void_p)
        self.capsule: Any = _new(ctypes.addressof(managed), self.name, destructor)

    @property
    def returned(self) -> int:
        return self._returned[0]

    def taken(self) -> bool:
        """Whether the capsule has been renamed, which is how a borrower takes it over."""
        return not _is_named(self.capsule, self.name)

    def __del__(self) -> None:
        # Before the callbacks that its destructor is made of.
        self.capsule = None


class Lender:
    """An object with ``__dlpack__``, of today's kind or of the time before DLPack 1.0."""

    def __init__(self, loan: Loan, *, knows_versions: bool = True) -> None:
        self.loan = loan
        self.knows_versions = knows_versions
        self.asked: list[dict[str, Any]] = []

    def __dlpack__(self, **options: Any) -> Any:
        self.asked.append(options)
        if options and not self.knows_versions:
            raise TypeError("__dlpack__() got an unexpected keyword argument 'max_version'")
        return self.loan.capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        return CPU, 0
