"""Candidates by size and by distance from the source, with the Pareto front."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from phiquant.pages.markup import Html, join, number, tag
from phiquant.pages.scales import Axis, short

# A letter's width at the label's size, as a share of it: enough for any sans-serif.
_LETTER = 0.56
_SIZE = 12


@dataclass(frozen=True)
class Point:
    """One candidate.

    Attributes
    ----------
    label : str
    x : float
        Gigabytes, or another unit that the axis names.
    y, y_error : float
        Distance, not negative, and its standard error.
    words : str
        All that is to be said of it.
    """

    label: str
    x: float
    y: float
    y_error: float
    words: str


def front(points: Sequence[Point]) -> list[Point]:
    """The points that no other one beats in both directions, the smallest first."""
    best: list[Point] = []
    for point in sorted(points, key=lambda p: (p.x, p.y)):
        if not best or point.y < best[-1].y:
            best.append(point)
    return best


def scatter(points: Sequence[Point], x_title: str, y_title: str, title: str) -> Html:
    """The picture for desktops and the one for phones; the style sheet shows one of them."""
    return join(
        _picture(points, x_title, y_title, title, 1140, 430, "pq-svg pq-wide"),
        _picture(points, x_title, y_title, title, 350, 360, "pq-svg pq-narrow"),
    )


def short_labels(names: Sequence[str]) -> list[str]:
    """Names without the folder, the suffix and the words that all of them begin with."""
    bases = [Path(name).name.removesuffix(".gguf") or name for name in names]
    if len(set(bases)) != len(bases):
        return list(names)
    first, last = min(bases), max(bases)
    same = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), 0)
    cut = max(first.rfind(mark, 0, same) for mark in "-_.: ") + 1
    return [base[cut:] for base in bases]


def _picture(
    points: Sequence[Point],
    x_title: str,
    y_title: str,
    title: str,
    width: int,
    height: int,
    class_: str,
) -> Html:
    x, y = _axes(points, width, height)
    best = front(points)
    on_front = {id(point) for point in best}
    return tag(
        "svg",
        tag("title", title),
        _frame(points, x, y, x_title, y_title, width),
        tag("path", d=_stairs(best, x, y), class_="pq-front"),
        (_mark(point, x, y, id(point) in on_front) for point in points),
        _labels(points, x, y, width),
        viewBox=f"0 0 {width} {height}",
        role="img",
        class_=class_,
    )


def _axes(points: Sequence[Point], width: int, height: int) -> tuple[Axis, Axis]:
    xs = [point.x for point in points]
    ys = [point.y for point in points if point.y > 0]
    margin = 0.08 * (max(xs) - min(xs)) or 0.1 * max(xs) or 1.0
    x = Axis(max(0.0, min(xs) - margin), max(xs) + margin, 58, width - 14)
    if not ys:
        return x, Axis(0.0, 1.0, height - 46, 34)
    logarithmic = max(ys) / min(ys) > 5
    if logarithmic:
        # Points at zero stand on the axis, below all others.
        low = min(ys) / (4 if len(ys) < len(points) else 1.6)
        return x, Axis(low, max(ys) * 1.6, height - 46, 34, logarithmic=True)
    return x, Axis(0.0, max(ys) * 1.12, height - 46, 34)


def _frame(
    points: Sequence[Point], x: Axis, y: Axis, x_title: str, y_title: str, width: int
) -> Html:
    parts: list[Html] = []
    for tick in y.ticks(5):
        place = y.place(tick)
        parts += [
            tag("line", x1=x.begin, x2=x.end, y1=place, y2=place, class_="pq-rule"),
            tag("text", short(tick), x=x.begin - 8, y=place + 4, text_anchor="end"),
        ]
    if y.logarithmic and any(point.y == 0 for point in points):
        parts.append(tag("text", "0", x=x.begin - 8, y=y.begin + 4, text_anchor="end"))
    for tick in x.ticks(6 if width > 500 else 4):
        place = x.place(tick)
        parts += [
            tag("line", x1=place, x2=place, y1=y.begin, y2=y.begin + 5, class_="pq-axis"),
            tag("text", short(tick), x=place, y=y.begin + 19, text_anchor="middle"),
        ]
    return tag(
        "g",
        parts,
        tag("line", x1=x.begin, x2=x.end, y1=y.begin, y2=y.begin, class_="pq-axis"),
        tag("text", y_title, x=8, y=16, class_="pq-title"),
        tag("text", x_title, x=x.end, y=y.begin + 38, text_anchor="end", class_="pq-title"),
    )


def _stairs(best: Sequence[Point], x: Axis, y: Axis) -> str:
    """To the right of a point nothing better is to be had until the next one."""
    way = f"M{number(x.place(best[0].x))} {number(y.end)} "
    for point in best:
        way += f"V{number(y.place(point.y))} "
        following = best.index(point) + 1
        way += f"H{number(x.place(best[following].x) if following < len(best) else x.end)} "
    return way


def _mark(point: Point, x: Axis, y: Axis, best: bool) -> Html:
    cx, cy = x.place(point.x), y.place(point.y)
    bar = None
    if point.y_error > 0:
        bar = tag(
            "line",
            x1=cx,
            x2=cx,
            y1=y.place(point.y - point.y_error),
            y2=y.place(point.y + point.y_error),
            class_="pq-whisker",
        )
    return tag(
        "g",
        tag("title", point.words),
        bar,
        tag("circle", cx=cx, cy=cy, r=14, class_="pq-hit"),
        tag("circle", cx=cx, cy=cy, r=5, class_="pq-best" if best else "pq-beaten"),
        class_="pq-point",
    )


def _labels(points: Sequence[Point], x: Axis, y: Axis, width: int) -> list[Html]:
    """Labels beside their points, where they cover no other label or point; else none."""
    taken = [
        (x.place(p.x) - 6, y.place(p.y) - 6, x.place(p.x) + 6, y.place(p.y) + 6) for p in points
    ]
    limit = 26 if width > 500 else 16
    found = []
    for point in sorted(points, key=lambda p: p.y):
        words = point.label if len(point.label) <= limit else point.label[: limit - 1] + "…"
        long = len(words) * _SIZE * _LETTER
        cx, cy = x.place(point.x), y.place(point.y)
        # The front leaves a point to its right and comes from above: labels stand between.
        for left, base in (
            *((cx + 7, cy - 8), (cx + 10, cy + 4), (cx - 7 - long, cy + 16)),
            *((cx - long / 2, cy + 20), (cx - 10 - long, cy + 4), (cx - 8 - long, cy - 8)),
        ):
            box = (left, base - _SIZE + 2, left + long, base + 2)
            inside = box[0] > x.begin and box[2] < width - 2 and box[3] < y.begin
            if inside and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                found.append(tag("text", words, x=left, y=base, class_="pq-label"))
                break
    return found


def _overlap(
    one: tuple[float, float, float, float], other: tuple[float, float, float, float]
) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
