"""From a source and targets to a plan, and from a plan to files: what scripts call."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from phiquant.architectures import ModelSpec
from phiquant.checkpoint import Checkpoint, open_checkpoint
from phiquant.description import describe_folder, describe_gguf
from phiquant.errors import UnsupportedError, UsageError
from phiquant.measure.imatrix import read_importance
from phiquant.plan import Plan, PlannedTarget
from phiquant.recipes.mixes import MixName
from phiquant.report import Report
from phiquant.targets.gguf import Choices, plan_from_gguf, plan_from_model
from phiquant.targets.gguf_metadata import read_source_facts, tensor_name
from phiquant.targets.gguf_split import parse_size
from phiquant.targets.hf import plan_hf
from phiquant.targets.mlx import plan_mlx
from phiquant.targets.names import Override, Target, gguf_codec, parse_override, parse_target
from phiquant.targets.onnx import plan_onnx
from phiquant.targets.openvino import plan_openvino
from phiquant.tensor import check_quality
from phiquant.tokenizer import load as load_tokenizer


def plan(
    source: Any,
    to: str | Iterable[str],
    *,
    tokenizer: Any = None,
    config: Any = None,
    name: str | None = None,
    quality: str = "reference",
    mix: MixName = "current",
    pure: bool = False,
    output_type: str | None = None,
    embedding_type: str | None = None,
    tensor: str | Iterable[str] = (),
    importance: str | os.PathLike[str] | None = None,
    requantize: bool = False,
    split_size: str | None = None,
    progress: bool = False,
) -> Plan:
    """Decide what a conversion will read and write. Only headers and small files are read.

    Parameters
    ----------
    source : str, path, Checkpoint, transformers model or mapping of str to tensor
        A Hugging Face folder, a GGUF file, or a hub id (``owner/name[@revision]``); or a model in
        memory, or its state dict, whose tensors (torch, NumPy, JAX, mlx) are read in place.
    to : str or iterable of str
        Targets, as ``"gguf:q4_k_m"``; a bare llama-quantize name means GGUF.
    tokenizer : tokenizer of transformers, or path of a folder that holds one
        Of a model in memory.
    config : config of transformers, mapping or path, optional
        Of a state dict.
    name : str, optional
        What results of a model in memory are named after; by default the last part of what it was
        loaded from.
    quality : "reference" or "best"
        The bits of the format's own tool; or scales searched for the least squared error.
    mix : "current" or "published"
        llama-quantize's rules today, or those that the published Phi files were made with.
    pure : bool
        One codec for all matrices.
    output_type, embedding_type : str, optional
        Codecs of the output matrix and of the embedding table.
    tensor : str or iterable of str
        Overrides ``[gguf:]GLOB=CODEC`` on source tensor names; the first match decides.
    importance : path, optional
        An importance matrix of llama.cpp (GGUF or ``.dat``), as ``phiquant calibrate`` makes it.
    requantize : bool
        Allow a quantized GGUF as the source, with the loss of a second rounding.
    split_size : str, optional
        Split GGUFs into files of at most so many bytes of tensors, as ``"4G"`` or ``"500M"``.
    progress : bool
        Show that of a download, and of the calibration that ``onnx:int8-static`` needs.

    Returns
    -------
    Plan

    Raises
    ------
    phiquant.UsageError
        Unknown targets, codecs or globs that match nothing.
    phiquant.UnsupportedError
        A model or format that phiquant does not convert.
    phiquant.FormatError
        A damaged source.
    """
    best = check_quality(quality)
    targets = [parse_target(text) for text in ([to] if isinstance(to, str) else to)]
    if not targets:
        raise UsageError("no target was given", remedy="Name one, such as to='q4_k_m'.")
    overrides = [parse_override(text) for text in ([tensor] if isinstance(tensor, str) else tensor)]
    choices = Choices(
        best=best,
        mix=mix,
        pure=pure,
        output_type=None if output_type is None else gguf_codec(output_type),
        embedding_type=None if embedding_type is None else gguf_codec(embedding_type),
        overrides=_overrides_for("gguf", overrides),
        requantize=requantize,
        importance=None if importance is None else read_importance(importance),
        importance_file="" if importance is None else os.fspath(importance),
        split_size=None if split_size is None else parse_size(split_size),
    )
    checkpoint = _opened(source, progress, tokenizer=tokenizer, config=config, name=name)
    _check_overrides(overrides, targets)
    _check_options_of_gguf(
        targets,
        {
            "mix": mix != "current",
            "pure": pure,
            "output_type": output_type is not None,
            "embedding_type": embedding_type is not None,
            "requantize": requantize,
            "split_size": split_size is not None,
        },
    )
    recipe = _recipe(quality, choices, overrides)
    if checkpoint.format == "gguf":
        return Plan(checkpoint, _from_gguf(checkpoint, targets, choices), recipe)
    return Plan(checkpoint, _from_model(checkpoint, targets, choices, overrides, progress), recipe)


def convert(
    source: Any,
    to: str | Iterable[str],
    out: str | os.PathLike[str] | None = None,
    *,
    tokenizer: Any = None,
    config: Any = None,
    name: str | None = None,
    quality: str = "reference",
    mix: MixName = "current",
    pure: bool = False,
    output_type: str | None = None,
    embedding_type: str | None = None,
    tensor: str | Iterable[str] = (),
    importance: str | os.PathLike[str] | None = None,
    requantize: bool = False,
    split_size: str | None = None,
    progress: bool | Callable[[int, int], None] = False,
    overwrite: bool = False,
    threads: int | None = None,
    sha256: bool = False,
    companions: bool = False,
) -> Report:
    """Convert a model: :func:`plan`, then :meth:`Plan.run`, whose parameters and errors these are.

    Returns
    -------
    Report
        ``report.path`` is the result.
    """
    return plan(
        source,
        to,
        tokenizer=tokenizer,
        config=config,
        name=name,
        quality=quality,
        mix=mix,
        pure=pure,
        output_type=output_type,
        embedding_type=embedding_type,
        tensor=tensor,
        importance=importance,
        requantize=requantize,
        split_size=split_size,
        progress=bool(progress),
    ).run(
        out,
        progress=progress,
        overwrite=overwrite,
        threads=threads,
        sha256=sha256,
        companions=companions,
    )


def _opened(source: Any, progress: bool, **given: Any) -> Checkpoint:
    """The source as a checkpoint; what only models in memory take is refused with others."""
    from phiquant.hf_model import is_in_memory, open_model

    if is_in_memory(source):
        return open_model(source, **given)
    for name in (name for name, value in given.items() if value is not None):
        raise UsageError(
            f"{name} is for models in memory, and this source has its own",
            remedy=f"Leave {name} out.",
        )
    return source if isinstance(source, Checkpoint) else open_checkpoint(source, progress=progress)


def _recipe(quality: str, choices: Choices, overrides: list[Override]) -> dict[str, Any]:
    """What was asked for beside the targets, where it is not what happens anyway."""
    recipe: dict[str, Any] = {"quality": quality}
    for name in ("pure", "output_type", "embedding_type", "requantize", "split_size"):
        if getattr(choices, name):
            recipe[name] = getattr(choices, name)
    if choices.mix != "current":
        recipe["mix"] = choices.mix
    if overrides:
        recipe["tensor"] = [
            f"{one.format + ':' if one.format else ''}{one.glob}={one.codec}" for one in overrides
        ]
    if choices.importance is not None:
        digest = hashlib.sha256()
        for name, values in sorted(choices.importance.items()):
            digest.update(name.encode() + b"\0" + values.tobytes())
        recipe["importance"] = {"file": choices.importance_file, "sha256": digest.hexdigest()}
    return recipe


def _overrides_for(format_name: str, overrides: list[Override]) -> tuple[tuple[str, str], ...]:
    """The overrides that a format's targets heed: those without a format name ggml's types."""
    own = (format_name, None) if format_name == "gguf" else (format_name,)
    return tuple((item.glob, item.codec) for item in overrides if item.format in own)


def _check_overrides(overrides: list[Override], targets: list[Target]) -> None:
    """Refuse overrides that no target heeds."""
    formats = {target.format for target in targets}
    for item in overrides:
        if (item.format or "gguf") not in formats:
            known = " or ".join(f"{name}:GLOB=CODEC" for name in sorted(formats))
            raise UsageError(
                f"'{item.glob}={item.codec}' is for {item.format or 'gguf'}, and no such target is "
                "made",
                remedy=f"Write {known}.",
            )


def _check_options_of_gguf(targets: list[Target], given: dict[str, bool]) -> None:
    """Refuse what only GGUF has where no GGUF is made: it would change nothing."""
    if any(target.format == "gguf" for target in targets):
        return
    for name in (name for name, is_given in given.items() if is_given):
        raise UsageError(
            f"{name} (--{name.replace('_', '-')}) is for GGUF, and no such target is made",
            remedy=f"Overrides for this one are written --tensor '{targets[0].format}:GLOB=CODEC'.",
        )


def _from_model(
    checkpoint: Checkpoint,
    targets: list[Target],
    choices: Choices,
    overrides: list[Override],
    progress: bool,
) -> tuple[PlannedTarget, ...]:
    config, spec = describe_folder(checkpoint)
    facts = read_source_facts(checkpoint.folder, config, name=checkpoint.name)
    tokenizer = load_tokenizer(checkpoint.folder, vocab_size=spec.vocabulary)
    planned = []
    for target in targets:
        if target.format == "gguf":
            planned.append(plan_from_model(checkpoint, spec, facts, tokenizer, target, choices))
        elif target.format == "onnx":
            planned.append(
                plan_onnx(
                    checkpoint,
                    spec,
                    facts,
                    target,
                    best=choices.best,
                    overrides=_overrides_for("onnx", overrides),
                    importance=_by_source(spec, choices),
                    progress=progress,
                )
            )
        elif target.format == "hf":
            planned.append(
                plan_hf(
                    checkpoint,
                    spec,
                    facts,
                    target,
                    best=choices.best,
                    overrides=_overrides_for("hf", overrides),
                    importance=_by_source(spec, choices),
                )
            )
        elif target.format == "mlx":
            planned.append(
                plan_mlx(
                    checkpoint,
                    spec,
                    facts,
                    target,
                    best=choices.best,
                    overrides=_overrides_for("mlx", overrides),
                    importance=_by_source(spec, choices),
                )
            )
        elif target.format == "openvino":
            planned.append(
                plan_openvino(
                    checkpoint,
                    spec,
                    facts,
                    tokenizer,
                    target,
                    best=choices.best,
                    overrides=_overrides_for("openvino", overrides),
                    importance=_by_source(spec, choices),
                )
            )
    return tuple(planned)


def _by_source(spec: ModelSpec, choices: Choices) -> dict[str, NDArray[np.float32]]:
    """The importance of each matrix's columns by its name in the source."""
    if choices.importance is None:
        return {}
    names = {tensor.source: tensor_name(tensor) for tensor in spec.tensors}
    known = choices.importance
    return {source: known[name] for source, name in names.items() if name in known}


def _from_gguf(
    checkpoint: Checkpoint, targets: list[Target], choices: Choices
) -> tuple[PlannedTarget, ...]:
    splits = checkpoint.metadata.get("split.count", 0)
    if not isinstance(splits, int) or splits > 1:
        raise UnsupportedError(
            "is one of several split files",
            file=checkpoint.path,
            remedy="Merge them first: llama-gguf-split --merge.",
        )
    if others := [str(target) for target in targets if target.format != "gguf"]:
        raise UnsupportedError(
            f"is a GGUF, and {others[0]} is made from a Hugging Face checkpoint only",
            file=checkpoint.path,
            remedy="Give the model's folder or hub id as the source.",
        )
    spec = describe_gguf(checkpoint)
    return tuple(plan_from_gguf(checkpoint, spec, target, choices) for target in targets)
