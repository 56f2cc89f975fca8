"""Bytes of weights and of the cache of keys and values, and how memory is written."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache

from phiquant import catalogue
from phiquant.advice.candidates import Candidate
from phiquant.advice.record import Loss
from phiquant.architectures import ModelSpec
from phiquant.checkpoint import Checkpoint
from phiquant.convert import plan
from phiquant.errors import PhiquantError, UsageError
from phiquant.made_from import model_of
from phiquant.moves import is_quantized
from phiquant.plan import PlannedTarget
from phiquant.targets.gguf import Choices
from phiquant.targets.names import parse_target
from phiquant.targets.planning import Wishes, plan_target

#: Plans a target of one source in a quality.
Planner = Callable[[str, str], PlannedTarget]

_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kmgt])(i?)b?\s*$", re.IGNORECASE)


def parse_memory(text: str | int) -> int:
    """Bytes of a size of memory: ``8GB``, ``7.5 GiB``, ``500M``.

    Raises
    ------
    phiquant.UsageError
        It is no such size, or nothing.
    """
    if isinstance(text, int) and not isinstance(text, bool):
        count = text
    else:
        match = _SIZE.match(text) if isinstance(text, str) else None
        unit = 1024 if match and match[3] else 1000
        power = "kmgt".index(match[2].lower()) + 1 if match else 0
        count = int(float(match[1]) * unit**power) if match else 0
    if count < 1:
        raise UsageError(
            f"{text!r} is no size of memory", remedy="Write it as 8GB, 7.5GiB or 500MB."
        )
    return count


def planner_of(own: Checkpoint) -> Planner:
    """What plans a target of the source; small files are read once for all targets."""
    if own.format != "safetensors" or is_quantized(own):
        return lambda target, quality: plan(own, target, quality=quality).targets[0]
    model = model_of(own)

    def planned(target: str, quality: str) -> PlannedTarget:
        wishes = Wishes(Choices(best=quality == "best"), (), progress=False)
        return plan_target(model, parse_target(target), wishes)

    return planned


def sizes_of(
    spec: ModelSpec,
    planned: Planner | None,
    listed: Sequence[Candidate],
    losses: Mapping[str, Loss | None],
) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Bytes of each target that the model can become, and why it cannot become the others."""
    found: dict[str, int] = {}
    causes = []
    for one in listed:
        loss = losses[one.target]
        try:
            if planned is None or (loss is not None and loss.importance):
                found[one.target] = _weights_bytes(spec, one.target)
            else:
                found[one.target] = planned(one.target, "reference").nbytes
        except PhiquantError as error:
            causes.append((one.target, error.cause))
    return found, causes


@cache
def _weights_bytes(spec: ModelSpec, target: str) -> int:
    return catalogue.weights_bytes(spec, parse_target(target))


def cache_values(spec: ModelSpec) -> int:
    """Keys and values of one token in all layers."""
    return 2 * spec.layers * spec.attention.kv_heads * spec.attention.head_size
