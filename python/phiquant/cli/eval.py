"""``phiquant eval``."""

from __future__ import annotations

import sys

import click

from phiquant.cli.commands import local
from phiquant.cli.options import SETTINGS, Command, json_option, option, quiet_option
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
@option(
    "--context",
    section=_WHAT,
    metavar="N",
    type=click.IntRange(4),
    default=512,
    help="Tokens of a window; each is read by itself, and its second half counts. Default: 512.",
)
@option(
    "--tokens",
    section=_WHAT,
    metavar="N",
    type=click.IntRange(4),
    help="At most so many tokens of the text. Default: all.",
)
@option(
    "--tokenizer",
    section=_WHAT,
    metavar="FOLDER",
    type=click.Path(),
    help="Where tokenizer.json stands. Default: beside SRC.",
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
@option(
    "--threads",
    section="How to run",
    metavar="N",
    type=click.IntRange(1, 1024),
    help="Workers; one a processor by default.",
)
@json_option
@quiet_option
def command(
    models: tuple[str, ...],
    against: str,
    text: str | None,
    context: int,
    tokens: int | None,
    tokenizer: str | None,
    max_kld: float | None,
    max_perplexity_ratio: float | None,
    min_top1: float | None,
    threads: int | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Tell how far quantized models are from their original.

    MODEL is a GGUF file, a folder of Hugging Face's kind, or a hub id. A text goes through all
    models and the original, in float32, a layer at a time; perplexity and divergence are those of
    llama-perplexity. Several models share one run of the original.
    """
    from phiquant.checkpoint import open_checkpoint
    from phiquant.evaluate import Gates, evaluate

    words = Words(quiet)
    shown = not quiet and is_terminal(sys.stderr)
    result = evaluate(
        [open_checkpoint(local(model), progress=shown) for model in models],
        open_checkpoint(local(against), progress=shown),
        text=text,
        context=context,
        tokens=tokens,
        tokenizer=tokenizer,
        threads=threads,
        progress=watcher(words, "the work"),
    )
    missed = Gates(max_kld, max_perplexity_ratio, min_top1).missed(result)
    if as_json:
        put_json(result.to_json() | {"missed": [miss.to_json() for miss in missed]})
    else:
        put(str(result))
    for miss in missed:
        say_error(str(miss))
    if missed:
        raise click.exceptions.Exit(GATE_MISSED)
