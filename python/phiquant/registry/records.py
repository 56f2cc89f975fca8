"""What the registry knows of a result: plain data, read from its rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class File:
    """One file of a result, as it was when it was made.

    Attributes
    ----------
    name : str
        Within the result's folder, or beside the result where that is no folder.
    nbytes : int
    modified_ns : int
        Time of its last change; nanoseconds since 1970.
    crc32c : str
        CRC-32C of the whole file (eight hex digits), from the checksums that were made while its
        tensors streamed.
    sha256 : str or None
        Where it was asked for (``--sha256``).
    """

    name: str
    nbytes: int
    modified_ns: int
    crc32c: str
    sha256: str | None


@dataclass(frozen=True)
class Verdict:
    """What ``verify``, ``eval`` or ``bench`` found.

    Attributes
    ----------
    kind : str
        Name of the command.
    made : float
        Seconds since 1970.
    checksum : str or None
        Of the result that was looked at; None where its files had changed since they were made.
    facts : mapping
        What the command prints with ``--json``, of this result.
    """

    kind: str
    made: float
    checksum: str | None
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class NewModel:
    """A result to record.

    Attributes
    ----------
    path : Path
        Absolute.
    folder : bool
        Whether it is a folder of files.
    target : str
        As ``gguf:q4_k_m``.
    made : float
        Seconds since 1970.
    facts : mapping
        Source, recipe, codecs, times, notes, licence: anything that JSON holds.
    files : tuple of File
    """

    path: Path
    folder: bool
    target: str
    made: float
    facts: Mapping[str, Any]
    files: tuple[File, ...]

    @property
    def name(self) -> str:
        """The path's last part."""
        return self.path.name

    @property
    def home(self) -> Path:
        """The folder that the files' names start from."""
        return self.path if self.folder else self.path.parent

    @property
    def source_folder(self) -> Path | None:
        """Where the source's small files stand; None where it was in memory, or is no more."""
        source = Path(str(self.facts.get("source", {}).get("path", "")))
        if not source.is_absolute() or not source.exists():
            return None
        return source if source.is_dir() else source.parent

    @property
    def is_there(self) -> bool:
        """Whether all files exist; not whether they are as they were."""
        return all((self.home / file.name).exists() for file in self.files)

    @property
    def nbytes(self) -> int:
        """Bytes of all files."""
        return sum(file.nbytes for file in self.files)

    @property
    def checksum(self) -> str:
        """The checksum of the only file, or all of them in order."""
        return ",".join(file.crc32c for file in self.files)


@dataclass(frozen=True)
class Model(NewModel):
    """A result as it is recorded.

    Attributes
    ----------
    id : int
        Never used twice.
    replaced : bool
        Whether another result took its path since.
    verdicts : tuple of Verdict
        The oldest first.
    """

    id: int
    replaced: bool
    verdicts: tuple[Verdict, ...]

    def to_json(self) -> dict[str, Any]:
        """All of it as plain data."""
        facts: dict[str, Any] = asdict(self) | {
            "path": str(self.path),
            "name": self.name,
            "bytes": self.nbytes,
            "there": self.is_there,
        }
        order = ("id", "name", "target", "path", "folder", "made", "replaced", "there", "bytes")
        own: dict[str, Any] = facts.pop("facts")
        return {key: facts.pop(key) for key in order} | own | facts
