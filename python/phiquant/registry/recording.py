"""Records runs and verdicts; whatever goes wrong here is a word in the log, and no error."""

from __future__ import annotations

import hashlib
import logging
import math
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phiquant import _core
from phiquant.memory import MemoryCheckpoint
from phiquant.registry import checksums
from phiquant.registry.records import File, NewModel
from phiquant.targets.model_card import read_card
from phiquant.targets.modelfile import find_license

if TYPE_CHECKING:
    from phiquant.checkpoint import Checkpoint
    from phiquant.plan import Plan, PlannedFile, PlannedTarget
    from phiquant.report import OutputFile, Report

_log = logging.getLogger("phiquant")


def record_run(plan: Plan, outputs: tuple[Path, ...], report: Report) -> None:
    """Record what a run made. Never raises: the results stand, whether anybody knows or not."""
    try:
        from phiquant.registry.store import Registry

        registry = Registry()
        if registry.path is not None:
            registry.add(_models(plan, outputs, report))
    except Exception as error:
        _log.warning("this run was not recorded: %s", _words(error))


def record_verdict(path: str | os.PathLike[str], kind: str, facts: Mapping[str, Any]) -> None:
    """Attach a verdict to the result at a path, if it was recorded. Never raises.

    Parameters
    ----------
    path : path
    kind : str
        ``verify``, ``eval`` or ``bench``.
    facts : mapping
        Anything that JSON holds.
    """
    try:
        from phiquant.registry.store import Registry

        Registry().judge(Path(path), kind, facts)
    except Exception as error:
        _log.warning("this verdict was not recorded: %s", _words(error))


def _words(error: Exception) -> str:
    return str(error) or type(error).__name__


def _models(plan: Plan, outputs: tuple[Path, ...], report: Report) -> list[NewModel]:
    written = iter(report.files)
    source, licence, now = _source(plan.checkpoint), _licence(plan.checkpoint), time.time()
    models = []
    for number, (target, path) in enumerate(zip(plan.targets, outputs, strict=True)):
        files = [next(written) for _ in target.files]
        # A split result is named by its first file.
        result = path if target.folder else Path(files[0].path)
        weights = sum(tensor.weights for file in files for tensor in file.tensors)
        size = sum(file.nbytes for file in files)
        facts = {
            "phiquant": _core.version,
            "source": source,
            "recipe": dict(plan.recipe),
            "bits_per_weight": round(8 * size / max(1, weights), 4),
            "weights": weights,
            "codecs": _codecs(files),
            "seconds": report.seconds,
            "seconds_encoding": report.seconds_encoding,
            "seconds_syncing": report.seconds_syncing,
            "threads": report.threads,
            "arch": report.arch,
            "notes": list(target.notes),
            "hint": report.hints[number],
            "companions": [os.path.realpath(one) for one in report.companions],
            "licence": licence,
        }
        models.append(
            NewModel(
                path=Path(os.path.realpath(result)),
                folder=target.folder,
                target=target.target,
                made=now,
                facts=facts,
                files=_files(target, files),
            )
        )
    return models


def _files(target: PlannedTarget, written: list[OutputFile]) -> tuple[File, ...]:
    found = []
    for planned, file in zip(target.files, written, strict=True):
        path = Path(file.path)
        crc = checksums.of_parts(_parts(planned, file), planned.size)
        if crc is None:
            crc = checksums.of_file(path)
        modified = path.stat().st_mtime_ns
        found.append(File(path.name, file.nbytes, modified, f"{crc:08x}", file.sha256))
    return tuple(found)


def _parts(planned: PlannedFile, file: OutputFile) -> list[tuple[int, int, int]]:
    """Place, size and checksum of the header and of each tensor."""
    parts = [(0, len(planned.header), _core.crc32c(planned.header))]
    for tensor, report in zip(planned.tensors, file.tensors, strict=True):
        parts.append((tensor.offset, tensor.nbytes, int(report.crc32c, 16)))
    return parts


def _codecs(files: list[OutputFile]) -> dict[str, dict[str, float]]:
    """For each codec its matrices, bytes, and root mean square error relative to the source."""
    found: dict[str, dict[str, float]] = {}
    for file in files:
        for tensor in file.tensors:
            one = found.setdefault(tensor.codec, {"tensors": 0, "bytes": 0, "weights": 0, "rms": 0})
            one["tensors"] += tensor.weights > 0
            one["bytes"] += tensor.nbytes
            one["weights"] += tensor.weights
            one["rms"] += tensor.weights * tensor.relative_error**2
    for one in found.values():
        one["rms"] = math.sqrt(one["rms"] / max(1, one["weights"]))
    return found


def _source(checkpoint: Checkpoint) -> dict[str, Any]:
    """Where the weights come from: the path, and repository and commit where it is the hub's."""
    if not checkpoint.path.exists():  # tensors in memory
        return {"path": str(checkpoint.path), "name": checkpoint.name, "format": checkpoint.format}
    if isinstance(checkpoint, MemoryCheckpoint):
        memory = {"path": str(checkpoint.path), "name": checkpoint.name, "format": "memory"}
        return {**memory, "files": []}
    path = Path(os.path.abspath(checkpoint.path))  # noqa: PTH100 - the hub's cache is full of links
    facts: dict[str, Any] = {
        "path": str(path),
        "name": checkpoint.name,
        "format": checkpoint.format,
        "files": [{"name": file.path.name, "bytes": file.size} for file in checkpoint.files],
    }
    for folder in (path, *path.parents):
        repository = folder.parent.parent.name
        if folder.parent.name == "snapshots" and repository.startswith("models--"):
            facts["repository"] = repository.removeprefix("models--").replace("--", "/", 1)
            facts["revision"] = folder.name
            break
    return facts


def _licence(checkpoint: Checkpoint) -> dict[str, str]:
    """What the source's card or metadata calls its licence, and a digest of the text beside it."""
    card = read_card(checkpoint.folder)
    facts = {}
    for key in ("license", "license_name", "license_link"):
        value = card.get(key, checkpoint.metadata.get(f"general.{key.replace('_', '.')}"))
        if isinstance(value, str):
            facts[key] = value
    base = card.get("base_model")
    if isinstance(base, str):
        facts["base_model"] = base
    text = find_license(checkpoint.folder)
    if text is not None:
        with suppress(UnicodeEncodeError):
            facts["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    return facts
