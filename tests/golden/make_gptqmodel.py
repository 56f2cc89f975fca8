"""Record what gptqmodel makes of phiquant's GPTQ and AWQ folders: digests of weights, and logits.

Run where gptqmodel, optimum, transformers and phiquant are installed:
``python tests/golden/make_gptqmodel.py`` writes ``tests/golden/gptqmodel.json``.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from importlib.metadata import version
from pathlib import Path

import gptqmodel  # noqa: F401  (it patches transformers)
import numpy as np
import torch
from gptqmodel.quantization.awq.utils.packing_utils import dequantize_gemm
from transformers import AutoModelForCausalLM

import phiquant as pq

GOLDEN = Path(__file__).parent
DATA = GOLDEN.parent / "data"

FOLDERS = [
    ("phi35", "gptq"),
    ("phi35", "gptq,bits=8,group=32"),
    ("phi35", "gptq,asym,group=32"),
    ("phi35", "gptq,format=v2,group=64"),
    ("phi4mini", "gptq,bits=3,group=32"),
    ("phi4mini", "gptq,bits=2,asym,group=16"),
    ("phi4mini", "gptq,bits=3,asym,group=64"),
    ("phi35", "gptq,bits=8,group=channel"),
    ("phi35", "awq"),
    ("phi4mini", "awq,group=32,sym"),
    ("phi3win", "awq,group=64"),
]


def weights(module: torch.nn.Module) -> np.ndarray:
    """The matrix of a layer as its loader decodes it, float16, [rows, columns]."""
    if hasattr(module, "dequantize_weight"):
        found = module.dequantize_weight()
    else:
        found = dequantize_gemm(
            module.qweight, module.qzeros, module.scales, module.bits, module.group_size
        )
    return found.T.to(torch.float16).contiguous().numpy()


def main() -> None:
    recorded = {}
    for fixture, preset in FOLDERS:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model"
            pq.convert(DATA / fixture, f"hf:{preset}", path)
            model = AutoModelForCausalLM.from_pretrained(
                path, dtype=torch.float16, device_map="cpu"
            ).eval()
            digests = {}
            for name, module in model.named_modules():
                if hasattr(module, "qweight"):
                    values = weights(module)
                    digests[name] = hashlib.sha256(values.tobytes()).hexdigest()[:16]
            with np.load(DATA / fixture / "reference.npz") as arrays:
                ids = torch.from_numpy(arrays["chat.ids"][None].astype(np.int64))
            with torch.no_grad():
                logits = model(ids).logits[0, -4:, ::50].float().numpy()
            recorded[f"{fixture} {preset}"] = {
                "kernel": next(type(m).__name__ for m in model.modules() if hasattr(m, "qweight")),
                "weights": digests,
                "logits": [[round(float(x), 4) for x in row] for row in logits],
            }
            print(fixture, preset, len(digests), recorded[f"{fixture} {preset}"]["kernel"])
    names = ("gptqmodel", "optimum", "transformers", "torch")
    made = {"versions": {name: version(name) for name in names}, "folders": recorded}
    (GOLDEN / "gptqmodel.json").write_text(json.dumps(made, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
