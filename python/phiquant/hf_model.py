"""Takes transformers' models and state dicts apart: weights, config, tokenizer, and a name."""

from __future__ import annotations

import copy
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from phiquant.checkpoint import Checkpoint
from phiquant.errors import IoError, UnsupportedError, UsageError
from phiquant.memory import MemoryCheckpoint
from phiquant.tokenizer.pretokenizer import O200K

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"

# What torch.compile and DistributedDataParallel put before every name.
_WRAPPED = ("_orig_mod.", "module.")
_ADAPTER = re.compile(r"\.(lora_\w+|base_layer)\.")

# Bytes that are compared at a time.
_PIECE = 1 << 24

# How byte-level BPE writes the bytes: printable ones as they are, the others from U+0100 on.
_BYTES = [*range(33, 127), *range(161, 173), *range(174, 256)]
_BYTES += range(256, 512 - len(_BYTES))


def is_in_memory(source: object) -> bool:
    """Whether a source is a model or a state dict, and no path, hub id or open checkpoint."""
    if isinstance(source, (str, os.PathLike, Checkpoint)):
        return False
    return isinstance(source, Mapping) or hasattr(source, "state_dict")


def open_model(
    source: Any,
    *,
    tokenizer: Any = None,
    config: Any = None,
    name: str | None = None,
    weights_only: bool = False,
) -> MemoryCheckpoint:
    """Open a model in memory as if ``save_pretrained`` had written it into a folder.

    Parameters
    ----------
    source : transformers model, or mapping of str to tensor
        See :class:`phiquant.memory.MemoryCheckpoint` for the tensors.
    tokenizer : tokenizer of transformers, or path
        Saved by its own ``save_pretrained`` into a temporary folder; or a folder that holds one.
    config : config of transformers, mapping or path, optional
        Of a state dict. A model has its own.
    name : str, optional
        What outputs are named after; by default the last part of what the model was loaded from.
    weights_only : bool
        Put a tokenizer of single bytes where none was given: for plans that are never run.

    Raises
    ------
    phiquant.UsageError
        Something is missing, or the model has adapters that are to be merged first.
    phiquant.UnsupportedError
        It is quantized, offloaded or on another device.
    """
    model = None if isinstance(source, Mapping) else unwrap(source)
    if model is not None and config is not None:
        raise UsageError(
            "config was given along with a model, which has its own",
            remedy="Leave config out, or pass the model's state_dict() instead of the model.",
        )
    own = config if model is None else getattr(model, "config", None)
    if own is None:
        raise UsageError(
            "no config was given, and without it weights are only numbers",
            remedy="Pass config=model.config, or the path of its config.json.",
        )
    if tokenizer is None and not weights_only:
        raise UsageError(
            "no tokenizer was given, and the output would not run without one",
            remedy="Pass tokenizer=, as AutoTokenizer.from_pretrained gives it, or the path of a "
            "folder that holds one.",
        )
    label = f"{type(source if model is None else model).__name__} (in memory)"
    tensors = source if model is None else model.state_dict()
    opened = MemoryCheckpoint(label, name or _name_of(own), plain_names(tensors, label))
    try:
        _write_tokenizer(opened.folder, tokenizer)
        _write_config(opened.folder, own, model)
        _forget_tied(opened, opened.folder)
    except BaseException:
        opened.close()
        raise
    return opened


def unwrap(model: Any) -> Any:
    """The model inside torch's wrappers.

    Raises
    ------
    phiquant.UsageError
        It has adapters, which no format holds.
    phiquant.UnsupportedError
        Its weights are quantized.
    """
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and not hasattr(model, "config"):
            inner = getattr(model, "module", None)
        if inner is None:
            break
        model = inner
    if hasattr(model, "merge_and_unload") or getattr(model, "_hf_peft_config_loaded", False):
        raise _adapter_error(f"{type(model).__name__} (in memory)", None)
    if getattr(model, "hf_quantizer", None) is not None or getattr(model, "is_quantized", False):
        raise UnsupportedError(
            "is quantized already, and what is left would be quantized again",
            file=f"{type(model).__name__} (in memory)",
            remedy="Load it in its own dtype: from_pretrained(..., dtype='auto') without a "
            "quantization_config.",
        )
    return model


def _adapter_error(label: str, tensor: str | None) -> UsageError:
    return UsageError(
        "has adapters beside its weights",
        file=label,
        tensor=tensor,
        remedy="Merge them first: model = peft_model.merge_and_unload().",
    )


def plain_names(tensors: Mapping[str, Any], label: str) -> dict[str, Any]:
    """The tensors by the names that ``save_pretrained`` would give them."""
    found = dict(tensors)
    for prefix in _WRAPPED:
        if found and all(name.startswith(prefix) for name in found):
            found = {name[len(prefix) :]: tensor for name, tensor in found.items()}
    for name in found:
        if _ADAPTER.search(name):
            raise _adapter_error(label, name)
    return found


def _name_of(config: Any) -> str:
    """The last part of the path or hub id that a model was loaded from."""
    if isinstance(config, Mapping):
        known = config.get("_name_or_path"), config.get("model_type")
    elif isinstance(config, (str, os.PathLike)):
        path = Path(config)
        known = (path if path.is_dir() else path.parent).resolve().name, None
    else:
        known = getattr(config, "_name_or_path", None), getattr(config, "model_type", None)
    path_of = str(known[0] or "").replace("\\", "/").rstrip("/")
    return path_of.split("/")[-1].split("@")[0] or str(known[1] or "model")


def _write_config(folder: Path, config: Any, model: Any) -> None:
    """``config.json`` and ``generation_config.json``, as ``save_pretrained`` writes them."""
    if isinstance(config, (str, os.PathLike)):
        path = Path(config)
        path = path / "config.json" if path.is_dir() else path
        try:
            (folder / "config.json").write_bytes(path.read_bytes())
        except OSError as error:
            raise IoError(f"cannot be read: {error.strerror}", file=path) from error
        return
    if isinstance(config, Mapping):
        (folder / "config.json").write_text(json.dumps(dict(config)), encoding="utf-8")
        return
    config = copy.deepcopy(config)
    if model is not None:
        dtype = str(getattr(model, "dtype", "")).rpartition(".")[2]
        if dtype:
            # Versions of transformers before 4.56 know the older name only.
            setattr(config, "dtype" if hasattr(config, "dtype") else "torch_dtype", dtype)
        config.architectures = [type(model).__name__]
    config.save_pretrained(folder)
    generation = getattr(model, "generation_config", None)
    if generation is not None:
        generation.save_pretrained(folder)


def _write_tokenizer(folder: Path, tokenizer: Any) -> None:
    if tokenizer is None:
        (folder / "tokenizer.json").write_text(json.dumps(_stand_in()), encoding="utf-8")
    elif isinstance(tokenizer, (str, os.PathLike)):
        # Imported here: targets import much that nobody needs for a model in memory.
        from phiquant.targets.source_files import copied_files

        path = Path(tokenizer)
        if not path.is_dir():
            raise UsageError(
                "is no folder that holds a tokenizer",
                file=path,
                remedy="Pass a tokenizer of transformers: AutoTokenizer.from_pretrained(...).",
            )
        for name, text in copied_files(path).items():
            (folder / name).write_bytes(text)
    elif hasattr(tokenizer, "save_pretrained"):
        tokenizer.save_pretrained(folder)
    else:
        raise UsageError(
            f"tokenizer is a {type(tokenizer).__name__}, which has no save_pretrained",
            remedy="Pass a tokenizer of transformers, or the path of a folder that holds one.",
        )


def _stand_in() -> dict[str, Any]:
    """The smallest tokenizer that every target takes: bytes, and one merge of two of them."""
    words = [*map(chr, _BYTES), "th"]
    level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": O200K}, "behavior": "Isolated", "invert": False}
    return {
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, level]},
        "decoder": level,
        "model": {
            "type": "BPE",
            "vocab": {word: index for index, word in enumerate(words)},
            "merges": ["t h"],
        },
    }


def _forget_tied(opened: MemoryCheckpoint, folder: Path) -> None:
    """Leave out an output matrix that is the embedding once more, where the config ties them."""
    from phiquant.architectures import read_config

    head, embedding = opened.entries.get(HEAD), opened.entries.get(EMBEDDING)
    if head is None or embedding is None:
        return
    if read_config(folder / "config.json").get("tie_word_embeddings") is not True:
        return
    if (head.type, head.shape) != (embedding.type, embedding.shape):
        return
    ours, theirs = opened.memory_of(HEAD), opened.memory_of(EMBEDDING)
    # One memory, or (in a state dict of copies) the same values twice.
    same = ours.ctypes.data == theirs.ctypes.data or all(
        np.array_equal(ours[at : at + _PIECE], theirs[at : at + _PIECE])
        for at in range(0, ours.nbytes, _PIECE)
    )
    if same:
        del opened.entries[HEAD]
