"""Advice: which targets fit a device, ranked by what was measured of them."""

from phiquant.advice.ranking import advise
from phiquant.advice.result import Advice, Suggestion

__all__ = ["Advice", "Suggestion", "advise"]
