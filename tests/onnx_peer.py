"""ONNX Runtime and ONNX Runtime GenAI themselves: quantized weights, logits, and generated text."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

if sys.version_info < (3, 11):
    pytest.skip("ONNX Runtime 1.32 needs Python 3.11", allow_module_level=True)
try:
    import onnx
    import onnxruntime as ort
    import onnxruntime_genai as og
    from onnxruntime.capi import _pybind_state as quantizers
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quant_utils,
        quantize_dynamic,
        quantize_static,
    )
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


def quantized_by_scripts(
    w: np.ndarray, bits: int, block: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """Symmetric codes (signed, [N, K]) and scales ([N, groups]) of onnxruntime.quantization.

    Parameters
    ----------
    block : int or None
        Values of a row that share a scale; None for whole rows, as quantize_dynamic and
        quantize_static have them.
    """
    kind = {4: onnx.TensorProto.INT4, 8: onnx.TensorProto.INT8}[bits]
    length = block or w.shape[1]
    codes, scales = [], []
    if block is None:
        for row in w:
            zero, scale, found = quant_utils.quantize_data(row, kind, True)
            assert zero == 0
            scales.append([scale])
            codes.append(found)
        return np.array(codes), np.array(scales, w.dtype)
    zeros, turned = quant_utils.compute_scale_zp_blocked(w.T, kind, 0, block, True)
    assert not zeros.astype(np.int8).any()
    for row, steps in zip(w, turned.T, strict=True):
        groups = [row[at : at + length] for at in range(0, len(row), length)]
        found = [
            quant_utils.quantize_nparray(kind, group, step, np.int8(0))
            for group, step in zip(groups, steps, strict=True)
        ]
        codes.append(np.concatenate(found))
    return np.array(codes).astype(np.int8), np.ascontiguousarray(turned.T)


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

    def feeds(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        """What the graph takes when tokens are appended."""
        total = self.length + len(ids)
        feed: dict[str, Any] = {
            "input_ids": np.asarray(ids, np.int64)[None],
            "attention_mask": np.ones((1, total), np.int64),
            **self.past,
        }
        if "position_ids" in self.inputs:
            feed["position_ids"] = np.arange(self.length, total, dtype=np.int64)[None]
        return feed

    def feed(self, ids: np.ndarray) -> np.ndarray:
        """Append tokens; the logits of all of them as float32, shape (length, vocabulary)."""
        feed = self.feeds(ids)
        names = [value.name for value in self.session.get_outputs()]
        found = dict(zip(names, self.session.run(None, feed), strict=True))
        self.length += len(ids)
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


def classic(folder: Path, out: Path, ids: np.ndarray | None = None, ranges: str = "minmax") -> Path:
    """A float32 folder's graph as onnxruntime.quantization makes it 8-bit, with a scale a row.

    Parameters
    ----------
    ids : int64 array, shape (windows, context), optional
        The calibration text of quantize_static; None for quantize_dynamic.
    ranges : "minmax" or "percentile"

    Returns
    -------
    Path
        The folder ``out``.
    """
    out.mkdir()
    source, made = str(folder / "model.onnx"), str(out / "model.onnx")
    if ids is None:
        quantize_dynamic(*(source, made, ["MatMul"]), per_channel=True, weight_type=QuantType.QInt8)
        return out

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.session = Session(folder)
            self.rows = iter(ids)

        def get_next(self) -> dict[str, np.ndarray] | None:
            row = next(self.rows, None)
            return None if row is None else self.session.feeds(row)

    methods = {"minmax": CalibrationMethod.MinMax, "percentile": CalibrationMethod.Percentile}
    quantize_static(
        *(source, made, Reader()),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["MatMul"],
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=methods[ranges],
        # Only what enters products is rounded.
        extra_options={"OpTypesToExcludeOutputQuantization": ["MatMul"]},
    )
    return out
