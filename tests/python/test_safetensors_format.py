"""What phiquant reads and writes of safetensors is what the safetensors package writes and reads."""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from phiquant import _core
from phiquant.errors import UsageError

NUMPY_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
ODD_NAMES = [
    "a.b",
    "with space",
    'quo"te',
    "back\\slash",
    "tab\t",
    "bell\x07",
    "del\x7f",
    "é",
    "日本",
    "🙂",
]


def read(data: bytes) -> tuple[list[Any], dict[str, str]]:
    length = _core.safetensors_header_length(data[:8], len(data))
    return _core.parse_safetensors(data[8 : 8 + length], len(data))


def random_tensors(seed: int) -> dict[str, np.ndarray]:
    draw = random.Random(seed)
    tensors = {}
    for name in draw.sample(ODD_NAMES, k=draw.randrange(1, len(ODD_NAMES))):
        shape = [draw.randrange(0, 5) for _ in range(draw.randrange(0, 5))]
        dtype = NUMPY_DTYPES[draw.choice(list(NUMPY_DTYPES))]
        tensors[name] = np.asarray(np.arange(int(np.prod(shape))).reshape(shape)).astype(dtype)
    return tensors


@pytest.mark.parametrize("seed", range(30))
def test_files_of_the_safetensors_package_are_read(seed: int) -> None:
    tensors = random_tensors(seed)
    metadata = {"format": "pt", 'k"': "v\né"}
    data = safetensors.numpy.save(tensors, metadata=metadata)
    entries, read_metadata = read(data)
    assert read_metadata == metadata
    assert {name for name, *_ in entries} == set(tensors)
    for name, dtype, shape, begin, end in entries:
        assert NUMPY_DTYPES[dtype] == tensors[name].dtype
        assert shape == tensors[name].shape
        assert data[begin:end] == tensors[name].tobytes()


@pytest.mark.parametrize("seed", range(30))
def test_written_headers_are_read_by_the_safetensors_package(seed: int) -> None:
    tensors = random_tensors(seed)
    order = sorted(tensors, key=lambda name: -tensors[name].dtype.itemsize)
    names = {np.dtype(dtype): name for name, dtype in NUMPY_DTYPES.items()}
    wanted = [(name, names[tensors[name].dtype], tensors[name].shape) for name in order]
    data = _core.write_safetensors_header(wanted, {"source": "tést\x01"})
    data += b"".join(tensors[name].tobytes() for name in order)
    loaded = safetensors.numpy.load(data)
    assert set(loaded) == set(tensors)
    for name in order:
        np.testing.assert_array_equal(loaded[name], tensors[name])
    entries, metadata = read(data)
    assert [(name, dtype, shape) for name, dtype, shape, _, _ in entries if 0 not in shape] == [
        entry for entry in wanted if 0 not in entry[2]
    ]
    assert metadata == {"source": "tést\x01"}


@pytest.mark.parametrize("seed", range(30))
def test_the_same_header_bytes_as_the_safetensors_package(seed: int) -> None:
    data = safetensors.numpy.save(random_tensors(seed), metadata={"format": "pt"})
    length = struct.unpack("<Q", data[:8])[0]
    in_order = json.loads(data[8 : 8 + length])
    in_order.pop("__metadata__")
    tensors = [(name, entry["dtype"], entry["shape"]) for name, entry in in_order.items()]
    assert _core.write_safetensors_header(tensors, {"format": "pt"}) == data[: 8 + length]


def test_the_dtypes_that_numpy_lacks_are_named_as_the_package_names_them(tmp_path: Path) -> None:
    wide = {
        "BF16": ml_dtypes.bfloat16,
        "F8_E4M3": ml_dtypes.float8_e4m3fn,
        "F8_E5M2": ml_dtypes.float8_e5m2,
    }
    wide["F8_E8M0"] = ml_dtypes.float8_e8m0fnu
    for name, dtype in wide.items():
        data = _core.write_safetensors_header([("x", name, [3])], {})
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(data + np.ones(3, dtype).tobytes())
        with safetensors.safe_open(path, framework="numpy") as file:
            assert file.get_slice("x").get_dtype() == name
        assert (
            _core.safetensors_dtypes()[[n for n, _ in _core.safetensors_dtypes()].index(name)][1]
            == np.dtype(dtype).itemsize
        )


def test_a_file_without_tensors_is_legal() -> None:
    data = _core.write_safetensors_header([], {})
    assert data == struct.pack("<Q", 8) + b"{}      "
    assert read(data) == ([], {})
    assert safetensors.numpy.load(data) == {}


@pytest.mark.parametrize(
    ("tensors", "metadata", "words"),
    [
        ([("x", "F32", [1]), ("x", "F32", [1])], {}, "'x' is given twice"),
        ([("x", "F4", [1])], {}, "unknown dtype 'F4'"),
        ([("__metadata__", "F32", [1])], {}, "cannot hold"),
        ([("a\0b", "F32", [1])], {}, "cannot hold"),
        ([("x", "F32", [1 << 40, 1 << 40])], {}, "overflows"),
        ([("x", "U8", [1 << 63]), ("y", "U8", [1 << 63])], {}, "overflow"),
        ([("x", "F32", [1] * 33)], {}, "32 dimensions"),
        ([("x", "U8", [3]), ("y", "F32", [1])], {}, "'y' would start at byte 3"),
        ([], {"a": 1}, "pairs of UTF-8 strings"),
        ([], {"a": "\ud800"}, "pairs of UTF-8 strings"),
    ],
)
def test_what_cannot_be_written_is_refused(tensors: Any, metadata: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        _core.write_safetensors_header(tensors, metadata)


@pytest.mark.parametrize(
    "wrap", [bytes, bytearray, memoryview, lambda b: np.frombuffer(b, np.uint8)]
)
def test_any_buffer_can_be_read(wrap: Any) -> None:
    data = _core.write_safetensors_header([("x", "F32", [2])], {}) + bytes(8)
    length = _core.safetensors_header_length(wrap(data), len(data))
    entries, _ = _core.parse_safetensors(wrap(data[8 : 8 + length]), len(data))
    assert entries == [("x", "F32", (2,), 8 + length, 16 + length)]
