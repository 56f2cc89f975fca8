"""``phiquant verify``."""

from __future__ import annotations

import sys

import click

from phiquant.cli.commands import local
from phiquant.cli.eval import GATE_MISSED
from phiquant.cli.options import (
    SETTINGS,
    Command,
    json_option,
    option,
    quiet_option,
    tokenizer_option,
    workers_option,
)
from phiquant.cli.terminal import is_terminal, put, put_json, say_error

_EXAMPLES = """\b
Examples:
  phiquant verify phi4-q4_k_m.gguf --against ./Phi-4-mini-instruct"""


@click.command("verify", cls=Command, context_settings=SETTINGS, epilog=_EXAMPLES)
@click.argument("output", metavar="OUT", type=click.Path())
@option(
    "--against",
    section="What to compare",
    metavar="SRC",
    type=click.Path(),
    required=True,
    help="What OUT was made from: a folder, a GGUF file, or a hub id.",
)
@tokenizer_option("What to compare", "SRC")
@workers_option
@json_option
@quiet_option
def command(
    output: str,
    against: str,
    tokenizer: str | None,
    threads: int | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Run an output in its own runtime, and see that it is the model it was made from.

    Its tokens, logits and greedy text are compared with the reference run. Exit code 5 if a check
    fails.
    """
    from phiquant.checkpoint import open_checkpoint
    from phiquant.evaluate.verification import verify
    from phiquant.registry.recording import record_verdict

    shown = not quiet and is_terminal(sys.stderr)
    source = open_checkpoint(local(against), progress=shown)
    result = verify(local(output), source, tokenizer=tokenizer, threads=threads)
    record_verdict(local(output), "verify", result.to_json())
    if as_json:
        put_json(result.to_json())
    else:
        put(str(result))
    for check in result.checks:
        if not check.passed:
            say_error(f"{output}: {check.name}: {check.found}, where {check.bound} is the bound")
    if not result.passed:
        raise click.exceptions.Exit(GATE_MISSED)
