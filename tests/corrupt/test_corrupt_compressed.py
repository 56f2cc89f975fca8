"""Damaged folders in compressed-tensors are refused by name, and never read past their tensors."""

from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import phiquant as pq
from phiquant.errors import FormatError, PhiquantError, UnsupportedError

BF16 = np.dtype(ml_dtypes.bfloat16)
E4M3 = np.dtype(ml_dtypes.float8_e4m3fn)


def sound() -> dict[str, np.ndarray]:
    """A matrix of 16 x 64 with 4 bits in groups of 32, one of signed bytes, and a vector."""
    return {
        "a.weight_packed": np.arange(16 * 8, dtype=np.int32).reshape(16, 8),
        "a.weight_scale": np.ones((16, 2), BF16),
        "a.weight_zero_point": np.full((2, 2), 0x01234567, np.int32),
        "a.weight_shape": np.array([16, 64], np.int64),
        "b.weight": np.arange(-64, 64, dtype=np.int8).reshape(4, 32),
        "b.weight_scale": np.ones((4, 1), np.float32),
        "c.weight_packed": np.full((4, 16), 0x21, np.uint8),
        "c.weight_scale": np.full((4, 2), 2.0, E4M3),
        "c.weight_global_scale": np.array([4.0], np.float32),
        "norm.weight": np.ones(64, BF16),
    }


def opened(folder: Path, tensors: dict[str, np.ndarray]) -> pq.Checkpoint:
    settings = {"quantization_config": {"quant_method": "compressed-tensors"}}
    (folder / "config.json").write_text(json.dumps({"model_type": "phi3", **settings}))
    # Wide types first, so that all are aligned.
    ordered = sorted(tensors.items(), key=lambda item: -item[1].itemsize)
    pq.safetensors.write(folder / "model.safetensors", dict(ordered))
    return pq.open(folder)


def test_the_sound_one_is_read(tmp_path):
    checkpoint = opened(tmp_path, sound())
    assert sorted(checkpoint) == ["a.weight", "b.weight", "c.weight", "norm.weight"]
    packed, plain = checkpoint["a.weight"], checkpoint["b.weight"]
    assert (packed.codec.name, packed.shape) == ("int4_asym_g32,rule=ct", (16, 64))
    # Words hold the rows' zero points, and codes, low bits first.
    assert packed.zero_points[:8, 0].tolist() == [7, 6, 5, 4, 3, 2, 1, 0]
    assert packed.codes[1, :8].tolist() == [8, 0, 0, 0, 0, 0, 0, 0]
    assert (packed.dequantize()[1, 0], packed.dequantize()[9, 9]) == (2.0, -2.0 + 0.0)
    assert (plain.dequantize() == sound()["b.weight"]).all()
    # 0.5 and 1, times 2, over 4.
    assert (checkpoint["c.weight"].dequantize() == np.tile([0.25, 0.5], (4, 16))).all()


def test_bytes_with_zero_points_are_read(tmp_path):
    zeros = np.array([[-3], [0], [5], [127]], np.int8)
    found = opened(tmp_path, sound() | {"b.weight_zero_point": zeros})["b.weight"]
    assert found.codec.name == "int8_asym_channel,rule=ct,scales=f32,layout=bytes"
    wanted = sound()["b.weight"].astype(np.float32) - zeros
    assert (found.dequantize() == wanted).all()
    assert (found.zero_points.astype(int) - 128 == zeros).all()


WRONG = {
    "no scales": {"a.weight_scale": None},
    "no shape": {"a.weight_shape": None},
    "no codes": {"a.weight_packed": None},
    "a shape of three": {"a.weight_shape": np.array([16, 64, 1], np.int64)},
    "a shape of floats": {"a.weight_shape": np.array([16, 64], np.float64)},
    "a shape of nothing": {"a.weight_shape": np.array([16, 0], np.int64)},
    "a negative shape": {"a.weight_shape": np.array([16, -64], np.int64)},
    "a huge shape": {"a.weight_shape": np.array([16, 1 << 62], np.int64)},
    "more columns": {"a.weight_shape": np.array([16, 128], np.int64)},
    "fewer rows": {"a.weight_shape": np.array([8, 64], np.int64)},
    "codes of floats": {"a.weight_packed": np.zeros((16, 8), np.float32)},
    "a vector of codes": {"a.weight_packed": np.zeros(128, np.int32)},
    "an odd number of words": {"a.weight_packed": np.zeros((16, 7), np.int32)},
    "scales of integers": {"a.weight_scale": np.ones((16, 2), np.int16)},
    "a vector of scales": {"a.weight_scale": np.ones(32, BF16)},
    "too many scales": {"a.weight_scale": np.ones((16, 3), BF16)},
    "an odd group": {"a.weight_scale": np.ones((16, 8), BF16)},
    "scales of fewer rows": {"a.weight_scale": np.ones((8, 2), BF16)},
    "zero points by rows": {"a.weight_zero_point": np.zeros((16, 2), np.int32)},
    "zero points of bytes": {"a.weight_zero_point": np.zeros((2, 2), np.int8)},
    "an order of columns": {"a.weight_g_idx": np.arange(64, dtype=np.int32)},
    "a global scale": {"a.weight_global_scale": np.ones(1, np.float32)},
    "bytes with zero points of words": {"b.weight_zero_point": np.zeros((4, 1), np.int32)},
    "bytes with too many zero points": {"b.weight_zero_point": np.zeros((4, 2), np.int8)},
    "a global scale of zero": {"c.weight_global_scale": np.zeros(1, np.float32)},
    "a global scale that is none": {"c.weight_global_scale": np.array([np.nan], np.float32)},
    "a global scale below zero": {"c.weight_global_scale": np.array([-1], np.float32)},
    "two global scales": {"c.weight_global_scale": np.ones(2, np.float32)},
    "a global scale of bytes": {"c.weight_global_scale": np.ones(1, np.int8)},
    "no global scale": {"c.weight_global_scale": None},
    "nvfp4 with scales of powers": {"c.weight_scale": np.ones((4, 2), np.uint8)},
    "nvfp4 with groups of 8": {"c.weight_scale": np.ones((4, 4), E4M3)},
    "nvfp4 without scales": {"c.weight_scale": None},
    "nvfp4 of a vector": {"c.weight_packed": np.zeros(64, np.uint8)},
    "bytes of a vector": {"b.weight": np.zeros(128, np.int8)},
    "bytes without a sign": {"b.weight": np.zeros((4, 32), np.uint8)},
    "bytes with scales of blocks": {"b.weight_scale": np.ones((2, 1), np.float32)},
    "scales of nothing": {"d.weight_scale": np.ones((4, 1), np.float32)},
}


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG.keys())
def test_contradictions_are_refused(tmp_path, change):
    tensors = {key: value for key, value in (sound() | change).items() if value is not None}
    with pytest.raises((FormatError, UnsupportedError)) as caught:
        opened(tmp_path, tensors)
    assert caught.value.tensor is not None
    assert caught.value.file is not None


def test_any_shapes_and_types_are_read_or_refused(tmp_path):
    random = np.random.default_rng(3)
    types = [np.int32, np.int64, np.int8, np.float32, BF16, np.float16]
    read = 0
    for number in range(100):
        tensors = sound()
        for _ in range(random.integers(1, 3)):
            name = random.choice(list(tensors))
            shape = random.choice([1, 2, 4, 8, 16, 32, 64], size=random.integers(0, 4))
            if name == "a.weight_shape" and random.integers(2):
                tensors[name] = random.choice([-1, 0, 4, 16, 32, 64, 1 << 40], size=2)
            else:
                kind = types[random.integers(len(types))]
                tensors[name] = np.zeros(tuple(shape), kind)
        folder = tmp_path / str(number)
        folder.mkdir()
        try:
            checkpoint = opened(folder, tensors)
        except PhiquantError:
            continue
        read += 1
        for tensor in checkpoint.values():
            if isinstance(tensor, pq.QuantizedTensor):
                assert tensor.dequantize().shape == tensor.shape
    assert 0 < read < 100
