"""The GGUF target: from a model and a preset to one file, with the bytes of llama.cpp's tools."""

from __future__ import annotations

import shlex
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Union

import numpy as np
from numpy.typing import NDArray

from phiquant import _core, gguf
from phiquant.architectures import ModelSpec
from phiquant.checkpoint import Checkpoint
from phiquant.codecs import all_codecs, find_codec
from phiquant.errors import FormatError, InternalError, UnsupportedError, UsageError
from phiquant.measure.imatrix import Importance
from phiquant.moves import can_move
from phiquant.plan import PlannedFile, PlannedTarget, PlannedTensor
from phiquant.recipes.llama_quantize import Assignment, assign, needs_importance
from phiquant.recipes.mixes import MixName
from phiquant.targets import gguf_split
from phiquant.targets.gguf_metadata import SourceFacts, file_tensors, head, tail, tensor_name
from phiquant.targets.modelfile import eos_ids, find_license, modelfile
from phiquant.targets.names import Target, default_output
from phiquant.tensor import check_best
from phiquant.tokenizer import Tokenizer, general_name, gguf_metadata

#: A tensor of the file: its name, its source, codec and shape, or the bytes made from the config.
Row = tuple[str, Union[str, None], str, tuple[int, ...], bytes]  # noqa: UP007

_FLOATS = ("f32", "f16", "bf16")


@dataclass(frozen=True)
class Choices:
    """What the user said about codecs, beyond the preset."""

    best: bool = False
    mix: MixName = "current"
    pure: bool = False
    output_type: str | None = None
    embedding_type: str | None = None
    overrides: tuple[tuple[str, str], ...] = ()
    requantize: bool = False
    importance: Importance | None = None
    importance_file: str = ""
    split_size: int | None = None


def plan_from_model(
    checkpoint: Checkpoint,
    spec: ModelSpec,
    facts: SourceFacts,
    tokenizer: Tokenizer,
    target: Target,
    choices: Choices,
) -> PlannedTarget:
    """Plan the GGUF of a Hugging Face checkpoint.

    Raises
    ------
    phiquant.UsageError, phiquant.UnsupportedError
        An unknown codec, or one that a tensor cannot have.
    """
    # llama.cpp tells from the model's name whether special tokens swallow white space, and does not
    # load a file whose name and vocabulary disagree about that.
    named = [
        (key, kind, general_name(tokenizer, str(value)) if key == "general.name" else value)
        for key, kind, value in head(spec, facts)
    ]
    pairs = [*named, *gguf_metadata(tokenizer), *tail(target.preset)]

    def companions(path: Path) -> dict[str, str]:
        text = modelfile(
            path.name,
            chat_template=tokenizer.chat_template,
            eos=eos_ids(facts.config, facts.generation),
            token_text=lambda i: tokenizer.tokens[i] if i < len(tokenizer.tokens) else None,
            license_text=find_license(checkpoint.folder),
        )
        return {"Modelfile": text}

    return _planned(checkpoint, spec, pairs, target, choices, facts.name, companions)


def plan_from_gguf(
    checkpoint: Checkpoint, spec: ModelSpec, target: Target, choices: Choices
) -> PlannedTarget:
    """Plan a GGUF from a GGUF: the metadata stay, but for the keys that tell the file's own types.

    Raises
    ------
    phiquant.UnsupportedError
        The source is quantized already, and ``requantize`` was not asked for.
    """
    own = tail(target.preset)
    replaced = {key for key, _, _ in own}
    pairs: list[tuple[str, str, Any]] = [
        (key, checkpoint.metadata_types[key], value)
        for key, value in checkpoint.metadata.items()
        if key not in replaced and not key.startswith("split.")
    ]
    template = checkpoint.metadata.get("tokenizer.chat_template")
    tokens = checkpoint.metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list):
        tokens = []
    eos = checkpoint.metadata.get("tokenizer.ggml.eos_token_id")

    def companions(path: Path) -> dict[str, str]:
        text = modelfile(
            path.name,
            chat_template=template if isinstance(template, str) else None,
            eos=[eos] if isinstance(eos, int) else [],
            token_text=lambda i: str(tokens[i]) if 0 <= i < len(tokens) else None,
            license_text=find_license(checkpoint.folder),
        )
        return {"Modelfile": text}

    # llama-quantize copies the key and aligns to 32 all the same, which no loader reads rightly.
    alignment = int(checkpoint.metadata.get("general.alignment", gguf.ALIGNMENT))
    return _planned(
        checkpoint, spec, [*pairs, *own], target, choices, checkpoint.name, companions, alignment
    )


def _planned(
    checkpoint: Checkpoint,
    spec: ModelSpec,
    pairs: Sequence[tuple[str, str, Any]],
    target: Target,
    choices: Choices,
    source_name: str,
    companions: Any,
    alignment: int = gguf.ALIGNMENT,
) -> PlannedTarget:
    assignment = assign(
        spec,
        target.preset,
        mix=choices.mix,
        pure=choices.pure,
        output_type=choices.output_type,
        embedding_type=choices.embedding_type,
        overrides=choices.overrides,
        importance=choices.importance is not None,
    )
    weights = _importance_of(spec, assignment, target, choices)
    pairs = [*pairs, *_importance_keys(choices)]
    rows: list[Row] = []
    for item in file_tensors(spec):
        if item.tensor is None:
            literal = struct.pack(f"<{len(item.values)}f", *item.values)
            rows.append((item.name, None, "f32", (len(item.values),), literal))
        else:
            codec = assignment.codecs[item.tensor.source]
            rows.append((item.name, item.tensor.source, codec, item.tensor.shape, b""))
    _check_sources(checkpoint, rows, choices.requantize)
    if choices.best:
        _check_best(rows)
    parts = [range(len(rows))]
    if choices.split_size is not None:
        sizes = [-(-_nbytes(row[2], row[3]) // alignment) * alignment for row in rows]
        parts = gguf_split.partition(sizes, choices.split_size)
    name = default_output(source_name, target)
    names = gguf_split.paths(Path(name), len(parts)) if len(parts) > 1 else [Path(name)]
    files = []
    for number, part in enumerate(parts):
        own = list(pairs) if number == 0 else []
        if len(parts) > 1:
            own += gguf_split.keys(number, len(parts), len(rows))
        members = [rows[index] for index in part]
        files.append(
            _planned_file(names[number].name, own, members, weights, choices.best, alignment)
        )

    def places(path: Path) -> list[Path]:
        return gguf_split.paths(path, len(files)) if len(files) > 1 else [path]

    return PlannedTarget(
        target=str(target),
        name=name,
        files=tuple(files),
        places=places,
        notes=_notes(assignment),
        check=_check,
        companions=lambda path: companions(places(path)[0]),
        hint=lambda path: f"llama-cli -m {shlex.quote(str(places(path)[0]))} -p 'Hello'",
    )


def _planned_file(
    name: str,
    pairs: list[tuple[str, str, Any]],
    rows: list[Row],
    weights: dict[str | None, NDArray[np.float32]],
    best: bool,
    alignment: int,
) -> PlannedFile:
    header, offsets, size = _core.write_gguf_header(
        pairs,
        [
            (tensor, tuple(reversed(shape)), gguf.ggml_type(codec))
            for tensor, _, codec, shape, _ in rows
        ],
        alignment,
    )
    tensors = tuple(
        PlannedTensor(
            tensor,
            source,
            codec,
            shape,
            offset,
            _nbytes(codec, shape),
            literal,
            weights.get(source),
            best and find_codec(codec).has_best,
        )
        for (tensor, source, codec, shape, literal), offset in zip(rows, offsets, strict=True)
    )
    return PlannedFile(name, size, header, tensors)


def _importance_of(
    spec: ModelSpec, assignment: Assignment, target: Target, choices: Choices
) -> dict[str | None, NDArray[np.float32]]:
    """The weights of each matrix's columns, by source name; checked before any work starts."""
    found: dict[str | None, NDArray[np.float32]] = {}
    for tensor in spec.tensors:
        if len(tensor.shape) < 2:
            continue
        name, codec = tensor_name(tensor), assignment.codecs[tensor.source]
        if choices.importance is not None and name in choices.importance:
            weights = choices.importance[name]
            if weights.shape != (tensor.shape[-1],):
                raise FormatError(
                    f"has importance of the shape {weights.shape} for rows of {tensor.shape[-1]}",
                    file=choices.importance_file,
                    tensor=name,
                    remedy="Take the importance matrix of this very model.",
                )
            found[tensor.source] = weights
        elif needs_importance(tensor, codec, target.preset):
            raise UsageError(
                f"{codec} is not to be had without importance",
                tensor=tensor.source,
                remedy="Make an importance matrix with `phiquant calibrate` and pass it with "
                "--importance (importance=).",
            )
    return found


def _importance_keys(choices: Choices) -> list[tuple[str, str, Any]]:
    """What llama-quantize writes of an importance matrix, cut to 127 bytes as there."""
    if choices.importance is None:
        return []

    def cut(text: str) -> str:
        return text.encode()[:127].decode("utf-8", "ignore")

    keys: list[tuple[str, str, Any]] = [
        ("quantize.imatrix.file", "string", cut(choices.importance_file))
    ]
    if choices.importance.datasets:
        keys.append(("quantize.imatrix.dataset", "string", cut(choices.importance.datasets[0])))
    keys.append(("quantize.imatrix.entries_count", "uint32", len(choices.importance)))
    if choices.importance.chunks > 0:
        keys.append(("quantize.imatrix.chunks_count", "uint32", choices.importance.chunks))
    return keys


def _nbytes(codec: str, shape: tuple[int, ...]) -> int:
    rows = 1
    for extent in shape[:-1]:
        rows *= extent
    return find_codec(codec).bytes_of(rows, shape[-1])


def _check_best(rows: Sequence[Row]) -> None:
    """Nothing is searched for in floats; whatever else has no search is refused."""
    for _, source, codec, _, _ in rows:
        if codec not in _FLOATS:
            check_best(find_codec(codec), tensor=source)


def _check_sources(
    checkpoint: Checkpoint,
    rows: Sequence[tuple[str, str | None, str, Any, bytes]],
    requantize: bool,
) -> None:
    for _, source, codec, _, _ in rows:
        if source is None:
            continue
        entry = checkpoint.entries[source]
        if entry.planes or entry.parts:
            continue  # codes of another format: moved, or rounded again on request
        if entry.type not in {known.name for known in all_codecs()}:
            raise UnsupportedError(
                f"is of type {entry.type}, which this version does not decode",
                file=checkpoint.files[entry.file].path,
                tensor=source,
            )
        if can_move(entry, codec):
            continue
        if entry.type not in _FLOATS and entry.type != codec and not requantize:
            raise UnsupportedError(
                f"is quantized already ({entry.type}), and {codec} would be made from what is left",
                file=checkpoint.files[entry.file].path,
                tensor=source,
                remedy="Convert the original weights, or accept the loss with --requantize "
                "(requantize=True).",
            )


def _notes(assignment: Assignment) -> tuple[str, ...]:
    """One sentence for all tensors that gave way for the same reason."""
    groups: dict[tuple[str, str, int], list[str]] = {}
    for fallback in assignment.fallbacks:
        key = (fallback.wanted, fallback.got, fallback.columns)
        groups.setdefault(key, []).append(fallback.source)
    return tuple(
        f"{len(names)} {'tensor has' if len(names) == 1 else 'tensors have'} rows of {columns}, no "
        f"multiple of {wanted}'s block: {got} instead, as llama-quantize does"
        for (wanted, got, columns), names in groups.items()
    )


def _check(path: Path, file: PlannedFile) -> None:
    """Reopen the staged file as any reader would; hold every tensor's place against the plan."""
    written = gguf.open_file(path)
    if path.stat().st_size != file.size or len(written.entries) != len(file.tensors):
        raise InternalError("the written file is not as planned")
    for tensor, entry in zip(file.tensors, written.entries.values(), strict=True):
        planned = (tensor.name, tensor.codec, tensor.shape, tensor.offset, tensor.nbytes)
        if planned != (entry.name, entry.type, entry.shape, entry.offset, entry.nbytes):
            raise InternalError("the written header is not as planned", tensor=tensor.name)
