"""Runs the command line as users do: as a process with pipes, or on a terminal of its own."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from pathlib import Path

COMMAND = [sys.executable, "-m", "phiquant"]

# Made the child's own terminal before it runs, so that ^C there becomes SIGINT.
_ON_TERMINAL = """
import fcntl, runpy, signal, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
signal.signal(signal.SIGINT, signal.default_int_handler)
runpy.run_module("phiquant", run_name="__main__", alter_sys=True)
"""


def environment(**changes: str) -> dict[str, str]:
    """This process's environment without what would change phiquant's output."""
    own = ("PHIQUANT_CACHE", "PHIQUANT_REGISTRY")  # the tests' own; see conftest.py
    kept = {
        key: value
        for key, value in os.environ.items()
        if key in own or not key.startswith("PHIQUANT_")
    }
    for key in ("NO_COLOR", "COLUMNS", "LINES", "HF_HUB_OFFLINE"):
        kept.pop(key, None)
    return kept | {"TERM": "xterm", **changes}


def phiquant(
    *args: object, cwd: Path | None = None, stdout: int = subprocess.PIPE, **changes: str
) -> subprocess.CompletedProcess[str]:
    """Run ``phiquant ARGS`` to its end, stdout and stderr apart."""
    return subprocess.run(
        [*COMMAND, *map(os.fsdecode, map(_word, args))],
        cwd=cwd,
        env=environment(**changes),
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        timeout=300,
    )


def _word(arg: object) -> str | bytes:
    return arg if isinstance(arg, (str, bytes)) else str(arg)


class OnTerminal:
    """``phiquant ARGS`` with a terminal as stdin, stdout and stderr."""

    def __init__(self, *args: object, cwd: Path, columns: int = 80, **changes: str) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        self.process = subprocess.Popen(
            [sys.executable, "-c", _ON_TERMINAL, *map(str, args)],
            cwd=cwd,
            env=environment(**changes),
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
        )
        os.close(slave)
        self.shown = ""

    def wait_for(self, text: str) -> None:
        """Read until the terminal shows ``text``; at the end of output, fail."""
        while text not in self.shown:
            if not self._read():
                raise AssertionError(f"{text!r} never came: {self.shown!r}")

    def type(self, keys: str) -> None:
        """Press keys."""
        os.write(self._master, keys.encode())

    def end(self) -> int:
        """Read what is left, and give the exit code."""
        while self._read():
            pass
        os.close(self._master)
        return self.process.wait(timeout=60)

    def _read(self) -> bool:
        try:
            piece = os.read(self._master, 65536)
        except OSError:  # Linux says EIO when the last process has closed the terminal
            return False
        self.shown += piece.decode("utf-8", "replace")
        return bool(piece)
