"""A strict reader of protobuf's wire format, as far as ``tokenizer.model`` needs it."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

from phiquant.errors import FormatError

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


def fields(data: memoryview, path: pathlib.Path) -> Iterator[tuple[int, int, int | memoryview]]:
    """One message's fields: number, wire type, and the varint's value or the others' bytes.

    Source: https://protobuf.dev/programming-guides/encoding

    Raises
    ------
    phiquant.FormatError
        A field reaches past the message's end, or has a number or wire type that the format
        forbids.
    """
    at = 0
    while at < len(data):
        tag, at = _varint(data, at, path)
        number, wire = tag >> 3, tag & 7
        if not 0 < number < 1 << 29:
            raise _damaged(f"a field has number {number}", path)
        if wire == VARINT:
            value, at = _varint(data, at, path)
            yield number, wire, value
            continue
        if wire == BYTES:
            size, at = _varint(data, at, path)
        elif wire == FIXED32:
            size = 4
        elif wire == FIXED64:
            size = 8
        else:  # groups were given up before SentencePiece existed
            raise _damaged(f"field {number} has wire type {wire}", path)
        if size > len(data) - at:
            raise _damaged(f"field {number} of {size} bytes reaches past its message's end", path)
        yield number, wire, data[at : at + size]
        at += size


def _varint(data: memoryview, at: int, path: pathlib.Path) -> tuple[int, int]:
    """A varint at ``at``, and the place after it."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise _damaged("it ends within a number", path)
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if value >= 1 << 64:
                break
            return value, at
    raise _damaged("a number is longer than 64 bits", path)


def _damaged(cause: str, path: pathlib.Path) -> FormatError:
    return FormatError(
        f"is no SentencePiece model: {cause}",
        file=path,
        remedy="Fetch the tokenizer's files again.",
    )
