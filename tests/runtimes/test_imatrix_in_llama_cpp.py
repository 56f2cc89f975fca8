"""llama.cpp's own reader of GGUFs takes phiquant's importance matrix, and its quantizer gives what that asks for."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import llama_cpp_peer as peer
import phiquant as pq
from llama_cpp_peer import llama_cpp
from phiquant.measure import Importance, calibrate, read_importance
from phiquant.recipes.llama_quantize import ftype_number
from places import DATA, FIXTURES, GOLDEN


class _Data(ctypes.Structure):
    """llama.h's llama_model_imatrix_data."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("data", ctypes.POINTER(ctypes.c_float)),
        ("size", ctypes.c_size_t),
    )


def quantize(source: Path, out: Path, ftype: int, importance: Importance) -> None:
    """Run llama.cpp's quantizer with an importance matrix, handed over as llama-quantize does."""
    values = {name: np.ascontiguousarray(array) for name, array in importance.items()}
    table = (_Data * (len(values) + 1))(
        *(
            (name.encode(), array.ctypes.data_as(ctypes.POINTER(ctypes.c_float)), array.size)
            for name, array in values.items()
        )
    )
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = ftype, 2
    field = next(f for f in type(params)._fields_ if f[0] == "imatrix")
    params.imatrix = ctypes.cast(table, field[1])
    code = llama_cpp.llama_model_quantize(str(source).encode(), str(out).encode(), params)
    assert code == 0, peer.last_words()


@pytest.mark.parametrize("fixture", FIXTURES)
def test_the_quantizer_takes_it(fixture: str, converted: Any, tmp_path: Path) -> None:
    """With phiquant's matrix and with llama-imatrix's the quantizer gives nearly the same weights.

    The matrices differ by 1e-5, so that a search now and then ends with another scale: measured
    are below 0.1 % of the bytes of Q4_K; without any matrix it is more than a quarter.
    """
    context, count = {"phi3win": (32, 64)}.get(fixture, (256, 12))
    ours = tmp_path / "ours.imatrix.gguf"
    calibrate(
        DATA / fixture, text=DATA / "eval.txt", out=ours, context=context, tokens=context * count
    )
    bf16 = converted(fixture, "bf16")
    paths = {}
    for name, importance in (
        ("ours", read_importance(ours)),
        ("theirs", read_importance(GOLDEN / f"imatrix-{fixture}.gguf")),
    ):
        paths[name] = tmp_path / f"{name}.gguf"
        quantize(bf16, paths[name], ftype_number("q4_k_m"), importance)
    plain = peer.quantize(bf16, tmp_path / "plain.gguf", ftype_number("q4_k_m"))
    ours_, theirs, without = (pq.open(p) for p in (paths["ours"], paths["theirs"], plain))
    name = "blk.1.ffn_up.weight"
    data = [np.asarray(c[name].data) for c in (ours_, theirs, without)]
    assert data[0].shape == data[1].shape
    assert np.mean(data[0] != data[1]) < 0.005
    assert np.mean(data[1] != data[2]) > 0.05
