"""The command ``phiquant``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NoReturn


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Run the command line, ``sys.argv[1:]`` by default, and exit with its code."""
    try:
        from phiquant.cli.entry import catch_signals, run

        with catch_signals():
            code = run(sys.argv[1:] if args is None else args)
    except KeyboardInterrupt:  # before run() could, or after it
        code = 130
    sys.exit(code)
