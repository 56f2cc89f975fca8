"""Records what NNCF makes of groups that are hard: all zero, constant, of one sign, tiny, with ties.

    python make_nncf.py

writes nncf-groups.npz beside this file: the weights, and for every mode and group codes (unsigned),
scales (float16) and zero points. Needs nncf and openvino.
"""

from __future__ import annotations

from pathlib import Path

import nncf
import numpy as np
import openvino as ov
from openvino import opset13 as op

COLUMNS = 256
MODES = {
    "int8_sym_channel": (nncf.CompressWeightsMode.INT8_SYM, None),
    "int8_asym_channel": (nncf.CompressWeightsMode.INT8_ASYM, None),
    **{
        f"int4_{kind}_{'channel' if group < 0 else f'g{group}'}": (mode, group)
        for kind, mode in (
            ("sym", nncf.CompressWeightsMode.INT4_SYM),
            ("asym", nncf.CompressWeightsMode.INT4_ASYM),
        )
        for group in (16, 32, 64, 128, 256, -1)
    },
}
# Of these NNCF's arithmetic for small matrices is another one: only the large are recorded.
FLOATS = {
    **{
        f"nf4_{'channel' if group < 0 else f'g{group}'}": (nncf.CompressWeightsMode.NF4, group)
        for group in (16, 32, 64, 128, 256, -1)
    },
    "mxfp4": (nncf.CompressWeightsMode.MXFP4, 32),
    "mxfp8": (nncf.CompressWeightsMode.MXFP8_E4M3, 32),
}


def weights(random: int) -> np.ndarray:
    rng = np.random.default_rng(7)
    columns = np.arange(COLUMNS)
    normal = rng.normal(size=(8, COLUMNS))
    rows = [
        np.zeros(COLUMNS),
        np.full(COLUMNS, 0.37),
        np.full(COLUMNS, -0.37),
        abs(normal[0]),
        -abs(normal[1]),
        normal[2] * 1e-9,
        normal[3] * 3e-7,
        normal[4] * 1e4,
        rng.integers(-8, 8, COLUMNS) * 0.5,
        rng.integers(-7, 9, COLUMNS) * 0.25,
        np.where(columns % 7 == 0, 3.0, 0.0),
        np.full(COLUMNS, 1e-7),
        columns % 16 * 1.0,
        -(columns % 16) * 1.0,
        np.where(columns == 5, -2.0, 1.0),
        columns - COLUMNS / 2,
    ]
    rows += list(rng.standard_t(4, size=(random, COLUMNS)) * 0.05)
    return np.array(rows, np.float32)


def compressed(values: np.ndarray, mode: nncf.CompressWeightsMode, group: int | None) -> list:
    x = op.parameter([1, COLUMNS], np.float32)
    model = ov.Model([op.result(op.matmul(x, op.constant(values), False, True))], [x])
    options = {} if group is None else {"ratio": 1.0, "group_size": group, "all_layers": True}
    model = nncf.compress_weights(model, mode=mode, **options)
    found: dict[str, np.ndarray] = {}
    for node in model.get_ops():
        if node.get_type_name() != "Constant":
            continue
        kind = node.get_element_type().to_string()
        if kind == "f16":
            found["scales"] = np.array(node.data).reshape(-1)
        elif kind == "f8e8m0":
            found["scales"] = np.array(node.data).reshape(-1).view(np.uint8)
        elif kind in ("i4", "u4", "i8", "u8", "nf4", "f4e2m1", "f8e4m3"):
            count = int(np.prod(node.get_output_shape(0)))
            raw = np.array(node.data).reshape(-1).view(np.uint8)
            if kind in ("i4", "u4", "nf4", "f4e2m1"):
                raw = np.stack([raw & 15, raw >> 4], axis=1).reshape(-1)[:count]
            middle = {"i4": 8, "i8": 128}.get(kind, 0)
            name = "zero_points" if "zero_point" in node.get_friendly_name() else "codes"
            found[name] = raw ^ middle
    return [found["codes"], found["scales"], found.get("zero_points", np.zeros(0, np.uint8))]


def main() -> None:
    # The first is small, and NNCF computes it with NumPy; the second with a model of OpenVINO.
    arrays = {}
    for name, random in (("small", 0), ("large", 48)):
        values = arrays[f"{name}.weights"] = weights(random)
        for codec, (mode, group) in (MODES if name == "small" else MODES | FLOATS).items():
            parts = ("codes", "scales", "zero_points")
            for part, array in zip(parts, compressed(values, mode, group), strict=True):
                arrays[f"{name}.{codec}.{part}"] = array
    np.savez_compressed(Path(__file__).with_name("nncf-groups.npz"), **arrays)


if __name__ == "__main__":
    main()
