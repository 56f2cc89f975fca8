"""Safetensors files that must be refused, each with words that say why, in little memory."""

from __future__ import annotations

import json
import struct
from typing import Any

import pytest
from bounds import little_memory

from phiquant import _core
from phiquant.errors import FormatError, PhiquantError, UnsupportedError

pytestmark = pytest.mark.timeout(10)


def read(data: bytes, size: int | None = None) -> tuple[list[Any], dict[str, str]]:
    """Read a file's header the way a reader of files does: the length, then the JSON."""
    size = len(data) if size is None else size
    length = _core.safetensors_header_length(data[:64], size)
    return _core.parse_safetensors(data[8 : 8 + length], size)


def framed(header: str | bytes, data: bytes = b"") -> bytes:
    raw = header if isinstance(header, bytes) else header.encode()
    return struct.pack("<Q", len(raw)) + raw + data


def entry(dtype: str = "F32", shape: str = "[2]", offsets: str = "[0,8]") -> str:
    return f'{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}'


def one(tensor: str, data: int = 8) -> bytes:
    return framed('{"x":' + tensor + "}", bytes(data))


GOOD = framed('{"x":' + entry() + ',"y":' + entry(offsets="[8,16]") + "}", bytes(16))

FORMAT_CASES = {
    "row 1: 0 bytes": (b"", "0 bytes"),
    "row 2: 7 bytes": (bytes(7), "has 7 bytes, too few"),
    "row 3: header length past the file": (
        struct.pack("<Q", 1000) + b"{}",
        "header has 1000 bytes, but only 2 follow.*incomplete",
    ),
    "row 3: header length 2^64-1": (
        b"\xff" * 8 + b"{}      ",
        "header has 18446744073709551615 bytes, more than the limit",
    ),
    "header length 0": (bytes(16), "header has 0 bytes, too few"),
    "row 4: header not UTF-8": (framed(b'{"\xff":1}'), "not UTF-8 text .byte 2"),
    "row 4: overlong UTF-8": (framed(b'{"\xc0\x80":1}'), "not UTF-8"),
    "row 4: UTF-16 surrogate in UTF-8": (framed(b'{"\xed\xa0\x80":1}'), "not UTF-8"),
    "row 5: 100k nested brackets": (framed("[" * 100_000), "starts with '{'"),
    "row 5: 100k nested braces": (framed('{"x":' * 100_000), "unknown key 'x'"),
    "row 5: 100k brackets in a shape": (
        one(entry(shape="[" * 100_000)),
        r"a whole number, found a nested '\['",
    ),
    "row 5: 100k brackets in metadata": (
        framed('{"__metadata__":{"a":' + "[" * 100_000),
        r"expected a string .*found a nested '\['",
    ),
    "row 6: duplicate tensor": (
        framed('{"x":' + entry() + ',"x":' + entry(offsets="[8,16]") + "}", bytes(16)),
        "'x' is in the header twice .a duplicate key",
    ),
    "row 6: duplicate tensor, one escaped": (
        framed('{"x":' + entry() + ',"\\u0078":' + entry(offsets="[8,16]") + "}", bytes(16)),
        "'x' is in the header twice",
    ),
    "row 6: duplicate __metadata__": (
        framed('{"__metadata__":{},"__metadata__":{}}'),
        "duplicate key '__metadata__'",
    ),
    "row 6: duplicate metadata key": (
        framed('{"__metadata__":{"a":"1","a":"2"}}'),
        "__metadata__ has the duplicate key 'a'",
    ),
    "row 7: duplicate key in an entry": (
        one('{"dtype":"F32","shape":[2],"shape":[2],"data_offsets":[0,8]}'),
        "tensor 'x' has the duplicate key 'shape'",
    ),
    "missing key in an entry": (one('{"dtype":"F32","shape":[2]}'), "lacks the key 'data_offsets'"),
    "unknown key in an entry": (
        one('{"dtype":"F32","shape":[2],"data_offsets":[0,8],"code":"x"}'),
        "unknown key 'code'",
    ),
    "row 8: offsets overlap": (
        framed('{"x":' + entry() + ',"y":' + entry(offsets="[4,12]") + "}", bytes(12)),
        "tensor 'y' overlaps tensor 'x': it begins at byte",
    ),
    "row 8: offsets leave a hole": (
        framed('{"x":' + entry() + ',"y":' + entry(offsets="[12,20]") + "}", bytes(20)),
        "tensor 'y' leaves a hole before it",
    ),
    "row 8: hole before the first": (
        framed('{"x":' + entry(offsets="[4,12]") + "}", bytes(12)),
        "leaves a hole",
    ),
    "row 9: end before begin": (one(entry(offsets="[8,0]")), "before it begins"),
    "row 9: negative": (one(entry(offsets="[-8,0]")), "a data offset is negative"),
    "row 9: float": (one(entry(offsets="[0,8.0]")), "a data offset is not a whole number"),
    "row 9: 1e30": (one(entry(offsets="[0,1e30]")), "a data offset is not a whole number"),
    "row 9: 2^64": (one(entry(offsets="[0,18446744073709551616]")), "does not fit in 64 bits"),
    "row 9: leading zero": (one(entry(offsets="[0,08]")), "starts with a zero"),
    "row 9: offset as a string": (one(entry(offsets='["0","8"]')), "a whole number, found"),
    "row 9: one offset": (one(entry(offsets="[8]")), "two data offsets"),
    "row 9: three offsets": (one(entry(offsets="[0,8,8]")), "data_offsets"),
    "row 10: product overflows": (
        one(entry(shape="[4294967296,4294967296]")),
        "overflows 64 bits",
    ),
    "row 10: product times size overflows": (
        one(entry(shape="[4611686018427387904]", offsets="[0,0]")),
        "overflows 64 bits",
    ),
    "row 10: overflow hidden by a zero": (
        one(entry(shape="[0,4294967296,4294967296]", offsets="[0,0]"), 0),
        "overflows 64 bits",
    ),
    "row 11: range too long": (one(entry(shape="[1]")), "4 bytes, but a range of 8"),
    "row 11: range too short": (one(entry(shape="[3]")), "12 bytes, but a range of 8"),
    "row 14: truncated by 1 byte": (
        GOOD[:-1],
        f"tensor 'y' ends at byte {len(GOOD)}, past the file's end .{len(GOOD) - 1}.*"
        "incomplete: fetch the shard again",
    ),
    "row 14: end of 2^64-1": (
        one(entry(dtype="U8", shape="[18446744073709551615]", offsets="[0,18446744073709551615]")),
        "ends at byte 18446744073709551615 of the data, past the file's end",
    ),
    "row 15: trailing byte": (GOOD + b"\0", "1 byte follows the last tensor's end"),
    "row 15: polyglot": (framed("{}", b"PK\x03\x04 and more"), "13 bytes follow"),
    "row 15: text after the brace": (framed('{}  "x"'), "text follows the closing brace"),
    "leading space": (framed(" {}"), "starts with '{'"),
    "byte order mark": (framed(b"\xef\xbb\xbf{}"), "starts with '{'"),
    "row 25: Git-LFS pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 4976698672\n",
        "Git-LFS pointer.*git lfs pull",
    ),
    "row 25: HTML page": (b"<!DOCTYPE html><html><body>401</body></html>", "web page"),
    "row 25: HTML page after a newline": (b"\n\n<html>Rate limited</html>", "web page"),
    "row 25: short HTML page": (b"<html>", "web page"),
    "row 25: JSON error": (b'{"error":"Invalid credentials"}', "JSON text"),
    "row 25: GGUF": (b"GGUF\x03\0\0\0" + bytes(16), "is a GGUF file"),
    "row 26: pickle": (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "pickle"),
    "row 26: ZIP": (b"PK\x03\x04" + bytes(40), "pickle or a ZIP"),
    "array as header": (framed("[]"), "starts with '{'"),
    "entry is null": (framed('{"x":null}'), "expected a tensor's entry"),
    "trailing comma": (framed('{"x":' + entry() + ",}", bytes(8)), "expected a tensor's name"),
    "metadata value not a string": (framed('{"__metadata__":{"a":1}}'), "a string as value"),
    "NUL in a name": (framed('{"x\\u0000y":' + entry() + "}", bytes(8)), "NUL"),
    "control character in a name": (framed(b'{"a\nb":1}'), "control character"),
    "lone high surrogate": (framed('{"\\ud800":1}'), "surrogate"),
    "lone low surrogate": (framed('{"\\udc00":1}'), "surrogate"),
    "high surrogate twice": (framed('{"\\ud800\\ud800":1}'), "surrogate"),
    "bad escape": (framed('{"\\x41":1}'), "unknown escape"),
    "short \\u": (framed('{"\\u12'), "hexadecimal"),
    "string does not end": (framed('{"abc'), "does not end"),
}

UNSUPPORTED_CASES = {
    "row 12: F4": (one(entry(dtype="F4")), "tensor 'x' has the dtype 'F4', which.*BF16"),
    "row 12: complex": (one(entry(dtype="C64")), "has the dtype 'C64'"),
    "row 12: made up": (one(entry(dtype="f32")), "has the dtype 'f32'"),
    "row 13: 33 dimensions": (
        one(entry(shape="[" + ",".join(["1"] * 33) + "]")),
        "more than 32 dimensions",
    ),
}


@pytest.mark.parametrize("case", FORMAT_CASES)
def test_a_damaged_file_is_refused(case: str) -> None:
    data, words = FORMAT_CASES[case]
    with little_memory(), pytest.raises(FormatError, match=words):
        read(data)


@pytest.mark.parametrize("case", UNSUPPORTED_CASES)
def test_what_is_not_handled_is_refused(case: str) -> None:
    data, words = UNSUPPORTED_CASES[case]
    with little_memory(), pytest.raises(UnsupportedError, match=words):
        read(data)


def test_row_5_a_header_over_100_mb_is_refused_before_it_is_read() -> None:
    with little_memory(), pytest.raises(FormatError, match="more than the limit of 100000000"):
        read(struct.pack("<Q", 100_000_001) + b"{" + bytes(55), size=200_000_000)


def test_row_5_a_header_of_100_mb_of_tensors_stays_in_bounds() -> None:
    body = ",".join(
        f'"{i:x}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}' for i in range(1_100_000)
    )
    data = framed("{" + body + "}")
    with little_memory(1 << 30), pytest.raises(UnsupportedError, match="more than 1048576 tensors"):
        read(data)


def test_row_13_scalars_empty_tensors_and_ten_dimensions_are_read() -> None:
    header = {
        "scalar": {"dtype": "F32", "shape": [], "data_offsets": [0, 4]},
        "empty": {"dtype": "F32", "shape": [3, 0, 2], "data_offsets": [4, 4]},
        "ten": {"dtype": "U8", "shape": [1] * 9 + [2], "data_offsets": [4, 6]},
    }
    entries, _ = read(framed(json.dumps(header), bytes(6)))
    assert [(name, shape, end - begin) for name, _, shape, begin, end in entries] == [
        ("scalar", (), 4),
        ("empty", (3, 0, 2), 0),
        ("ten", (1,) * 9 + (2,), 2),
    ]


def test_every_truncation_is_refused() -> None:
    for size in range(len(GOOD)):
        with pytest.raises(FormatError):
            read(GOOD[:size])


def test_every_changed_byte_of_a_header_is_refused_or_read() -> None:
    end = len(GOOD) - 16
    for at in range(end):
        for value in (0, 0x22, 0x2D, 0x39, 0x5B, 0x7B, 0xFF):
            damaged = GOOD[:at] + bytes([value]) + GOOD[at + 1 :]
            try:
                entries, _ = read(damaged)
            except PhiquantError:
                continue
            assert sum(end - begin for *_, begin, end in entries) == 16


def test_a_name_cannot_send_control_characters_to_the_terminal() -> None:
    tensor = '{"\\u001b[2Jx":' + entry(dtype="F4") + "}"
    with pytest.raises(UnsupportedError) as caught:
        read(framed(tensor, bytes(8)))
    assert "\x1b" not in str(caught.value)
    assert "\\x1b[2Jx" in str(caught.value)
