"""Runs the command line and turns whatever happens into words and an exit code."""

from __future__ import annotations

import errno
import logging
import os
import re
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType

import click

from phiquant.cli.terminal import clear_line, put_json, say_error
from phiquant.errors import InternalError, IoError, PhiquantError, UsageError

_DEBUG = "PHIQUANT_DEBUG"

#: What an interrupted command says whose work is in the cache.
GOES_ON = "what was done is in the cache, and the same command goes on from there"


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, with words about what had been written."""


class _Terminated(BaseException):
    """A signal that asks the process to end, such as SIGTERM: cleans up as Ctrl-C does."""

    def __init__(self, number: int) -> None:
        self.number = number


@contextmanager
def catch_signals() -> Iterator[None]:
    """Make SIGTERM and SIGHUP end a run as Ctrl-C does: with staged files removed."""

    def end(number: int, frame: FrameType | None) -> None:
        raise _Terminated(number)

    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    own = threading.current_thread() is threading.main_thread()
    taken = [n for n in numbers if own and signal.getsignal(n) is signal.SIG_DFL]
    try:
        for number in taken:
            signal.signal(number, end)
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


def run(args: Sequence[str]) -> int:
    """Run one command.

    Parameters
    ----------
    args : sequence of str
        Without the program's name.

    Returns
    -------
    int
        The exit code: 0 done, 1 internal, 2 usage, 3 bad input, 4 input or output, 130 Ctrl-C.
    """
    if not sys.warnoptions and not os.environ.get(_DEBUG):
        warnings.simplefilter("ignore")  # what libraries tell developers is not for users
    as_json = "--json" in args
    try:
        code = _invoke(args)
        sys.stdout.flush()
        return code
    except click.ClickException as error:
        return _fail(_from_click(error, args), as_json)
    except PhiquantError as error:
        return _fail(error, as_json)
    except KeyboardInterrupt as error:
        _hear_no_more(signal.SIGINT)
        what = str(error) if isinstance(error, Interrupted) else "nothing was written"
        return _stop(f"interrupted; {what}", 130, as_json)
    except _Terminated as end:
        _hear_no_more(end.number)
        name = signal.Signals(end.number).name
        return _stop(f"ended by {name}; nothing was written", 128 + end.number, as_json)
    except BrokenPipeError:
        return _nobody_reads()
    except OSError as error:
        return _fail(_from_system(error), as_json)
    except Exception as error:
        cause = f"{type(error).__name__}: {error}".rstrip(": ")
        remedy = f"That is a bug in phiquant: {_DEBUG}=1 shows where; please report it."
        return _fail(InternalError(cause, remedy=remedy), as_json)


def _invoke(args: Sequence[str]) -> int:
    from phiquant.cli.commands import phiquant

    if "_PHIQUANT_COMPLETE" in os.environ:  # a shell asks what could stand here
        from phiquant.cli import completion  # noqa: F401 - tells click how to answer bash

        phiquant.main(list(args), prog_name="phiquant")
    logging.basicConfig(format="phiquant: %(message)s", level=logging.WARNING)
    try:
        with phiquant.make_context("phiquant", list(args)) as context:
            phiquant.invoke(context)
    except click.exceptions.Exit as end:
        return end.exit_code
    return 0


def _fail(error: PhiquantError, as_json: bool) -> int:
    if os.environ.get(_DEBUG):
        traceback.print_exc()
    try:
        if as_json:
            put_json(error.to_json() | {"message": str(error)})
            sys.stdout.flush()
    except OSError:
        _nobody_reads()
    say_error(str(error))
    return error.exit_code


def _stop(words: str, code: int, as_json: bool) -> int:
    clear_line()
    say_error(words)
    if as_json:
        try:
            put_json({"error": "Interrupted", "message": words, "exit_code": code})
            sys.stdout.flush()
        except OSError:
            _nobody_reads()
    return code


def _hear_no_more(number: int) -> None:
    """The end has begun: a second Ctrl-C must not cut it short."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(number, signal.SIG_IGN)


def _nobody_reads() -> int:
    """Whoever read stdout (``| head``) has had enough, or it is full: say no more there."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
    return 0


def _from_system(error: OSError) -> PhiquantError:
    """An error of the operating system that no part of phiquant foresaw."""
    if error.filename is None and error.errno in (
        errno.ENOSPC,
        errno.EIO,
        errno.EBADF,
        errno.EFBIG,
    ):
        _nobody_reads()
        return IoError(f"standard output cannot be written: {error.strerror}")
    cause = error.strerror or str(error) or type(error).__name__
    return IoError(cause, file=error.filename)


def _from_click(error: click.ClickException, args: Sequence[str]) -> PhiquantError:
    """The errors of the option parser, in phiquant's words."""
    context = getattr(error, "ctx", None)
    first = [args[0]] if args and args[0][:1] != "-" else []
    where = context.command_path if context is not None else " ".join(["phiquant", *first])
    cause = " ".join(error.message.split()).rstrip(".")
    cause = re.sub(r" *\(?Did you mean .*", "", cause)
    near: list[str] = list(getattr(error, "possibilities", None) or ())
    if isinstance(error, click.NoSuchOption):
        cause = f"there is no option '{error.option_name}'"
        near = near or _two_dashes(context, args)
    elif isinstance(error, click.MissingParameter) and error.param is not None:
        cause = f"{error.param.human_readable_name} is missing"
    elif isinstance(error, click.BadParameter) and error.param is not None:
        name = max(error.param.opts, key=len, default="")
        cause = f"{name}: {cause}" if name.startswith("-") else cause
    else:
        cause = cause[:1].lower() + cause[1:]
    remedy = ""
    if near:
        remedy = f"Did you mean {' or '.join(near)}? "
    elif "unexpected extra argument" in cause and "--to" in _long_options(context):
        remedy = "Write --to before each target, and quote names with blanks. "
    return UsageError(cause, remedy=f"{remedy}'{where} --help' tells more.")


def _long_options(context: click.Context | None) -> list[str]:
    if context is None:
        return []
    return [name for param in context.command.params for name in param.opts if name[:2] == "--"]


def _two_dashes(context: click.Context | None, args: Sequence[str]) -> list[str]:
    """``--json`` for ``-json``, which the parser takes for a row of letters."""
    words = {f"-{arg.partition('=')[0]}" for arg in args if arg[:1] == "-" and arg[1:2] != "-"}
    return sorted(words.intersection(_long_options(context)))
