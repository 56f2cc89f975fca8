"""Gates: how far a model may be from its source before a build should stop."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from phiquant.evaluate.evaluation import Evaluation


@dataclass(frozen=True)
class Miss:
    """A gate that a model does not pass.

    Attributes
    ----------
    model : str
    gate : str
        ``max_kld``, ``max_perplexity_ratio`` or ``min_top1``.
    value, bound : float
    """

    model: str
    gate: str
    value: float
    bound: float

    def to_json(self) -> dict[str, Any]:
        """All of it as plain data."""
        return asdict(self)

    def __str__(self) -> str:
        what = {
            "max_kld": "mean KL divergence",
            "max_perplexity_ratio": "perplexity ratio",
            "min_top1": "top-1 agreement",
        }[self.gate]
        side = "below" if self.gate == "min_top1" else "above"
        return (
            f"{self.model}: {what} {self.value:.5g} is {side} the gate of {self.bound:.5g}, "
            f"by {abs(self.value - self.bound):.2g}"
        )


@dataclass(frozen=True)
class Gates:
    """Bounds that each model must keep; None where there is none.

    Attributes
    ----------
    max_kld : float, optional
        Largest mean KL divergence, in nats.
    max_perplexity_ratio : float, optional
        Largest perplexity, relative to the source's.
    min_top1 : float, optional
        Smallest share of tokens whose most likely token is the source's, from 0 to 1.
    """

    max_kld: float | None = None
    max_perplexity_ratio: float | None = None
    min_top1: float | None = None

    def missed(self, evaluation: Evaluation) -> list[Miss]:
        """What does not hold, model by model; empty where all do."""
        found = []
        for score in evaluation.scores:
            # Asked so that a bound of NaN is missed, and not kept.
            if self.max_kld is not None and not score.mean_kld <= self.max_kld:
                found.append(Miss(score.model, "max_kld", score.mean_kld, self.max_kld))
            ratio, largest = score.perplexity_ratio, self.max_perplexity_ratio
            if largest is not None and not ratio <= largest:
                found.append(Miss(score.model, "max_perplexity_ratio", ratio, largest))
            if self.min_top1 is not None and not score.top1 >= self.min_top1:
                found.append(Miss(score.model, "min_top1", score.top1, self.min_top1))
        return found
