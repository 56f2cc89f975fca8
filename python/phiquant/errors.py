"""The errors that phiquant raises on purpose: each says where, why and what to do."""

from __future__ import annotations


class PhiquantError(Exception):
    """Base of every error that phiquant raises on purpose.

    Parameters
    ----------
    cause : str
        What is wrong, with the numbers that show it.
    file, tensor : str, optional
        Where it was found.
    remedy : str, optional
        What the user can do about it.
    """

    exit_code = 1

    def __init__(
        self,
        cause: str,
        *,
        file: object = None,
        tensor: str | None = None,
        remedy: str | None = None,
    ) -> None:
        self.cause = cause
        self.file = str(file) if file else None
        self.tensor = tensor or None
        self.remedy = remedy or None
        super().__init__(self._words())

    def _words(self) -> str:
        place = [self.file] if self.file else []
        if self.tensor and f"'{self.tensor}'" not in self.cause:
            place.append(f"tensor '{self.tensor}'")
        words = ": ".join([*place, self.cause])
        if self.remedy:
            words = words.rstrip(".") + ". " + self.remedy
        # Names and values come from strangers' files: none may steer the terminal.
        return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in words)

    def to_json(self) -> dict[str, str | int | None]:
        """The error as plain data, as ``--json`` prints it."""
        return {
            "error": type(self).__name__,
            "cause": self.cause,
            "file": self.file,
            "tensor": self.tensor,
            "remedy": self.remedy,
            "exit_code": self.exit_code,
        }


class UsageError(PhiquantError):
    """Arguments that make no sense, alone or together."""

    exit_code = 2


class FormatError(PhiquantError):
    """A file that is not what it says it is: damaged, truncated or made to deceive."""

    exit_code = 3


class UnsupportedError(PhiquantError):
    """A sound input that this version of phiquant does not handle."""

    exit_code = 3


class ShapeError(PhiquantError, ValueError):
    """A shape, stride or dtype that an operation cannot take as it is."""

    exit_code = 3


class ValueRangeError(PhiquantError, ValueError):
    """Weights that cannot be held: NaN, infinity, or larger than the codec's range."""

    exit_code = 3


class IoError(PhiquantError, OSError):
    """The operating system refused to read or write."""

    exit_code = 4

    def __str__(self) -> str:  # OSError's own would show the constructor's arguments
        return self._words()


class ChangedError(IoError):
    """A source file that changed while it was read."""


class InternalError(PhiquantError):
    """A promise that phiquant itself broke. Please report it."""
