"""What phiquant reads and writes of GGUF is what llama.cpp's own gguf package writes and reads."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from phiquant import _core
from phiquant.errors import UsageError

# (key, type, value): every type, every kind of array, and strings that are no UTF-8.
METADATA: list[tuple[str, str, Any]] = [
    ("general.architecture", "string", "phi3"),
    ("a.u8", "uint8", 255),
    ("a.i8", "int8", -128),
    ("a.u16", "uint16", 65535),
    ("a.i16", "int16", -32768),
    ("a.u32", "uint32", 2**32 - 1),
    ("a.i32", "int32", -(2**31)),
    ("a.f32", "float32", 0.5),
    ("a.yes", "bool", True),
    ("a.no", "bool", False),
    ("a.u64", "uint64", 2**64 - 1),
    ("a.i64", "int64", -(2**63)),
    ("a.f64", "float64", 0.1),
    ("a.text", "string", "naïve 🙂"),
    ("a.empty", "string", ""),
    ("v.tokens", "array:string", ["a", "", "é", "<0xE9>"]),
    ("v.scores", "array:float32", np.array([0.0, -1.5, 3e38], np.float32)),
    ("v.types", "array:int32", np.array([1, -1, 2**31 - 1], np.int32)),
    ("v.u8", "array:uint8", np.arange(3, dtype=np.uint8)),
    ("v.i8", "array:int8", np.array([-1], np.int8)),
    ("v.u16", "array:uint16", np.array([65535], np.uint16)),
    ("v.i16", "array:int16", np.array([-5], np.int16)),
    ("v.u32", "array:uint32", np.array([2**32 - 1], np.uint32)),
    ("v.bools", "array:bool", np.array([True, False])),
    ("v.u64", "array:uint64", np.array([2**64 - 1], np.uint64)),
    ("v.i64", "array:int64", np.array([-1, 2**40], np.int64)),
    ("v.f64", "array:float64", np.array([1e300])),
]
TENSORS = [
    ("token_embd.weight", (256, 3), 12),
    ("output_norm.weight", (5,), 0),
    ("x", (32, 2, 3), 2),
]


def gguf_type(name: str) -> gguf.GGUFValueType:
    return gguf.GGUFValueType["BOOL" if name == "bool" else name.upper()]


def package_file(path: Path, metadata: list[tuple[str, str, Any]], alignment: int = 32) -> bytes:
    """A file of the gguf package with TENSORS of zeros; metadata start with general.architecture."""
    writer = gguf.GGUFWriter(path, arch=metadata[0][2])
    for key, name, value in metadata[1:]:
        if key == "general.alignment":
            writer.add_custom_alignment(value)
        elif name.startswith("array:"):
            items = value if isinstance(value, list) else value.tolist()
            item = gguf_type(name.removeprefix("array:"))
            writer.add_key_value(key, items, gguf.GGUFValueType.ARRAY, sub_type=item)
        else:
            writer.add_key_value(key, value, gguf_type(name))
    for name, dims, kind in TENSORS:
        quant = gguf.GGMLQuantizationType(kind)
        if quant == gguf.GGMLQuantizationType.F32:
            writer.add_tensor(name, np.zeros(dims[::-1], np.float32))
        else:
            block, size = gguf.GGML_QUANT_SIZES[quant]
            rows = np.zeros((*dims[:0:-1], dims[0] // block * size), np.uint8)
            writer.add_tensor(name, rows, raw_dtype=quant)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


def assert_same_metadata(found: list[Any], wanted: list[Any]) -> None:
    assert [entry[:2] for entry in found] == [entry[:2] for entry in wanted]
    for (key, name, value), (_, _, other) in zip(found, wanted, strict=True):
        if isinstance(other, np.ndarray):
            assert value.dtype == other.dtype, key
            np.testing.assert_array_equal(value, other)
        else:
            assert (type(value), value) == (type(other), other), (key, name)


def test_every_type_of_ggml_has_the_size_that_the_gguf_package_says() -> None:
    sizes = {kind.value: sizes for kind, sizes in gguf.GGML_QUANT_SIZES.items()}
    ours = {kind: (block, size) for kind, _, block, size in _core.ggml_types()}
    # gguf-py still counts float scales in Q8_1 (40 bytes); in ggml's block_q8_1 they are halves: 36.
    assert sizes.pop(gguf.GGMLQuantizationType.Q8_1.value) == (32, 40)
    assert ours[gguf.GGMLQuantizationType.Q8_1.value] == (32, 36)
    for kind, size in sizes.items():
        assert ours[kind] == tuple(size), gguf.GGMLQuantizationType(kind)
    names = {kind: name for kind, name, _, _ in _core.ggml_types()}
    for kind in gguf.GGMLQuantizationType:
        assert names[kind.value] == kind.name.lower()


@pytest.mark.parametrize("alignment", [32, 64, 4096])
def test_the_same_bytes_as_the_gguf_package(tmp_path: Path, alignment: int) -> None:
    metadata = list(METADATA)
    if alignment != 32:
        metadata.insert(1, ("general.alignment", "uint32", alignment))
    theirs = package_file(tmp_path / "x.gguf", metadata, alignment)
    header, offsets, size = _core.write_gguf_header(metadata, TENSORS, alignment)
    assert size == len(theirs)
    assert header == theirs[: len(header)]
    assert offsets[0] == len(header)
    assert not any(theirs[len(header) :])


def test_a_file_of_the_gguf_package_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    data = package_file(path, METADATA)
    header = _core.parse_gguf(data, len(data))
    assert (header["version"], header["alignment"]) == (3, 32)
    assert_same_metadata(header["metadata"], METADATA)
    reader = gguf.GGUFReader(path)
    assert [tuple(tensor) for tensor in header["tensors"]] == [
        (t.name, tuple(int(d) for d in t.shape), t.tensor_type.value, t.data_offset, t.n_bytes)
        for t in reader.tensors
    ]
    assert header["data_offset"] == reader.data_offset


def test_the_gguf_package_reads_what_is_written(tmp_path: Path) -> None:
    header, offsets, size = _core.write_gguf_header(METADATA, TENSORS, 32)
    path = tmp_path / "x.gguf"
    path.write_bytes(header + bytes(size - len(header)))
    reader = gguf.GGUFReader(path)
    for key, name, value in METADATA:
        field = reader.get_field(key)
        assert field is not None
        assert field.types[-1] == gguf_type(name.removeprefix("array:"))
        contents = field.contents()
        assert contents == (value.tolist() if isinstance(value, np.ndarray) else value) or (
            name == "float32" and contents == pytest.approx(value)
        )
    assert [tensor.data_offset for tensor in reader.tensors] == offsets


def test_round_trip_of_everything() -> None:
    metadata = [
        *METADATA,
        ("t.bytes", "string", b"\xff\xfe"),
        ("t.tokens", "array:string", [b"\xe9", "e", b"\0\xc3"]),
        ("e.strings", "array:string", []),
        ("e.numbers", "array:int64", np.array([], np.int64)),
    ]
    header, offsets, size = _core.write_gguf_header(metadata, TENSORS, 32)
    parsed = _core.parse_gguf(header, size)
    assert_same_metadata(parsed["metadata"], metadata)
    assert [(name, dims, kind) for name, dims, kind, _, _ in parsed["tensors"]] == TENSORS
    assert [offset for *_, offset, _ in parsed["tensors"]] == offsets
    assert _core.write_gguf_header(parsed["metadata"], TENSORS, 32)[0] == header


def test_the_start_of_a_file_is_enough_and_too_little_asks_for_more(tmp_path: Path) -> None:
    header, _, size = _core.write_gguf_header(METADATA, TENSORS, 32)
    assert _core.parse_gguf(header[:100], size) is None
    assert _core.parse_gguf(b"", size) is None
    path = tmp_path / "x.gguf"
    path.write_bytes(header + bytes(size - len(header)))
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as whole:
        assert _core.parse_gguf(whole, size)["tensors"] == _core.parse_gguf(header, size)["tensors"]


def test_without_tensors_the_header_is_the_file() -> None:
    header, offsets, size = _core.write_gguf_header([("k", "uint8", 1)], [], 32)
    assert (offsets, size) == ([], len(header))
    assert len(header) % 32 == 0
    assert _core.parse_gguf(header, size)["tensors"] == []
    # gguf-py ends such files without padding.
    assert _core.parse_gguf(header[:38], 38)["data_offset"] == 38


@pytest.mark.parametrize(
    ("name", "value", "stored"),
    [
        ("uint32", np.int64(7), 7),
        ("float32", 3, 3.0),
        ("float32", np.float64(0.5), 0.5),
        ("float32", float("inf"), float("inf")),
        ("bool", np.bool_(True), True),
        ("string", np.str_("x"), "x"),
        ("array:float32", [1, 2.5], [1.0, 2.5]),
        ("array:float32", np.array([1.5, 2.5]), [1.5, 2.5]),
        ("array:int32", np.arange(6, dtype=np.int32)[::2], [0, 2, 4]),
        ("array:int32", np.array([1, 2], ">i4"), [1, 2]),
        ("array:int32", range(3), [0, 1, 2]),
        ("array:string", ("a", b"\xff"), ["a", b"\xff"]),
        ("array:bool", [True, np.bool_(False)], [True, False]),
    ],
)
def test_values_are_taken_as_python_and_numpy_have_them(name: str, value: Any, stored: Any) -> None:
    header, _, size = _core.write_gguf_header([("k", name, value)], [], 32)
    ((_, found_name, found),) = _core.parse_gguf(header, size)["metadata"]
    assert found_name == name
    assert (found.tolist() if isinstance(found, np.ndarray) else found) == stored


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("uint8", 256, "'k': 256 is out of the range of uint8"),
        ("uint8", -1, "out of the range of uint8"),
        ("int8", 128, "out of the range of int8"),
        ("uint32", 2**32, "out of the range of uint32"),
        ("int32", 2**31, "out of the range of int32"),
        ("uint64", 2**64, "out of the range of uint64"),
        ("uint64", -1, "out of the range of uint64"),
        ("int64", 2**63, "out of the range of int64"),
        ("int64", -(2**63) - 1, "out of the range of int64"),
        ("float32", 1e39, "out of the range of float32"),
        ("float64", 10**400, "out of the range of float64"),
        ("uint32", 1.0, "is no uint32"),
        ("uint32", True, "is no uint32"),
        ("uint32", "1", "is no uint32"),
        ("float32", "1", "is no float32"),
        ("float32", True, "is no float32"),
        ("bool", 1, "is no bool"),
        ("string", 1, "is no string"),
        ("string", "\udc80", "lone surrogates"),
        ("array:uint8", [1, 300], "300 is out of the range of uint8"),
        ("array:uint8", np.array([1, 300]), "300.* is out of the range of uint8"),
        ("array:string", "abc", "no sequence of string"),
        ("array:uint8", b"abc", "no sequence of uint8"),
        ("array:uint8", 3, "no sequence of uint8"),
        ("array:array", [[1]], "unknown type 'array:array'"),
        ("array", [1], "unknown type 'array'"),
        ("u32", 1, "unknown type 'u32'"),
    ],
)
def test_values_that_a_type_cannot_hold_are_refused(name: str, value: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        _core.write_gguf_header([("k", name, value)], [], 32)


@pytest.mark.parametrize(
    ("metadata", "tensors", "alignment", "words"),
    [
        ([("k", "uint8", 1), ("k", "uint8", 1)], [], 32, "'k' is given twice"),
        ([("", "uint8", 1)], [], 32, "metadata key ''"),
        ([("k" * 65536, "uint8", 1)], [], 32, "65535 bytes"),
        ([], [("x", (8,), 0), ("x", (8,), 0)], 32, "tensor 'x' is given twice"),
        ([], [("x" * 64, (8,), 0)], 32, "64 bytes, but llama.cpp takes 63"),
        ([], [("", (8,), 0)], 32, "is empty"),
        ([], [("x", (), 0)], 32, "0 dimensions"),
        ([], [("x", (1,) * 5, 0)], 32, "5 dimensions"),
        ([], [("x", (8, 0), 0)], 32, "dimension of 0"),
        ([], [("x", (33,), 2)], 32, "rows of 33 values, not a multiple"),
        ([], [("x", (8,), 99)], 32, "unknown type 99"),
        ([], [("x", (8,), 4)], 32, "q4_2, which ggml has removed"),
        ([], [("x", (1 << 40, 1 << 40), 0)], 32, "overflows"),
        ([], [("x", (1 << 60,), 0), ("y", (1 << 60,), 0)], 32, "overflow"),
        ([], [], 0, "alignment 0 is not"),
        ([], [], 48, "alignment 48 is not"),
        ([], [], 64, "alignment is 64, but the metadata say 32"),
        ([("general.alignment", "uint32", 64)], [], 32, "alignment is 32, but the metadata say 64"),
        ([("general.alignment", "uint64", 32)], [], 32, "must be a uint32"),
    ],
)
def test_what_cannot_be_written_is_refused(
    metadata: Any, tensors: Any, alignment: int, words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        _core.write_gguf_header(metadata, tensors, alignment)
