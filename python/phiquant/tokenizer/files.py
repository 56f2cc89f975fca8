"""Finds a tokenizer's files and bounds what is read of them, and checks single values."""

from __future__ import annotations

import os
import pathlib
import stat
from collections.abc import Mapping
from typing import Any

from phiquant.errors import FormatError, IoError
from phiquant.files import is_own

# The largest published tokenizer.json of any model family is near 35 MB, Phi's are under 17 MB.
# Parsed JSON takes about ten times its file's size, so this is what bounds the process.
MAX_TOKENIZER_JSON = 64 << 20
MAX_VOCABULARY_FILE = 64 << 20
MAX_SENTENCEPIECE_MODEL = 64 << 20
MAX_CONFIG = 16 << 20
MAX_CHAT_TEMPLATE = 4 << 20

FETCH_AGAIN = "Fetch the tokenizer's files again."


def find(folder: pathlib.Path, name: str) -> pathlib.Path | None:
    """The path of a file of the checkpoint, or None where there is no such entry.

    A link must stay inside the folder or lead into the hub cache that the folder belongs to,
    because what a tokenizer's files say ends up in the output.

    Raises
    ------
    phiquant.FormatError
        The entry is a link that leads elsewhere, or no regular file.
    """
    path = folder / name
    try:
        entry = path.lstat()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise IoError(f"cannot be examined: {error.strerror}", file=path) from None
    if stat.S_ISLNK(entry.st_mode):
        try:
            target = path.resolve(strict=True)
        except (OSError, RuntimeError):
            raise FormatError(
                "is a link that leads nowhere", file=path, remedy=FETCH_AGAIN
            ) from None
        if not is_own(target, folder.resolve()):
            raise FormatError(
                f"is a link to {target}, outside the checkpoint's folder",
                file=path,
                remedy="Put the file itself into the folder.",
            )
        entry = target.stat()
    if not stat.S_ISREG(entry.st_mode):
        raise FormatError("is no regular file", file=path)
    return path


def read_bytes(path: pathlib.Path, limit: int) -> bytes:
    """The whole file, refused before it is read when it is larger than ``limit`` bytes."""
    try:
        # Without O_NONBLOCK a name that became a FIFO after ``find`` would stop the process here.
        descriptor = os.open(
            path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        )
        with os.fdopen(descriptor, "rb") as file:
            size = os.fstat(descriptor).st_size
            if size > limit:
                raise FormatError(
                    f"holds {size} bytes; at most {limit} are accepted for this kind of file",
                    file=path,
                )
            data = file.read(limit + 1)
    except OSError as error:
        raise IoError(f"cannot be read: {error.strerror}", file=path) from None
    if len(data) > limit:
        raise FormatError(f"grew past {limit} bytes while it was read", file=path)
    return data


def read_text(path: pathlib.Path, limit: int) -> str:
    """The file's text in UTF-8."""
    data = read_bytes(path, limit)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(f"is not UTF-8 at byte {error.start}", file=path) from None


def shown(text: str, limit: int = 80) -> str:
    """Text from a file for an error: quoted, control characters escaped, and short."""
    return ascii(text if len(text) <= limit else text[:limit] + "...")


def kind(value: object) -> str:
    """JSON's word for a value's type."""
    if value is None:
        return "null"
    names = {dict: "an object", list: "an array", str: "a string", bool: "a boolean"}
    return names.get(type(value), "a number")


def expect_object(value: object, what: str, path: pathlib.Path) -> Mapping[str, Any]:
    """``value`` if it is an object."""
    if not isinstance(value, dict):
        raise FormatError(f"{what} is {kind(value)}, not an object", file=path)
    return value


def expect_list(value: object, what: str, path: pathlib.Path) -> list[Any]:
    """``value`` if it is an array."""
    if not isinstance(value, list):
        raise FormatError(f"{what} is {kind(value)}, not an array", file=path)
    return value


def expect_text(value: object, what: str, path: pathlib.Path) -> str:
    """``value`` if it is a string."""
    if not isinstance(value, str):
        raise FormatError(f"{what} is {kind(value)}, not a string", file=path)
    return value


def expect_id(value: object, what: str, rows: int, path: pathlib.Path) -> int:
    """``value`` if it is a token id that the embedding has a row for."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise FormatError(f"the id of {what} is {kind(value)}, not a whole number", file=path)
    if not 0 <= value < rows:
        number = str(value) if abs(value) < 1 << 63 else "past 63 bits"
        raise FormatError(
            f"{what} has id {number}, but the embedding has {rows} rows "
            "(vocab_size in config.json)",
            file=path,
            remedy="The tokenizer belongs to another model, or the embedding was not resized.",
        )
    return value
