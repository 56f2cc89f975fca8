"""``phiquant formats``: what can be written."""

from __future__ import annotations

import click

from phiquant.cli.options import SETTINGS, Command, json_option
from phiquant.cli.terminal import heading, put, put_json


@click.command("formats", cls=Command, context_settings=SETTINGS)
@json_option
def command(as_json: bool) -> None:
    """List targets and codecs."""
    from phiquant import catalogue
    from phiquant.codecs import all_codecs
    from phiquant.texts import bytes_text, table

    if as_json:
        put_json(catalogue.to_json())
        return
    put(heading("Targets") + f" (--to), with the size that they give {catalogue.EXAMPLE}")
    targets = [
        (row.target, f"{row.bits_per_weight:.2f}", bytes_text(row.example_bytes), row.about)
        for row in catalogue.all_targets()
    ]
    put(table(("target", "bits/weight", "size", "what it is"), targets, "lrrl"))
    put()
    put(heading("Codecs") + " (--tensor, --output-type, --embedding-type)")
    codecs = [
        (
            codec.name,
            f"{codec.bits_per_weight:g}",
            str(codec.block_values),
            str(codec.sub_block_values),
            str(codec.block_bytes),
            codec.grid,
        )
        for codec in all_codecs()
    ]
    head = ("codec", "bits/weight", "block", "sub-block", "bytes/block", "grid")
    put(table(head, codecs, "lrrrrl"))
    put()
    put("'gguf:' can be left out, and case does not matter: --to Q4_K_M.")
