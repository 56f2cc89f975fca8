"""Where words go: results to stdout, all else to stderr, and no control characters to either."""

from __future__ import annotations

import json
import os
import shutil
import sys
import unicodedata
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import click

from phiquant.texts import printable


def is_terminal(stream: TextIO) -> bool:
    """Whether people look at the stream."""
    try:
        return stream.isatty()
    except (AttributeError, ValueError):  # closed, or none
        return False


def width() -> int | None:
    """Columns that a line on stdout has; None where it is no terminal and lines need not fit."""
    return shutil.get_terminal_size().columns if is_terminal(sys.stdout) else None


def styled(text: str, stream: TextIO, **style: Any) -> str:
    """``text`` in a style (as click's) where the stream is a terminal that wants it."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return text if plain or not is_terminal(stream) else click.style(text, **style)


def heading(text: str) -> str:
    """A heading on stdout."""
    return styled(text, sys.stdout, bold=True)


def put(text: str = "") -> None:
    """A line of a result. Unlike :func:`print`, it takes what the stream's encoding cannot."""
    encoding = sys.stdout.encoding or "utf-8"
    click.echo(text.encode(encoding, "backslashreplace").decode(encoding))


def put_path(path: Path) -> None:
    """A path on a line of its own, in the file system's bytes, for scripts."""
    click.echo(os.fsencode(path))


def put_json(value: Any) -> None:
    """One object: on lines for people, on one line for programs."""
    click.echo(json.dumps(value, indent=2 if is_terminal(sys.stdout) else None, allow_nan=False))


def shorten(text: str, columns: int) -> str:
    """``text``, cut to ``columns`` of a terminal where it is longer."""
    if sum(map(_columns, text)) <= columns:
        return text
    taken, room = "", max(0, columns - 3)
    for character in text:
        room -= _columns(character)
        if room < 0:
            break
        taken += character
    return taken + "..."


def _columns(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


@dataclass(frozen=True)
class Words:
    """What a command says on stderr.

    Attributes
    ----------
    quiet : bool
        Errors only.
    """

    quiet: bool = False

    def say(self, text: str) -> None:
        """Say it, line by line."""
        self._put("\n".join(map(printable, text.split("\n"))))

    def note(self, text: str) -> None:
        """Say what the user should know."""
        mark = styled("note:", sys.stderr, fg="yellow", bold=True)
        self._put(f"{mark} {printable(text)}")

    def command(self, about: str, command: str) -> None:
        """Say how to go on."""
        shown = styled(printable(command), sys.stderr, bold=True)
        self._put(f"{about}: {shown}")

    def _put(self, line: str) -> None:
        if not self.quiet:
            # A run goes on when nobody hears about it any more (2>&1 | head, a closed terminal).
            with suppress(OSError):
                click.echo(line, err=True)


def say_error(text: str) -> None:
    """The one line that tells why there is no result."""
    mark = styled("phiquant:", sys.stderr, fg="red", bold=True)
    with suppress(OSError):
        click.echo(f"{mark} {printable(text)}", err=True)


def clear_line() -> None:
    """Go over the ``^C`` that the terminal itself wrote."""
    if is_terminal(sys.stderr) and os.environ.get("TERM") != "dumb":
        with suppress(OSError):
            click.echo("\r\x1b[K", err=True, nl=False)
