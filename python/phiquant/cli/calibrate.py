"""``phiquant calibrate``."""

from __future__ import annotations

import shlex
import sys

import click

from phiquant.cli.commands import local
from phiquant.cli.entry import GOES_ON, Interrupted
from phiquant.cli.options import (
    SETTINGS,
    Command,
    cache_option,
    json_option,
    option,
    quiet_option,
    reading_options,
    source_argument,
    workers_option,
)
from phiquant.cli.shares import watcher
from phiquant.cli.terminal import Words, is_terminal, put_json, put_path

_EXAMPLES = """\b
Examples:
  phiquant calibrate ./Phi-4-mini-instruct --text notes.txt -o phi4.imatrix.gguf
  phiquant calibrate model.gguf --tokenizer ./Phi-4-mini-instruct --text notes.txt -o x
  phiquant calibrate ./Phi-4-mini-instruct --text chats.txt --parse-special --tokens 8192 -o x"""

_TEXT = "What to read"
_WHERE = "Where to put it"


@click.command("calibrate", cls=Command, context_settings=SETTINGS, epilog=_EXAMPLES)
@source_argument
@option(
    "--text",
    section=_TEXT,
    metavar="FILE",
    type=click.Path(),
    required=True,
    help="A UTF-8 text, like what the model will read and write.",
)
@option(
    "--parse-special",
    section=_TEXT,
    is_flag=True,
    help="Take <|end|> and the like in the text for the special tokens.",
)
@reading_options(_TEXT, tokenizer="the model", context=2)
@option(
    "-o",
    "--output",
    "out",
    section=_WHERE,
    metavar="FILE",
    type=click.Path(),
    required=True,
    help="File to write, NAME.imatrix.gguf.",
)
@option("--overwrite", section=_WHERE, is_flag=True, help="Replace what stands there.")
@workers_option
@cache_option
@json_option
@quiet_option
def command(
    source: str,
    text: str,
    context: int,
    tokens: int | None,
    parse_special: bool,
    tokenizer: str | None,
    out: str,
    overwrite: bool,
    threads: int | None,
    cache: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Make an importance matrix from a text.

    SRC is a folder of Hugging Face's kind, a GGUF file, or a hub id (owner/name[@revision]). The
    text goes through the model in float32, one layer after the other. After Ctrl-C the same
    command goes on with the layer that was interrupted.
    """
    from phiquant.checkpoint import open_checkpoint
    from phiquant.measure import calibrate
    from phiquant.measure.content import DIGESTS
    from phiquant.measure.store import Store

    words = Words(quiet)
    shown = not quiet and is_terminal(sys.stderr)
    checkpoint = open_checkpoint(local(source), progress=shown)
    store = Store() if cache else None
    try:
        result = calibrate(
            checkpoint,
            text=text,
            out=out,
            context=context,
            tokens=tokens,
            parse_special=parse_special,
            tokenizer=tokenizer,
            threads=threads,
            overwrite=overwrite,
            cache=store or False,
            progress=watcher(words, "all layers"),
        )
    except KeyboardInterrupt:
        if store and store.kept - {DIGESTS}:
            raise Interrupted(GOES_ON) from None
        raise
    if as_json:
        put_json(result.to_json())
        return
    put_path(result.path)
    words.say(str(result))
    place = shlex.quote(str(result.path))
    words.command(
        "Use it", f"phiquant convert {shlex.quote(source)} --to q4_k_m --importance {place}"
    )
