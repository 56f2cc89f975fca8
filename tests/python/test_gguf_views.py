"""Any GGUF's tensors as mapped views, decoded as ggml decodes them, and written again."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np
import pytest

import llama_cpp_peer as peer
import phiquant as pq
from phiquant import _core
from places import DATA, FIXTURES, PRESETS

FLOATS = {"f32": np.float32, "f16": np.float16, "bf16": ml_dtypes.bfloat16}
# ggml's names; it and phiquant run in one process here.
DECODERS = {
    "f16": "ggml_fp16_to_fp32_row", "bf16": "ggml_bf16_to_fp32_row",
    "q4_0": "dequantize_row_q4_0", "q5_0": "dequantize_row_q5_0", "q5_1": "dequantize_row_q5_1",
    "q8_0": "dequantize_row_q8_0", "q4_k": "dequantize_row_q4_K", "q5_k": "dequantize_row_q5_K",
    "q6_k": "dequantize_row_q6_K",
}  # fmt: skip


def blocks(tensor: Any) -> np.ndarray:
    """The stored array, whatever the kind of tensor."""
    return tensor.data if isinstance(tensor, pq.QuantizedTensor) else tensor


def decoded(tensor: Any) -> np.ndarray:
    if isinstance(tensor, pq.QuantizedTensor):
        return tensor.dequantize()
    return np.asarray(tensor, np.float32)


def by_ggml(codec: str, data: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    values = np.empty(shape, np.float32)
    if codec == "f32":
        return data.view(np.float32).reshape(shape)
    data = np.ascontiguousarray(data)
    decode = getattr(peer.ggml_base(), DECODERS[codec])
    decode.restype = None
    decode(
        ctypes.c_void_p(data.ctypes.data),
        ctypes.c_void_p(values.ctypes.data),
        ctypes.c_int64(values.size),
    )
    return values


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("fixture", FIXTURES)
def test_the_gguf_package_and_ggml_see_the_same_tensors(
    fixture: str, preset: str, converted: Any
) -> None:
    path = converted(fixture, preset)
    checkpoint = pq.open(path)
    theirs = gguf.GGUFReader(path).tensors
    assert list(checkpoint) == [tensor.name for tensor in theirs]
    for tensor in theirs:
        entry, ours = checkpoint.entries[tensor.name], checkpoint[tensor.name]
        assert entry.type == tensor.tensor_type.name.lower()
        assert entry.shape == tuple(int(extent) for extent in reversed(tensor.shape))
        assert entry.nbytes == tensor.n_bytes == blocks(ours).nbytes
        assert blocks(ours).tobytes() == tensor.data.tobytes()
        values = decoded(ours)
        assert (values.dtype, values.shape) == (np.float32, entry.shape)
        raw = np.asarray(tensor.data).view(np.uint8)
        np.testing.assert_array_equal(values, by_ggml(entry.type, raw, entry.shape))
        # The package's NumPy does ggml's operations in ggml's order, so it gives the same bits.
        np.testing.assert_array_equal(values, gguf.quants.dequantize(raw, tensor.tensor_type))


@pytest.mark.parametrize("preset", ["bf16", "q4_k_m"])
def test_tensors_are_views_of_the_file(preset: str, converted: Any, tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(converted("phi35", preset).read_bytes())
    checkpoint = pq.open(path)
    for name, entry in checkpoint.entries.items():
        first, second = blocks(checkpoint[name]), blocks(checkpoint[name])
        assert np.shares_memory(first, second)
        assert first.ctypes.data == second.ctypes.data
        assert not first.flags.writeable
        assert not first.flags.owndata
        assert first.ctypes.data % min(32, first.itemsize) == 0
        if entry.type in FLOATS:
            assert first.dtype == FLOATS[entry.type]
    # What another writes into the file shows through, as it can only in a mapping.
    entry = checkpoint.entries["output_norm.weight"]
    view = checkpoint["output_norm.weight"]
    with path.open("r+b") as file:
        file.seek(entry.offset)
        file.write(np.float32(1234.5).tobytes())
    assert view[0] == 1234.5


def test_types_that_are_not_decoded_are_views_too(tmp_path: Path) -> None:
    """Q8_1 is for activations: whole in view, copied whole, and refused by name."""
    metadata = [("general.architecture", "string", "phi3")]
    header, offsets, size = _core.write_gguf_header(metadata, [("x.weight", (256, 4), 9)], 32)
    data = np.random.default_rng(0).integers(0, 256, 4 * 8 * 36, np.uint8).tobytes()
    path = tmp_path / "x.gguf"
    path.write_bytes((header + data).ljust(size, b"\0"))
    assert offsets == [len(header)]
    checkpoint = pq.open(path)
    tensor, entry = checkpoint["x.weight"], checkpoint.entries["x.weight"]
    assert (entry.type, tensor.codec.name, tensor.shape) == ("q8_1", "q8_1", (4, 256))
    assert tensor.data.tobytes() == data
    assert not tensor.data.flags.owndata
    with pytest.raises(pq.UnsupportedError, match="q8_1 is not decoded"):
        tensor.dequantize()
    copy = pq.gguf.write(tmp_path / "copy.gguf", checkpoint, {"general.architecture": "phi3"})
    assert copy.read_bytes() == path.read_bytes()


def test_views_outlive_the_checkpoint(converted: Any) -> None:
    checkpoint = pq.open(converted("phi35", "q8_0"))
    tensor = checkpoint["blk.0.ffn_down.weight"]
    before = tensor.dequantize()
    del checkpoint
    np.testing.assert_array_equal(tensor.dequantize(), before)


@pytest.mark.parametrize("fixture", FIXTURES)
def test_metadata_are_what_the_gguf_package_reads(fixture: str, converted: Any) -> None:
    path = converted(fixture, "q4_k_m")
    checkpoint = pq.open(path)
    fields = [f for f in gguf.GGUFReader(path).fields.values() if not f.name.startswith("GGUF.")]
    assert list(checkpoint.metadata) == [field.name for field in fields]
    for field in fields:
        ours, theirs = checkpoint.metadata[field.name], field.contents()
        kind = checkpoint.metadata_types[field.name]
        assert kind.split(":") == [
            {gguf.GGUFValueType.ARRAY: "array"}.get(value_type, value_type.name.lower())
            for value_type in field.types[:2]
        ]
        assert (ours.tolist() if isinstance(ours, np.ndarray) else ours) == theirs


@pytest.mark.parametrize("preset", ["bf16", "q4_k_m", "q5_1"])
@pytest.mark.parametrize("fixture", FIXTURES)
def test_what_is_read_and_written_again_is_the_same_file(
    fixture: str, preset: str, converted: Any, tmp_path: Path
) -> None:
    path = converted(fixture, preset)
    checkpoint = pq.open(path)
    metadata = {key: (checkpoint.metadata_types[key], v) for key, v in checkpoint.metadata.items()}
    copy = pq.gguf.write(tmp_path / "copy.gguf", checkpoint, metadata)
    assert copy.read_bytes() == path.read_bytes()


def test_a_model_quantized_by_hand_runs_in_llama_cpp(converted: Any, tmp_path: Path) -> None:
    """Tensors of ``pq.quantize`` and plain arrays, put together by ``pq.gguf.write``."""
    source = pq.open(converted("phi35", "bf16"))
    metadata = {key: (source.metadata_types[key], v) for key, v in source.metadata.items()}
    metadata["general.file_type"] = ("uint32", 7)
    tensors = {
        name: pq.quantize(tensor, "q8_0") if tensor.ndim == 2 else tensor
        for name, tensor in source.items()
    }
    path = pq.gguf.write(tmp_path / "by hand.gguf", tensors, metadata)
    assert path.read_bytes() == converted("phi35", "q8_0").read_bytes()
    ids = np.load(DATA / "phi35" / "reference.npz")["prose.ids"].tolist()
    with peer.running(path, n_ctx=256) as run:
        found = run.logits(ids, len(ids))
    with peer.running(converted("phi35", "q8_0"), n_ctx=256) as run:
        np.testing.assert_array_equal(found, run.logits(ids, len(ids)))


def test_the_gguf_package_reads_what_write_wrote(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    weights = rng.standard_normal((6, 512), np.float32)
    tensors: dict[str, Any] = {
        codec: pq.quantize(weights, codec)
        for codec in (*FLOATS, "q4_0", "q5_0", "q5_1", "q8_0", "q4_k", "q5_k", "q6_k")
    }
    tensors |= {
        "array.f32": weights,
        "array.f16": weights.astype(np.float16),
        "array.f64": weights.astype(np.float64),
        "array.i8": rng.integers(-128, 128, (3, 5), np.int8),
        "array.i16": rng.integers(-9, 9, 7, np.int16),
        "array.i32": rng.integers(-9, 9, (2, 3, 4), np.int32),
        "array.i64": rng.integers(-9, 9, (2, 1, 2, 2), np.int64),
    }
    metadata = {
        "general.architecture": "test",
        "x.count": 3,
        "x.below": -3,
        "x.large": 2**40,
        "x.real": 0.5,
        "x.yes": True,
        "x.words": ["a", "b"],
        "x.typed": ("uint64", 7),
        "x.array": np.arange(4, dtype=np.int16),
    }
    path = pq.gguf.write(tmp_path / "x.gguf", tensors, metadata)
    reader = gguf.GGUFReader(path)
    for key, value in metadata.items():
        contents = reader.get_field(key).contents()
        plain = value[1] if isinstance(value, tuple) else value
        assert contents == (plain.tolist() if isinstance(plain, np.ndarray) else plain)
    assert [tensor.name for tensor in reader.tensors] == list(tensors)
    for tensor in reader.tensors:
        wanted = tensors[tensor.name]
        assert tensor.data.tobytes() == blocks(wanted).tobytes()
        assert tuple(int(extent) for extent in reversed(tensor.shape)) == wanted.shape
        if isinstance(wanted, pq.QuantizedTensor):
            raw = np.asarray(tensor.data).view(np.uint8)
            values = gguf.quants.dequantize(raw, tensor.tensor_type)
            np.testing.assert_array_equal(values, wanted.dequantize())
