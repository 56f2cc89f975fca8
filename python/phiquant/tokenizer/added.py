"""Added tokens: those that are cut out of the text before it is split and merged."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from phiquant.errors import FormatError
from phiquant.strict_json import read_json
from phiquant.tokenizer import files
from phiquant.tokenizer.description import AddedToken


def from_json(tokenizer: Mapping[str, Any], path: pathlib.Path, rows: int) -> list[AddedToken]:
    """``added_tokens`` of ``tokenizer.json``, in the file's order."""
    tokens = []
    for index, entry in enumerate(
        files.expect_list(tokenizer.get("added_tokens", []), "added_tokens", path)
    ):
        entry = files.expect_object(entry, f"added token {index}", path)
        tokens.append(_token(entry.get("id"), entry, path, rows))
    return tokens


def from_config(config: Mapping[str, Any], path: pathlib.Path, rows: int) -> list[AddedToken]:
    """``added_tokens_decoder`` of ``tokenizer_config.json``, in the file's order."""
    decoder = files.expect_object(
        config.get("added_tokens_decoder") or {}, "added_tokens_decoder", path
    )
    tokens = []
    for key, entry in decoder.items():
        if not (key.isascii() and key.isdigit() and len(key) < 19):
            raise FormatError(
                f"added_tokens_decoder has the key {files.shown(key)}, which is no id", file=path
            )
        entry = files.expect_object(entry, f"added token {key}", path)
        tokens.append(_token(int(key), entry, path, rows))
    return tokens


def from_list(folder: pathlib.Path, rows: int) -> list[AddedToken]:
    """``added_tokens.json``: text to id, without flags."""
    path = files.find(folder, "added_tokens.json")
    if path is None:
        return []
    entries = read_json(path, max_bytes=files.MAX_CONFIG)
    return [_token(value, {"content": text}, path, rows) for text, value in entries.items()]


def latest(*sources: list[AddedToken]) -> dict[int, AddedToken]:
    """By id; a later source's entry replaces an earlier one's."""
    return {token.id: token for token in _chain(sources)}


def _chain(sources: tuple[list[AddedToken], ...]) -> Iterator[AddedToken]:
    for source in sources:
        yield from source


def _token(value: object, entry: Mapping[str, Any], path: pathlib.Path, rows: int) -> AddedToken:
    content = files.expect_text(entry.get("content"), "an added token's content", path)
    number = files.expect_id(value, f"added token {files.shown(content)}", rows, path)
    flags = {}
    for name in ("special", "lstrip", "rstrip", "normalized", "single_word"):
        flag = entry.get(name, False)
        if not isinstance(flag, bool):
            raise FormatError(
                f"{name} of added token {files.shown(content)} is {files.kind(flag)}, "
                "not true or false",
                file=path,
            )
        flags[name] = flag
    return AddedToken(id=number, content=content, **flags)
