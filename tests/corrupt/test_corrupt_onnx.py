"""ONNX files that must be refused, each with words that say why, in little memory."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from bounds import little_memory

import phiquant as pq
from phiquant import _core
from phiquant.errors import FormatError, UnsupportedError

pytestmark = pytest.mark.timeout(10)


def varint(value: int) -> bytes:
    out = b""
    while value >= 0x80:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def block(field: int, content: bytes) -> bytes:
    return varint(field << 3 | 2) + varint(len(content)) + content


def tensor(
    name: bytes = b"w", dims: tuple[int, ...] = (2,), kind: int = 1, rest: bytes | None = None
) -> bytes:
    rest = block(9, bytes(8)) if rest is None else rest
    return b"".join(number(1, d) for d in dims) + number(2, kind) + block(8, name) + rest


def model(graph: bytes | None = None, version: int = 10, rest: bytes = b"") -> bytes:
    graph = block(5, tensor()) if graph is None else graph
    return number(1, version) + block(7, graph) + rest


def parse(data: bytes) -> dict[str, object]:
    return _core.parse_onnx(np.frombuffer(data, np.uint8))


def external(**pairs: str) -> bytes:
    entries = (block(1, key.encode()) + block(2, text.encode()) for key, text in pairs.items())
    return b"".join(block(13, entry) for entry in entries) + number(14, 1)


def attribute(content: bytes) -> bytes:
    return block(1, block(4, b"Op") + block(5, block(1, b"a") + content))


def nested(depth: int) -> bytes:
    graph = b""
    for _ in range(depth):
        graph = attribute(block(6, graph) + number(20, 5))
    return graph


FORMAT_CASES = {
    "nothing": (b"", "0 bytes"),
    "no graph": (number(1, 10), "no graph or no IR version"),
    "no version": (block(7, b""), "no graph or no IR version"),
    "version 0": (model(version=0), "no graph or no IR version"),
    "two graphs": (model() + block(7, b""), "two graphs"),
    "text": (b"<!DOCTYPE html>", "wire type|takes .* bytes|no ONNX"),
    "cut in a graph": (model()[:-1], "takes .* bytes, and .* are left"),
    "cut in a varint": (model() + b"\x80", "broken field number"),
    "length 2^63": (number(1, 10) + varint(7 << 3 | 2) + varint(1 << 63), "takes 9223372036854"),
    "varint of 11 bytes": (number(1, 10) + b"\x08" + b"\xff" * 10 + b"\x01", "broken integer"),
    "field 0": (model() + b"\x00\x00", "impossible field number 0"),
    "a group": (model() + varint(30 << 3 | 3), "wire type 3"),
    "a version as bytes": (block(1, b"x"), "field 1 .* is no integer"),
    "a graph as a number": (number(7, 1), "field 7 .* holds no bytes"),
    "a name of bad UTF-8": (model(block(5, tensor(b"\xff"))), "not UTF-8"),
    "a name with a NUL": (model(block(5, tensor(b"a\0b"))), "holds a NUL"),
    "no name": (model(block(5, tensor(b""))), "without a name"),
    "a name twice": (model(block(5, tensor()) * 2), "duplicate name"),
    "too few bytes": (model(block(5, tensor(dims=(3,)))), "holds 8 bytes, but .* take 12"),
    "no bytes": (model(block(5, tensor(rest=b""))), "holds 0 bytes"),
    "a negative dimension": (
        model(block(5, tensor(dims=((1 << 64) - 1,)))),
        "a dimension of -1",
    ),
    "2^64 values": (model(block(5, tensor(dims=(1 << 32, 1 << 32)))), "overflows 64 bits"),
    "an unknown type": (model(block(5, tensor(kind=99))), "element type 99"),
    "a huge type": (model(block(5, tensor(kind=1 << 40))), "element type 1099511627776"),
    "strings": (model(block(5, tensor(kind=8))), "element type 8"),
    "odd packed floats": (
        model(block(5, tensor(rest=block(4, bytes(7))))),
        "packed numbers of 7 bytes",
    ),
    "floats of an integer": (
        model(block(5, tensor(kind=7, rest=block(4, bytes(8))))),
        "wrong field for int64",
    ),
    "a location of neither kind": (
        model(block(5, tensor(rest=number(14, 2)))),
        "data location 2",
    ),
    "no external file": (model(block(5, tensor(rest=external(offset="0")))), "names no file"),
    "an offset of words": (
        model(block(5, tensor(rest=external(location="x", offset="0x10")))),
        "no number",
    ),
    "an end past 64 bits": (
        model(block(5, tensor(rest=external(location="x", offset=str((1 << 64) - 1))))),
        "overflows 64 bits",
    ),
    "an attribute without its tensor": (model(attribute(number(20, 4))), "'a' empty"),
    "an attribute without its graph": (model(attribute(number(20, 5))), "'a' empty"),
}

UNSUPPORTED_CASES = {
    "functions": (model(rest=block(25, b"")), "functions"),
    "training": (model(rest=block(20, b"")), "training"),
    "sparse": (model(block(15, b"")), "sparse"),
    "string data": (model(block(5, tensor(rest=block(6, b"x")))), "strings"),
    "segments": (model(block(5, tensor(rest=block(3, b"")))), "segments"),
    "a list of tensors": (model(attribute(number(20, 9))), "type 9, which is not read"),
    "a reference": (model(attribute(block(21, b"b"))), "refer to a function"),
    "a sequence": (model(block(11, block(1, b"x") + block(2, block(4, b"")))), "is no tensor"),
    "33 dimensions": (model(block(5, tensor(dims=(1,) * 33))), "more than 32 numbers"),
    "graphs in graphs": (model(nested(40)), "nested too deeply"),
}


@pytest.mark.parametrize(("data", "words"), FORMAT_CASES.values(), ids=FORMAT_CASES)
def test_damaged_files_are_refused(data: bytes, words: str) -> None:
    with little_memory(), pytest.raises(FormatError, match=words):
        parse(data)


@pytest.mark.parametrize(("data", "words"), UNSUPPORTED_CASES.values(), ids=UNSUPPORTED_CASES)
def test_what_is_not_read_is_named(data: bytes, words: str) -> None:
    with little_memory(), pytest.raises(UnsupportedError, match=words):
        parse(data)


def test_many_empty_messages_are_refused_before_they_fill_the_memory() -> None:
    with pytest.raises(UnsupportedError, match="more than 524288 parts"):
        parse(model(block(1, b"") * (1 << 20)))


def test_every_cut_of_a_sound_file_is_refused_or_read() -> None:
    whole = model(block(5, tensor()) + attribute(block(7, bytes(8)) + number(20, 6)))
    read = 0
    for length in range(len(whole)):
        try:
            parse(whole[:length])
            read += 1
        except FormatError:
            pass
    assert read == 0
    assert parse(whole)["ir_version"] == 10


@pytest.mark.parametrize(
    "name", ["a\0b", "../model.onnx", "/etc/passwd", "", "..", None, 1], ids=ascii
)
def test_a_config_that_names_no_file_of_its_folder_is_refused(name: object, tmp_path: Path) -> None:
    config = {"model": {"decoder": {"filename": name}}}
    (tmp_path / "genai_config.json").write_text(json.dumps(config))
    with pytest.raises(FormatError, match="names no plain file of this folder"):
        pq.open(tmp_path)
