"""A tokenizer's vocabulary as the strings of bytes that OpenVINO's tokenizer operations read."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from phiquant.errors import FormatError, UnsupportedError
from phiquant.strict_json import read_json
from phiquant.targets.openvino_graph import Graph, Value
from phiquant.tokenizer import Tokenizer, TokenType, files, merges

SPACE = "\u2581"
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
# No UTF-8 begins with this byte, so that no text finds what it is put in front of.
_HIDDEN = b"\xf8"
# Looked up once: vocabularies are long, and enumerations slow.
_UNUSED, _BYTE_TYPE = int(TokenType.UNUSED), int(TokenType.BYTE)


def alphabet() -> list[str]:
    """GPT-2's character for every byte: printable ones stand for themselves, others from U+0100.

    Source: bytes_to_unicode in https://github.com/openai/gpt-2/blob/master/src/encoder.py
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    found = {byte: chr(byte) for byte in printable}
    found |= {byte: chr(256 + index) for index, byte in enumerate(others)}
    return [found[byte] for byte in range(256)]


_TO_ALPHABET = dict(enumerate(alphabet()))
# Of characters to those with the byte's number, which Latin-1 then makes bytes of; characters below
# U+0100 that are none of the alphabet's become one that Latin-1 has not.
_TO_BYTES = dict.fromkeys(range(256), "\uffff") | {
    ord(character): chr(byte) for byte, character in _TO_ALPHABET.items()
}


def strings(graph: Graph, values: Sequence[bytes], label: str) -> list[Value]:
    """Strings as three constants: where each begins and ends, and all bytes in a row."""
    ends = np.cumsum([len(value) for value in values], dtype=np.int64)
    begins = np.concatenate([[0], ends[:-1]]) if len(values) else ends
    return [
        graph.number(begins, "i4"),
        graph.number(ends, "i4"),
        graph.data(b"".join(values), label),
    ]


def token_bytes(tokenizer: Tokenizer) -> list[bytes]:
    """What text every token stands for; empty for rows without a token.

    For a byte token of SentencePiece the byte itself.
    """
    added = {token.id: token.content for token in tokenizer.added_tokens}
    types = tokenizer.types.tolist()
    out = []
    for index, text in enumerate(tokenizer.tokens):
        if index in added:
            out.append(_added_bytes(tokenizer, added[index]))
        elif types[index] == _UNUSED:
            out.append(b"")
        elif tokenizer.kind == "bpe":
            out.append(from_alphabet(text))
        else:
            byte = byte_of(tokenizer, index)
            text = text.replace(SPACE, " ")
            out.append(text.encode() if byte is None else bytes([byte]))
    return out


def _added_bytes(tokenizer: Tokenizer, text: str) -> bytes:
    # Hugging Face's decoders look at added tokens as at any other.
    if tokenizer.kind == "bpe":
        return from_alphabet(text)
    return text.replace(SPACE, " ").encode()


def byte_of(tokenizer: Tokenizer, index: int) -> int | None:
    """The byte of one of SentencePiece's byte tokens."""
    if tokenizer.kind == "bpe" or tokenizer.types[index] != _BYTE_TYPE:
        return None
    match = _BYTE.fullmatch(tokenizer.tokens[index])
    return int(match[1], 16) if match else None


def from_alphabet(text: str) -> bytes:
    """The bytes that characters of GPT-2's alphabet stand for; UTF-8 where one is no such."""
    try:
        return text.translate(_TO_BYTES).encode("latin-1")
    except UnicodeEncodeError:
        return text.encode()


def in_alphabet(data: bytes) -> str:
    """Bytes as characters of GPT-2's alphabet."""
    return data.decode("latin-1").translate(_TO_ALPHABET)


def encoder_words(tokenizer: Tokenizer, pairs: Iterable[tuple[bytes, bytes]]) -> list[bytes]:
    """The vocabulary of the operation BPETokenizer.

    It takes, at each place of the text, the longest token that no merge makes, and goes on with
    merges from there. Hugging Face begins with single characters, and with bytes where a character
    is no token. So tokens that neither are single characters nor take part in merges are hidden
    from text, and SentencePiece's byte tokens are told as the bytes themselves.
    """
    merged = {part for left, right in pairs for part in (left, right, left + right)}
    added = {token.id for token in tokenizer.added_tokens}
    types = tokenizer.types.tolist()
    out: list[bytes] = []
    seen: dict[bytes, int] = {}
    for index, text in enumerate(tokenizer.tokens):
        if tokenizer.kind == "bpe":
            word = from_alphabet(text)
            is_short = len(text) == 1
        else:
            byte = byte_of(tokenizer, index)
            word = text.encode() if byte is None else bytes([byte])
            is_short = len(text) == 1 or byte is not None
        is_word = types[index] != _UNUSED and index not in added
        if not ((is_word and is_short) or word in merged):
            word = _HIDDEN + str(index).encode()
        if word in seen:
            # A character's own token goes before the byte token of its only byte.
            if byte_of(tokenizer, seen[word]) is None:
                word = _HIDDEN + str(index).encode()
            else:
                out[seen[word]] = _HIDDEN + str(seen[word]).encode()
        seen[word] = index
        out.append(word)
    return out


def check_bytes(tokenizer: Tokenizer, words: Sequence[bytes], file: Path) -> None:
    """Refuse a vocabulary that cannot spell every text.

    Raises
    ------
    phiquant.UnsupportedError
        A byte has no token: what Hugging Face makes the unknown token, OpenVINO would not.
    """
    if tokenizer.kind == "sentencepiece":
        known = {byte_of(tokenizer, index) for index in range(len(tokenizer.tokens))}
    else:
        known = {word[0] for word in words if len(word) == 1}
    missing = [byte for byte in range(256) if byte not in known]
    if missing:
        raise UnsupportedError(
            f"has no token for the byte {missing[0]:#04x}, so that some texts have no tokens",
            file=file,
        )


def merge_pairs(tokenizer: Tokenizer, folder: Path) -> list[tuple[bytes, bytes]]:
    """All merges in the order of their ranks.

    SentencePiece's are taken from ``tokenizer.json``; where there is none, they are made of the
    pieces as transformers makes them: every way to split a piece into two, by score, then by the
    lengths of the parts, the greatest first (generate_merges in convert_slow_tokenizer.py).
    """
    if tokenizer.kind == "bpe":
        split = [merge.split(" ") for merge in tokenizer.merges]
        return [(from_alphabet(left), from_alphabet(right)) for left, right in split]
    path = files.find(folder, "tokenizer.json")
    if path is not None:
        model = read_json(path, max_bytes=files.MAX_TOKENIZER_JSON).get("model")
        model = files.expect_object(model, "model", path)
        vocabulary = files.expect_object(model.get("vocab"), "model.vocab", path)
        _check_ids(tokenizer, vocabulary, path)
        found = merges.pairs(model.get("merges"), vocabulary, path)
        return [(left.encode(), right.encode()) for left, right in found]
    return _made_pairs(tokenizer)


def _check_ids(tokenizer: Tokenizer, vocabulary: Any, path: Path) -> None:
    """The vocabulary's ids come from ``tokenizer.model``: both files must mean the same."""
    for text, index in vocabulary.items():
        if not (isinstance(index, int) and 0 <= index < len(tokenizer.tokens)):
            raise FormatError(f"token {files.shown(text)} has an id without a row", file=path)
        if tokenizer.types[index] == TokenType.NORMAL and tokenizer.tokens[index] != text:
            raise FormatError(
                f"id {index} is {files.shown(text)} here and "
                f"{files.shown(tokenizer.tokens[index])} in tokenizer.model",
                file=path,
            )


def _made_pairs(tokenizer: Tokenizer) -> list[tuple[bytes, bytes]]:
    if tokenizer.scores is None:
        return []
    ids = {
        text: index
        for index, text in enumerate(tokenizer.tokens)
        if tokenizer.types[index] == TokenType.NORMAL
    }
    found: list[tuple[str, str, float]] = []
    for text, index in ids.items():
        score = float(tokenizer.scores[index])
        splits = [(text[:cut], text[cut:]) for cut in range(1, len(text))]
        ways = [(left, right) for left, right in splits if left in ids and right in ids]
        ways.sort(key=lambda way: (ids[way[0]], ids[way[1]]))
        found.extend((left, right, score) for left, right in ways)
    found.sort(key=lambda merge: (merge[2], len(merge[0]), len(merge[1])), reverse=True)
    return [(left.encode(), right.encode()) for left, right, _ in found]
