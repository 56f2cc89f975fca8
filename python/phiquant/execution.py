"""Hands a plan to the executor, watches it, and makes the report."""

from __future__ import annotations

import hashlib
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

import numpy as np

from phiquant import _core
from phiquant.errors import PhiquantError
from phiquant.preflight import paths_of, preflight
from phiquant.report import OutputFile, Report, TensorReport

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from phiquant.checkpoint import Checkpoint, TensorEntry
    from phiquant.plan import Plan, PlannedFile, PlannedTensor

# Bars appear for what takes longer than this many seconds.
_BAR_DELAY = 0.5


def execute(
    plan: Plan,
    outputs: tuple[Path, ...],
    *,
    progress: bool | Callable[[int, int], None],
    overwrite: bool,
    threads: int,
    sha256: bool,
    companions: bool,
) -> Report:
    """Run a plan into ``outputs``, one path a target; see :meth:`phiquant.Plan.run`."""
    start = time.perf_counter()
    files = [file for target in plan.targets for file in target.files]
    checks = [target.check for target in plan.targets for _ in target.files]
    paths = paths_of(plan, outputs)
    extras = preflight(plan, outputs, overwrite=overwrite, companions=companions)
    sources, tensors, vectors, order = _core_tensors(plan)
    hashes: list[str | None] = [None] * len(files)

    def inspect(staged: list[str]) -> None:
        for number, path in enumerate(staged[: len(files)]):
            try:
                checks[number](Path(path), files[number])
            except PhiquantError as error:
                raise type(error)(error.cause, file=paths[number], tensor=error.tensor) from None
            if sha256:
                hashes[number] = _sha256(Path(path))

    with _Bar(progress, plan.source_bytes) as watch, _named_memory(plan):
        result = _core.execute(
            sources,
            tensors,
            [
                *_core_files(plan, paths),
                # Companions are part of the run: where one cannot be written, nothing is.
                *((os.fsencode(path), len(text), [(0, text)], -1) for path, text in extras.items()),
            ],
            _core_folders(plan, outputs),
            vectors,
            threads,
            overwrite,
            watch,
            inspect,
        )
    measured = _by_output(result["tensors"], order)
    return Report(
        source=str(plan.checkpoint.path),
        files=tuple(
            _output(plan, number, path, file, hashes[number], measured)
            for number, (path, file) in enumerate(zip(paths, files, strict=True))
        ),
        companions=tuple(map(str, extras)),
        source_bytes=plan.source_bytes,
        seconds=time.perf_counter() - start,
        seconds_encoding=result["seconds_encoding"],
        seconds_syncing=result["seconds_syncing"],
        threads=threads,
        arch=_core.active_arch(),
        notes=tuple(note for target in plan.targets for note in target.notes),
        hints=tuple(target.hint(path) for target, path in zip(plan.targets, outputs, strict=True)),
    )


@contextmanager
def _named_memory(plan: Plan) -> Iterator[None]:
    """Tell the model's name where the executor, which sees only memory, has none."""
    try:
        yield
    except PhiquantError as error:
        if error.file != "(memory)":
            raise
        place = plan.checkpoint.path
        raise type(error)(
            error.cause, file=place, tensor=error.tensor, remedy=error.remedy
        ) from None


def _core_files(plan: Plan, paths: list[Path]) -> list[Any]:
    """Each file's path (in a folder: its name there), size, known bytes and folder."""
    rows = []
    folder = -1
    places = iter(paths)
    for target in plan.targets:
        folder += target.folder
        for file in target.files:
            path = next(places)
            made = [(t.offset, t.literal) for t in file.tensors if t.source is None]
            name = os.fsencode(path.name if target.folder else path)
            rows.append(
                (name, file.size, [(0, file.header), *made], folder if target.folder else -1)
            )
    return rows


def _core_folders(plan: Plan, outputs: tuple[Path, ...]) -> list[Any]:
    return [
        (os.fsencode(path), [os.fsencode(file.name) for file in target.files])
        for target, path in zip(plan.targets, outputs, strict=True)
        if target.folder
    ]


#: What tells one source tensor's encodings apart: target, rows, codec, which of several alike.
_Encoding = tuple[int, Union[tuple[int, int], None], str, int]  # noqa: UP007


def _core_tensors(
    plan: Plan,
) -> tuple[list[Any], list[Any], list[Any], list[list[list[tuple[int, str]]]]]:
    """Sources, tensors, vectors, outputs as the executor takes them, each source once.

    The last are (file, tensor) of every plane of every output of every tensor.
    """
    entries = plan.checkpoint.entries
    encodings: dict[str, dict[_Encoding, list[tuple[int, PlannedTensor]]]] = {}
    number = 0
    for index, target in enumerate(plan.targets):
        for file in target.files:
            for tensor in file.tensors:
                if tensor.source is not None:
                    wanted = encodings.setdefault(tensor.source, {})
                    key: _Encoding = (index, tensor.rows, tensor.codec, 0)
                    while any(t.plane == tensor.plane for _, t in wanted.get(key, ())):
                        key = (*key[:3], key[3] + 1)
                    wanted.setdefault(key, []).append((number, tensor))
            number += 1
    tensors, vectors, order = [], [], []

    def index_of(vector: NDArray[np.float32] | None) -> int:
        if vector is None:
            return -1
        vectors.append(vector)
        return len(vectors) - 1

    for name, wanted in encodings.items():
        entry = entries[name]
        rows = math.prod(entry.shape[:-1])
        outputs = []
        for planes in wanted.values():
            planes.sort(key=lambda member: member[1].plane)
            tensor = planes[0][1]
            begin, end = tensor.rows or (0, rows)
            outputs.append(
                (
                    tensor.codec,
                    [(file_number, plane.offset) for file_number, plane in planes],
                    begin,
                    end - begin,
                    index_of(tensor.importance),
                    tensor.best,
                    index_of(_column_scale(plan.checkpoint, entry, tensor)),
                    index_of(tensor.row_scale),
                    tensor.scaled_in or "",
                    tensor.via or "",
                )
            )
        parts = [_core_part(part) for part in entry.parts or (entry,)]
        tensors.append((name, entry.shape[-1], parts, outputs))
        order.append([[(n, t.name) for n, t in planes] for planes in wanted.values()])
    sources = [source.for_executor() for source in plan.checkpoint.files]
    return sources, tensors, vectors, order


def _column_scale(
    checkpoint: Checkpoint, entry: TensorEntry, tensor: PlannedTensor
) -> NDArray[np.float32] | None:
    """What columns are multiplied by: the plan's factors, after those that the source is due."""
    if entry.column_scale is None:
        return tensor.column_scale
    place = entry.column_scale
    raw = checkpoint.files[place.file].read(place.offset, place.nbytes)
    own = np.frombuffer(raw, np.float32)
    return own if tensor.column_scale is None else own * tensor.column_scale


def _core_part(entry: TensorEntry) -> tuple[str, int, list[tuple[int, int]]]:
    """Rows that stand together: their codec, how many, and where each plane begins."""
    planes = [(plane.file, plane.offset) for plane in entry.planes]
    return entry.type, math.prod(entry.shape[:-1]), planes or [(entry.file, entry.offset)]


def _by_output(
    rows: list[list[tuple[list[tuple[int, int]], float, float]]],
    order: list[list[list[tuple[int, str]]]],
) -> dict[tuple[int, str], tuple[str, float]]:
    """Checksum of every (file, tensor), and the relative error of its whole encoding."""
    found = {}
    for outputs, encodings in zip(rows, order, strict=True):
        for (planes, error, signal), keys in zip(outputs, encodings, strict=True):
            relative = math.sqrt(error / signal) if signal > 0 else 0.0
            for (_, crc), key in zip(planes, keys, strict=True):
                found[key] = (f"{crc:08x}", relative)
    return found


def _output(
    plan: Plan,
    number: int,
    path: Path,
    file: PlannedFile,
    sha256: str | None,
    measured: dict[tuple[int, str], tuple[str, float]],
) -> OutputFile:
    owner = next(target for target in plan.targets if any(f is file for f in target.files))
    tensors = []
    for t in file.tensors:
        crc, error = measured.get((number, t.name), ("", 0.0))
        crc = crc or f"{_core.crc32c(t.literal):08x}"
        tensors.append(
            TensorReport(t.name, t.source, t.codec, t.shape, t.nbytes, crc, error, t.weights)
        )
    weights = sum(t.weights for t in file.tensors)
    bits = 8 * file.size / weights if weights else 0.0
    result = path.parent if owner.folder else path
    return OutputFile(owner.target, str(result), str(path), file.size, bits, sha256, tuple(tensors))


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(1 << 20))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
    return digest.hexdigest()


class _Bar:
    """A tqdm bar (terminal or notebook), a function, or nothing, as the executor's watcher."""

    def __init__(self, progress: bool | Callable[[int, int], None], total: int) -> None:
        self._progress = progress
        self._total = total
        self._bar: Any = None
        self._done = 0

    def __enter__(self) -> Callable[[int], None] | None:
        if not self._progress:
            return None
        if callable(self._progress):
            report = self._progress
            return lambda done: report(done, self._total)
        from tqdm.auto import tqdm

        # In a notebook tqdm draws a widget where ipywidgets is installed, and text elsewhere.
        self._bar = tqdm(
            total=self._total,
            unit="B",
            unit_scale=True,
            desc="converting",
            delay=_BAR_DELAY,
            leave=False,
            file=sys.stderr,
            ncols=_bar_columns(),
        )
        return self._advance

    def _advance(self, done: int) -> None:
        self._bar.update(done - self._done)
        self._done = done
        if done == self._total:
            self._bar.set_description("syncing to disk")

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()


def _bar_columns() -> int | None:
    """A little less than the terminal's width: a ``^C`` after the bar must not begin a new line."""
    try:
        if not sys.stderr.isatty():  # a notebook's stderr has a number, but is no terminal
            return None
        return max(20, os.get_terminal_size(sys.stderr.fileno()).columns - 3)
    except (AttributeError, OSError, ValueError):
        return None
