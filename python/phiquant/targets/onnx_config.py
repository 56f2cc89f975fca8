"""genai_config.json: how ONNX Runtime GenAI finds a model's inputs, ends its texts and samples."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from phiquant.architectures import ModelSpec
from phiquant.targets.modelfile import eos_ids

#: Longest text by default. ONNX Runtime GenAI reserves the cache for all of it when it starts: for
#: Phi-3.5-mini's 131,072 tokens that would be 100 GB of float32.
LONGEST: Final = 4096

#: What each execution provider is asked for, as onnxruntime-genai's own builder asks.
_PROVIDERS: Final[Mapping[str, list[dict[str, dict[str, str]]]]] = {
    "cpu": [],
    "cuda": [{"cuda": {"enable_cuda_graph": "0"}}],
    "dml": [{"dml": {"enable_graph_capture": "1"}}],
    "webgpu": [{"webgpu": {"enableGraphCapture": "0", "validationMode": "basic"}}],
}


def genai_config(
    spec: ModelSpec,
    config: Mapping[str, object],
    generation: Mapping[str, object],
    *,
    provider: str,
    filename: str,
    positions: bool,
) -> bytes:
    """The text of ``genai_config.json``.

    ONNX Runtime GenAI refuses keys that it does not know: provenance stands in the model's own
    metadata instead.

    Parameters
    ----------
    config, generation : mapping
        The source's ``config.json`` and ``generation_config.json``, the second of which decides.
    provider : str
    filename : str
        The graph, beside this file.
    positions : bool
        Whether the graph has an input ``position_ids``.
    """
    ends = list(eos_ids(config, generation))
    model: dict[str, Any] = {"type": "phi3"}
    model |= {"vocab_size": spec.vocabulary, "context_length": spec.context}
    begin = _token("bos_token_id", config, generation)
    if begin is not None:
        model["bos_token_id"] = begin
    if ends:
        model["eos_token_id"] = ends if len(ends) > 1 else ends[0]
    pad = _token("pad_token_id", config, generation)
    if pad is None and ends:
        pad = ends[0]
    if pad is not None:
        model["pad_token_id"] = pad
    inputs = {"input_ids": "input_ids", "attention_mask": "attention_mask"}
    if positions:
        inputs["position_ids"] = "position_ids"
    model["decoder"] = {
        "session_options": {
            "log_id": "onnxruntime-genai",
            "provider_options": _PROVIDERS[provider],
        },
        "filename": filename,
        "head_size": spec.attention.head_size,
        "hidden_size": spec.hidden_size,
        "num_attention_heads": spec.attention.heads,
        "num_hidden_layers": spec.layers,
        "num_key_value_heads": spec.attention.kv_heads,
        "inputs": {
            **inputs,
            "past_key_names": "past_key_values.%d.key",
            "past_value_names": "past_key_values.%d.value",
        },
        "outputs": {
            "logits": "logits",
            "present_key_names": "present.%d.key",
            "present_value_names": "present.%d.value",
        },
    }
    return json.dumps({"model": model, "search": _search(spec, generation)}, indent=4).encode()


def _search(spec: ModelSpec, generation: Mapping[str, object]) -> dict[str, Any]:
    sample = generation.get("do_sample") is True
    return {
        "do_sample": sample,
        "early_stopping": True,
        "max_length": min(spec.context, LONGEST),
        "min_length": 0,
        "num_beams": 1,
        "num_return_sequences": 1,
        "no_repeat_ngram_size": 0,
        "repetition_penalty": _number("repetition_penalty", generation, 1.0),
        "length_penalty": 1.0,
        "diversity_penalty": 0.0,
        "past_present_share_buffer": True,
        "temperature": _number("temperature", generation, 1.0),
        "top_k": int(_number("top_k", generation, 50)),
        "top_p": _number("top_p", generation, 1.0),
    }


def _number(key: str, settings: Mapping[str, object], default: float) -> float:
    value = settings.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e6:
        return default
    return value


def _token(key: str, *settings: Mapping[str, object]) -> int | None:
    """A token's id: of ``generation_config.json``, else of ``config.json``."""
    for mapping in reversed(settings):
        value = mapping.get(key)
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            return value
    return None
