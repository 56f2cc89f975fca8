"""Phi-4's kind of tokenizer: GPT-2's byte-level BPE with added tokens."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from phiquant.errors import FormatError, UnsupportedError
from phiquant.strict_json import read_json
from phiquant.tokenizer import added, files, merges, pretokenizer
from phiquant.tokenizer.description import AddedToken, TokenType
from phiquant.tokenizer.vocabulary import Vocabulary, check_tokens, padding

_SPACE = "\u0120"  # the byte-level alphabet's character for a space


def read(
    folder: pathlib.Path,
    rows: int,
    tokenizer: Mapping[str, Any],
    tokenizer_path: pathlib.Path,
    from_config: list[AddedToken],
) -> Vocabulary:
    """The vocabulary from ``tokenizer.json``, or from ``vocab.json`` and ``merges.txt``."""
    model: Mapping[str, Any] = {}
    if tokenizer:
        model = files.expect_object(tokenizer.get("model"), "model", tokenizer_path)
        _check_model(model, tokenizer_path)
        pre = pretokenizer.from_json(tokenizer, tokenizer_path)
        vocabulary, listed = model.get("vocab"), model.get("merges")
        vocabulary_path = merges_path = tokenizer_path
        in_json = added.from_json(tokenizer, tokenizer_path, rows)
        extra = added.latest(in_json, from_config)
        for token in in_json:
            if extra[token.id].content != token.content:
                raise FormatError(
                    f"id {token.id} is {files.shown(token.content)} here and "
                    f"{files.shown(extra[token.id].content)} in tokenizer_config.json",
                    file=tokenizer_path,
                )
    else:
        vocabulary_path, merges_path = _vocab_files(folder)
        vocabulary = read_json(vocabulary_path, max_bytes=files.MAX_VOCABULARY_FILE)
        listed = merges.from_text(merges_path)
        in_json = []
        extra = added.latest(added.from_list(folder, rows), from_config)
        texts = {token.content for token in extra.values()}
        pre = pretokenizer.from_tokens(
            (text for text in vocabulary if text not in texts), vocabulary_path
        )

    vocabulary = files.expect_object(vocabulary, "model.vocab", vocabulary_path)
    tokens = padding(rows)
    types = np.full(rows, TokenType.UNUSED, np.int32)
    for text, value in vocabulary.items():
        index = files.expect_id(value, f"token {files.shown(text)}", rows, vocabulary_path)
        if types[index] != TokenType.UNUSED:
            raise FormatError(
                f"{files.shown(tokens[index])} and {files.shown(text)} have the id {index}",
                file=vocabulary_path,
            )
        tokens[index] = text
        types[index] = TokenType.NORMAL
    for index, token in extra.items():
        if types[index] != TokenType.UNUSED and tokens[index] != token.content:
            raise FormatError(
                f"id {index} is {files.shown(tokens[index])} in the vocabulary and the added token "
                f"{files.shown(token.content)}",
                file=vocabulary_path,
            )
        control = token.special or _looks_special(token.content)
        # llama.cpp matches these in the text as it stands, so U+2581 must be the space that it
        # means.
        tokens[index] = token.content if control else token.content.replace("\u2581", " ")
        types[index] = TokenType.CONTROL if control else TokenType.USER_DEFINED
    check_tokens(tokens, vocabulary_path)

    pairs = list(merges.pairs(listed, vocabulary, merges_path))
    if not pairs:
        raise FormatError("holds no merges", file=merges_path)
    if model.get("ignore_merges"):
        special = {token.content for token in extra.values()}
        _check_reachable([text for text in vocabulary if text not in special], pairs, merges_path)
    joined = [f"{left.replace(' ', _SPACE)} {right.replace(' ', _SPACE)}" for left, right in pairs]
    return Vocabulary(
        kind="bpe",
        tokens=tokens,
        scores=None,
        types=types,
        merges=joined,
        pre=pre,
        added=extra,
        in_json=in_json,
    )


def _check_reachable(texts: list[str], pairs: list[tuple[str, str]], path: pathlib.Path) -> None:
    """Refuse ``ignore_merges``, which takes a word that is a token as it is, where it matters.

    llama.cpp's pre-tokenizers of the Phi models merge all the same, which comes to the same where
    merges lead to every token: so it is in vocabularies from tiktoken, which set the flag.
    """
    made = {left + right for left, right in pairs}
    lost = next((text for text in texts if len(text) > 1 and text not in made), None)
    if lost is not None:
        raise UnsupportedError(
            f"sets ignore_merges, and no merge makes {files.shown(lost)}: llama.cpp would never "
            "find that token",
            file=path,
        )


def is_json(tokenizer: Mapping[str, Any]) -> bool:
    """Whether a ``tokenizer.json`` describes this kind of tokenizer."""
    model = tokenizer.get("model")
    if (
        not isinstance(model, dict)
        or model.get("type", "BPE") != "BPE"
        or model.get("byte_fallback")
    ):
        return False
    decoder = tokenizer.get("decoder")
    return isinstance(decoder, dict) and decoder.get("type") == "ByteLevel"


def _check_model(model: Mapping[str, Any], path: pathlib.Path) -> None:
    """Refuse variants of BPE that llama.cpp's byte-level kind has not."""
    if model.get("type", "BPE") != "BPE":
        raise UnsupportedError(
            f"is a {files.shown(str(model.get('type')))} model, not BPE", file=path
        )
    for name in ("byte_fallback", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name):
            raise UnsupportedError(
                f"sets {name} to {files.shown(str(model[name]))}; llama.cpp's byte-level BPE has "
                "no such thing",
                file=path,
            )


def _vocab_files(folder: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
    vocabulary, listed = files.find(folder, "vocab.json"), files.find(folder, "merges.txt")
    if vocabulary is None or listed is None:
        missing = "vocab.json" if vocabulary is None else "merges.txt"
        raise FormatError(
            f"holds neither tokenizer.json nor {missing}",
            file=folder,
            remedy="Fetch the tokenizer's files again; tokenizer.json alone is enough.",
        )
    return vocabulary, listed


def _looks_special(text: str) -> bool:
    """Whether llama.cpp's converter takes a token for a control token by its looks alone."""
    return (
        text in ("<pad>", "<mask>", "<2mass>", "[@BOS@]")
        or (text.startswith("<|") and text.endswith("|>"))
        or (text.startswith("<\uff5c") and text.endswith("\uff5c>"))
        or (text.startswith("<unused") and text.endswith(">"))
    )
