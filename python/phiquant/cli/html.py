"""``--html FILE``: a page for browsers beside a command's result."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from phiquant.cli.options import option

if TYPE_CHECKING:
    from phiquant.cli.terminal import Words


def _checked(context: click.Context, parameter: click.Parameter, value: str | None) -> Path | None:
    if value is None:
        return None
    from phiquant.pages.file import check_page

    # Before hours of work, not after them.
    check_page(Path(value))
    return Path(value)


def html_option(section: str, what: str) -> Callable[[Any], Any]:
    """--html FILE.

    Parameters
    ----------
    section : str
    what : str
        What the page shows.
    """
    return option(
        "--html",
        "page",
        section=section,
        metavar="FILE",
        type=click.Path(),
        callback=_checked,
        help=f"Write a page for browsers: {what}. It needs no network.",
    )


def put_page(path: Path, page: str, words: Words) -> None:
    """Write it, and say so."""
    from phiquant.pages.file import write_page

    write_page(path, page)
    words.say(f"page: {path}")
