"""The whole document around a page's parts, and the parts that all pages have."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from phiquant._core import version
from phiquant.pages.markup import Child, Html, join, tag

# No page needs a script or asks a server for anything, so that no text in it can make it do so.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


@lru_cache(maxsize=1)
def style() -> Html:
    """The style sheet of pages and displays, as an element."""
    return tag("style", Html(Path(__file__).with_name("style.css").read_text(encoding="utf-8")))


def document(title: str, *body: Child) -> str:
    """A self-contained HTML document.

    Parameters
    ----------
    title : str
    body : markup
    """
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("meta", name="generator", content=f"phiquant {version}"),
        tag("title", title),
        tag("link", rel="icon", href="data:,"),
        style(),
    )
    foot = tag("footer", f"Made by phiquant {version}.")
    page = tag("html", head, tag("body", tag("main", body, foot), class_="pq pq-page"), lang="en")
    return f"<!doctype html>\n{page}\n"


def display(*body: Child) -> str:
    """A part of a notebook, in the notebook's own colours."""
    return join(tag("div", style(), body, class_="pq pq-inline"))


def header(title: str, subtitle: Child, tiles: list[tuple[str, str, str]]) -> Html:
    """The page's head.

    Parameters
    ----------
    title : str
    subtitle : markup
    tiles : list of (name, value, words)
        The main facts.
    """
    return tag(
        "header",
        tag("h1", title),
        tag("p", subtitle, class_="pq-path"),
        tag(
            "dl",
            (
                tag("div", tag("dt", name), tag("dd", value), tag("dd", words, class_="pq-note"))
                for name, value, words in tiles
            ),
            class_="pq-tiles",
        ),
    )


def section(title: str, *body: Child, level: int = 2, anchor: str | None = None) -> Html:
    """A part of a page under its title."""
    return tag("section", tag(f"h{level}", title), body, id=anchor)


def folded(title: str, *body: Child) -> Html:
    """What is there for those who ask."""
    return tag("details", tag("summary", title), body)
