"""Lists of merges as they stand in ``tokenizer.json`` and ``merges.txt``."""

from __future__ import annotations

import pathlib
from collections.abc import Container, Iterator

from phiquant.errors import FormatError
from phiquant.tokenizer import files


def pairs(
    value: object, vocabulary: Container[str], path: pathlib.Path
) -> Iterator[tuple[str, str]]:
    """Every merge in rank order; both spellings, ``"a b"`` and ``["a", "b"]``, are read.

    The list is used up.

    Raises
    ------
    phiquant.FormatError
        An entry is neither, or a part or the result is no token.
    """
    entries = files.expect_list(value, "model.merges", path)
    for rank, entry in enumerate(entries):
        entries[rank] = None  # a pair takes 250 bytes: freed while the caller's own form grows
        parts = entry.split(" ") if isinstance(entry, str) else entry
        if not isinstance(parts, list) or len(parts) != 2:
            raise FormatError(f"merge {rank} is no pair of tokens", file=path)
        left, right = parts
        if not isinstance(left, str) or not isinstance(right, str) or not left or not right:
            raise FormatError(f"merge {rank} is no pair of tokens", file=path)
        for text in (left, right, left + right):
            if text not in vocabulary:
                raise FormatError(
                    f"merge {rank} ({files.shown(left)} + {files.shown(right)}) needs "
                    f"{files.shown(text)}, which is no token",
                    file=path,
                )
        yield left, right


def from_text(path: pathlib.Path) -> list[str]:
    """The merges of a ``merges.txt``; its first line may be a version comment."""
    lines = files.read_text(path, files.MAX_VOCABULARY_FILE).split("\n")
    if lines and lines[0].startswith("#version"):
        del lines[0]
    return [line.rstrip("\r") for line in lines if line.rstrip("\r")]
