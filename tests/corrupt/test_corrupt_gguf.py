"""GGUF files that must be refused, each with words that say why, in little memory."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from bounds import little_memory

from phiquant import _core
from phiquant.errors import FormatError, PhiquantError, UnsupportedError

pytestmark = pytest.mark.timeout(10)

U32, F32, BOOL, STRING, ARRAY = 4, 6, 7, 8, 9


def text(value: str | bytes) -> bytes:
    raw = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(raw)) + raw


def pair(key: str | bytes, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def u32(key: str, value: int) -> bytes:
    return pair(key, U32, struct.pack("<I", value))


def tensor(
    name: str | bytes = "x",
    dims: tuple[int, ...] = (8,),
    kind: int = 0,
    offset: int = 0,
    n_dims: int | None = None,
) -> bytes:
    n_dims = len(dims) if n_dims is None else n_dims
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", n_dims, *dims, kind, offset)


def gguf(
    pairs: list[bytes] | None = None,
    tensors: list[bytes] | None = None,
    data: int = 32,
    version: int = 3,
    counts: tuple[int, int] | None = None,
    magic: bytes = b"GGUF",
) -> bytes:
    pairs = pairs or []
    tensors = [tensor()] if tensors is None else tensors
    n_tensors, n_pairs = counts or (len(tensors), len(pairs))
    head = magic + struct.pack("<IQQ", version, n_tensors, n_pairs)
    head += b"".join(pairs) + b"".join(tensors)
    head += bytes(-len(head) % 32)
    return head + bytes(data)


def parse(data: bytes, size: int | None = None) -> dict[str, Any]:
    header = _core.parse_gguf(data, len(data) if size is None else size)
    assert header is not None
    return header


def array(item: int, count: int, items: bytes = b"") -> bytes:
    return struct.pack("<IQ", item, count) + items


FORMAT_CASES = {
    "0 bytes": (b"", "0 bytes"),
    "7 bytes": (gguf()[:7], "needs 4 bytes, past the file's end .7"),
    "wrong magic": (gguf(magic=b"GGML"), "starts with 'GGML', not 'GGUF'"),
    "row 40: alignment 0": (gguf([u32("general.alignment", 0)]), "alignment of 0, not a power"),
    "row 40: alignment 3": (gguf([u32("general.alignment", 3)]), "alignment of 3, not a power"),
    "row 40: alignment 2^31": (
        gguf([u32("general.alignment", 1 << 31)]),
        "alignment of 2147483648",
    ),
    "row 40: alignment as a string": (
        gguf([pair("general.alignment", STRING, text("32"))]),
        "not a uint32",
    ),
    "row 41: array length 2^63": (
        gguf([pair("a", ARRAY, array(U32, 1 << 63))]),
        "array of 9223372036854775808 items, more than",
    ),
    "row 41: string array length 2^63": (
        gguf([pair("a", ARRAY, array(STRING, 1 << 63))]),
        "array of 9223372036854775808 items, more than",
    ),
    "row 41: array length 2^62 wraps to 0 bytes": (
        gguf([pair("a", ARRAY, array(U32, 1 << 62))]),
        "array of 4611686018427387904 items",
    ),
    "tensor count 2^60": (gguf(counts=(1 << 60, 0)), "claims 1152921504606846976 tensors"),
    "tensor count 2^63": (gguf(counts=(1 << 63, 0)), "claims 9223372036854775808 tensors"),
    "key count 2^60": (gguf(counts=(1, 1 << 60)), "claims 1152921504606846976 metadata keys"),
    "row 42: n_dims 5": (gguf(tensors=[tensor(dims=(2,) * 5)]), "'x' has 5 dimensions, not 1 to 4"),
    "row 42: n_dims 0": (gguf(tensors=[tensor(dims=())]), "'x' has 0 dimensions"),
    "row 42: n_dims 2^32-1": (gguf(tensors=[tensor(n_dims=0xFFFFFFFF)]), "has 4294967295 dim"),
    "row 42: dim 0": (gguf(tensors=[tensor(dims=(8, 0))]), "'x' has a dimension of 0"),
    "row 43: string past the end": (
        gguf([text("k") + struct.pack("<IQ", STRING, 1 << 40)]),
        "'k' at byte .* needs 1099511627776 bytes, past the file's end",
    ),
    "row 43: key past the end": (
        gguf([struct.pack("<Q", 1 << 40) + bytes(32)]),
        "a metadata key at byte .*past the file's end",
    ),
    "row 43: string of 2^64-1": (
        gguf([text("k") + struct.pack("<IQ", STRING, (1 << 64) - 1)]),
        "past the file's end",
    ),
    "row 43: unknown value type": (
        gguf([pair("k", 13, bytes(16))]),
        "'k' has the unknown value type 13",
    ),
    "row 43: unknown item type": (
        gguf([pair("k", ARRAY, array(99, 1, bytes(8)))]),
        "unknown value type 99",
    ),
    "row 43: unknown tensor type": (gguf(tensors=[tensor(kind=43)]), "unknown type 43"),
    "row 43: tensor type 2^31": (gguf(tensors=[tensor(kind=1 << 31)]), "unknown type 2147483648"),
    "row 44: duplicate key": (gguf([u32("k", 1), u32("k", 2)]), "duplicate metadata key 'k'"),
    "row 44: duplicate tensor": (
        gguf(tensors=[tensor(), tensor(offset=32)], data=64),
        "tensor 'x' is in the header twice",
    ),
    "version 0": (gguf(version=0), "version 0"),
    "bool of 2": (gguf([pair("b", BOOL, b"\x02")]), "'b' is a bool of value 2"),
    "bool of 2 in an array": (
        gguf([pair("b", ARRAY, array(BOOL, 2, b"\0\2"))]),
        "a bool of value 2",
    ),
    "empty key": (gguf([u32("", 1)]), "empty metadata key"),
    "key not UTF-8": (gguf([pair(b"\xff", U32, bytes(4))]), "is not UTF-8"),
    "key with NUL": (gguf([u32("a\0b", 1)]), "NUL"),
    "tensor name not UTF-8": (gguf(tensors=[tensor(b"\xc3")]), "is not UTF-8"),
    "tensor name with NUL": (gguf(tensors=[tensor("a\0b")]), "NUL"),
    "dims overflow": (gguf(tensors=[tensor(dims=(1 << 32, 1 << 32))]), "overflows"),
    "dims overflow to a small product": (
        gguf(tensors=[tensor(dims=(1 << 32, 1 << 31, 2, 1))]),
        "overflows",
    ),
    "bytes overflow": (gguf(tensors=[tensor(dims=(1 << 62,))]), "overflows"),
    "row no multiple of the block": (
        gguf(tensors=[tensor(dims=(255,), kind=12)]),
        "rows of 255 values, not a multiple of the block size of q4_k .256",
    ),
    "offset not aligned": (gguf(tensors=[tensor(offset=8)]), "not a multiple of the alignment .32"),
    "offset past the end": (
        gguf(tensors=[tensor(offset=1 << 40)]),
        "past the file's end .*incomplete",
    ),
    "offset of 2^64-32": (gguf(tensors=[tensor(offset=(1 << 64) - 32)]), "overflows 64 bits"),
    "tensors overlap": (
        gguf(tensors=[tensor("x", (64,)), tensor("y", offset=32)], data=256),
        "tensor 'y' overlaps tensor 'x'",
    ),
    "row 14: truncated by 1 byte": (gguf()[:-1], "tensor 'x' ends at byte .*past the file's end"),
    "row 25: Git-LFS pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1\n",
        "Git-LFS pointer.*git lfs pull",
    ),
    "row 25: HTML page": (b"<!DOCTYPE html><html></html>", "web page"),
    "row 25: safetensors": (
        struct.pack("<Q", 8) + b"{}      ",
        "looks like a safetensors file",
    ),
}

UNSUPPORTED_CASES = {
    "row 44: big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    "version 1": (gguf(version=1), "version 1"),
    "version 4": (gguf(version=4), "version 4, newer than 3"),
    "array of arrays": (
        gguf([pair("k", ARRAY, array(ARRAY, 1, array(U32, 1, bytes(4))))]),
        "'k' is an array of arrays",
    ),
    "removed tensor type": (
        gguf(tensors=[tensor(dims=(32,), kind=31)]),
        "type q4_0_4_4, which ggml has removed",
    ),
}


@pytest.mark.parametrize("case", FORMAT_CASES)
def test_a_damaged_file_is_refused(case: str) -> None:
    data, words = FORMAT_CASES[case]
    with little_memory(), pytest.raises(FormatError, match=words):
        parse(data)


@pytest.mark.parametrize("case", UNSUPPORTED_CASES)
def test_what_is_not_handled_is_refused(case: str) -> None:
    data, words = UNSUPPORTED_CASES[case]
    with little_memory(), pytest.raises(UnsupportedError, match=words):
        parse(data)


def test_the_file_that_the_cases_damage_is_good() -> None:
    assert parse(gguf([u32("k", 1)]))["tensors"] == [("x", (8,), 0, 96, 32)]


@pytest.mark.parametrize("item", [0, STRING])
def test_row_41_a_count_that_a_huge_file_could_hold_allocates_nothing(item: int) -> None:
    # The file claims to have 2^50 bytes, so that the counts are possible; only its start is given.
    start = gguf([pair("k", ARRAY, array(item, 1 << 40))])[:64]
    with little_memory():
        if item == STRING:
            assert _core.parse_gguf(start, 1 << 50) is None
        else:
            with pytest.raises(UnsupportedError, match="header of more than"):
                _core.parse_gguf(start, 1 << 50)


def test_row_41_endless_empty_strings_stop_at_the_limit() -> None:
    zeros = bytes(160 << 20)
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("k")
    head += struct.pack("<I", ARRAY) + array(STRING, (len(zeros) - 1024) // 8)
    data = head + zeros
    with little_memory(1536 << 20), pytest.raises(UnsupportedError, match="header of more than"):
        _core.parse_gguf(data, len(data))


def test_every_start_of_a_header_asks_for_more_or_is_truncated() -> None:
    data = gguf([u32("k", 1), pair("s", STRING, text("value"))])
    header_end = len(data) - 32
    for size in range(header_end):
        known = _core.parse_gguf(data[:size], len(data))
        # Padding is not read, so the last bytes before the data may be missing.
        assert known is None or size > header_end - 32
        with pytest.raises(FormatError):
            parse(data[:size])


def test_every_changed_byte_is_refused_or_read() -> None:
    data = gguf([u32("k", 1), pair("s", ARRAY, array(STRING, 2, text("a") + text("b")))])
    for at in range(len(data) - 32):
        for value in (0, 1, 2, 9, 0x7F, 0x80, 0xFF):
            damaged = data[:at] + bytes([value]) + data[at + 1 :]
            try:
                header = parse(damaged)
            except PhiquantError:
                continue
            for *_, offset, size in header["tensors"]:
                assert offset + size <= len(data)
