"""``phiquant push``."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from phiquant.cli.entry import Interrupted
from phiquant.cli.models import complete_name
from phiquant.cli.options import SETTINGS, Command, json_option, option, quiet_option
from phiquant.cli.shares import watcher
from phiquant.cli.terminal import Words, is_terminal, put, put_json

_EXAMPLES = """\b
Examples:
  phiquant push phi4-q4_k_m.gguf acme/phi4-GGUF
  phiquant push ./phi4-mlx-4bit acme/phi4-mlx-4bit --private"""


@click.command("push", cls=Command, context_settings=SETTINGS, epilog=_EXAMPLES)
@click.argument("what", metavar="NAME", shell_complete=complete_name)
@click.argument("repository", metavar="OWNER/REPO")
@option(
    "--private", section="Where to put it", is_flag=True, help="Let a new repository be private."
)
@option(
    "--revision",
    section="Where to put it",
    metavar="BRANCH",
    help="A branch, made if there is none. Default: main.",
)
@option(
    "--force",
    section="What to push",
    is_flag=True,
    help="Also files that changed since they were made.",
)
@json_option
@quiet_option
def command(
    what: str,
    repository: str,
    private: bool,
    revision: str | None,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Upload a result to the Hugging Face hub, with its model card, in one commit.

    NAME is a file or folder, or the name of a result that was recorded. A result without a card
    gets one that says where it comes from, on what terms, and how it was made. The token is that of
    'hf auth login', or HF_TOKEN.
    """
    from phiquant.measure.bar import Bar
    from phiquant.registry.push import push
    from phiquant.registry.store import Registry

    path, registry = Path(what), Registry()
    model = registry.at(path) if path.exists() else registry.find(what)
    if model is not None and model.folder and path.is_file():
        model = None  # one file of a folder, by itself
    if model is not None:
        path = model.path
    total, done = model.nbytes if model else 0, 0
    try:
        with Bar(
            watcher(Words(quiet), "the bytes"), total, about="reading", unit="B", begin=0
        ) as advance_to:

            def advance(count: int) -> None:
                nonlocal done
                done += count
                advance_to(done)

            pushed = push(
                path,
                repository,
                model=model,
                private=private,
                revision=revision,
                force=force,
                progress=advance,
                bars=not quiet and is_terminal(sys.stderr),
            )
    except KeyboardInterrupt:
        raise Interrupted("nothing was published") from None
    if as_json:
        put_json(pushed.to_json())
        return
    put(pushed.url)
    Words(quiet).say(f"{len(pushed.files)} files in {pushed.repository}, branch {pushed.revision}")
