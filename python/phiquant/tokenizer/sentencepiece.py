"""Phi-3's kind of tokenizer: SentencePiece's BPE with byte fallback and added tokens."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from phiquant.errors import FormatError, UnsupportedError
from phiquant.tokenizer import added, files, pieces
from phiquant.tokenizer.description import AddedToken, TokenType
from phiquant.tokenizer.vocabulary import Vocabulary, check_tokens, padding

# The scores that llama.cpp's converter gives to padding and to added tokens: below every piece, so
# that merging never makes one of them by chance.
_PADDING_SCORE = -10000.0
_ADDED_SCORE = -1000.0


def read(
    folder: pathlib.Path,
    rows: int,
    tokenizer: Mapping[str, Any],
    tokenizer_path: pathlib.Path,
    from_config: list[AddedToken],
) -> Vocabulary:
    """The vocabulary from ``tokenizer.model``, or without it from ``tokenizer.json`` alone.

    Both give the same result for a ``tokenizer.json`` that was made from a ``tokenizer.model``;
    ``pieces.from_json`` says what "the same" means. Sources of added tokens replace one another in
    this order: ``added_tokens.json``, ``tokenizer_config.json``, ``tokenizer.json``.
    """
    in_json = added.from_json(tokenizer, tokenizer_path, rows)
    extra = added.latest(added.from_list(folder, rows), from_config, in_json)
    model_path = files.find(folder, "tokenizer.model")
    add_space_prefix = None
    if model_path is not None:
        base = pieces.from_model(model_path, rows)
    else:
        model = files.expect_object(tokenizer.get("model"), "model", tokenizer_path)
        add_space_prefix = _space_prefix(tokenizer, tokenizer_path)
        texts = {token.content for token in extra.values()}
        base = pieces.from_json(model, texts, tokenizer_path, rows)

    tokens = padding(rows)
    scores = np.full(rows, _PADDING_SCORE, np.float32)
    types = np.full(rows, TokenType.UNUSED, np.int32)
    for index, piece in base.items():
        tokens[index] = piece.text
        scores[index] = piece.score
        types[index] = piece.type
    for index, token in extra.items():
        tokens[index] = token.content
        scores[index] = _ADDED_SCORE
        types[index] = TokenType.CONTROL if token.special else TokenType.USER_DEFINED
    check_tokens(tokens, model_path or tokenizer_path)
    if not bool(np.any(types == TokenType.BYTE)):
        raise FormatError(
            "holds no byte pieces (<0x00> to <0xFF>), so that most text could not be tokenized",
            file=model_path or tokenizer_path,
        )
    return Vocabulary(
        kind="sentencepiece",
        tokens=tokens,
        scores=scores,
        types=types,
        merges=[],
        pre="default",
        added=extra,
        in_json=in_json,
        add_space_prefix=add_space_prefix,
    )


def is_json(tokenizer: Mapping[str, Any]) -> bool:
    """Whether a ``tokenizer.json`` describes this kind of tokenizer."""
    model = tokenizer.get("model")
    return isinstance(model, dict) and model.get("byte_fallback") is True


def _space_prefix(tokenizer: Mapping[str, Any], path: pathlib.Path) -> bool | None:
    """Whether text gets a space in front, None being llama.cpp's yes; refuses other steps.

    Two spellings are in use: a normalizer that prepends U+2581 and replaces spaces by it, and
    (transformers, with ``legacy`` off) a pre-tokenizer named Metaspace. "first" and "always" differ
    only after added tokens, where llama.cpp always has the space.
    """
    space = pieces.SPACE
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": space}
    normalizer, pre = tokenizer.get("normalizer"), tokenizer.get("pre_tokenizer")
    steps: object = []
    if isinstance(normalizer, dict):
        steps = (
            normalizer.get("normalizers") if normalizer.get("type") == "Sequence" else [normalizer]
        )
    if pre is None and steps == [{"type": "Prepend", "prepend": space}, replace]:
        return None
    if pre is None and steps == [replace]:
        return False
    if normalizer is None and isinstance(pre, dict) and pre.get("type") == "Metaspace":
        scheme = pre.get(
            "prepend_scheme", "always" if pre.get("add_prefix_space", True) else "never"
        )
        if (
            pre.get("replacement") == space
            and pre.get("split") is False
            and scheme in ("first", "always")
        ):
            return None
        if pre.get("replacement") == space and pre.get("split") is False and scheme == "never":
            return False
    raise UnsupportedError(
        "prepares text in a way that llama.cpp has not: normalizer "
        f"{files.shown(str(normalizer), 300)}, pre_tokenizer {files.shown(str(pre), 300)}",
        file=path,
        remedy="Put the model's tokenizer.model into the folder.",
    )
