"""What was measured of each target, as the commands in tests/benchmarks recorded it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

from phiquant.architectures import ModelSpec
from phiquant.strict_json import read_json

#: Written by tests/benchmarks/divergence.py and tests/benchmarks/speeds.py.
DIVERGENCE: Final = Path(__file__).with_name("divergence.json")
SPEED: Final = Path(__file__).with_name("speed.json")


@dataclass(frozen=True)
class Loss:
    """How far a target was from its source, on a small model.

    Attributes
    ----------
    quality : "reference" or "best"
    divergence, divergence_error : float
        Mean Kullback-Leibler divergence in nats, and its standard error.
    same_top : float
        Share of positions with the same most likely token, from 0 to 1.
    importance : bool
        Whether an importance matrix was needed.
    """

    quality: str
    divergence: float
    divergence_error: float
    same_top: float
    importance: bool


@dataclass(frozen=True)
class Speed:
    """Tokens per second of a target in its runtime, medians."""

    prompt: float
    decode: float


def fixture_of(spec: ModelSpec) -> str:
    """The small model that is most like this one."""
    return "phi4mini" if spec.tied else "phi35"


def loss_of(target: str, fixture: str, *, searched: bool = True) -> Loss | None:
    """What is recorded of a target; of both qualities the one that loses less, beyond doubt.

    None where nothing is. ``searched=False`` leaves quality "best" out.
    """
    found = {
        row["quality"]: Loss(
            row["quality"],
            row["divergence"],
            row["divergence_error"],
            row["same_top"],
            row["importance"],
        )
        for row in _read(DIVERGENCE).get("rows", ())
        if row["target"] == target and row["fixture"] == fixture
    }
    reference, best = found.get("reference"), found.get("best")
    if reference is None or best is None or not searched:
        return reference
    doubt = max(reference.divergence_error, best.divergence_error)
    return best if best.divergence < reference.divergence - doubt else reference


def speed_of(target: str) -> Speed | None:
    """The recorded speed of a target; None where nothing is."""
    for row in _read(SPEED).get("rows", ()):
        if row["target"] == target:
            return Speed(row["prompt"], row["decode"])
    return None


def about_divergence(fixtures: Iterable[str]) -> str:
    """Where the divergences come from, in a sentence."""
    facts = _read(DIVERGENCE)
    return (
        f"divergence and same top: of small test models ({', '.join(fixtures)}) over "
        f"{facts['positions']} positions, each target in its own runtime, on {facts['machine']}, "
        f"{facts['made']}; of a large model they tell the order of targets, and little more"
    )


def about_speed() -> str:
    """Where the speeds come from, in a sentence."""
    facts = _read(SPEED)
    if not facts:
        return "tokens per second: not measured; 'phiquant bench' tells them on your machine"
    return (
        f"tokens per second: of {facts['model']}, {facts['threads']} threads, on "
        f"{facts['machine']}, {facts['made']}; 'phiquant bench' tells them on your machine"
    )


@cache
def _read(path: Path) -> dict[str, Any]:
    return dict(read_json(path)) if path.exists() else {}
