"""The report: what a run wrote, how long it took, and how far each tensor is from its source."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from phiquant.texts import bytes_text, table


@dataclass(frozen=True)
class TensorReport:
    """One encoding of one tensor.

    Attributes
    ----------
    crc32c : str
        Checksum of its bytes (CRC-32C, eight hex digits), made while they streamed.
    relative_error : float
        Root mean square of the decoded weights' difference from the source's, relative to the
        source's own root mean square; 0 where bytes were moved as they were.
    weights : int
        Number of the model's weights that it holds: none in planes of scales.
    """

    name: str
    source: str | None
    codec: str
    shape: tuple[int, ...]
    nbytes: int
    crc32c: str
    relative_error: float
    weights: int


@dataclass(frozen=True)
class OutputFile:
    """One file that was written.

    Attributes
    ----------
    result : str
        The folder that it is a part of; the file's own path where the result is no folder.
    """

    target: str
    result: str
    path: str
    nbytes: int
    bits_per_weight: float
    sha256: str | None
    tensors: tuple[TensorReport, ...]


@dataclass(frozen=True, repr=False)
class Report:
    """What a run did.

    Attributes
    ----------
    source : str
    files : tuple of OutputFile
    companions : tuple of str
        Paths of small files written beside the results.
    source_bytes : int
        Bytes read from the source.
    seconds : float
        From the first tile to the results' names; ``seconds_encoding`` and ``seconds_syncing`` are
        its two large parts.
    threads : int
    arch : str
        The instruction set whose kernels ran.
    notes : tuple of str
    hints : tuple of str
        A command for each target that runs the result.
    """

    source: str
    files: tuple[OutputFile, ...]
    companions: tuple[str, ...]
    source_bytes: int
    seconds: float
    seconds_encoding: float
    seconds_syncing: float
    threads: int
    arch: str
    notes: tuple[str, ...]
    hints: tuple[str, ...]

    @property
    def path(self) -> Path:
        """The first result, a file or a folder: the only one, where one target was asked for."""
        return Path(self.files[0].result)

    @property
    def results(self) -> tuple[Path, ...]:
        """Files and folders that were written, beside companions."""
        return tuple(Path(result) for result in dict.fromkeys(f.result for f in self.files))

    @property
    def is_lossless(self) -> bool:
        """Whether every weight that was written is the very number that the source holds.

        The executor has decoded and compared all of them.
        """
        return not any(t.relative_error for file in self.files for t in file.tensors)

    @property
    def nbytes(self) -> int:
        """Bytes written."""
        return sum(file.nbytes for file in self.files)

    def to_json(self) -> dict[str, Any]:
        """The report as plain data."""
        return {**asdict(self), "lossless": self.is_lossless}

    def to_html(self, *, samples: int = 6) -> str:
        """The report as one self-contained HTML page, without scripts or requests.

        Sizes, times, the error of each tensor by layer and module, where the bytes go, and weights
        against the levels that they were rounded to. For these some rows are read again from the
        source and the results, which takes seconds; where they have moved, the page says so.

        Parameters
        ----------
        samples : int
            Matrices of each result to draw weights of; 0 reads no file.
        """
        from phiquant.pages.report_page import report_page

        return report_page(self, samples)

    def _repr_html_(self) -> str:
        from phiquant.pages.report_page import report_display

        return report_display(self)

    def __str__(self) -> str:
        lines = []
        for result in dict.fromkeys(file.result for file in self.files):
            files = [file for file in self.files if file.result == result]
            size = sum(file.nbytes for file in files)
            codecs: dict[str, list[TensorReport]] = {}
            for file in files:
                for tensor in file.tensors:
                    codecs.setdefault(tensor.codec, []).append(tensor)
            weights = sum(t.weights for members in codecs.values() for t in members)
            rows = [
                (
                    codec,
                    str(sum(t.weights > 0 for t in members)),
                    bytes_text(sum(t.nbytes for t in members)),
                    f"{mean_error(members):.3%}",
                )
                for codec, members in codecs.items()
            ]
            parts = f" in {len(files)} files" if len(files) > 1 else ""
            lines.append(
                f"{result}: {bytes_text(size)}{parts}, "
                f"{8 * size / max(1, weights):.2f} bits per weight"
            )
            lines.append(table(("codec", "tensors", "size", "rms error"), rows, "lrrr"))
            if not any(tensor.relative_error for file in files for tensor in file.tensors):
                lines.append("lossless: every weight is the source's")
        lines.append(
            f"{bytes_text(self.source_bytes)} read in {self.seconds:.2f} s "
            f"({self.threads} threads, {self.arch})"
        )
        return "\n".join(lines)

    __repr__ = __str__


def mean_error(tensors: Sequence[TensorReport]) -> float:
    """Root mean square over tensors, weighted by their weights."""
    total = sum(t.weights * t.relative_error**2 for t in tensors)
    return math.sqrt(total / max(1, sum(t.weights for t in tensors)))
