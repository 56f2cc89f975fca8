"""The MLX target: from a model and a preset to a folder that mlx-lm loads."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from phiquant import _core, safetensors
from phiquant.architectures.spec import ModelSpec, TensorRole
from phiquant.checkpoint import Checkpoint
from phiquant.codecs import find_codec
from phiquant.errors import InternalError, UsageError
from phiquant.plan import PlannedFile, PlannedTarget, PlannedTensor
from phiquant.recipes.mlx import Assignment, assign
from phiquant.strict_json import read_json
from phiquant.targets.gguf_metadata import SourceFacts
from phiquant.targets.mlx_card import model_card
from phiquant.targets.mlx_config import Context, config, context_note
from phiquant.targets.names import Target, default_output
from phiquant.targets.source_files import copied_files
from phiquant.tensor import check_best

#: Bytes of tensors in a file, as mlx-lm splits.
SHARD: Final = 5 << 30

# Of each option's value: the codec of what is not quantized, and config.json's and the header's
# names of it.
_FLOATS: Final[Mapping[str, tuple[str, str, str]]] = {
    "bf16": ("bf16", "bfloat16", "BF16"),
    "fp16": ("f16", "float16", "F16"),
    "fp32": ("f32", "float32", "F32"),
}
_LONG_NAMES: Final = {codec: name for codec, name, _ in _FLOATS.values()}


@dataclass(frozen=True)
class Options:
    """What a target's options say."""

    group: int | None
    context: Context
    dtype: str


@dataclass(frozen=True)
class _Row:
    """One tensor of the container: a plane of a matrix, or a whole tensor."""

    name: str
    type: str
    shape: tuple[int, ...]
    source: TensorRole
    codec: str
    plane: int
    nbytes: int


def plan_mlx(
    checkpoint: Checkpoint,
    spec: ModelSpec,
    facts: SourceFacts,
    target: Target,
    *,
    best: bool = False,
    overrides: Iterable[tuple[str, str]] = (),
    importance: Mapping[str, NDArray[np.float32]] | None = None,
) -> PlannedTarget:
    """Plan the MLX folder of a Hugging Face checkpoint.

    Parameters
    ----------
    facts : SourceFacts
    best : bool
        Search scales and biases for the least squared error.
    overrides : iterable of (glob, name)
        On source tensor names; see :func:`phiquant.recipes.mlx.packing_of`.
    importance : mapping of str to float32 array, optional
        Weights of columns by source tensor name, for ``best``.

    Raises
    ------
    phiquant.UsageError, phiquant.UnsupportedError, phiquant.FormatError
        Options or globs that make no sense, a model that mlx-lm cannot run, a missing tokenizer.
    """
    stored = checkpoint.entries[spec.tensors[0].source].type
    options = parse_options(target, spec.dtype or _LONG_NAMES.get(stored, stored))
    assignment = assign(spec, target.preset, group=options.group, overrides=overrides)
    shards = _shards(_rows(spec, assignment, options), SHARD)
    notes = (
        *assignment.notes,
        *_unfit_note(assignment),
        *context_note(spec, options.context),
    )
    files = []
    names = _file_names(len(shards))
    for name, rows in zip(names, shards, strict=True):
        files.append(_shard_file(name, rows, best, importance or {}))
    dtype = _FLOATS[options.dtype][1]
    texts = {
        safetensors.INDEX: _index(spec, names, shards),
        "config.json": config(facts.config, spec, assignment, context=options.context, dtype=dtype),
        "README.md": model_card(facts.name, str(target), facts.card, notes),
        **copied_files(checkpoint.folder),
    }
    files += [PlannedFile(name, len(text), text, ()) for name, text in texts.items()]

    def places(path: Path) -> list[Path]:
        return [path / file.name for file in files]

    return PlannedTarget(
        target=str(target),
        name=default_output(facts.name, target),
        files=tuple(files),
        places=places,
        notes=notes,
        check=_check,
        companions=lambda path: {},
        hint=lambda path: f"mlx_lm.generate --model {shlex.quote(str(path))} --prompt 'Hello'",
        folder=True,
    )


def parse_options(target: Target, own: str) -> Options:
    """The options of an ``mlx:`` target.

    Parameters
    ----------
    own : str
        The source's dtype: ``bfloat16``, ``float16`` or ``float32``.

    Raises
    ------
    phiquant.UsageError
        An option that there is not, or a value that it cannot have.
    """
    group, context, dtype = None, "short", _own_dtype(target, own)
    for key, value in target.options:
        if key == "group" and isinstance(value, str) and value.isdigit():
            group = int(value)
        elif key == "context" and value in ("short", "long"):
            context = str(value)
        elif key == "dtype" and value in _FLOATS and target.preset not in ("bf16", "fp16"):
            dtype = str(value)
        else:
            raise UsageError(
                f"'{target}': MLX targets have no option '{key}={value}'",
                remedy="There are group=32|64|128, context=short|long and dtype=bf16|fp16|fp32.",
            )
    return Options(group, "short" if context == "short" else "long", dtype)


def _own_dtype(target: Target, own: str) -> str:
    """The type of scales, biases and norms: the preset's own, else the source's, as mlx-lm does."""
    if target.preset in ("bf16", "fp16"):
        return target.preset
    return {"float16": "fp16", "float32": "fp32"}.get(own, "bf16")


def _rows(spec: ModelSpec, assignment: Assignment, options: Options) -> list[list[_Row]]:
    """What the container holds of each source tensor."""
    codec, _, kind = _FLOATS[options.dtype]
    found = []
    for tensor in spec.tensors:
        packing = assignment.packings.get(tensor.source)
        if packing is None:
            size = find_codec(codec).bytes_of(tensor.elements // tensor.shape[-1], tensor.shape[-1])
            found.append([_Row(tensor.source, kind, tensor.shape, tensor, codec, 0, size)])
            continue
        rows, columns = tensor.shape
        planes = find_codec(packing.codec(codec)).planes(rows, columns)
        module = tensor.source.removesuffix(".weight")
        shapes = [
            (f"{module}.weight", "U32", (rows, columns * packing.bits // 32)),
            *(
                (f"{module}.{name}", kind if packing.mode == "affine" else "U8",
                 (rows, columns // packing.group))
                for name in ("scales", "biases")[: len(planes) - 1]
            ),
        ]  # fmt: skip
        found.append(
            [
                _Row(name, type_, shape, tensor, packing.codec(codec), number, plane.nbytes)
                for number, ((name, type_, shape), plane) in enumerate(
                    zip(shapes, planes, strict=True)
                )
            ]
        )
    return found


def _shards(tensors: list[list[_Row]], most: int) -> list[list[_Row]]:
    """Files of at most ``most`` bytes, unless one tensor alone is larger."""
    shards: list[list[_Row]] = []
    size = 0
    for rows in tensors:
        own = sum(row.nbytes for row in rows)
        if not shards or size + own > most:
            shards.append([])
            size = 0
        shards[-1] += rows
        size += own
    return shards


def _file_names(count: int) -> list[str]:
    if count == 1:
        return [safetensors.SINGLE]
    return [f"model-{number + 1:05d}-of-{count:05d}.safetensors" for number in range(count)]


def _shard_file(
    name: str, rows: list[_Row], best: bool, importance: Mapping[str, NDArray[np.float32]]
) -> PlannedFile:
    header = _core.write_safetensors_header(
        [(row.name, row.type, row.shape) for row in rows], {"format": "mlx"}
    )
    tensors, at = [], len(header)
    for row in rows:
        searched = best and row.codec not in ("bf16", "f16", "f32")
        if searched:
            check_best(find_codec(row.codec), tensor=row.source.source)
        tensors.append(
            PlannedTensor(
                row.name,
                row.source.source,
                row.codec,
                row.shape,
                at,
                row.nbytes,
                importance=importance.get(row.source.source) if searched else None,
                best=searched,
                plane=row.plane,
                count=row.source.elements if row.plane == 0 else 0,
            )
        )
        at += row.nbytes
    return PlannedFile(name, at, header, tuple(tensors))


def _index(spec: ModelSpec, names: list[str], shards: list[list[_Row]]) -> bytes:
    places = {row.name: name for name, rows in zip(names, shards, strict=True) for row in rows}
    size = sum(row.nbytes for rows in shards for row in rows)
    made = {
        "metadata": {"total_size": size, "total_parameters": spec.parameters},
        "weight_map": dict(sorted(places.items())),
    }
    return (json.dumps(made, indent=4) + "\n").encode()


def _unfit_note(assignment: Assignment) -> tuple[str, ...]:
    if not assignment.unfit:
        return ()
    count = len(assignment.unfit)
    return (
        f"{count} {'matrix has' if count == 1 else 'matrices have'} rows that are no multiple of "
        "the group, and stay unquantized, as in mlx-lm; a smaller group= may fit",
    )


def _check(path: Path, file: PlannedFile) -> None:
    """Reopen the staged file; hold every tensor's place against the plan."""
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
