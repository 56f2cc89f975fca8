"""What advice is: suggestions with their reasons, as a table and as data."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from phiquant.advice.candidates import DEVICES
from phiquant.advice.record import Loss, Speed
from phiquant.texts import bytes_text, table


@dataclass(frozen=True)
class Suggestion:
    """A target that fits.

    Attributes
    ----------
    model, target : str
    quality : "reference" or "best"
        What the command asks for: ``best`` where it was measured to lose less.
    runtime : str
    nbytes : int
        Bytes of the result: as planned where there is a source, else of the weights alone.
    cache_bytes : int
        Keys and values of the whole context, as the runtime keeps them by default.
    loss : Loss or None
        As measured on a small model; None where it was not.
    speed : Speed or None
        As measured; None where it was not.
    reason : str
    page : str
        The page of the docs that says more.
    commands : tuple of str
        What makes it.
    """

    model: str
    target: str
    quality: str
    runtime: str
    nbytes: int
    cache_bytes: int
    loss: Loss | None
    speed: Speed | None
    reason: str
    page: str
    commands: tuple[str, ...]

    @property
    def memory(self) -> int:
        """Bytes of weights and cache."""
        return self.nbytes + self.cache_bytes


@dataclass(frozen=True, repr=False)
class Advice:
    """What fits, the best first for each model.

    Attributes
    ----------
    source : str or None
    device, purpose : str
    memory : int
        Bytes that weights and cache may take.
    context : int
        Tokens that the cache is counted for.
    suggestions : tuple of Suggestion
    left_out : tuple of (str, str)
        Targets that the source cannot become, and why.
    notes : tuple of str
        Where the figures come from.
    """

    source: str | None
    device: str
    purpose: str
    memory: int
    context: int
    suggestions: tuple[Suggestion, ...]
    left_out: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """All of it as plain data."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [
            f"{self.source or 'Published models'} on {DEVICES[self.device]}, for {self.purpose}: "
            f"weights and the cache of {self.context} tokens within {bytes_text(self.memory)}"
        ]
        named = self.source is None
        head = ["", *(["model"] if named else []), "target", "quality", "size", "cache"]
        head += ["divergence", "same top", "tokens/s"]
        rows = [
            [
                str(number),
                *([one.model] if named else []),
                one.target,
                one.quality,
                bytes_text(one.nbytes),
                bytes_text(one.cache_bytes),
                "not measured" if one.loss is None else f"{one.loss.divergence:.5f}",
                "" if one.loss is None else f"{one.loss.same_top:.1%}",
                "not measured" if one.speed is None else f"{one.speed.decode:.3g}",
            ]
            for number, one in enumerate(self.suggestions, 1)
        ]
        lines.append(table(head, rows, "r" + "l" * (len(head) - 6) + "rrrrr"))
        for number, one in enumerate(self.suggestions, 1):
            lines.append(f"{number}. {one.target}: {one.reason} ({one.page})")
            lines += [f"   {command}" for command in one.commands]
        lines += [f"left out: {target}: {cause}" for target, cause in self.left_out]
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines)

    __repr__ = __str__
