"""``phiquant compare``."""

from __future__ import annotations

import sys

import click

from phiquant.cli.commands import local
from phiquant.cli.options import (
    SETTINGS,
    Command,
    json_option,
    option,
    quiet_option,
    workers_option,
)
from phiquant.cli.shares import watcher
from phiquant.cli.terminal import Words, is_terminal, put, put_json, width

_EXAMPLES = """\b
Examples:
  phiquant compare ./Phi-4-mini-instruct phi4-q4_k_m.gguf
  phiquant compare mine.gguf published.gguf --all"""


@click.command("compare", cls=Command, context_settings=SETTINGS, epilog=_EXAMPLES)
@click.argument("a", metavar="A", type=click.Path())
@click.argument("b", metavar="B", type=click.Path())
@option(
    "--all",
    "every",
    section="Words",
    is_flag=True,
    help="On a terminal, too, a row for every tensor: layers that are alike share rows else.",
)
@workers_option
@json_option
@quiet_option
def command(a: str, b: str, every: bool, threads: int | None, as_json: bool, quiet: bool) -> None:
    """Compare metadata, codecs, bytes and weights of two models' files.

    A and B are folders with safetensors, .safetensors or .gguf files, or hub ids. Errors are B's,
    relative to A; of tensors that share a row, the largest is shown.
    """
    from phiquant.checkpoint import open_checkpoint
    from phiquant.evaluate import compare

    words = Words(quiet)
    shown = not quiet and is_terminal(sys.stderr)
    result = compare(
        open_checkpoint(local(a), progress=shown),
        open_checkpoint(local(b), progress=shown),
        threads=threads,
        progress=watcher(words, "the weights"),
    )
    if as_json:
        put_json(result.to_json())
    else:
        put(result.text(every=every or width() is None))
