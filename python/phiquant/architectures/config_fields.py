"""Typed and bounded reads from a config, with errors that name the key and what stands there."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from typing import Final

from phiquant.errors import FormatError

#: Sizes go into 32-bit fields of GGUF; nothing that a Phi model has comes near.
MAX_SIZE: Final = 2**31 - 1

_MISSING: Final = object()


class Fields:
    """One JSON object of a config, read key by key.

    Parameters
    ----------
    values : mapping
        The object.
    file : str
        Named in errors.
    path : str
        Where the object stands in the file, as ``rope_scaling.``; empty for the outermost.
    """

    def __init__(self, values: Mapping[str, object], file: str, path: str = "") -> None:
        self._values = values
        self._file = file
        self._path = path

    def __contains__(self, key: str) -> bool:
        """Whether the key is there and not null."""
        return self._values.get(key) is not None

    def error(self, key: str, cause: str) -> FormatError:
        """An error about one key, to be raised by the caller."""
        return FormatError(f"{self._path}{key} {cause}", file=self._file)

    def integer(
        self, key: str, *, default: int | None = None, low: int = 1, high: int = MAX_SIZE
    ) -> int:
        """A whole number in ``low`` to ``high``; ``default`` where the key is absent or null."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.error(key, f"is {_shown(value)}, which is not a whole number")
        if not low <= value <= high:
            raise self.error(key, f"is {_shown(value)}, which is not in {low} to {high}")
        return value

    def positive(self, key: str, *, default: float | None = None) -> float:
        """A finite number above zero; ``default`` where the key is absent or null."""
        value = self._get(key, default)
        number = _number(value)
        if number is None or not number > 0:
            raise self.error(key, f"is {_shown(value)}, which is not a finite number above zero")
        return number

    def boolean(self, key: str, *, default: bool) -> bool:
        """``true`` or ``false``; ``default`` where the key is absent or null."""
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise self.error(key, f"is {_shown(value)}, which is neither true nor false")
        return value

    def string(self, key: str, *, default: str | None = None) -> str:
        """A string; ``default`` where the key is absent or null."""
        value = self._get(key, default)
        if not isinstance(value, str):
            raise self.error(key, f"is {_shown(value)}, which is not a string")
        return value

    def inner(self, key: str) -> Fields | None:
        """An object within this one; None where the key is absent or null."""
        value = self._values.get(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.error(key, f"is {_shown(value)}, which is not an object")
        return Fields(value, self._file, f"{self._path}{key}.")

    def positives(self, key: str, *, length: int, why: str) -> tuple[float, ...]:
        """An array of ``length`` finite numbers above zero; ``why`` is what asks for so many."""
        value = self._get(key, None)
        if not isinstance(value, list):
            raise self.error(key, f"is {_shown(value)}, which is not an array")
        if len(value) != length:
            raise self.error(key, f"has {len(value)} numbers where {why} need {length}")
        numbers: list[float] = []
        for index, item in enumerate(value):
            number = _number(item)
            if number is None or not number > 0:
                cause = f"holds {_shown(item)} at index {index}: not a finite number above zero"
                raise self.error(key, cause)
            numbers.append(number)
        return tuple(numbers)

    def _get(self, key: str, default: object) -> object:
        value = self._values.get(key, _MISSING)
        if value is _MISSING or value is None:
            if default is None:
                raise self.error(key, "is missing" if value is _MISSING else "is null")
            return default
        return value


def _number(value: object) -> float | None:
    """The number if it is one and float32, as every runtime holds it, can hold it too."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        rounded: float = struct.unpack("<f", struct.pack("<f", value))[0]
    except (OverflowError, struct.error):
        return None
    return float(value) if math.isfinite(rounded) and (rounded != 0) == (value != 0) else None


def _shown(value: object) -> str:
    """The value as JSON would spell it, cut short."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, (dict, list)):
        return "an object" if isinstance(value, dict) else "an array"
    text = f'"{value}"' if isinstance(value, str) else str(value)
    return text if len(text) <= 60 else text[:60] + "..."
