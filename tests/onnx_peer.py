"""ONNX Runtime and ONNX Runtime GenAI themselves: quantized weights, logits, and generated text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

try:
    import onnx  # noqa: F401
    import onnxruntime as ort
    import onnxruntime_genai as og
    from onnxruntime.capi import _pybind_state as quantizers
except ImportError as error:
    pytest.fail(f"{error}: pip install 'phiquant[onnx]' onnx", pytrace=False)

_QUANTIZERS = {
    2: quantizers.quantize_matmul_2bits,
    4: quantizers.quantize_matmul_4bits,
    8: quantizers.quantize_matmul_8bits,
}


def quantized(
    w: np.ndarray, bits: int, block: int, symmetric: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes (packed), scales and zero points (packed) of a float32 or float16 matrix [N, K]."""
    rows, columns = w.shape
    groups = -(-columns // block)
    codes = np.zeros((rows, groups, block * bits // 8), np.uint8)
    scales = np.zeros(rows * groups, w.dtype)
    zeros = np.zeros(rows * -(-groups * bits // 8), np.uint8)
    turned = np.ascontiguousarray(w.T)
    _QUANTIZERS[bits](codes, turned, scales, zeros, block, rows, columns, symmetric)
    return codes, scales.reshape(rows, groups), zeros.reshape(rows, -1)


class Session:
    """A folder's graph in ONNX Runtime, one sequence at a time, on processors."""

    def __init__(self, folder: Path) -> None:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = 2
        path = str(folder / "model.onnx")
        self.session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.inputs = {value.name: value for value in self.session.get_inputs()}
        self.forget()

    def forget(self) -> None:
        """Begin a sequence."""
        self.length = 0
        self.past: dict[str, np.ndarray] = {}
        for name, value in self.inputs.items():
            if name.startswith("past_key_values"):
                kind = np.float16 if value.type == "tensor(float16)" else np.float32
                self.past[name] = np.zeros((1, value.shape[1], 0, value.shape[3]), kind)

    def feed(self, ids: np.ndarray) -> np.ndarray:
        """Append tokens; the logits of all of them as float32, shape (length, vocabulary)."""
        total = self.length + len(ids)
        feed: dict[str, Any] = {
            "input_ids": np.asarray(ids, np.int64)[None],
            "attention_mask": np.ones((1, total), np.int64),
            **self.past,
        }
        if "position_ids" in self.inputs:
            feed["position_ids"] = np.arange(self.length, total, dtype=np.int64)[None]
        names = [value.name for value in self.session.get_outputs()]
        found = dict(zip(names, self.session.run(None, feed), strict=True))
        self.length = total
        self.past = {
            name.replace("present", "past_key_values"): value
            for name, value in found.items()
            if name.startswith("present")
        }
        return found["logits"][0].astype(np.float32)


def generated(folder: Path, ids: list[int], count: int) -> list[int]:
    """The tokens that ONNX Runtime GenAI greedily writes after a prompt."""
    model = og.Model(str(folder))
    settings = og.GeneratorParams(model)
    settings.set_search_options(max_length=len(ids) + count, do_sample=False)
    generator = og.Generator(model, settings)
    generator.append_tokens(np.array([ids], np.int32))
    found: list[int] = []
    while not generator.is_done() and len(found) < count:
        generator.generate_next_token()
        found.append(int(generator.get_next_tokens()[0]))
    return found
