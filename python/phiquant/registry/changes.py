"""What became of recorded files: missing, of another size, or with other bytes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

from phiquant.registry import checksums
from phiquant.registry.records import Model


@dataclass(frozen=True)
class Change:
    """A file that is not as it was made.

    Attributes
    ----------
    model : str
        The result's name.
    path : str
    what : str
        ``missing``, ``size``, ``checksum``, or ``unreadable``.
    recorded, found : str
        What differs.
    """

    model: str
    path: str
    what: str
    recorded: str
    found: str

    def to_json(self) -> dict[str, str]:
        """All of it as plain data."""
        return asdict(self)

    def __str__(self) -> str:
        if self.what == "missing":
            return f"{self.path}: is missing"
        if self.what == "unreadable":
            return f"{self.path}: cannot be read: {self.found}"
        return f"{self.path}: its {self.what} was {self.recorded}, and is {self.found}"


def changes(model: Model, progress: Callable[[int], None] = lambda count: None) -> list[Change]:
    """Read a result's files, and tell which are not as they were made.

    Parameters
    ----------
    model : Model
    progress : callable
        Gets a number of bytes, whenever so many more need no more reading.
    """
    found = []
    for file in model.files:
        path = model.home / file.name
        seen = 0

        def read(count: int) -> None:
            nonlocal seen
            seen += count
            progress(count)

        try:
            size = path.stat().st_size
            if size != file.nbytes:
                sizes = f"{file.nbytes} bytes", f"{size} bytes"
                found.append(Change(model.name, str(path), "size", *sizes))
            else:
                crc = f"{checksums.of_file(path, read):08x}"
                if crc != file.crc32c:
                    words = f"crc32c {file.crc32c}", crc
                    found.append(Change(model.name, str(path), "checksum", *words))
        except FileNotFoundError:
            found.append(Change(model.name, str(path), "missing", file.crc32c, ""))
        except OSError as error:
            words = file.crc32c, error.strerror or type(error).__name__
            found.append(Change(model.name, str(path), "unreadable", *words))
        progress(max(0, file.nbytes - seen))
    return found
