"""Progress of runs that count no bytes, where stderr is no terminal: a line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from phiquant.cli.progress import INTERVAL
from phiquant.cli.terminal import Words, is_terminal


def watcher(words: Words, about: str) -> bool | Callable[[int, int], None]:
    """What takes ``progress``: a bar on terminals, lines with the share done elsewhere, or nothing.

    Parameters
    ----------
    words : Words
    about : str
        Of what the share is: ``all layers``.
    """
    if words.quiet:
        return False
    if is_terminal(sys.stderr):
        return True
    begin = last = time.monotonic()
    first: int | None = None  # more than nothing where a run goes on from an earlier one

    def report(done: int, total: int) -> None:
        nonlocal last, first
        now = time.monotonic()
        first = done if first is None else first
        if now - last < INTERVAL or done <= first:
            return
        last = now
        left = (now - begin) * (total - done) / (done - first)
        words.say(f"phiquant: {done / total:.0%} of {about}, about {left:.0f} s to go")

    return report
