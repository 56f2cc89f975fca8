"""From a source and targets to a plan, and from a plan to files: what scripts call."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from phiquant.checkpoint import Checkpoint, open_checkpoint
from phiquant.errors import UsageError
from phiquant.plan import Plan, PlannedTarget
from phiquant.report import Report
from phiquant.tensor import check_quality

# Targets, tokenizers and graphs are half of the package: `import phiquant` leaves them alone, and a
# conversion loads those that it needs.
if TYPE_CHECKING:
    from phiquant.recipes.mixes import MixName
    from phiquant.targets.gguf import Choices
    from phiquant.targets.names import Override, Target
    from phiquant.targets.planning import Wishes


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
    grid: str = "native",
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
        Of a model in memory; of a GGUF that becomes another format, the folder.
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
        Round the weights of a quantized source a second time where a target cannot hold its numbers
        as they are. Without it codes and scales are moved, and every weight is compared.
    split_size : str, optional
        Split GGUFs into files of at most so many bytes of tensors, as ``"4G"`` or ``"500M"``.
    grid : "native" or "portable"
        Each format's own grid; or one that all of them hold, so that all targets of the run decode
        to identical weights.
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
    from phiquant.measure.imatrix import read_importance
    from phiquant.targets.gguf import Choices
    from phiquant.targets.gguf_split import parse_size
    from phiquant.targets.names import gguf_codec, parse_override, parse_target
    from phiquant.targets.planning import Wishes, overrides_for

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
        overrides=overrides_for("gguf", overrides),
        requantize=requantize,
        importance=None if importance is None else read_importance(importance),
        importance_file="" if importance is None else os.fspath(importance),
        split_size=None if split_size is None else parse_size(split_size),
    )
    checkpoint = _opened(source, progress, tokenizer=tokenizer, config=config, name=name)
    native = _check_grid(grid, choices, overrides)
    _check_overrides(overrides, targets)
    _check_options_of_gguf(
        targets,
        {
            "mix": mix != "current",
            "pure": pure,
            "output_type": output_type is not None,
            "embedding_type": embedding_type is not None,
            "split_size": split_size is not None,
        },
    )
    recipe = _recipe(quality, choices, overrides)
    if checkpoint.format == "gguf" and native and all(t.format == "gguf" for t in targets):
        return Plan(checkpoint, _from_gguf(checkpoint, targets, choices), recipe)
    wishes = Wishes(choices, overrides, progress)
    folder = tokenizer if checkpoint.format == "gguf" else None
    return replace(_from_model(checkpoint, targets, wishes, native, folder), recipe=recipe)


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
    grid: str = "native",
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
        grid=grid,
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
    checkpoint = (
        source if isinstance(source, Checkpoint) else open_checkpoint(source, progress=progress)
    )
    for name in (name for name, value in given.items() if value is not None):
        if name == "tokenizer" and checkpoint.format == "gguf":
            continue
        raise UsageError(
            f"{name} is for models in memory, and this source has its own",
            remedy=f"Leave {name} out.",
        )
    return checkpoint


def _check_grid(grid: str, choices: Choices, overrides: list[Override]) -> bool:
    """Whether each format keeps its own grid; what would part a portable one is refused."""
    if grid not in ("native", "portable"):
        raise UsageError(f"there is no grid '{grid}'", remedy="There are 'native' and 'portable'.")
    parting = {
        "quality='best'": choices.best,
        "an override": bool(overrides),
        "output_type": choices.output_type is not None,
        "embedding_type": choices.embedding_type is not None,
        "importance": choices.importance is not None,
    }
    what = next((name for name, is_given in parting.items() if is_given), "")
    if grid == "portable" and what:
        raise UsageError(
            f"{what} would make the targets of a portable grid differ",
            remedy="Leave it out, or let each format keep its own grid.",
        )
    return grid == "native"


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
    checkpoint: Checkpoint, targets: list[Target], wishes: Wishes, native: bool, tokenizer: Any
) -> Plan:
    """All targets of a model: on their own grids, the portable one, or the source's own."""
    from phiquant import moves
    from phiquant.made_from import model_of
    from phiquant.targets.planning import plan_target

    model = model_of(checkpoint, tokenizer=tokenizer)
    moving = moves.is_quantized(checkpoint) and not wishes.choices.requantize
    planned = []
    for target in targets:
        if not native:
            exact, held = moves.prepare_portable(target, model.spec)
            made = plan_target(model, exact, wishes, held)
            planned.append(moves.with_portable_grid(made, model.checkpoint))
        elif moving:
            exact, held = moves.prepare(target, model.spec, model.checkpoint)
            made = plan_target(model, exact, wishes, held)
            planned.append(moves.with_moves(made, model.checkpoint))
        else:
            planned.append(plan_target(model, target, wishes))
    return Plan(model.checkpoint, tuple(planned))


def _from_gguf(
    checkpoint: Checkpoint, targets: list[Target], choices: Choices
) -> tuple[PlannedTarget, ...]:
    from phiquant.description import describe_gguf
    from phiquant.made_from import refuse_split
    from phiquant.moves import with_moves
    from phiquant.targets.gguf import plan_from_gguf

    refuse_split(checkpoint)
    spec = describe_gguf(checkpoint)
    planned = tuple(plan_from_gguf(checkpoint, spec, target, choices) for target in targets)
    if choices.requantize:
        return planned
    return tuple(with_moves(target, checkpoint) for target in planned)
