"""Tokenizers as neutral data: what a checkpoint's files say, for every target to write from."""

from __future__ import annotations

from phiquant.tokenizer.description import (
    AddedToken,
    ChatTemplate,
    Tokenizer,
    TokenType,
    needs_phi3_name,
)
from phiquant.tokenizer.gguf import general_name, gguf_metadata
from phiquant.tokenizer.reader import load

__all__ = [
    "AddedToken",
    "ChatTemplate",
    "TokenType",
    "Tokenizer",
    "general_name",
    "gguf_metadata",
    "load",
    "needs_phi3_name",
]
