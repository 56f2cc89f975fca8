"""A checkpoint of any format as the model that targets are made from."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

from phiquant.architectures import read_config, spec_from_config
from phiquant.architectures.to_config import config_of
from phiquant.checkpoint import Checkpoint, TensorEntry
from phiquant.description import describe, describe_folder, describe_gguf
from phiquant.errors import FormatError, UnsupportedError, UsageError
from phiquant.targets.gguf_metadata import read_source_facts
from phiquant.targets.planning import Model
from phiquant.tokenizer import load as load_tokenizer

# What config.json says of how the weights are held: another format's affair.
_OF_THE_FORMAT = ("quantization_config", "quantization")


def model_of(checkpoint: Checkpoint, *, tokenizer: str | os.PathLike[str] | None = None) -> Model:
    """The model of an open checkpoint.

    Parameters
    ----------
    tokenizer : path, optional
        A folder with tokenizer.json and its companions, for a GGUF, which has none of them.

    Raises
    ------
    phiquant.FormatError, phiquant.UnsupportedError
        A config, metadata or tensors that contradict each other, or a model that is not known.
    phiquant.UsageError
        A GGUF without a tokenizer's folder.
    """
    if checkpoint.format == "gguf":
        return _of_gguf(checkpoint, tokenizer)
    if checkpoint.format == "safetensors":
        config, spec = describe_folder(checkpoint)
    else:
        spec = describe(checkpoint)
        config = {
            **{key: v for key, v in _config(checkpoint).items() if key not in _OF_THE_FORMAT},
            "tie_word_embeddings": spec.tied,
        }
    facts = read_source_facts(checkpoint.folder, config, name=checkpoint.name)
    return Model(
        checkpoint,
        spec,
        facts,
        load_tokenizer(checkpoint.folder, vocab_size=spec.vocabulary),
    )


def refuse_split(checkpoint: Checkpoint) -> None:
    """Raise UnsupportedError for one file of a GGUF that is split: it holds a part of the model."""
    splits = checkpoint.metadata.get("split.count", 0)
    if not isinstance(splits, int) or splits > 1:
        raise UnsupportedError(
            "is one of several split files",
            file=checkpoint.path,
            remedy="Merge them first: llama-gguf-split --merge.",
        )


def _config(checkpoint: Checkpoint) -> dict[str, object]:
    """The config of a folder, which an ONNX folder keeps in its graph."""
    if checkpoint.format != "onnx":
        return dict(read_config(checkpoint.folder / "config.json"))
    from phiquant.onnx_folder import SOURCE_CONFIG

    # describe() has read it already, so that it is known to be an object.
    config: dict[str, object] = json.loads(str(checkpoint.metadata[SOURCE_CONFIG]))
    return config


def _of_gguf(checkpoint: Checkpoint, tokenizer: str | os.PathLike[str] | None) -> Model:
    if tokenizer is None:
        raise UsageError(
            f"{checkpoint.path} is a GGUF, whose vocabulary is no tokenizer.json, which other "
            "formats have",
            remedy="Name a folder with the model's tokenizer: --tokenizer FOLDER "
            "(tokenizer=FOLDER), as published with the original weights.",
        )
    refuse_split(checkpoint)
    folder = Path(tokenizer)
    held = describe_gguf(checkpoint)
    config = config_of(held)
    spec = spec_from_config(config, file=checkpoint.path)
    names = {(tensor.role, tensor.layer): tensor.source for tensor in held.tensors}
    entries = {}
    for tensor in spec.tensors:
        own = names.get((tensor.role, tensor.layer))
        if own is None:
            raise FormatError("is missing", file=checkpoint.path, tensor=tensor.source)
        entries[tensor.source] = replace(checkpoint.entries[own], name=tensor.source)
    renamed = _Renamed(checkpoint, entries, folder)
    return Model(
        renamed,
        replace(spec, rope=held.rope),
        read_source_facts(folder, config, name=checkpoint.name),
        load_tokenizer(folder, vocab_size=spec.vocabulary),
    )


class _Renamed(Checkpoint):
    """A GGUF under the names of a Hugging Face checkpoint, with another folder's files."""

    def __init__(
        self, checkpoint: Checkpoint, entries: dict[str, TensorEntry], folder: Path
    ) -> None:
        super().__init__(
            "gguf", checkpoint.path, checkpoint.files, entries, {}, name=checkpoint.name
        )
        self._folder = folder

    @property
    def folder(self) -> Path:
        """The tokenizer's folder."""
        return self._folder
