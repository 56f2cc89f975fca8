"""From a source and targets to a plan, and from a plan to files: what scripts call."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable

from phiquant.checkpoint import Checkpoint, open_checkpoint
from phiquant.description import describe_folder, describe_gguf
from phiquant.errors import UnsupportedError, UsageError
from phiquant.measure.imatrix import read_importance
from phiquant.plan import Plan, PlannedTarget
from phiquant.recipes.mixes import MixName
from phiquant.report import Report
from phiquant.targets.gguf import Choices, plan_from_gguf, plan_from_model
from phiquant.targets.gguf_metadata import read_source_facts
from phiquant.targets.gguf_split import parse_size
from phiquant.targets.names import Target, gguf_codec, parse_override, parse_target
from phiquant.tensor import check_quality
from phiquant.tokenizer import load as load_tokenizer


def plan(
    source: str | os.PathLike[str] | Checkpoint,
    to: str | Iterable[str],
    *,
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
    source : str, path or Checkpoint
        A Hugging Face folder, a GGUF file, or a hub id (``owner/name[@revision]``).
    to : str or iterable of str
        Targets, as ``"gguf:q4_k_m"``; a bare llama-quantize name means GGUF.
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
        Show a download's progress.

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
        overrides=tuple((override.glob, override.codec) for override in overrides),
        requantize=requantize,
        importance=None if importance is None else read_importance(importance),
        importance_file="" if importance is None else os.fspath(importance),
        split_size=None if split_size is None else parse_size(split_size),
    )
    checkpoint = (
        source if isinstance(source, Checkpoint) else open_checkpoint(source, progress=progress)
    )
    make = _from_gguf if checkpoint.format == "gguf" else _from_model
    return Plan(checkpoint, make(checkpoint, targets, choices))


def convert(
    source: str | os.PathLike[str] | Checkpoint,
    to: str | Iterable[str],
    out: str | os.PathLike[str] | None = None,
    *,
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


def _from_model(
    checkpoint: Checkpoint, targets: list[Target], choices: Choices
) -> tuple[PlannedTarget, ...]:
    config, spec = describe_folder(checkpoint)
    facts = read_source_facts(checkpoint.folder, config, name=checkpoint.name)
    tokenizer = load_tokenizer(checkpoint.folder, vocab_size=spec.vocabulary)
    return tuple(
        plan_from_model(checkpoint, spec, facts, tokenizer, target, choices) for target in targets
    )


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
    spec = describe_gguf(checkpoint)
    return tuple(plan_from_gguf(checkpoint, spec, target, choices) for target in targets)
