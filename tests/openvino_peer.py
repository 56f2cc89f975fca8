"""OpenVINO as the tests ask it: exact arithmetic, whole sequences, the compiled graph's kernels."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

try:
    import openvino as ov
    import openvino_genai as genai
    import openvino_tokenizers
except ImportError as error:
    pytest.fail(f"{error}: pip install 'phiquant[test]'", pytrace=False)

#: Float32, and activations as they are: logits are then those of the weights.
EXACT = {
    "INFERENCE_PRECISION_HINT": "f32",
    "KV_CACHE_PRECISION": "f32",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
}


def core() -> Any:
    made = ov.Core()
    made.add_extension(str(openvino_tokenizers._ext_path))
    return made


class Model:
    """A compiled ``openvino_model.xml``."""

    def __init__(self, folder: Path) -> None:
        self.compiled = ov.Core().compile_model(folder / "openvino_model.xml", "CPU", EXACT)
        self.request = self.compiled.create_infer_request()
        self.past = 0

    def kernels(self) -> Counter[str]:
        """How many of each kind of kernel the CPU plugin made of the graph."""
        operations = self.compiled.get_runtime_model().get_ops()
        return Counter(operation.get_rt_info()["layerType"].astype(str) for operation in operations)

    def logits(self, ids: np.ndarray) -> np.ndarray:
        """Of a fresh sequence, shape (length, vocabulary)."""
        self.request.reset_state()
        self.past = 0
        return self.more(ids)

    def more(self, ids: np.ndarray) -> np.ndarray:
        """Of tokens that go on with the sequence."""
        end = self.past + len(ids)
        inputs = {
            "input_ids": np.asarray(ids, np.int64)[None],
            "attention_mask": np.ones((1, end), np.int64),
            "position_ids": np.arange(self.past, end)[None],
            "beam_idx": np.zeros(1, np.int32),
        }
        self.past = end
        return self.request.infer(inputs)["logits"][0].copy()


def pipeline(folder: Path, backend: str) -> Any:
    """The folder in LLMPipeline, with ``PA`` (paged attention) or ``SDPA``."""
    return genai.LLMPipeline(str(folder), "CPU", ATTENTION_BACKEND=backend, **EXACT)


def greedy(model: Any, text: str, count: int) -> str:
    """The text that follows, by the pipeline's own tokenizer and detokenizer."""
    config = genai.GenerationConfig(max_new_tokens=count, ignore_eos=True)
    config.apply_chat_template = False
    return str(model.generate(text, config))
