"""Progress of long runs where stderr is no terminal: a line now and then, for logs."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from phiquant.cli.terminal import Words, is_terminal
from phiquant.texts import bytes_text

#: Seconds between two lines. Shorter runs write none.
INTERVAL = 10.0


class Lines:
    """Called with bytes done and bytes in all; says a line every :data:`INTERVAL` seconds."""

    def __init__(self, words: Words, clock: Callable[[], float] = time.monotonic) -> None:
        self._words = words
        self._clock = clock
        self._begin = self._last = clock()

    def __call__(self, done: int, total: int) -> None:
        now = self._clock()
        if now - self._last < INTERVAL or done <= 0:
            return
        self._last = now
        if done >= total:
            self._words.say("phiquant: all is encoded; syncing to disk")
            return
        left = (now - self._begin) * (total - done) / done
        self._words.say(
            f"phiquant: {done / total:.0%}, {bytes_text(done)} of {bytes_text(total)} read, "
            f"about {left:.0f} s to go"
        )


def watcher(words: Words) -> bool | Callable[[int, int], None]:
    """What :meth:`phiquant.Plan.run` takes as ``progress``: a bar, lines, or nothing."""
    if words.quiet:
        return False
    return True if is_terminal(sys.stderr) else Lines(words)
