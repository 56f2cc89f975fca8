"""Ranks the targets that a device runs and that fit its memory."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from phiquant import catalogue
from phiquant.advice.candidates import DEVICES, Candidate, candidates
from phiquant.advice.models import EXAMPLES, shape_of
from phiquant.advice.record import (
    Loss,
    about_divergence,
    about_speed,
    fixture_of,
    loss_of,
    speed_of,
)
from phiquant.advice.result import Advice, Suggestion
from phiquant.advice.sizes import Planner, cache_values, parse_memory, planner_of, sizes_of
from phiquant.architectures import ModelSpec
from phiquant.checkpoint import Checkpoint, open_checkpoint
from phiquant.description import describe
from phiquant.errors import PhiquantError, UsageError
from phiquant.targets.names import parse_target
from phiquant.texts import bytes_text

#: What the model is for: tokens of context by default, and the number that decides.
PURPOSES: Final[Mapping[str, tuple[int, str]]] = {
    "chat": (4096, "divergence"),
    "code": (8192, "same_top"),
    "reasoning": (8192, "divergence"),
    "documents": (32768, "divergence"),
    "server": (4096, "divergence"),
}

# What runtimes lose anyway by rounding as they compute (docs/evaluation.md#agreement-with-llama-
# perplexity): targets below it are as good as each other, and the smallest of them is the best.
_NOTHING: Final = {"divergence": 0.0003, "same_top": 0.01}


def advise(
    source: str | os.PathLike[str] | Checkpoint | None = None,
    *,
    memory: str | int,
    device: str,
    purpose: str = "chat",
    context: int | None = None,
    most: int = 5,
) -> Advice:
    """Targets that a device runs and that fit its memory, the one that loses least first.

    Only headers and small files of a source are read, and nothing is downloaded. Losses and speeds
    are those that the commands in ``tests/benchmarks`` recorded, on the models and the machine that
    the notes name; what was not measured says so and comes last. Targets that lose less than what
    runtimes lose anyway count as equals, and of equals the smaller one comes first.

    Parameters
    ----------
    source : str, path or Checkpoint, optional
        A folder or a GGUF file, whose sizes are then exact; or the name of a published model, whose
        shape is known. Without it, several published models, and the best target of each.
    memory : str or int
        What weights and cache may take: ``"8GB"``, ``"7.5 GiB"``, or bytes. The runtime itself and
        the system need some more.
    device : str
        ``phone``, ``laptop``, ``mac``, ``npu``, ``cpu`` or ``gpu``.
    purpose : str
        ``chat``, ``code``, ``reasoning``, ``documents`` or ``server`` (many requests at once, on a
        GPU): decides the context, and which number ranks.
    context : int, optional
        Tokens of context that the cache is counted for.
    most : int
        How many suggestions; with published models one for each.

    Returns
    -------
    Advice

    Raises
    ------
    phiquant.UsageError
        A size, device or purpose that there is not, a context that the model does not have, or
        nothing fits.
    phiquant.UnsupportedError, phiquant.FormatError, phiquant.IoError
        The source cannot be read.
    """
    room = parse_memory(memory)
    _check_words(device, purpose, context, most)
    own: Checkpoint | None = None
    if isinstance(source, Checkpoint):
        own = source
    elif source is not None and Path(source).exists():
        own = open_checkpoint(source)
    if own is not None:
        models = [(str(own.path), describe(own))]
    else:
        names = EXAMPLES if source is None else (str(source),)
        models = [(name, shape_of(name)) for name in names]
    asked = context
    context = asked or PURPOSES[purpose][0]
    found: list[Suggestion] = []
    left_out: list[tuple[str, str]] = []
    least: list[Suggestion] = []
    for name, spec in models:
        if asked is not None and asked > spec.context:
            raise UsageError(
                f"{name} is made for {spec.context} tokens at most, not {asked}",
                remedy="Choose a shorter --context (context=...).",
            )
        tokens = min(context, spec.context)
        fit, too_large, causes = _of_model(name, spec, own, device, purpose, tokens, room, most)
        found += fit[: 1 if source is None else most]
        least += too_large
        left_out += causes
    if not found:
        raise _nothing_fits(least, room, device)
    fixtures = dict.fromkeys(fixture_of(spec) for _, spec in models)
    notes = [about_divergence(fixtures), about_speed()]
    if own is None:
        notes.append("sizes are those of the weights, by the published shape; with a folder, exact")
    return Advice(
        source=None if source is None else models[0][0],
        device=device,
        purpose=purpose,
        memory=room,
        context=min(context, max(spec.context for _, spec in models)),
        suggestions=tuple(found),
        left_out=tuple(left_out),
        notes=tuple(notes),
    )


def _check_words(device: str, purpose: str, context: int | None, most: int) -> None:
    if device not in DEVICES:
        raise UsageError(
            f"there is no device '{device}'", remedy=f"There are {', '.join(DEVICES)}."
        )
    if purpose not in PURPOSES:
        raise UsageError(
            f"there is no purpose '{purpose}'", remedy=f"There are {', '.join(PURPOSES)}."
        )
    if purpose == "server" and device != "gpu":
        raise UsageError(
            "the purpose 'server' means many requests at once on a GPU, and phiquant knows no "
            f"such runtime on {DEVICES[device]}",
            remedy="Choose --device gpu, or the purpose chat.",
        )
    for name, value in (("context", 1 if context is None else context), ("most", most)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise UsageError(f"{name} must be a number from 1 on, not {value!r}")


def _of_model(
    name: str,
    spec: ModelSpec,
    own: Checkpoint | None,
    device: str,
    purpose: str,
    context: int,
    room: int,
    most: int,
) -> tuple[list[Suggestion], list[Suggestion], list[tuple[str, str]]]:
    """What fits, ranked; what does not; and what cannot be made."""
    number = PURPOSES[purpose][1]
    listed = [_for_context(one, spec, context) for one in candidates(device)]
    if purpose == "server":
        listed = [one for one in listed if one.runtime == "vLLM"]
    if own is not None and own.format == "gguf":
        listed = [one for one in listed if one.target.startswith("gguf:")]
    fixture = fixture_of(spec)
    losses = {one.target: loss_of(one.measured_as, fixture) for one in listed}
    planned = None if own is None else planner_of(own)
    sizes, causes = sizes_of(spec, planned, listed, losses)
    fit: list[Suggestion] = []
    too_large: list[Suggestion] = []
    for one in listed:
        if one.target not in sizes:
            continue
        loss = losses[one.target]
        made = Suggestion(
            model=name,
            target=one.target,
            quality="reference" if loss is None else loss.quality,
            runtime=one.runtime,
            nbytes=sizes[one.target],
            cache_bytes=int(cache_values(spec) * one.cache * context),
            loss=loss,
            speed=speed_of(one.measured_as),
            reason=f"{_about(one)}; {one.why}",
            page=one.page,
            commands=_commands(name, one, loss),
        )
        (fit if made.memory <= room else too_large).append(made)
    fit.sort(key=lambda one: (*_rank(one.loss, number), one.nbytes))
    if planned is not None:
        recorded = {one.target: one.measured_as for one in listed}

        def plain(target: str) -> Loss | None:
            return loss_of(recorded[target], fixture, searched=False)

        fit = [_with_quality(planned, one, plain) for one in fit[:most]]
        fit.sort(key=lambda one: (*_rank(one.loss, number), one.nbytes))
    return fit, too_large, causes


def _for_context(one: Candidate, spec: ModelSpec, context: int) -> Candidate:
    """mlx-lm runs one set of longrope's factors: that which the context needs."""
    if not one.target.startswith("mlx:") or context <= spec.rope.original_context:
        return one
    return replace(one, target=f"{one.target},context=long")


def _rank(loss: Loss | None, number: str) -> tuple[int, float]:
    """What was not measured comes last; what loses next to nothing loses nothing."""
    if loss is None:
        return 1, 0.0
    lost = loss.divergence if number == "divergence" else 1 - loss.same_top
    return 0, 0.0 if lost <= _NOTHING[number] else lost


def _with_quality(
    planned: Planner, one: Suggestion, plain: Callable[[str], Loss | None]
) -> Suggestion:
    """The suggestion, with the quality that this model's target can have."""
    if one.quality == "best" and one.loss is not None and not one.loss.importance:
        try:
            return replace(one, nbytes=planned(one.target, "best").nbytes)
        except PhiquantError:
            words = tuple(command.replace(" --quality best", "") for command in one.commands)
            return replace(one, quality="reference", loss=plain(one.target), commands=words)
    return one


def _about(one: Candidate) -> str:
    target = parse_target(one.target)
    words = [key if value is True else f"{key}={value}" for key, value in target.options]
    about = catalogue.about(target.format, target.preset)
    return f"{about}; here with {', '.join(words)}" if words else about


def _commands(name: str, one: Candidate, loss: Loss | None) -> tuple[str, ...]:
    source = shlex.quote(name)
    best = " --quality best" if loss is not None and loss.quality == "best" else ""
    convert = f"phiquant convert {source} --to {shlex.quote(one.target)}{best}"
    if loss is None or not loss.importance:
        return (convert,)
    file = shlex.quote(f"{Path(name).name}.imatrix.gguf")
    return (
        f"phiquant calibrate {source} --text TEXT -o {file}",
        f"{convert} --importance {file}",
    )


def _nothing_fits(least: Sequence[Suggestion], room: int, device: str) -> UsageError:
    if not least:
        return UsageError(
            f"the source can become nothing that {DEVICES[device]} runs",
            remedy="'phiquant plan SRC --to TARGET' says why.",
        )
    one = min(least, key=lambda found: found.memory)
    return UsageError(
        f"nothing fits into {bytes_text(room)}: {one.model} as {one.target} needs "
        f"{bytes_text(one.nbytes)} for its weights and {bytes_text(one.cache_bytes)} for its cache",
        remedy="Give more memory, a shorter --context, or a smaller model.",
    )
