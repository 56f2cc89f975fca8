"""The root command: what commands there are, each loaded when it is called."""

from __future__ import annotations

import difflib
import importlib
import os
from pathlib import Path

import click

from phiquant.cli.options import SETTINGS
from phiquant.errors import UsageError

# Module of the command of that name, and its line in the list.
_COMMANDS = {
    "convert": ("convert", "Convert a model."),
    "plan": ("plan", "Tell what a conversion would write, and write nothing."),
    "calibrate": ("calibrate", "Make an importance matrix from a text."),
    "eval": ("eval", "Tell how far quantized models are from their original."),
    "verify": ("verify", "Run a result in its runtime, and compare its answers."),
    "bench": ("bench", "Run results in their runtimes: speed and memory side by side."),
    "compare": ("compare", "Compare codecs, bytes and weights of two models' files."),
    "inspect": ("inspect", "Show metadata and tensors of a model's files."),
    "advise": ("advise", "Tell which targets suit a device and its memory."),
    "formats": ("formats", "List targets and codecs."),
    "models": ("models", "List what was made on this machine, and look after it."),
    "push": ("push", "Upload a result to the Hugging Face hub."),
    "cache": ("cache", "List the measurements that are kept, or remove them."),
    "completion": ("completion", "Print what makes a shell complete these commands."),
    "doctor": ("doctor", "Look at this machine and this installation."),
}

_EXAMPLES = """\b
Examples:
  phiquant convert ./Phi-4-mini-instruct --to q4_k_m
  phiquant convert microsoft/Phi-4-mini-instruct --to q4_k_m --to q8_0 -o models/
  phiquant inspect Phi-4-mini-instruct-q4_k_m.gguf

'phiquant COMMAND --help' tells all about a command."""


class _Root(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"phiquant.cli.{_COMMANDS[cmd_name][0]}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, about) for name, (_, about) in _COMMANDS.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name in _COMMANDS or name[:1] == "-" or ctx.resilient_parsing:
            return super().resolve_command(ctx, args)
        near = difflib.get_close_matches(name.lower(), _COMMANDS, n=2, cutoff=0.6)
        remedy = f"Did you mean {' or '.join(near)}? " if near else ""
        if not near and (Path(name).exists() or "/" in name):
            remedy = f"Did you mean 'phiquant convert {name}'? "
        raise UsageError(
            f"there is no command '{name}'", remedy=f"{remedy}'phiquant --help' lists them."
        )


def _show_version(context: click.Context, parameter: click.Parameter, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:
        from phiquant import __version__

        click.echo(f"phiquant {__version__}")
        context.exit()


@click.group(cls=_Root, invoke_without_command=True, context_settings=SETTINGS, epilog=_EXAMPLES)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Show the version and exit.",
)
@click.pass_context
def phiquant(context: click.Context) -> None:
    """Quantize Phi models into the files that run on devices.

    The bytes are those of each format's own tool; torch is not needed.
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


def local(source: str) -> str:
    """The source as given, but for ``..``, whose own name would be no name for a result."""
    if os.path.basename(os.path.normpath(source)) == ".." and Path(source).is_dir():  # noqa: PTH119
        return str(Path(source).resolve())
    return source
