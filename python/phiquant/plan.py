"""The plan: every output file and tensor, codec, place and size, before a byte is written."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from phiquant import _core
from phiquant.checkpoint import Checkpoint, TensorEntry
from phiquant.codecs import find_codec
from phiquant.errors import UsageError
from phiquant.report import Report
from phiquant.tensor import check_threads
from phiquant.texts import bytes_text, table

#: What one process needs beside the workers' tiles: the interpreter, NumPy, headers, a vocabulary.
_BASE_MEMORY = 96 << 20


@dataclass(frozen=True)
class PlannedTensor:
    """One tensor of an output file.

    Attributes
    ----------
    name : str
        In the output.
    source : str or None
        In the checkpoint; None for what is made from the config, whose bytes are ``literal``.
    codec : str
    shape : tuple of int
    offset, nbytes : int
        Its place in the file.
    importance : float32 array of the row's length, or None
        Weights of the columns' squared errors.
    best : bool
        Whether its scales are searched for (``quality="best"``).
    plane : int
        Which plane of the codec it is: codes, scales, zero points or biases. All planes of one
        encoding have the same source, rows and codec.
    rows : (begin, end) or None
        The source's rows that are taken; None for all.
    count : int or None
        Number of weights, where that is not the product of ``shape`` (packed codes).
    column_scale, row_scale : float32 array or None
        What each column and each row (of ``rows``) is multiplied by before it is encoded.
    scaled_in : str or None
        The float type that scaled weights are rounded to (``bf16``); None leaves them in float32.
    via : str or None
        The codec whose codes, scales and zero points are packed: those of a source that is in that
        codec, moved without rounding anything anew; else those that its rule finds. The executor
        compares every weight, and refuses where one would differ.
    """

    name: str
    source: str | None
    codec: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int
    literal: bytes = field(default=b"", repr=False)
    importance: NDArray[np.float32] | None = field(default=None, repr=False, compare=False)
    best: bool = False
    plane: int = 0
    rows: tuple[int, int] | None = None
    count: int | None = None
    column_scale: NDArray[np.float32] | None = field(default=None, repr=False, compare=False)
    row_scale: NDArray[np.float32] | None = field(default=None, repr=False, compare=False)
    scaled_in: str | None = None
    via: str | None = None

    @property
    def weights(self) -> int:
        """Number of the model's weights that it holds: none in planes of scales."""
        if self.count is not None:
            return self.count
        return math.prod(self.shape) if self.plane == 0 else 0


@dataclass(frozen=True)
class PlannedFile:
    """One output file; what no tensor or header covers is zero."""

    name: str
    size: int
    header: bytes = field(repr=False)
    tensors: tuple[PlannedTensor, ...]


@dataclass(frozen=True)
class PlannedTarget:
    """One target's files.

    Attributes
    ----------
    target : str
        As ``gguf:q4_k_m``.
    name : str
        The output's name where the user gives none.
    files : tuple of PlannedFile
    places : callable
        Where each file stands, from the output's path.
    notes : tuple of str
        What the user should know, such as codecs that gave way to others.
    check : callable
        Reopens a staged file with the format's own reader; raises when it is not as planned.
    companions : callable
        Makes small text files beside the result, by name, once the result's path is known.
    hint : callable
        A command that runs the result.
    folder : bool
        Whether the output is a folder, which holds nothing but the files.
    """

    target: str
    name: str
    files: tuple[PlannedFile, ...]
    places: Callable[[Path], list[Path]] = field(repr=False)
    notes: tuple[str, ...]
    check: Callable[[Path, PlannedFile], None] = field(repr=False)
    companions: Callable[[Path], dict[str, str]] = field(repr=False)
    hint: Callable[[Path], str] = field(repr=False)
    folder: bool = False

    @property
    def nbytes(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    @property
    def weights(self) -> int:
        """Number of weights."""
        return sum(t.weights for file in self.files for t in file.tensors)


def _by_columns(source: TensorEntry, codec: str) -> tuple[str, ...]:
    """Codecs by which it is read or written by columns, in larger tiles; none where it is not."""
    parts = [part.type for part in source.parts or (source,) if part.planes]
    return tuple(name for name in (codec, *parts) if find_codec(name).transposed)


@dataclass(frozen=True, repr=False)
class Plan:
    """What a conversion will read and write, exactly; ``run()`` carries it out.

    Attributes
    ----------
    checkpoint : Checkpoint
    targets : tuple of PlannedTarget
    recipe : mapping
        What was asked for beside the targets, for the records.
    """

    checkpoint: Checkpoint
    targets: tuple[PlannedTarget, ...]
    recipe: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def nbytes(self) -> int:
        """Bytes that will be written."""
        return sum(target.nbytes for target in self.targets)

    @property
    def source_bytes(self) -> int:
        """Bytes that will be read: each source tensor once, whatever the number of targets, and
        once more where it is written by columns."""
        entries = self.checkpoint.entries
        used = {
            (t.source, bool(_by_columns(entries[t.source], t.codec)))
            for target in self.targets
            for file in target.files
            for t in file.tensors
            if t.source is not None
        }
        return sum(entries[name].nbytes for name, _ in used)

    def memory(self, threads: int | None = None) -> int:
        """Peak resident bytes to expect: tiles a worker, and what the interpreter needs."""
        headers = sum(len(file.header) for target in self.targets for file in target.files)
        entries = self.checkpoint.entries
        tiles = {
            (
                entries[t.source].shape[-1],
                find_codec(t.codec).has_planes
                or bool(entries[t.source].planes)
                or t.via is not None,
                _by_columns(entries[t.source], t.codec),
            )
            for target in self.targets
            for file in target.files
            for t in file.tensors
            if t.source is not None
        }
        scratch = max((_core.scratch_bytes(*tile) for tile in tiles), default=0)
        # Rope tables of ONNX folders; the writer holds a copy.
        made = sum(
            len(t.literal) for target in self.targets for file in target.files for t in file.tensors
        )
        return _BASE_MEMORY + check_threads(threads) * scratch + 8 * headers + 2 * made

    def outputs(self, out: str | os.PathLike[str] | None = None) -> tuple[Path, ...]:
        """Where each target's result will stand, for an ``out`` as :meth:`run` takes it.

        Raises
        ------
        phiquant.UsageError
            Two targets would get the same name.
        """
        names = [target.name for target in self.targets]
        if len(set(names)) != len(names):
            raise UsageError("two of the targets are the same")
        if out is None:
            return tuple(Path(name) for name in names)
        path = Path(out)
        # Not Path.is_dir, which raises for a name that is too long. Where the output is a folder
        # itself, an existing one is what it shall replace.
        is_folder = os.path.isdir(path) and not self.targets[0].folder  # noqa: PTH112
        if os.fspath(out).endswith(("/", os.sep)) or len(names) > 1 or is_folder:
            return tuple(path / name for name in names)
        return (path,)

    def paths(self, out: str | os.PathLike[str] | None = None) -> tuple[Path, ...]:
        """Where every file will stand, for an ``out`` as :meth:`run` takes it."""
        outputs = zip(self.targets, self.outputs(out), strict=True)
        return tuple(place for target, path in outputs for place in target.places(path))

    def run(
        self,
        out: str | os.PathLike[str] | None = None,
        *,
        progress: bool | Callable[[int, int], None] = False,
        overwrite: bool = False,
        threads: int | None = None,
        sha256: bool = False,
        companions: bool = False,
    ) -> Report:
        """Carry the plan out.

        Parameters
        ----------
        out : str or path, optional
            The result's file; a folder takes the default name in it. With several targets always a
            folder. Without it, the default name in the current folder.
        progress : bool or callable
            True shows a bar (terminal or notebook); a callable gets (bytes done, bytes in all).
        overwrite : bool
            Replace existing results. They stay as they are until the new ones are whole.
        threads : int, optional
            Workers; one a processor by default. The bytes written do not depend on it.
        sha256 : bool
            Hash the whole files, which reads them once more.
        companions : bool
            Write the small files that help to run the result (Ollama's Modelfile) beside it.

        Returns
        -------
        Report

        Raises
        ------
        phiquant.PhiquantError
            Whatever goes wrong, the targets are then as they were before.
        KeyboardInterrupt
            Ctrl-C, within a second; the targets are as they were before.
        """
        from phiquant.execution import execute
        from phiquant.registry.recording import record_run

        outputs = self.outputs(out)
        report = execute(
            self,
            outputs,
            progress=progress,
            overwrite=overwrite,
            threads=check_threads(threads),
            sha256=sha256,
            companions=companions,
        )
        record_run(self, outputs, report)
        return report

    def to_json(self) -> dict[str, Any]:
        """The plan as plain data."""
        return {
            "source": str(self.checkpoint.path),
            "source_bytes": self.source_bytes,
            "bytes": self.nbytes,
            "memory": self.memory(),
            "targets": [
                {
                    "target": target.target,
                    "name": target.name,
                    "bytes": target.nbytes,
                    "bits_per_weight": round(8 * target.nbytes / max(1, target.weights), 4),
                    "notes": list(target.notes),
                    "files": [
                        {
                            "name": file.name,
                            "bytes": file.size,
                            "tensors": [
                                {
                                    "name": t.name,
                                    "source": t.source,
                                    "codec": t.codec,
                                    "shape": list(t.shape),
                                    "offset": t.offset,
                                    "bytes": t.nbytes,
                                }
                                for t in file.tensors
                            ],
                        }
                        for file in target.files
                    ],
                }
                for target in self.targets
            ],
        }

    def _rows(self, target: PlannedTarget) -> list[tuple[str, ...]]:
        """Tensors that differ only in their layer make one row."""
        groups: dict[tuple[str, str, tuple[int, ...]], list[PlannedTensor]] = {}
        for file in target.files:
            for tensor in file.tensors:
                pattern = re.sub(r"(?<=\.)\d+(?=\.)", "*", tensor.name)
                groups.setdefault((pattern, tensor.codec, tensor.shape), []).append(tensor)
        return [
            (
                pattern,
                " x ".join(map(str, shape)),
                str(len(members)),
                codec,
                bytes_text(sum(t.nbytes for t in members)),
            )
            for (pattern, codec, shape), members in groups.items()
        ]

    def __str__(self) -> str:
        lines = [f"{self.checkpoint.path}: {bytes_text(self.source_bytes)} to read"]
        for target in self.targets:
            bits = 8 * target.nbytes / max(1, target.weights)
            lines.append("")
            lines.append(
                f"{target.target} -> {target.name}: {bytes_text(target.nbytes)} "
                f"({target.nbytes} bytes), {bits:.2f} bits per weight"
            )
            lines.append(
                table(("tensor", "shape", "count", "codec", "size"), self._rows(target), "lrrlr")
            )
            lines.extend(f"note: {note}" for note in target.notes)
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        from phiquant.pages import markup
        from phiquant.pages.page import display

        def part(target: PlannedTarget) -> markup.Html:
            bits = 8 * target.nbytes / max(1, target.weights)
            return markup.join(
                markup.tag(
                    "p",
                    markup.tag("b", target.target),
                    f" → {target.name}: {bytes_text(target.nbytes)} ({target.nbytes} bytes), "
                    f"{bits:.2f} bits per weight",
                ),
                markup.table(
                    ("tensor", "shape", "count", "codec", "size"), self._rows(target), "lrrlr"
                ),
                (markup.tag("p", f"note: {note}", class_="pq-note") for note in target.notes),
            )

        return display(
            markup.tag("p", f"{self.checkpoint.path}: {bytes_text(self.source_bytes)} to read"),
            *(part(target) for target in self.targets),
        )
