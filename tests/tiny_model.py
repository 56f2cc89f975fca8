"""Small Phi checkpoints for tests, sound or with a fault; written here, not by what is tested."""

from __future__ import annotations

import json
import math
import shutil
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

FIXTURE = Path(__file__).parent / "data" / "phi35"
TOKENIZER = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "generation_config.json",
)  # fmt: skip
INDEX = "model.safetensors.index.json"

_SPELLINGS = {"bfloat16": "BF16", "float32": "F32", "float16": "F16", "float8_e4m3fn": "F8_E4M3"}
_SPELLINGS |= {"int8": "I8", "int32": "I32", "uint8": "U8"}


def config_of(**changes: Any) -> dict[str, Any]:
    """The config of a model with one layer and tied embeddings; what is None is left out."""
    config: dict[str, Any] = {
        "architectures": ["Phi3ForCausalLM"],
        "model_type": "phi3",
        "torch_dtype": "bfloat16",
        "hidden_act": "silu",
        "hidden_size": 256,
        "intermediate_size": 256,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "vocab_size": 4096,
        "rms_norm_eps": 1e-05,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "partial_rotary_factor": 1.0,
        "max_position_embeddings": 2048,
        "original_max_position_embeddings": 2048,
        "sliding_window": None,
        "attention_bias": False,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 4000,
        "pad_token_id": 4000,
    }
    config |= changes
    return {key: value for key, value in config.items() if value is not None}


def shapes_of(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The tensors that a model of this config has."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    head = hidden // config["num_attention_heads"]
    fused = hidden + 2 * head * config["num_key_value_heads"]
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config["vocab_size"], hidden)
    }
    for layer in range(config["num_hidden_layers"]):
        name = f"model.layers.{layer}."
        shapes[name + "self_attn.o_proj.weight"] = (hidden, hidden)
        shapes[name + "self_attn.qkv_proj.weight"] = (fused, hidden)
        shapes[name + "mlp.gate_up_proj.weight"] = (2 * inner, hidden)
        shapes[name + "mlp.down_proj.weight"] = (hidden, inner)
        shapes[name + "input_layernorm.weight"] = (hidden,)
        shapes[name + "post_attention_layernorm.weight"] = (hidden,)
    shapes["model.norm.weight"] = (hidden,)
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (config["vocab_size"], hidden)
    return shapes


def weights_of(config: Mapping[str, Any], dtype: Any = ml_dtypes.bfloat16) -> dict[str, Any]:
    """Random weights, the same for the same config."""
    random = np.random.default_rng(0)
    return {
        name: (random.standard_normal(shape, dtype=np.float32) * np.float32(0.02)).astype(dtype)
        for name, shape in shapes_of(config).items()
    }


def safetensors_bytes(tensors: Mapping[str, Any]) -> bytes:
    """A safetensors file of NumPy arrays."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, array in tensors.items():
        spelled = _SPELLINGS[array.dtype.name]
        header[name] = {
            "dtype": spelled,
            "shape": list(array.shape),
            "data_offsets": [at, at + array.nbytes],
        }
        at += array.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    body = b"".join(np.ascontiguousarray(array).tobytes() for array in tensors.values())
    return struct.pack("<Q", len(text)) + text + body


def write_tokenizer(folder: Path) -> None:
    """The tokenizer's files of a fixture, with 4011 tokens."""
    for name in TOKENIZER:
        shutil.copy(FIXTURE / name, folder / name)


def write_model(
    folder: Path,
    weights: Mapping[str, Any] | None = None,
    *,
    shards: int = 1,
    index_changes: Mapping[str, str | None] | None = None,
    dtype: Any = ml_dtypes.bfloat16,
    **config_changes: Any,
) -> Path:
    """Write a checkpoint's folder.

    Parameters
    ----------
    folder : Path
        Made if it is absent.
    weights : mapping of str to array, optional
        Instead of :func:`weights_of`'s.
    shards : int
        With more than one there is an index.
    index_changes : mapping of str to (str or None), optional
        What the index says instead of a tensor's shard; None leaves the tensor out.
    dtype : dtype
        Of the weights.
    **config_changes
        See :func:`config_of`.

    Returns
    -------
    Path
        ``folder``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = config_of(**config_changes)
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    tensors = dict(weights_of(config, dtype) if weights is None else weights)
    if shards == 1 and index_changes is None:
        (folder / "model.safetensors").write_bytes(safetensors_bytes(tensors))
    else:
        weight_map: dict[str, str | None] = {}
        names = list(tensors)
        size = math.ceil(len(names) / shards)
        for number in range(shards):
            shard = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
            mine = names[number * size : (number + 1) * size]
            (folder / shard).write_bytes(safetensors_bytes({n: tensors[n] for n in mine}))
            weight_map |= dict.fromkeys(mine, shard)
        weight_map |= index_changes or {}
        said = {name: shard for name, shard in weight_map.items() if shard is not None}
        text = json.dumps({"metadata": {}, "weight_map": said})
        (folder / INDEX).write_text(text)
    write_tokenizer(folder)
    return folder
