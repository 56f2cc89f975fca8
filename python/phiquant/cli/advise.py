"""``phiquant advise``."""

from __future__ import annotations

import click

from phiquant.cli.options import SETTINGS, Command, json_option, option
from phiquant.cli.terminal import put, put_json

_EXAMPLES = """\b
Examples:
  phiquant advise --memory 8GB --device laptop
  phiquant advise ./Phi-4-mini-instruct --memory 4GB --device phone --purpose chat
  phiquant advise microsoft/phi-4 --memory 24GB --device gpu --purpose server"""

_WHAT = "What it is for"


@click.command("advise", cls=Command, context_settings=SETTINGS, epilog=_EXAMPLES)
@click.argument("source", metavar="[SRC]", type=click.Path(), required=False)
@option(
    "--memory",
    section=_WHAT,
    metavar="SIZE",
    required=True,
    help="What weights and cache may take: 8GB, 7.5GiB. The runtime and the system need some more.",
)
@option(
    "--device",
    section=_WHAT,
    metavar="DEVICE",
    required=True,
    help="phone, laptop, mac, npu, cpu or gpu.",
)
@option(
    "--purpose",
    section=_WHAT,
    metavar="PURPOSE",
    default="chat",
    help="chat (the default), code, reasoning, documents or server: decides the context, and "
    "which number ranks.",
)
@option(
    "--context",
    section=_WHAT,
    metavar="N",
    type=click.IntRange(1),
    help="Tokens of context that the cache is counted for. Default: 4096 to 32768, by purpose.",
)
@option(
    "--most",
    section="Words",
    metavar="N",
    type=click.IntRange(1),
    default=5,
    help="At most so many suggestions. Default: 5.",
)
@json_option
def command(
    source: str | None,
    memory: str,
    device: str,
    purpose: str,
    context: int | None,
    most: int,
    as_json: bool,
) -> None:
    """Tell which targets a device runs and fit its memory, the one that loses least first.

    SRC is a folder or a GGUF file, whose sizes are then exact, or the name of a published model;
    without it, the best target of several published models. Nothing is downloaded. Losses and
    speeds are those that were measured, on the models and the machine that the notes name.
    """
    from phiquant.advice import advise

    found = advise(
        source,
        memory=memory,
        device=device.lower(),
        purpose=purpose.lower(),
        context=context,
        most=most,
    )
    if as_json:
        put_json(found.to_json())
    else:
        put(str(found))
