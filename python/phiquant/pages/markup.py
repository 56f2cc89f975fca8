"""HTML and SVG whose texts cannot break out: whatever is not marked as markup is escaped."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable
from typing import Union

from phiquant.texts import printable

# Elements of HTML that have no end tag.
_VOID = frozenset({"link", "meta", "wbr"})


class Html(str):
    """Markup, as :func:`tag` makes it; any other string is text."""

    __slots__ = ()


Child = Union[str, Html, None, Iterable["Child"]]  # noqa: UP007


def text(value: str) -> Html:
    """Text from anywhere: ``<>&"'`` become references, and control characters, directional
    overrides and lone surrogates become visible escapes."""
    return Html(html.escape(printable(value), quote=True))


def tag(name: str, /, *children: Child, **attributes: str | float | bool | None) -> Html:
    """An element.

    Parameters
    ----------
    name : str
    children : str, Html, None or iterables of them
        Strings are escaped, None is left out.
    attributes
        ``class_`` stands for ``class``, ``stroke_width`` for ``stroke-width``; None and False are
        left out, True has no value, numbers are written short.
    """
    written = []
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.rstrip("_").replace("_", "-")
        if value is True:
            written.append(f" {key}")
        else:
            shown = value if isinstance(value, str) else number(value)
            written.append(f' {key}="{text(shown)}"')
    start = f"<{name}{''.join(written)}>"
    return Html(start if name in _VOID else f"{start}{join(*children)}</{name}>")


def join(*children: Child) -> Html:
    """Several pieces, one after the other."""
    parts: list[str] = []
    for child in children:
        if child is None:
            continue
        if isinstance(child, Html):
            parts.append(child)
        elif isinstance(child, str):
            parts.append(text(child))
        else:
            parts.append(join(*child))
    return Html("".join(parts))


def breakable(value: str) -> Html:
    """A dotted name as text, which may go on in the next line after dots and underscores."""
    return join(Html(f"{text(part)}<wbr>") for part in re.findall(r"[^._]*[._]+|[^._]+", value))


def number(value: float) -> str:
    """A coordinate: to a hundredth, without zeros at the end."""
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def table(
    head: Iterable[str], rows: Iterable[Iterable[Child]], align: str, *, class_: str = ""
) -> Html:
    """A table that scrolls by itself where the page is narrower.

    Parameters
    ----------
    head : iterable of str
    rows : iterable of iterables of cells
    align : str
        One letter a column: ``l`` or ``r``.
    """

    def line(kind: str, cells: Iterable[Child]) -> Html:
        return tag(
            "tr",
            (
                tag(
                    kind,
                    cell,
                    class_="pq-r" if side == "r" else None,
                    scope="col" if kind == "th" else None,
                )
                for side, cell in zip(align, cells, strict=True)
            ),
        )

    return tag(
        "div",
        tag(
            "table",
            tag("thead", line("th", head)),
            tag("tbody", (line("td", row) for row in rows)),
            class_=class_ or None,
        ),
        class_="pq-scroll",
        tabindex="0",
    )
