"""A SentencePiece vocabulary's pieces, from ``tokenizer.model`` or out of ``tokenizer.json``."""

from __future__ import annotations

import math
import pathlib
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from phiquant.errors import FormatError, UnsupportedError
from phiquant.tokenizer import files, wire
from phiquant.tokenizer.description import TokenType
from phiquant.tokenizer.merges import pairs

SPACE = "\u2581"
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
# Llama's vocabulary, which Phi-3's is, gives its runs of spaces this score: they merge after
# everything else.
_SPACES_LAST = -1e9
# SentencePiece's own bound is 16 characters unless its user says otherwise; the search for ways to
# put a piece together takes time with the square of its length.
_LONGEST = 256


@dataclass(frozen=True)
class Piece:
    """One entry of the vocabulary, with SentencePiece's score (higher merges first)."""

    text: str
    score: float
    type: TokenType


def from_model(path: pathlib.Path, rows: int) -> dict[int, Piece]:
    """The pieces of a SentencePiece BPE model by id.

    Source: sentencepiece_model.proto (ModelProto: 1 pieces, 2 trainer_spec; SentencePiece: 1 piece,
    2 score, 3 type; TrainerSpec: 3 model_type).
    """
    data = memoryview(files.read_bytes(path, files.MAX_SENTENCEPIECE_MODEL))
    if bytes(data[:8]) == b"version ":
        raise FormatError(
            "is a Git LFS pointer, not the file itself", file=path, remedy="Run 'git lfs pull'."
        )
    pieces: dict[int, Piece] = {}
    model_type = 1  # the format's default: unigram
    for number, kind, value in wire.fields(data, path):
        if number == 1 and isinstance(value, memoryview) and kind == wire.BYTES:
            # Counted while it grows, so that a file of empty pieces cannot fill the memory.
            if len(pieces) == rows:
                raise FormatError(
                    f"holds more than the {rows} pieces that the embedding has rows for",
                    file=path,
                    remedy="The tokenizer belongs to another model, or vocab_size is wrong.",
                )
            pieces[len(pieces)] = _piece(value, len(pieces), path)
        elif number == 2 and isinstance(value, memoryview) and kind == wire.BYTES:
            for inner, _, setting in wire.fields(value, path):
                if inner == 3 and isinstance(setting, int):
                    model_type = setting
    if not pieces:
        raise FormatError("is no SentencePiece model: it holds no pieces", file=path)
    if model_type != 2:
        names = {1: "a unigram", 3: "a word", 4: "a character"}
        raise UnsupportedError(
            f"is {names.get(model_type, 'an unknown')} model; Phi's are of BPE type",
            file=path,
        )
    return pieces


def _piece(data: memoryview, index: int, path: pathlib.Path) -> Piece:
    text, score, number = "", 0.0, int(TokenType.NORMAL)
    for field, kind, value in wire.fields(data, path):
        if field == 1 and isinstance(value, memoryview):
            try:
                text = bytes(value).decode("utf-8")
            except UnicodeDecodeError:
                raise FormatError(f"piece {index} is not UTF-8", file=path) from None
        elif field == 2 and isinstance(value, memoryview) and kind == wire.FIXED32:
            (score,) = struct.unpack("<f", value)
        elif field == 3 and isinstance(value, int):
            number = value
    if not math.isfinite(score):
        raise FormatError(f"piece {index} has a score that is no number", file=path)
    if number not in TokenType._value2member_map_:
        raise FormatError(f"piece {index} has the unknown type {number}", file=path)
    kind_of = TokenType(number)
    if kind_of is TokenType.USER_DEFINED:
        # As llama.cpp's converter types it; only added tokens are cut out of the text before
        # merging.
        kind_of = TokenType.NORMAL
    return Piece(text, score, kind_of)


def from_json(
    model: Mapping[str, Any], added: set[str], path: pathlib.Path, rows: int
) -> dict[int, Piece]:
    """The pieces that ``tokenizer.model`` held, out of a ``tokenizer.json`` made from it.

    Hugging Face's converter lists, for every piece, all the ways to put it together from two other
    pieces, in the order of the pieces' scores. llama.cpp merges by the score of the result alone,
    equal scores from the left, so what must come back is the order of the scores, with ties as
    ties. In detail:

    - SentencePiece's BPE trainer gives piece ``i`` the score ``-(i - first)``, ``first`` being the
      first id after the control and byte pieces. Where the results' order in the merges is the
      order of their ids, these very numbers are returned, for the single characters too, which no
      merge results in: the scores equal those of ``tokenizer.model`` bit for bit.
    - Llama's own vocabulary, which is Phi-3's, has ``-1e9`` for every run of spaces, so that their
      merges stand behind all others. Where they do, these numbers are returned: bit for bit again.
    - Otherwise results are numbered by their first merge, and results whose merges interleave share
      a number, because only equal scores are listed so. Then the order, ties included, equals the
      model's wherever the listing shows it, and llama.cpp tokenizes alike, though the numbers
      differ.

    A list of merges that lacks a way to make a piece was not made from a SentencePiece model.
    llama.cpp would use the missing merge, Hugging Face would not: refused.
    """
    vocabulary = files.expect_object(model.get("vocab"), "model.vocab", path)
    unknown = model.get("unk_token")
    pieces: dict[int, Piece] = {}
    normal: dict[str, int] = {}
    for text, value in vocabulary.items():
        token = files.expect_id(value, f"token {files.shown(text)}", rows, path)
        if token in pieces:
            raise FormatError(
                f"{files.shown(pieces[token].text)} and {files.shown(text)} have the id {token}",
                file=path,
            )
        if len(text) > _LONGEST:
            raise FormatError(
                f"token {token} has {len(text)} characters; at most {_LONGEST} are accepted",
                file=path,
            )
        kind = TokenType.NORMAL
        if text == unknown:
            kind = TokenType.UNKNOWN
        elif _BYTE.fullmatch(text):
            kind = TokenType.BYTE
        elif text not in added:
            normal[text] = token
        pieces[token] = Piece(text, 0.0, kind)
    for text, score in _scores(normal, _merges(model, vocabulary, path), path).items():
        pieces[normal[text]] = Piece(text, score, TokenType.NORMAL)
    return pieces


def _merges(
    model: Mapping[str, Any], vocabulary: Mapping[str, Any], path: pathlib.Path
) -> dict[tuple[str, str], int]:
    """Every merge's rank."""
    ranks: dict[tuple[str, str], int] = {}
    for left, right in pairs(model.get("merges"), vocabulary, path):
        ranks.setdefault((left, right), len(ranks))
    return ranks


def _scores(
    normal: Mapping[str, int], ranks: Mapping[tuple[str, str], int], path: pathlib.Path
) -> dict[str, float]:
    """The score of every normal piece, as ``from_json`` describes."""
    spans: dict[str, tuple[int, int]] = {}  # result -> ranks of its first and last merge
    for (left, right), rank in ranks.items():
        text = left + right
        if text in normal:
            spans[text] = (spans[text][0] if text in spans else rank, rank)
    for text in normal:
        for cut in range(1, len(text)):
            left, right = text[:cut], text[cut:]
            if left in normal and right in normal and (left, right) not in ranks:
                raise UnsupportedError(
                    f"the merges lack {files.shown(left)} + {files.shown(right)}, so they do not "
                    "come from a SentencePiece model, and llama.cpp would tokenize differently",
                    file=path,
                    remedy="Put the model's tokenizer.model into the folder.",
                )

    first = min(normal.values(), default=0)
    order = sorted(spans, key=lambda text: spans[text][0])
    runs = [text for text in order if not text.strip(SPACE)]
    # Spaces at the very end of the merges although other ids follow theirs: Llama's -1e9.
    spaces_last = (
        bool(runs)
        and set(order[-len(runs) :]) == set(runs)
        and any(
            normal[run] < normal[text]
            for run in runs
            for text in order[-len(runs) - 1 : -len(runs)]
        )
    )
    ranked = order[: -len(runs)] if spaces_last else order
    ids = [normal[text] for text in ranked]
    if ids == sorted(ids):
        # -float(0) is the -0.0 that the trainer writes too
        scores = {text: -float(token - first) for text, token in normal.items()}
    else:
        scores = {}
        number, end = -1, -1
        for text in ranked:
            begin, last = spans[text]
            if begin > end:
                number += 1
            end = max(end, last)
            scores[text] = -float(number)
        for text in normal:
            scores.setdefault(text, -float(number + 1))
    if spaces_last:
        scores.update((text, _SPACES_LAST) for text in normal if not text.strip(SPACE))
    return scores
