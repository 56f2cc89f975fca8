"""Find and read the tokenizer of a checkpoint's folder."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from phiquant.errors import FormatError
from phiquant.strict_json import read_json
from phiquant.tokenizer import added, byte_level, files, sentencepiece, special
from phiquant.tokenizer.description import ChatTemplate, Tokenizer
from phiquant.tokenizer.vocabulary import Vocabulary

# Padding alone costs some 100 bytes a row; no published vocabulary is near this.
MAX_ROWS = 1 << 22


def load(folder: pathlib.Path, *, vocab_size: int) -> Tokenizer:
    """The tokenizer of a checkpoint.

    Parameters
    ----------
    folder : pathlib.Path
        Holds ``tokenizer.model`` or ``tokenizer.json`` (or ``vocab.json`` and ``merges.txt``), and
        usually ``tokenizer_config.json``, ``added_tokens.json``, ``config.json`` and templates.
    vocab_size : int
        The embedding's rows; the vocabulary is padded to them.

    Raises
    ------
    phiquant.FormatError
        A file is missing, damaged, larger than any honest one, or does not belong to the model.
    phiquant.UnsupportedError
        A sound tokenizer of a kind that llama.cpp's two kinds cannot express.
    phiquant.IoError
        A file cannot be read.
    """
    if not 0 < vocab_size <= MAX_ROWS:
        raise FormatError(
            f"vocab_size is {vocab_size}; between 1 and {MAX_ROWS} is accepted",
            file=folder / "config.json",
        )
    config = _json(folder, "tokenizer_config.json", files.MAX_CONFIG)
    tokenizer = _json(folder, "tokenizer.json", files.MAX_TOKENIZER_JSON)
    config_path, tokenizer_path = folder / "tokenizer_config.json", folder / "tokenizer.json"

    from_config = added.from_config(config, config_path, vocab_size)
    read = byte_level.read if _is_bpe(folder, config, tokenizer) else sentencepiece.read
    vocabulary = read(folder, vocab_size, tokenizer, tokenizer_path, from_config)
    # The largest part of tokenizer.json is in the vocabulary now; what is left is a few kB.
    tokenizer.pop("model", None)

    model_config = _json(folder, "config.json", files.MAX_CONFIG)
    roles = special.read(
        config, tokenizer, vocabulary.in_json, model_config, vocab_size, tokenizer_path
    )
    templates, named = special.templates(folder, config, config_path)
    return _describe(vocabulary, roles, templates, named)


def _describe(
    vocabulary: Vocabulary,
    roles: special.Special,
    templates: tuple[ChatTemplate, ...],
    named: bool,
) -> Tokenizer:
    if vocabulary.scores is not None:
        vocabulary.scores.setflags(write=False)
    vocabulary.types.setflags(write=False)
    return Tokenizer(
        kind=vocabulary.kind,
        tokens=tuple(vocabulary.tokens),
        scores=vocabulary.scores,
        types=vocabulary.types,
        merges=tuple(vocabulary.merges),
        pre=vocabulary.pre,
        special_ids=MappingProxyType(dict(roles.ids)),
        add=MappingProxyType(dict(roles.add)),
        add_space_prefix=vocabulary.add_space_prefix,
        chat_templates=templates,
        templates_named=named,
        added_tokens=tuple(vocabulary.added[index] for index in sorted(vocabulary.added)),
    )


def _is_bpe(folder: pathlib.Path, config: Mapping[str, Any], tokenizer: Mapping[str, Any]) -> bool:
    """Which kind the checkpoint holds: by its class, else by what the files hold.

    llama.cpp's converter asks for the class ``GPT2Tokenizer`` alone; others that hold byte-level
    BPE (transformers 5 writes ``TokenizersBackend``) are known by ``tokenizer.json``.
    """
    if config.get("tokenizer_class") in ("GPT2Tokenizer", "GPT2TokenizerFast"):
        return True
    if files.find(folder, "tokenizer.model") is not None or sentencepiece.is_json(tokenizer):
        return False
    if byte_level.is_json(tokenizer):
        return True
    if not tokenizer and files.find(folder, "vocab.json") is not None:
        return True
    if tokenizer:
        raise FormatError(
            "describes neither SentencePiece's BPE with byte fallback nor byte-level BPE, which "
            "the Phi models use",
            file=folder / "tokenizer.json",
        )
    raise FormatError(
        "holds no tokenizer: none of tokenizer.model, tokenizer.json and vocab.json is there",
        file=folder,
        remedy="Copy the tokenizer's files of the base model into the folder.",
    )


def _json(folder: pathlib.Path, name: str, limit: int) -> dict[str, Any]:
    """A JSON file of the folder, empty where there is none."""
    path = files.find(folder, name)
    return {} if path is None else read_json(path, max_bytes=limit)
