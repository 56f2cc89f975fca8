"""llama.cpp's name for a byte-level BPE's way to split text into words."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from phiquant.errors import UnsupportedError
from phiquant.tokenizer import files

_LETTER_SUFFIX = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_REST = r"|\s*[\r\n]+|\s+(?!\S)|\s+"

GPT_2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
CL100K = _LETTER_SUFFIX + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*" + _REST
O200K = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_LETTER_SUFFIX}?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_LETTER_SUFFIX}?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*" + _REST
)

# The names' patterns stand in llama-vocab.cpp, llm_tokenizer_bpe. Several names share cl100k's;
# "dbrx" is what llama.cpp's converter answers for cl100k's own vocabulary, which Phi-4 has, and
# unlike "llama-bpe" it neither skips merges nor asks for a beginning-of-text token.
NAMES = {O200K: "gpt-4o", CL100K: "dbrx", GPT_2: "gpt-2"}

# What a vocabulary must hold for a name, and tokens that the named pattern can never produce
# because it splits them (see ``from_tokens``). U+0120 stands for a space. Only ASCII is looked at.
_THREE_DIGITS = re.compile(r"^[0-9]{3}$")
_LETTER_AFTER_SIGN = re.compile(r"[!-&(-/:-@\[-`{-~][A-Za-z]")
_NEEDED = {
    "gpt-4o": [_THREE_DIGITS, _LETTER_AFTER_SIGN],
    "dbrx": [_THREE_DIGITS, _LETTER_AFTER_SIGN],
    "gpt-2": [re.compile(r"^\u0120[0-9]")],
}
_IMPOSSIBLE = {
    "gpt-4o": re.compile(r"[a-z][A-Z]|\u0120[0-9]|[0-9]{4}"),
    "dbrx": re.compile(r"[A-Za-z]'(?:[sdmtSDMT]|ll|ve|re)$|\u0120[0-9]|[0-9]{4}"),
    "gpt-2": _LETTER_AFTER_SIGN,
}


def from_json(tokenizer: Mapping[str, Any], path: pathlib.Path) -> str:
    """The name that belongs to ``tokenizer.json``'s pre-tokenizer.

    Raises
    ------
    phiquant.UnsupportedError
        llama.cpp has no name for it that phiquant knows; the error shows the pattern.
    """
    if tokenizer.get("normalizer") not in (None, {"type": "Sequence", "normalizers": []}):
        raise UnsupportedError(
            f"normalizes text ({files.shown(str(tokenizer['normalizer']))}); "
            "llama.cpp does not for a byte-level tokenizer",
            file=path,
        )
    steps = _steps(tokenizer.get("pre_tokenizer"))
    splits = [step for step in steps if step.get("type") == "Split"]
    levels = [step for step in steps if step.get("type") == "ByteLevel"]
    if len(splits) + len(levels) != len(steps) or len(levels) != 1 or steps[-1] is not levels[0]:
        raise _unknown(str(tokenizer.get("pre_tokenizer")), path)
    if levels[0].get("add_prefix_space", True):
        raise UnsupportedError(
            "puts a space before every text (add_prefix_space); llama.cpp does not for a "
            "byte-level tokenizer",
            file=path,
        )
    own = levels[0].get("use_regex", True)
    if not splits and own:
        return NAMES[GPT_2]
    if len(splits) != 1 or own:
        raise _unknown(str(tokenizer.get("pre_tokenizer")), path)
    return _of_split(splits[0], path)


def _steps(value: object) -> list[Mapping[str, Any]]:
    if not isinstance(value, dict):
        return []
    steps = value.get("pretokenizers") if value.get("type") == "Sequence" else [value]
    return [step for step in steps if isinstance(step, dict)] if isinstance(steps, list) else []


def _of_split(split: Mapping[str, Any], path: pathlib.Path) -> str:
    pattern = split.get("pattern")
    regex = pattern.get("Regex") if isinstance(pattern, dict) else None
    # The patterns match every character, so that keeping the matches and dropping what is between
    # them ("Removed", inverted) is the same as cutting at the matches ("Isolated").
    kept = (split.get("behavior"), bool(split.get("invert", False)))
    # Compared, not looked up in a set: the file may say an array, which has no hash.
    if kept not in (("Isolated", False), ("Isolated", True), ("Removed", True)):
        raise _unknown(str(split), path)
    if not isinstance(regex, str) or regex not in NAMES:
        raise _unknown(regex if isinstance(regex, str) else str(pattern), path)
    return NAMES[regex]


def _unknown(pattern: str, path: pathlib.Path) -> UnsupportedError:
    return UnsupportedError(
        "splits text by a pattern that llama.cpp has no known name for: "
        f"{files.shown(pattern, 600)}",
        file=path,
        remedy="Known are the patterns of Phi-4-mini (o200k), Phi-4 (cl100k) and GPT-2.",
    )


def from_tokens(tokens: Iterable[str], path: pathlib.Path) -> str:
    """The one pattern that can have produced a vocabulary, where ``tokenizer.json`` is missing.

    A merge never crosses a word's border, so that a token over a border of some pattern excludes
    that pattern: ``self.x``-like tokens exclude GPT-2's, ``it's`` cl100k's, ``camelCase`` o200k's.
    Digits tell these three from others: up to three together, or a space before them.

    Raises
    ------
    phiquant.UnsupportedError
        None or several of the known patterns fit.
    """
    possible = dict(_IMPOSSIBLE)
    needed = [(name, kind) for name, kinds in _NEEDED.items() for kind in kinds]
    for token in tokens:
        for name in [name for name, impossible in possible.items() if impossible.search(token)]:
            del possible[name]
        needed = [(name, kind) for name, kind in needed if not kind.search(token)]
    left = [name for name in possible if name not in dict(needed)]
    if len(left) == 1:
        return left[0]
    raise UnsupportedError(
        "does not tell how text is split into words "
        f"({', '.join(left) or 'none'} of the known patterns would fit)",
        file=path,
        remedy="Put the model's tokenizer.json into the folder.",
    )
