"""Safetensors files of a folder: shards of planned tensors, their index, and their check."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from phiquant import _core, safetensors
from phiquant.errors import InternalError
from phiquant.plan import PlannedFile, PlannedTensor
from phiquant.strict_json import read_json

#: Bytes of tensors in a file, as publishers split.
SHARD: Final = 5 << 30

# Bytes of an element.
_BYTES: Final = dict(I64=8, F32=4, I32=4, U32=4, BF16=2, F16=2, I8=1, U8=1, F8_E4M3=1)


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of the container; its place in a file is not known yet.

    Attributes
    ----------
    type : str
        Its dtype as safetensors spells it.
    planned : PlannedTensor
        With an offset that means nothing.
    """

    type: str
    planned: PlannedTensor


def shards(tensors: list[list[StoredTensor]], most: int = SHARD) -> list[list[StoredTensor]]:
    """Files of at most ``most`` bytes; tensors of a group stay together."""
    found: list[list[StoredTensor]] = []
    size = 0
    for group in tensors:
        own = sum(item.planned.nbytes for item in group)
        if not found or size + own > most:
            found.append([])
            size = 0
        found[-1] += group
        size += own
    return found


def planned_files(
    parts: list[list[StoredTensor]], metadata: Mapping[str, str]
) -> tuple[list[PlannedFile], bytes | None]:
    """The files and their index; a single file has none."""
    # The format has no gaps: wide elements first, and all are aligned.
    ordered = [sorted(part, key=lambda item: -_BYTES[item.type]) for part in parts]
    files = files_in_order(ordered, metadata)
    return files, index(files) if len(files) > 1 else None


def files_in_order(
    parts: list[list[StoredTensor]], metadata: Mapping[str, str]
) -> list[PlannedFile]:
    """The files, with their tensors as they are listed."""
    count = len(parts)
    names = [f"model-{number + 1:05d}-of-{count:05d}.safetensors" for number in range(count)]
    if count == 1:
        names = [safetensors.SINGLE]
    return [_file(name, part, metadata) for name, part in zip(names, parts, strict=True)]


def _file(name: str, part: list[StoredTensor], metadata: Mapping[str, str]) -> PlannedFile:
    header = _core.write_safetensors_header(
        [(item.planned.name, item.type, item.planned.shape) for item in part], dict(metadata)
    )
    tensors, at = [], len(header)
    for item in part:
        tensors.append(replace(item.planned, offset=at))
        at += item.planned.nbytes
    return PlannedFile(name, at, header, tuple(tensors))


def index(
    files: list[PlannedFile], facts: Mapping[str, int] | None = None, *, indent: int = 2
) -> bytes:
    """The text of the index, which says where each tensor stands; ``facts`` go to its metadata."""
    places = {tensor.name: file.name for file in files for tensor in file.tensors}
    size = sum(tensor.nbytes for file in files for tensor in file.tensors)
    made = {
        "metadata": {"total_size": size, **(facts or {})},
        "weight_map": dict(sorted(places.items())),
    }
    return (json.dumps(made, indent=indent) + "\n").encode()


def check(path: Path, file: PlannedFile) -> None:
    """Reopen a staged file of the folder; hold every tensor's place against the plan.

    Raises
    ------
    phiquant.InternalError, phiquant.FormatError
        It is not as planned.
    """
    if path.stat().st_size != file.size:
        raise InternalError("the written file is not as planned")
    if path.suffix == ".json":
        read_json(path)
    if path.suffix != ".safetensors":
        return
    written = safetensors.open_file(path)
    if len(written.entries) != len(file.tensors):
        raise InternalError("the written file is not as planned")
    for tensor, entry in zip(file.tensors, written.entries.values(), strict=True):
        planned = (tensor.name, tensor.shape, tensor.offset, tensor.nbytes)
        if planned != (entry.name, entry.shape, entry.offset, entry.nbytes):
            raise InternalError("the written header is not as planned", tensor=tensor.name)
