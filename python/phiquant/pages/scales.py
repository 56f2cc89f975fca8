"""Axes and colours: numbers to places, round ticks, and which colour stands for what."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

# Steps of the scale from the least to the largest error; style.css has a colour for each.
HEAT_STEPS = 9
# Colours for codecs in style.css; the last one is for all that are left.
COLOURS = 8


@dataclass(frozen=True)
class Axis:
    """Values from ``low`` to ``high`` on places from ``begin`` to ``end``.

    Attributes
    ----------
    logarithmic : bool
        Whether equal distances are equal ratios; ``low`` is positive then.
    """

    low: float
    high: float
    begin: float
    end: float
    logarithmic: bool = False

    def place(self, value: float) -> float:
        """Where a value stands; what is outside the axis stands at its end."""
        low, high, value = self.low, self.high, min(max(value, self.low), self.high)
        if self.logarithmic:
            low, high, value = math.log(low), math.log(high), math.log(value)
        share = (value - low) / (high - low) if high > low else 0.5
        return self.begin + share * (self.end - self.begin)

    def ticks(self, count: int) -> list[float]:
        """About ``count`` round values."""
        return (
            log_ticks(self.low, self.high)
            if self.logarithmic
            else ticks(self.low, self.high, count)
        )


def ticks(low: float, high: float, count: int) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten between ``low`` and ``high``."""
    if not high > low:
        return [low]
    rough = (high - low) / max(1, count)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten; powers of ten alone where there are many."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    factors = (1, 2, 5) if last - first <= 3 else (1,)
    found = [m * 10.0**power for power in range(first, last + 1) for m in factors]
    return [value for value in found if low * 0.999 <= value <= high * 1.001]


def heat_step(value: float, low: float, high: float) -> int:
    """Which of the ``HEAT_STEPS`` colours an error has."""
    share = (value - low) / (high - low) if high > low else 0.5
    return min(HEAT_STEPS - 1, max(0, int(share * HEAT_STEPS)))


def colours(names: Iterable[str]) -> dict[str, int]:
    """A colour for each name, in their order; those after the seventh share the last one."""
    return {name: min(index, COLOURS - 1) for index, name in enumerate(dict.fromkeys(names))}


def percent(share: float) -> str:
    """A share in percent, to three digits: ``7.18 %``, ``0.542 %``."""
    value = 100 * share
    if value == 0:
        return "0 %"
    if abs(value) < 0.001:
        return f"{value:.1e} %"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{min(4, digits)}f} %"


def short(value: float) -> str:
    """A number on an axis."""
    return f"{value:.3g}".replace("e-0", "e-").replace("e+0", "e").replace("-", "−")


def size_unit(nbytes: float) -> tuple[str, float]:
    """The unit for an axis of sizes up to ``nbytes``, and its bytes."""
    return ("GB", 1e9) if nbytes >= 1e9 else ("MB", 1e6) if nbytes >= 1e6 else ("kB", 1e3)
