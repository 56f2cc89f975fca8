"""Children that are to be interrupted must not inherit that they ignore it, as under nohup."""

from __future__ import annotations

import signal


def heed() -> None:
    """A ``preexec_fn``: Ctrl-C, hang-ups and termination do what they do in a fresh shell."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
