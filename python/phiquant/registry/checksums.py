"""CRC-32C of whole files: joined from those of their parts, or read from the disk."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path

from phiquant import _core

# Castagnoli's polynomial, bits reversed: bit 31 is x^0. Products are those of polynomials over
# GF(2), modulo it; see Mark Adler's crc32_combine in zlib for the algebra.
_POLYNOMIAL = 0x82F63B78
_ONE = 1 << 31
_PIECE = 1 << 22


def joined(first: int, second: int, nbytes: int) -> int:
    """The checksum of two texts one after the other, from theirs and the second's length."""
    return _times(_shift(nbytes), first) ^ second


def of_zeros(nbytes: int) -> int:
    """The checksum of so many zero bytes."""
    return _times(_shift(nbytes), 0xFFFFFFFF) ^ 0xFFFFFFFF


def of_parts(parts: Iterable[tuple[int, int, int]], size: int) -> int | None:
    """The checksum of a file of ``size`` bytes, of which all is zero but its parts.

    Parameters
    ----------
    parts : iterable of (offset, nbytes, crc)
        In any order.
    size : int

    Returns
    -------
    int or None
        None where parts overlap, or go past the end: then they do not tell.
    """
    crc, position = 0, 0
    for offset, nbytes, own in sorted(parts):
        if nbytes == 0:
            continue
        if offset < position:
            return None
        if offset > position:
            crc = joined(crc, of_zeros(offset - position), offset - position)
        crc = joined(crc, own, nbytes)
        position = offset + nbytes
    if position > size:
        return None
    return joined(crc, of_zeros(size - position), size - position) if position < size else crc


def of_file(path: Path, progress: Callable[[int], None] = lambda count: None) -> int:
    """The checksum of a file's bytes, which are read.

    Parameters
    ----------
    path : Path
    progress : callable
        Gets the number of bytes of each piece, when it was read.
    """
    crc = 0
    with path.open("rb", buffering=0) as file:
        while piece := file.read(_PIECE):
            crc = joined(crc, _core.crc32c(piece), len(piece))
            progress(len(piece))
    return crc


def _times(a: int, b: int) -> int:
    product, bit = 0, _ONE
    while a:
        if a & bit:
            product ^= b
            a ^= bit
        bit >>= 1
        b = (b >> 1) ^ _POLYNOMIAL if b & 1 else b >> 1
    return product


@lru_cache(maxsize=4096)
def _shift(nbytes: int) -> int:
    """x to the power of 8 * nbytes: what so many bytes that follow do to a checksum."""
    power, square = _ONE, _ONE >> 8  # x^8, which is one byte
    while nbytes:
        if nbytes & 1:
            power = _times(power, square)
        square = _times(square, square)
        nbytes >>= 1
    return power
