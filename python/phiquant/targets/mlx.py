"""The MLX target: from a model and a preset to a folder that mlx-lm loads."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from phiquant import safetensors
from phiquant.architectures.spec import ModelSpec
from phiquant.checkpoint import Checkpoint
from phiquant.codecs import find_codec
from phiquant.errors import UsageError
from phiquant.plan import PlannedTarget, PlannedTensor
from phiquant.recipes.mlx import Assignment, assign
from phiquant.targets.folder import folder_target
from phiquant.targets.gguf_metadata import SourceFacts
from phiquant.targets.mlx_card import model_card
from phiquant.targets.mlx_config import Context, config, context_note
from phiquant.targets.names import Target
from phiquant.targets.safetensors_files import (
    StoredTensor,
    check,
    files_in_order,
    index,
    shards,
)
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
    own = checkpoint.entries[spec.tensors[0].source].type
    options = parse_options(target, spec.dtype or _LONG_NAMES.get(own, own))
    assignment = assign(spec, target.preset, group=options.group, overrides=overrides)
    stored = _stored(spec, assignment, options, best, importance or {})
    files = files_in_order(shards(stored, SHARD), {"format": "mlx"})
    notes = (
        *assignment.notes,
        *_unfit_note(assignment),
        *context_note(spec, options.context),
    )
    dtype = _FLOATS[options.dtype][1]
    texts = {
        safetensors.INDEX: index(files, {"total_parameters": spec.parameters}, indent=4),
        "config.json": config(facts.config, spec, assignment, context=options.context, dtype=dtype),
        "README.md": model_card(facts.name, str(target), facts.card, notes),
        **copied_files(checkpoint.folder),
    }
    return folder_target(
        target,
        facts.name,
        files,
        texts,
        notes=notes,
        check=check,
        hint=lambda path: f"mlx_lm.generate --model {shlex.quote(str(path))} --prompt 'Hello'",
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


def _stored(
    spec: ModelSpec,
    assignment: Assignment,
    options: Options,
    best: bool,
    importance: Mapping[str, NDArray[np.float32]],
) -> list[list[StoredTensor]]:
    """What the container holds of each source tensor."""
    plain, _, kind = _FLOATS[options.dtype]
    found = []
    for tensor in spec.tensors:
        name, packing = tensor.source, assignment.packings.get(tensor.source)
        if packing is None:
            size = find_codec(plain).bytes_of(tensor.elements // tensor.shape[-1], tensor.shape[-1])
            whole = PlannedTensor(name, name, plain, tensor.shape, 0, size)
            found.append([StoredTensor(kind, whole)])
            continue
        rows, columns = tensor.shape
        codec = find_codec(packing.codec(plain))
        if best:
            check_best(codec, tensor=name)
        module, scales = name.removesuffix(".weight"), (rows, columns // packing.group)
        floats = kind if packing.mode == "affine" else "U8"
        containers = (
            ("weight", "U32", (rows, columns * packing.bits // 32)),
            ("scales", floats, scales),
            ("biases", floats, scales),
        )
        found.append(
            [
                StoredTensor(
                    type_,
                    PlannedTensor(
                        f"{module}.{part}",
                        name,
                        codec.name,
                        shape,
                        0,
                        plane.nbytes,
                        importance=importance.get(name) if best else None,
                        best=best,
                        plane=number,
                        count=tensor.elements if number == 0 else 0,
                    ),
                )
                # mlx's small floats have no biases.
                for number, (plane, (part, type_, shape)) in enumerate(
                    zip(codec.planes(rows, columns), containers, strict=False)
                )
            ]
        )
    return found


def _unfit_note(assignment: Assignment) -> tuple[str, ...]:
    if not assignment.unfit:
        return ()
    count = len(assignment.unfit)
    return (
        f"{count} {'matrix has' if count == 1 else 'matrices have'} rows that are no multiple of "
        "the group, and stay unquantized, as in mlx-lm; a smaller group= may fit",
    )
