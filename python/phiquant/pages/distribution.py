"""Weights against their codes: histograms of both, and where one group's weights are rounded to."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from phiquant.pages.heat_map import short_codec
from phiquant.pages.markup import Html, number, tag
from phiquant.pages.modules import place_of
from phiquant.pages.samples import Sample
from phiquant.pages.scales import Axis, percent, short, ticks

# All pictures have this size; the page scales them to its columns.
_WIDTH, _HEIGHT = 340, 212
_LEFT, _RIGHT = 8, 332
_BINS = 72
# The share of weights that lie beyond the histogram's ends, together.
_TAILS = 0.002


def distributions(samples: Sequence[Sample], colour_of: dict[str, int]) -> Html:
    """A picture for each sample, and what they show."""
    return tag(
        "div",
        tag(
            "p",
            "Above: how often weights of some rows have a value, in the source (filled) and in the "
            "result (line). Below: one group of weights that share a scale, of middling range; a "
            "line leads from each weight down to the level that it is rounded to.",
            class_="pq-note",
        ),
        tag("div", (_figure(sample, colour_of) for sample in samples), class_="pq-small"),
    )


def _figure(sample: Sample, colour_of: dict[str, int]) -> Html:
    place = place_of(sample.name)
    codec = short_codec(sample.codec)
    layer = "" if place.layer is None else f", layer {place.layer}"
    levels = np.unique(sample.group_decoded).size
    return tag(
        "figure",
        tag("figcaption", tag("b", place.module), layer, " ", tag("span", codec)),
        picture(
            sample,
            f"Weights of {sample.name} against their {codec} levels",
            colour_of.get(codec, 0),
        ),
        tag(
            "p",
            f"error {percent(sample.error)} · groups of {sample.group} · {levels} levels used here",
            class_="pq-note",
        ),
    )


def picture(sample: Sample, title: str, colour: int) -> Html:
    """Both parts of one picture, as SVG."""
    limit = _limit(sample.weights)
    return tag(
        "svg",
        tag("title", title),
        histogram(sample.weights, sample.decoded, limit, colour),
        _rounding(sample, colour),
        viewBox=f"0 0 {_WIDTH} {_HEIGHT}",
        role="img",
        class_="pq-svg",
    )


def histogram(
    weights: NDArray[np.float32], decoded: NDArray[np.float32] | None, limit: float, colour: int
) -> Html:
    """Bars of weights, a line of decoded ones, and an axis of their values, 120 units high."""
    edges = np.linspace(-limit, limit, _BINS + 1)
    counts = np.histogram(np.clip(weights, -limit, limit), edges)[0]
    x = Axis(-limit, limit, _LEFT, _RIGHT)
    # Of codecs with few levels, single bins of decoded weights are many times as high.
    y = Axis(0.0, 1.15 * float(counts.max(initial=1)), 100.0, 4.0)
    filled = _steps(edges, counts, x, y)
    parts = [
        tag(
            "path",
            d=f"M{number(x.place(-limit))} {number(y.place(0))} {filled} "
            f"L{number(x.place(limit))} {number(y.place(0))} Z",
            class_=f"pq-s{colour} pq-area",
        )
    ]
    if decoded is not None:
        its = np.histogram(np.clip(decoded, -limit, limit), edges)[0]
        parts.append(tag("path", d=f"M{_steps(edges, its, x, y)[1:]}", class_="pq-outline"))
    parts.append(tag("line", x1=_LEFT, x2=_RIGHT, y1=100, y2=100, class_="pq-axis"))
    for tick in ticks(-limit, limit, 4):
        place = x.place(tick)
        parts += [
            tag("line", x1=place, x2=place, y1=100, y2=104, class_="pq-axis"),
            tag("text", short(tick if abs(tick) > 1e-12 * limit else 0.0), x=place, y=116,
                text_anchor="middle"),
        ]  # fmt: skip
    return tag("g", parts)


def _rounding(sample: Sample, colour: int) -> Html:
    """Lines from a group's weights (above) to their levels (below)."""
    both = np.concatenate([sample.group_weights, sample.group_decoded])
    limit = float(np.abs(both).max(initial=0)) or 1.0
    x = Axis(-limit, limit, _LEFT + 2, _RIGHT - 2)
    top, bottom = 136, 188
    lines = [
        tag("line", x1=x.place(float(w)), x2=x.place(float(level)), y1=top, y2=bottom)
        for w, level in zip(sample.group_weights, sample.group_decoded, strict=True)
    ]
    weights = [
        tag("circle", cx=x.place(float(w)), cy=top, r=1.8) for w in sample.group_weights.tolist()
    ]
    levels = [
        tag(
            "line",
            tag("title", f"{level:.4g}: {count} of {sample.group_decoded.size} weights"),
            x1=x.place(level),
            x2=x.place(level),
            y1=bottom,
            y2=bottom + 9,
        )
        for level, count in zip(
            *(part.tolist() for part in np.unique(sample.group_decoded, return_counts=True)),
            strict=True,
        )
    ]
    return tag(
        "g",
        tag("g", lines, class_=f"pq-s{colour} pq-fan"),
        tag("g", weights, class_=f"pq-s{colour}"),
        tag("g", levels, class_="pq-level"),
        tag("text", f"−{limit:.3g}", x=_LEFT, y=_HEIGHT - 3),
        tag("text", "levels of one group", x=_WIDTH / 2, y=_HEIGHT - 3, text_anchor="middle"),
        tag("text", f"{limit:.3g}", x=_RIGHT, y=_HEIGHT - 3, text_anchor="end"),
    )


def _steps(edges: NDArray[np.float64], counts: NDArray[np.int64], x: Axis, y: Axis) -> str:
    places = []
    for index, count in enumerate(counts.tolist()):
        height = number(y.place(count))
        places.append(f"L{number(x.place(edges[index]))} {height}")
        places.append(f"L{number(x.place(edges[index + 1]))} {height}")
    return " ".join(places)


def _limit(weights: NDArray[np.float32]) -> float:
    """Half the histogram's width: nearly all weights lie within."""
    finite = np.abs(weights[np.isfinite(weights)])
    return (float(np.quantile(finite, 1 - _TAILS)) if finite.size else 0.0) * 1.08 or 1.0
