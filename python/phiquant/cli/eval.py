"""``phiquant eval``."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from phiquant.cli.commands import local
from phiquant.cli.entry import GOES_ON, Interrupted
from phiquant.cli.html import html_option, put_page
from phiquant.cli.options import (
    SETTINGS,
    Command,
    cache_option,
    json_option,
    option,
    quiet_option,
    reading_options,
    workers_option,
)
from phiquant.cli.shares import watcher
from phiquant.cli.terminal import Words, is_terminal, put, put_json, say_error

_EXAMPLES = """\b
Examples:
  phiquant eval phi4-q4_k_m.gguf --against ./Phi-4-mini-instruct
  phiquant eval models/*.gguf --against ./Phi-4-mini-instruct --text notes.txt --tokens 8192
  phiquant eval phi4-q4_k_m.gguf --against ./Phi-4-mini-instruct --max-kld 0.05 --min-top1 0.9"""

_WHAT = "What to compare"
_GATES = "Gates (exit code 5 when missed)"

#: Exit code of a gate that was missed.
GATE_MISSED = 5


@click.command("eval", cls=Command, context_settings=SETTINGS, epilog=_EXAMPLES)
@click.argument("models", metavar="MODEL...", type=click.Path(), nargs=-1, required=True)
@option(
    "--against",
    section=_WHAT,
    metavar="SRC",
    type=click.Path(),
    required=True,
    help="The original: a folder, a GGUF file, or a hub id.",
)
@option(
    "--text",
    section=_WHAT,
    metavar="FILE",
    type=click.Path(),
    help="A UTF-8 text, like what the model will read and write. Default: documentation of "
    "Python and PostgreSQL that comes with phiquant.",
)
@reading_options(_WHAT, tokenizer="SRC", context=4)
@option(
    "--repetition",
    section=_WHAT,
    metavar="N",
    type=click.IntRange(0),
    help="Tokens to generate greedily after eight prompts, to see whether models run into loops; 0 "
    "for none. Default: one for each 640 tokens of the text, from 8 to 32.",
)
@option(
    "--max-kld",
    section=_GATES,
    metavar="X",
    type=click.FloatRange(0),
    help="Largest mean KL divergence from SRC, in nats, such as 0.05.",
)
@option(
    "--max-perplexity-ratio",
    section=_GATES,
    metavar="X",
    type=click.FloatRange(0),
    help="Largest perplexity relative to SRC's, such as 1.02.",
)
@option(
    "--min-top1",
    section=_GATES,
    metavar="X",
    type=click.FloatRange(0, 1),
    help="Smallest share of tokens with SRC's most likely token, such as 0.95.",
)
@html_option("Words", "size against divergence, errors of all tensors, weights against their codes")
@workers_option
@cache_option
@json_option
@quiet_option
def command(
    models: tuple[str, ...],
    against: str,
    text: str | None,
    context: int,
    tokens: int | None,
    tokenizer: str | None,
    repetition: int | None,
    max_kld: float | None,
    max_perplexity_ratio: float | None,
    min_top1: float | None,
    page: Path | None,
    threads: int | None,
    cache: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Tell how far quantized models are from their original.

    MODEL is a GGUF file, a folder of Hugging Face's kind, or a hub id. A text goes through all
    models and the original, in float32, a layer at a time; perplexity and divergence are those of
    llama-perplexity, over the second half of each window. Several models share one run of the
    original, and so do later runs. After Ctrl-C the same command goes on from there.
    """
    from phiquant.checkpoint import open_checkpoint
    from phiquant.evaluate import Gates, evaluate
    from phiquant.measure.content import DIGESTS
    from phiquant.measure.store import Store
    from phiquant.registry.recording import record_verdict

    words = Words(quiet)
    shown = not quiet and is_terminal(sys.stderr)
    store = Store() if cache else None
    try:
        result = evaluate(
            [open_checkpoint(local(model), progress=shown) for model in models],
            open_checkpoint(local(against), progress=shown),
            text=text,
            context=context,
            tokens=tokens,
            tokenizer=tokenizer,
            repetition=repetition,
            threads=threads,
            cache=store or False,
            progress=watcher(words, "the work"),
        )
    except KeyboardInterrupt:
        if store and store.kept - {DIGESTS}:
            raise Interrupted(GOES_ON) from None
        raise
    missed = Gates(max_kld, max_perplexity_ratio, min_top1).missed(result)
    facts = result.to_json()
    for model, score in zip(models, facts.pop("models"), strict=True):
        record_verdict(local(model), "eval", score | {"against": result.source, "run": facts})
    if as_json:
        put_json(result.to_json() | {"missed": [miss.to_json() for miss in missed]})
    else:
        put(str(result))
    if page:
        put_page(page, result.to_html(), words)
    for miss in missed:
        say_error(str(miss))
    if missed:
        raise click.exceptions.Exit(GATE_MISSED)
