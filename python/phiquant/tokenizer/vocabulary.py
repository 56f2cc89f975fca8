"""The vocabulary as the readers of both kinds hand it on, before roles and templates."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from phiquant.errors import FormatError
from phiquant.tokenizer import files
from phiquant.tokenizer.description import AddedToken


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """Tokens, scores and types padded to the embedding's rows, merges, and added tokens by id."""

    kind: Literal["sentencepiece", "bpe"]
    tokens: list[str]
    scores: NDArray[np.float32] | None
    types: NDArray[np.int32]
    merges: list[str]
    pre: str
    added: Mapping[int, AddedToken]
    in_json: list[AddedToken]
    add_space_prefix: bool | None = None


def padding(rows: int) -> list[str]:
    """The names of rows without a token, as llama.cpp's converter spells them."""
    return [f"[PAD{index}]" for index in range(rows)]


def check_tokens(tokens: list[str], path: pathlib.Path) -> None:
    """Refuse tokens that llama.cpp's loader aborts on or reads as something else.

    Raises
    ------
    phiquant.FormatError
        A token is empty, holds a NUL, or occurs twice.
    """
    for index, text in enumerate(tokens):
        if not text:
            raise FormatError(f"token {index} is empty", file=path)
        if "\0" in text:
            raise FormatError(f"token {index} ({files.shown(text)}) holds a NUL", file=path)
    if len(set(tokens)) != len(tokens):
        seen: dict[str, int] = {}
        for index, text in enumerate(tokens):
            if text in seen:
                raise FormatError(
                    f"tokens {seen[text]} and {index} are both {files.shown(text)}",
                    file=path,
                    remedy="Every row of the embedding needs a token of its own.",
                )
            seen[text] = index
