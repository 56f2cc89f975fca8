"""Advice: which targets fit a device, ranked by what was measured of them."""

from phiquant.advice.ranking import Advice, Suggestion, advise

__all__ = ["Advice", "Suggestion", "advise"]
