"""What stands in any checkpoint: its files, metadata, tensors and, of a folder, its config."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from phiquant.architectures import check_tensors, read_config, spec_from_config
from phiquant.checkpoint import Checkpoint, TensorEntry, open_checkpoint
from phiquant.errors import PhiquantError

# The config's main facts, in the spelling of published models.
_CONFIG_KEYS = (
    *("architectures", "model_type", "hidden_size", "intermediate_size", "num_hidden_layers"),
    *("num_attention_heads", "num_key_value_heads", "head_dim", "hidden_act", "vocab_size"),
    *("max_position_embeddings", "original_max_position_embeddings", "sliding_window"),
    *("partial_rotary_factor", "rope_theta", "rope_scaling", "rope_parameters"),
    *("tie_word_embeddings", "torch_dtype", "dtype", "quantization_config"),
)


@dataclass(frozen=True)
class TypeTotal:
    """All tensors of one type together."""

    type: str
    tensors: int
    weights: int
    nbytes: int


@dataclass(frozen=True)
class Inspection:
    """A look at a checkpoint's headers.

    Attributes
    ----------
    checkpoint : Checkpoint
    config : mapping
        Of a folder: the main facts of ``config.json``.
    problem : str or None
        Of a folder: why phiquant cannot convert the model, as far as config and headers tell.
    """

    checkpoint: Checkpoint
    config: Mapping[str, Any]
    problem: str | None

    @property
    def totals(self) -> tuple[TypeTotal, ...]:
        """Totals of each type, the largest first."""
        groups: dict[str, list[TensorEntry]] = {}
        for entry in self.checkpoint.entries.values():
            groups.setdefault(entry.type, []).append(entry)
        totals = [
            TypeTotal(
                type_name,
                len(members),
                sum(math.prod(entry.shape) for entry in members),
                sum(entry.nbytes for entry in members),
            )
            for type_name, members in groups.items()
        ]
        return tuple(sorted(totals, key=lambda total: -total.nbytes))

    @property
    def weights(self) -> int:
        """Number of weights in all tensors."""
        return sum(math.prod(entry.shape) for entry in self.checkpoint.entries.values())

    @property
    def file_bytes(self) -> int:
        """Size of all files that hold tensors."""
        return sum(file.size for file in self.checkpoint.files)

    def metadata(self) -> list[tuple[str, str, Any]]:
        """Key, type and value of all metadata, in the file's order."""
        types = self.checkpoint.metadata_types
        return [
            (key, types.get(key, "string"), value)
            for key, value in self.checkpoint.metadata.items()
        ]

    def to_json(self) -> dict[str, Any]:
        """All of it as plain data, nothing shortened."""
        checkpoint = self.checkpoint
        return {
            "path": str(checkpoint.path),
            "format": checkpoint.format,
            "files": [{"path": str(file.path), "bytes": file.size} for file in checkpoint.files],
            "weights": self.weights,
            "bytes": checkpoint.nbytes,
            "config": plain(dict(self.config)),
            "problem": self.problem,
            "metadata": {
                key: {"type": type_name, "value": plain(value)}
                for key, type_name, value in self.metadata()
            },
            "totals": [
                {"type": t.type, "tensors": t.tensors, "weights": t.weights, "bytes": t.nbytes}
                for t in self.totals
            ],
            "tensors": [
                {
                    "name": entry.name,
                    "type": entry.type,
                    "shape": list(entry.shape),
                    "file": entry.file,
                    "offset": entry.offset,
                    "bytes": entry.nbytes,
                }
                for entry in checkpoint.entries.values()
            ],
        }


def inspect(source: str | os.PathLike[str] | Checkpoint, *, progress: bool = False) -> Inspection:
    """Look at a folder with safetensors, a file, or a hub id; only headers are read.

    Parameters
    ----------
    source : str, path or Checkpoint
        As :func:`phiquant.open` takes it.
    progress : bool
        Show a download's progress.

    Raises
    ------
    phiquant.PhiquantError
        The weights cannot be read. A bad config is a finding and no error.
    """
    checkpoint = (
        source if isinstance(source, Checkpoint) else open_checkpoint(source, progress=progress)
    )
    file = checkpoint.folder / "config.json"
    if checkpoint.format != "safetensors" or not file.exists():
        return Inspection(checkpoint, {}, None)
    try:
        config = read_config(file)
    except PhiquantError as error:
        return Inspection(checkpoint, {}, str(error))
    facts = {key: config[key] for key in _CONFIG_KEYS if config.get(key) is not None}
    try:
        spec = spec_from_config(config, file=file)
        tensors = {e.name: (e.type, e.shape) for e in checkpoint.entries.values()}
        check_tensors(spec, tensors, file=checkpoint.path, config_file=file)
    except PhiquantError as error:
        return Inspection(checkpoint, facts, str(error))
    return Inspection(checkpoint, facts, None)


def layers_apart(name: str) -> str:
    """The name with ``*`` for numbers between dots, so that a layer's tensors get equal names."""
    return re.sub(r"(?<=\.)\d+(?=\.)", "*", name)


def plain(value: Any) -> Any:
    """A value as JSON has it: what is no UTF-8 gets escapes, NaN and infinities become words."""
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    return value
