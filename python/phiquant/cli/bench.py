"""``phiquant bench``."""

from __future__ import annotations

import click

from phiquant.cli.options import SETTINGS, Command, json_option, option, quiet_option
from phiquant.cli.shares import watcher
from phiquant.cli.terminal import Words, put, put_json

_EXAMPLES = """\b
Examples:
  phiquant bench phi4-q4_k_m.gguf
  phiquant bench models/*.gguf --threads 4 --prompt 128 --decode 64"""

_WHAT = "What to run"
_HOW = "How to run"


@click.command("bench", cls=Command, context_settings=SETTINGS, epilog=_EXAMPLES)
@click.argument("outputs", metavar="OUT...", type=click.Path(), nargs=-1, required=True)
@option(
    "--prompt",
    section=_WHAT,
    metavar="N",
    type=click.IntRange(1),
    default=512,
    help="Tokens of the prompt. Default: 512.",
)
@option(
    "--decode",
    section=_WHAT,
    metavar="N",
    type=click.IntRange(1),
    default=128,
    help="Tokens to decode after it. Default: 128.",
)
@option(
    "--warmup",
    section=_HOW,
    metavar="N",
    type=click.IntRange(0),
    default=1,
    help="Runs that do not count. Default: 1.",
)
@option(
    "--repeats",
    section=_HOW,
    metavar="N",
    type=click.IntRange(1),
    default=5,
    help="Runs that do. Default: 5.",
)
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
