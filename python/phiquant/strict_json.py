"""Reads the JSON files beside a checkpoint and takes nothing that has two meanings."""

from __future__ import annotations

import json
import math
import os
import stat
from pathlib import Path

from phiquant.errors import FormatError, IoError

_MEGABYTE = 1 << 20


def read_json(
    path: str | os.PathLike[str], *, max_bytes: int = 16 * _MEGABYTE
) -> dict[str, object]:
    """Read a JSON object from a file.

    Parameters
    ----------
    path : path-like
        A regular file (or a link to one).
    max_bytes : int
        Larger files are refused before they are read.

    Returns
    -------
    dict
        The object. Its strings can all be encoded as UTF-8 and its numbers are all finite.

    Raises
    ------
    phiquant.FormatError
        The file is absent, no regular file, too large, not UTF-8, not JSON, not an object, nested
        too deeply, or has a key twice, a number that is not finite or half of a surrogate pair.
    phiquant.IoError
        The operating system refused to read it.
    """
    file = Path(path)
    text = _read_text(file, max_bytes)
    try:
        value: object = json.loads(
            text,
            object_pairs_hook=lambda pairs: _object(pairs, file),
            parse_constant=lambda word: _refuse_constant(word, file),
            parse_float=lambda digits: _float(digits, file),
        )
    except json.JSONDecodeError as error:
        cause = f"not JSON: {error.msg} in line {error.lineno}, column {error.colno}"
        remedy = _remedy_for(text)
        raise FormatError(cause, file=file, remedy=remedy) from None
    except RecursionError:
        raise FormatError("not usable: its JSON is nested too deeply", file=file) from None
    except ValueError as error:
        # An integer of thousands of digits, which Python itself declines to convert.
        raise FormatError(f"not usable: {error}", file=file) from None
    if not isinstance(value, dict):
        raise FormatError(f"holds {_kind(value)} where an object is expected", file=file)
    if "\\ud" in text or "\\uD" in text:
        _check_strings(value, file)
    return value


def _read_text(file: Path, max_bytes: int) -> str:
    try:
        # Looked at before it is opened: opening a FIFO would wait for a writer.
        if not stat.S_ISREG(file.stat().st_mode):
            raise FormatError("not a regular file", file=file)
        with file.open("rb") as stream:
            data = stream.read(max_bytes + 1)
    except FileNotFoundError:
        raise FormatError("no such file", file=file) from None
    except OSError as error:
        raise IoError(f"cannot be read: {error.strerror}", file=file) from None
    if len(data) > max_bytes:
        cause = f"larger than the {max_bytes // _MEGABYTE} MB that such a file can have"
        raise FormatError(cause, file=file)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        cause = f"not UTF-8: byte 0x{data[error.start]:02x} at offset {error.start}"
        raise FormatError(cause, file=file) from None


def _object(pairs: list[tuple[str, object]], file: Path) -> dict[str, object]:
    result: dict[str, object] = {}
    for key, value in pairs:
        if key in result:
            raise FormatError(f"the key {key[:80]!r} stands twice in one object", file=file)
        result[key] = value
    return result


def _refuse_constant(word: str, file: Path) -> object:
    raise FormatError(f"the number {word} is not finite and no JSON", file=file)


def _float(digits: str, file: Path) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise FormatError(f"the number {digits[:40]} is too large", file=file)
    return value


def _check_strings(value: object, file: Path) -> None:
    """Refuse half surrogate pairs: legal escapes in JSON, but no text that a file can hold."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            waiting.extend(item.keys())
            waiting.extend(item.values())
        elif isinstance(item, list):
            waiting.extend(item)
        elif isinstance(item, str):
            try:
                item.encode("utf-8")
            except UnicodeEncodeError:
                raise FormatError(f"{item[:40]!r} is no Unicode text", file=file) from None


def _remedy_for(text: str) -> str | None:
    if text.startswith("version https://git-lfs"):
        return "It is a Git-LFS pointer: fetch the file itself (git lfs pull)."
    if text.lstrip()[:1] == "<":
        return "It looks like a web page: fetch the file again."
    return None


def _kind(value: object) -> str:
    names: dict[type, str] = {list: "an array", str: "a string", bool: "a boolean"}
    return "null" if value is None else names.get(type(value), "a number")
