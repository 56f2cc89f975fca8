"""Where the bytes of a result go: a bar for each module and codec, the largest first."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from phiquant.pages.heat_map import short_codec
from phiquant.pages.markup import Html, breakable, tag
from phiquant.pages.modules import place_of, short_modules
from phiquant.report import TensorReport
from phiquant.texts import bytes_text


@dataclass(frozen=True)
class Share:
    """All tensors of one module with one codec.

    Attributes
    ----------
    module : str
    codec : str or None
        None for what is no tensor.
    count : int
        Tensors of the source.
    nbytes : int
    weights : int
    error : float
        Relative root mean square over all of them.
    """

    module: str
    codec: str | None
    count: int
    nbytes: int
    weights: int
    error: float


def shares(tensors: Sequence[TensorReport], file_bytes: int) -> list[Share]:
    """Where ``file_bytes`` go: modules by codec, what is made from the config, and the rest."""
    groups: dict[tuple[str, str], list[TensorReport]] = {}
    made = rest = 0
    for tensor in tensors:
        if tensor.source is None:
            made += tensor.nbytes
        else:
            key = (place_of(tensor.source).module, short_codec(tensor.codec))
            groups.setdefault(key, []).append(tensor)
    named = short_modules(module for module, _ in groups)
    found = []
    for (module, codec), members in groups.items():
        weights = sum(t.weights for t in members)
        total = sum(t.weights * t.relative_error**2 for t in members)
        found.append(
            Share(
                named[module],
                codec,
                len({t.source for t in members}),
                sum(t.nbytes for t in members),
                weights,
                math.sqrt(total / max(1, weights)),
            )
        )
    rest = max(0, file_bytes - made - sum(share.nbytes for share in found))
    for name, nbytes in (("tables made from the config", made), ("all but tensors", rest)):
        if nbytes:
            found.append(Share(name, None, 0, nbytes, 0, 0.0))
    return sorted(found, key=lambda share: -share.nbytes)


def byte_bars(found: Sequence[Share], colour_of: dict[str, int]) -> Html:
    """The bars, with names, sizes, shares and bits a weight."""
    total = sum(share.nbytes for share in found) or 1
    largest = max((share.nbytes for share in found), default=1) or 1
    return tag("div", (_bar(share, total, largest, colour_of) for share in found), class_="pq-bars")


def _bar(share: Share, total: int, largest: int, colour_of: dict[str, int]) -> Html:
    bits = f"{8 * share.nbytes / share.weights:.2f} bits a weight" if share.weights else ""
    of = f"{share.count} × " if share.count > 1 else ""
    of_all = f"{share.nbytes / total:.1%}" if share.nbytes >= total / 1000 else "< 0.1%"
    words = f"{share.module}: {of}{share.codec or ''} {bytes_text(share.nbytes)}"
    colour = f"pq-f{colour_of.get(share.codec, 7)}" if share.codec else "pq-f7"
    return tag(
        "div",
        tag(
            "div",
            tag("b", breakable(share.module)),
            tag("span", of, share.codec) if share.codec else None,
            class_="pq-what",
        ),
        tag(
            "div",
            tag("i", class_=colour, style=f"width:{max(0.4, 100 * share.nbytes / largest):.2f}%"),
            class_="pq-track",
        ),
        tag(
            "div",
            tag("b", bytes_text(share.nbytes)),
            tag("span", of_all),
            tag("span", bits, class_="pq-wide-only") if bits else None,
            class_="pq-value",
        ),
        class_="pq-bar",
        title=words,
    )
