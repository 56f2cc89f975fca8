"""Records optimum-intel's exports of the fixtures: weights' digests, fusions, logits, greedy text.

    python make_openvino.py EXPORTS

exports each fixture with optimum-cli into EXPORTS where it is not there yet, and writes
openvino-exports.json beside this file. Needs optimum-intel, nncf and openvino-genai.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from importlib.metadata import version
from pathlib import Path

import numpy as np
import openvino as ov
import openvino_genai as genai

DATA = Path(__file__).parents[1] / "data"
FIXTURES = ("phi35", "phi4mini", "phi3win")
FORMATS = {
    "int8": ["--weight-format", "int8"],
    "int8_sym": ["--weight-format", "int8", "--sym"],
    "int4_sym,group=64": ["--weight-format", "int4", "--sym", "--group-size", "64", "--ratio", "1"],
    "int4_sym,group=64,ratio=0.6": [
        *("--weight-format", "int4", "--sym", "--group-size", "64", "--ratio", "0.6"),
    ],
    "int4_asym,group=64": ["--weight-format", "int4", "--group-size", "64", "--ratio", "1"],
    "int4_asym,group=64,awq": [
        *("--weight-format", "int4", "--group-size", "64", "--ratio", "1", "--awq"),
    ],
    "nf4,group=64": ["--weight-format", "nf4", "--group-size", "64", "--ratio", "1"],
    "mxfp4": ["--weight-format", "mxfp4"],
}
PROMPTS = ("select", "function", "chat", "prose", "eval_long")
FUSED = ("ScaledDotProductAttention", "RoPE", "RMS", "FullyConnected", "MemoryInput")
# Activations as they are, so that logits are those of the weights.
EXACT = {
    "INFERENCE_PRECISION_HINT": "f32",
    "KV_CACHE_PRECISION": "f32",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
}
GREEDY = 24


def export(fixture: str, preset: str, exports: Path) -> Path:
    out = exports / f"{fixture}-{preset.replace(',', '-').replace('=', '')}"
    if out.exists():
        return out
    source = exports / "sources" / fixture
    if not source.exists():
        # As a published checkpoint: optimum-intel stops at files that it does not know.
        ignored = shutil.ignore_patterns("reference.*", "*.gguf", "llama-quantize-digests.json")
        shutil.copytree(DATA / fixture, source, ignore=ignored)
    command = ["optimum-cli", "export", "openvino", "-m", str(source)]
    command += ["--task", "text-generation-with-past", *FORMATS[preset], str(out)]
    subprocess.run(command, check=True)
    return out


def weights(model: ov.Model) -> dict[str, list[str]]:
    """Digests of codes, scales and zero points by the checkpoint's names."""
    marker, found = "._openvino_orig_weight", {}
    for node in model.get_ops():
        name = node.get_friendly_name()
        if node.get_type_name() != "Constant" or marker not in name:
            continue
        tensor, _, part = name.removeprefix("self.").partition(marker)
        plane = {"": 0, "/scale": 1, "/zero_point": 2}.get(part)
        if plane is None:
            continue
        digest = hashlib.sha256(node.data.tobytes()).hexdigest()[:24]
        found.setdefault(f"{tensor}.weight", {})[plane] = digest
    return {name: [planes[key] for key in sorted(planes)] for name, planes in found.items()}


def record(folder: Path, fixture: str) -> dict[str, object]:
    core = ov.Core()
    model = core.read_model(folder / "openvino_model.xml")
    compiled = core.compile_model(model, "CPU", EXACT)
    kinds = Counter(
        op.get_rt_info()["layerType"].astype(str) for op in compiled.get_runtime_model().get_ops()
    )
    request = compiled.create_infer_request()
    reference = np.load(DATA / fixture / "reference.npz")
    texts = json.loads((DATA / fixture / "reference.json").read_text())["prompts"]
    logits = {}
    for prompt in PROMPTS:
        ids = reference[f"{prompt}.ids"]
        request.reset_state()
        found = request.infer(
            {
                "input_ids": ids[None],
                "attention_mask": np.ones((1, len(ids)), np.int64),
                "position_ids": np.arange(len(ids))[None],
                "beam_idx": np.zeros(1, np.int32),
            }
        )["logits"]
        logits[prompt] = [round(float(value), 7) for value in found[0, -1, ::32]]
    pipeline = genai.LLMPipeline(str(folder), "CPU", **EXACT)
    config = genai.GenerationConfig(max_new_tokens=GREEDY, ignore_eos=True)
    config.apply_chat_template = False
    greedy = {
        prompt: pipeline.generate(texts[prompt]["text"], config)
        for prompt in PROMPTS
        if texts[prompt].get("greedy_ids")
    }
    return {
        "weights": weights(model),
        "fused": {kind: kinds[kind] for kind in FUSED},
        "logits": logits,
        "greedy": greedy,
    }


def main() -> None:
    exports = Path(sys.argv[1])
    packages = ("optimum-intel", "nncf", "openvino", "openvino-genai", "transformers", "torch")
    made = {
        fixture: {preset: record(export(fixture, preset, exports), fixture) for preset in FORMATS}
        for fixture in FIXTURES
    }
    result = {"made_with": {name: version(name) for name in packages}, "exports": made}
    path = Path(__file__).with_name("openvino-exports.json")
    # One line for each export, and not one for each number.
    text = json.dumps(result, indent=1)
    text = re.sub(r"\[\s+([^\[\]{}]*?)\s+\]", lambda m: "[" + " ".join(m[1].split()) + "]", text)
    path.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
