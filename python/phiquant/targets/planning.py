"""Hands a model and a target to the module that plans targets of its format."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from phiquant.architectures import ModelSpec
    from phiquant.checkpoint import Checkpoint
    from phiquant.plan import PlannedTarget
    from phiquant.targets.gguf import Choices
    from phiquant.targets.gguf_metadata import SourceFacts
    from phiquant.targets.names import Override, Target
    from phiquant.tokenizer import Tokenizer


@dataclass(frozen=True)
class Model:
    """What every target is made from.

    Attributes
    ----------
    checkpoint : Checkpoint
        Its tensors bear the names that ``spec`` gives.
    spec : ModelSpec
    facts : SourceFacts
        Its config, generation settings, name and card.
    tokenizer : Tokenizer
    """

    checkpoint: Checkpoint
    spec: ModelSpec
    facts: SourceFacts
    tokenizer: Tokenizer


@dataclass(frozen=True)
class Wishes:
    """What the user said beside the targets.

    Attributes
    ----------
    choices : Choices
        Of GGUF; ``best`` and ``importance`` hold for all formats.
    overrides : sequence of Override
    progress : bool
        Show that of measurements.
    """

    choices: Choices
    overrides: Sequence[Override]
    progress: bool


def plan_target(
    model: Model, target: Target, wishes: Wishes, held: Sequence[tuple[str, str]] = ()
) -> PlannedTarget:
    """Plan one target.

    Parameters
    ----------
    held : sequence of (name, codec)
        What single tensors of the source are put in where the user said nothing of them.

    Raises
    ------
    phiquant.UsageError, phiquant.UnsupportedError, phiquant.FormatError
        What the format's own module says.
    """
    from dataclasses import replace

    overrides = list(overrides_for(target.format, wishes.overrides))
    overrides += _left_open(model.spec, target.format, wishes.choices, overrides, held)
    if target.format == "gguf":
        from phiquant.targets.gguf import plan_from_model

        choices = replace(wishes.choices, overrides=tuple(overrides))
        return plan_from_model(
            model.checkpoint, model.spec, model.facts, model.tokenizer, target, choices
        )
    source = (model.checkpoint, model.spec, model.facts)
    importance = _by_source(model.spec, wishes.choices)
    best = wishes.choices.best
    if target.format == "onnx":
        from phiquant.targets.onnx import plan_onnx

        return plan_onnx(
            *source,
            target,
            best=best,
            overrides=overrides,
            importance=importance,
            progress=wishes.progress,
        )
    if target.format == "hf":
        from phiquant.targets.hf import plan_hf

        return plan_hf(*source, target, best=best, overrides=overrides, importance=importance)
    if target.format == "mlx":
        from phiquant.targets.mlx import plan_mlx

        return plan_mlx(*source, target, best=best, overrides=overrides, importance=importance)
    from phiquant.targets.openvino import plan_openvino

    return plan_openvino(
        *source, model.tokenizer, target, best=best, overrides=overrides, importance=importance
    )


def _left_open(
    spec: ModelSpec,
    format_name: str,
    choices: Choices,
    own: Sequence[tuple[str, str]],
    held: Sequence[tuple[str, str]],
) -> list[tuple[str, str]]:
    """What is held, as overrides, without the tensors that the user has chosen for."""
    decided: set[str] = set()
    if format_name == "gguf":
        if choices.pure:
            return []
        for tensor in spec.tensors:
            is_head = tensor.role == "output" or (tensor.role == "embedding" and spec.tied)
            if (choices.output_type is not None and is_head) or (
                choices.embedding_type is not None and tensor.role == "embedding"
            ):
                decided.add(tensor.source)
    return [
        (re.sub(r"([\[?*])", r"[\1]", name), codec)
        for name, codec in held
        if name not in decided and not any(fnmatch.fnmatchcase(name, glob) for glob, _ in own)
    ]


def overrides_for(format_name: str, overrides: Sequence[Override]) -> tuple[tuple[str, str], ...]:
    """The overrides that a format's targets heed: those without a format name ggml's types."""
    own = (format_name, None) if format_name == "gguf" else (format_name,)
    return tuple((item.glob, item.codec) for item in overrides if item.format in own)


def _by_source(spec: ModelSpec, choices: Choices) -> Mapping[str, NDArray[np.float32]]:
    """The importance of each matrix's columns by its name in the source."""
    from phiquant.targets.gguf_metadata import tensor_name

    if choices.importance is None:
        return {}
    names = {tensor.source: tensor_name(tensor) for tensor in spec.tensors}
    known = choices.importance
    return {source: known[name] for source, name in names.items() if name in known}
