"""``phiquant bench``."""

from __future__ import annotations

from collections.abc import Callable

import click

from phiquant.cli.options import SETTINGS, Command, Function, json_option, option, quiet_option
from phiquant.cli.shares import watcher
from phiquant.cli.terminal import Words, put, put_json

_EXAMPLES = """\b
Examples:
  phiquant bench phi4-q4_k_m.gguf
  phiquant bench models/*.gguf --threads 4 --prompt 128 --decode 64"""

_WHAT = "What to run"
_HOW = "How to run"


def _number(
    name: str, section: str, least: int, default: int, about: str
) -> Callable[[Function], Function]:
    return option(
        name,
        section=section,
        metavar="N",
        type=click.IntRange(least),
        default=default,
        help=f"{about} Default: {default}.",
    )


@click.command("bench", cls=Command, context_settings=SETTINGS, epilog=_EXAMPLES)
@click.argument("outputs", metavar="OUT...", type=click.Path(), nargs=-1, required=True)
@_number("--prompt", _WHAT, 1, 512, "Tokens of the prompt.")
@_number("--decode", _WHAT, 1, 128, "Tokens to decode after it.")
@_number("--warmup", _HOW, 0, 1, "Runs that do not count.")
@_number("--repeats", _HOW, 1, 5, "Runs that do.")
@option(
    "--threads",
    section=_HOW,
    metavar="N",
    type=click.IntRange(1, 1024),
    help="Threads of the runtime, kept on as many processors. Default: one a core.",
)
@json_option
@quiet_option
def command(
    outputs: tuple[str, ...],
    prompt: int,
    decode: int,
    warmup: int,
    repeats: int,
    threads: int | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Run outputs in their own runtimes, and show what they cost side by side.

    Time to load, resident memory, tokens per second for a prompt and for decoding, and bytes of KV
    cache per token. Each output runs in a process of its own, and in the program that runs its
    format: 'phiquant doctor' lists them.
    """
    from phiquant.evaluate.benchmark import bench
    from phiquant.registry.recording import record_verdict

    result = bench(
        outputs,
        prompt=prompt,
        decode=decode,
        warmup=warmup,
        repeats=repeats,
        threads=threads,
        progress=watcher(Words(quiet), "the tokens"),
    )
    facts = result.to_json()
    for output, one in zip(outputs, facts.pop("outputs"), strict=True):
        record_verdict(output, "bench", one | facts)
    if as_json:
        put_json(result.to_json())
    else:
        put(str(result))
