"""Options that commands share, sections in their help, and what a shell can complete."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}

Function = TypeVar("Function", bound=Callable[..., Any])


class Option(click.Option):
    """An option that stands in a section of the help."""

    def __init__(self, *args: Any, section: str = "Options", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.section = section


class _Sections(click.Command):
    """A command whose help has its options in sections, in the order of their first option."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            # What arguments are is said in the text, where click shows them here at all.
            record = None if isinstance(param, click.Argument) else param.get_help_record(ctx)
            if record is not None:
                section = getattr(param, "section", "Help")
                sections.setdefault(section, []).append(record)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)


class Command(_Sections):
    """A command that does one thing."""


class Group(_Sections, click.Group):
    """A command with commands of its own."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_options(ctx, formatter)
        self.format_commands(ctx, formatter)


def option(*names: str, section: str, **settings: Any) -> Callable[[Function], Function]:
    """An option in a section."""
    return click.option(*names, cls=Option, section=section, **settings)


def _starting(names: list[str], word: str) -> list[CompletionItem]:
    return [CompletionItem(name) for name in names if name.startswith(word.lower())]


def _complete_target(
    context: click.Context, parameter: click.Parameter, word: str
) -> list[CompletionItem]:
    from phiquant.targets.names import GGUF_PRESETS, PRESETS

    names = (f"{name}:{preset}" for name, presets in PRESETS.items() for preset in presets)
    return _starting([*GGUF_PRESETS, *names], word)


def _complete_codec(
    context: click.Context, parameter: click.Parameter, word: str
) -> list[CompletionItem]:
    from phiquant.targets.names import GGUF_CODECS

    return _starting(list(GGUF_CODECS), word)


json_option = option(
    "--json", "as_json", section="Words", is_flag=True, help="One JSON object on stdout."
)

source_argument = click.argument("source", metavar="SRC", type=click.Path())

_WHAT = "What to make"
_WHERE = "Where to put it"

_PLANNING = [
    option(
        "--to",
        "targets",
        section=_WHAT,
        metavar="TARGET",
        multiple=True,
        shell_complete=_complete_target,
        help="What to convert to, such as q4_k_m or gguf:q4_k_m; once for each target. "
        "'phiquant formats' lists them.",
    ),
    option(
        "--quality",
        section=_WHAT,
        type=click.Choice(["reference", "best"], case_sensitive=False),
        default="reference",
        help="reference (the default): the bits of the format's own tool. best: scales searched "
        "for the least squared error, in as many bytes; slower.",
    ),
    option(
        "--importance",
        section=_WHAT,
        metavar="FILE",
        type=click.Path(),
        help="An importance matrix, as 'phiquant calibrate' or llama-imatrix makes it.",
    ),
    option(
        "--tensor",
        section=_WHAT,
        metavar="GLOB=CODEC",
        multiple=True,
        help="A codec for the tensors whose names in SRC match; the first match decides. "
        "gguf:GLOB=CODEC restricts it to a target.",
    ),
    option(
        "--output-type",
        section=_WHAT,
        metavar="CODEC",
        shell_complete=_complete_codec,
        help="Codec of the output matrix.",
    ),
    option(
        "--embedding-type",
        section=_WHAT,
        metavar="CODEC",
        shell_complete=_complete_codec,
        help="Codec of the embedding table.",
    ),
    option("--pure", section=_WHAT, is_flag=True, help="One codec for all matrices."),
    option(
        "--mix",
        section=_WHAT,
        type=click.Choice(["current", "published"], case_sensitive=False),
        default="current",
        help="llama-quantize's choice of codecs: today's (current, the default), or the one that "
        "the published Phi files were made with.",
    ),
    option(
        "--requantize",
        section=_WHAT,
        is_flag=True,
        help="Round quantized weights a second time. Without it their codes are moved, where the "
        "target can hold the same numbers.",
    ),
    option(
        "--grid",
        section=_WHAT,
        type=click.Choice(["native", "portable"], case_sensitive=False),
        default="native",
        help="native (the default): each format's own grid. portable: one that all hold, so that "
        "all targets decode to the same weights.",
    ),
    option(
        "--tokenizer",
        section=_WHAT,
        metavar="FOLDER",
        type=click.Path(),
        help="Where the tokenizer stands, for a GGUF that becomes another format.",
    ),
    option(
        "--split-size",
        section=_WHERE,
        metavar="SIZE",
        help="Split a GGUF into files of at most so many bytes of tensors: 4G, 500M.",
    ),
    option(
        "-o",
        "--output",
        "out",
        section=_WHERE,
        metavar="OUT",
        type=click.Path(),
        help="File to write, or folder for a file NAME-PRESET.gguf; with several targets a "
        "folder. Default: this folder.",
    ),
    option("--overwrite", section=_WHERE, is_flag=True, help="Replace what stands there."),
    option(
        "--modelfile",
        section=_WHERE,
        is_flag=True,
        help="Write an Ollama Modelfile, with template and stops, beside the result.",
    ),
]

threads_option = option(
    "--threads",
    section="How to run",
    metavar="N",
    type=click.IntRange(1, 1024),
    help="Workers; one a processor by default. The bytes do not depend on it.",
)

quiet_option = option("-q", "--quiet", section="Words", is_flag=True, help="Paths and errors only.")


def planning_options(function: Function) -> Function:
    """The options of ``convert`` and ``plan`` that decide what is written, and where."""
    for decorate in reversed(_PLANNING):
        function = decorate(function)
    return function


def reading_options(
    section: str, *, tokenizer: str, context: int
) -> Callable[[Function], Function]:
    """How a text is read: --context, --tokens, --tokenizer.

    Parameters
    ----------
    section : str
    tokenizer : str
        Beside what ``tokenizer.json`` stands if nothing is said.
    context : int
        The fewest tokens of a window.
    """
    options = [
        option(
            "--context",
            section=section,
            metavar="N",
            type=click.IntRange(context),
            default=512,
            help="Tokens of a window; each window is read by itself. Default: 512.",
        ),
        option(
            "--tokens",
            section=section,
            metavar="N",
            type=click.IntRange(context),
            help="At most so many tokens of the text. Default: all.",
        ),
        tokenizer_option(section, tokenizer),
    ]

    def decorate(function: Function) -> Function:
        for one in reversed(options):
            function = one(function)
        return function

    return decorate


def tokenizer_option(section: str, beside: str) -> Callable[[Function], Function]:
    """--tokenizer FOLDER."""
    return option(
        "--tokenizer",
        section=section,
        metavar="FOLDER",
        type=click.Path(),
        help=f"Where tokenizer.json stands. Default: beside {beside}.",
    )


workers_option = option(
    "--threads",
    section="How to run",
    metavar="N",
    type=click.IntRange(1, 1024),
    help="Workers; one a processor by default.",
)

cache_option = option(
    "--no-cache",
    "cache",
    section="How to run",
    is_flag=True,
    flag_value=False,
    default=True,
    help="Find nothing in the cache of measurements, and keep nothing there.",
)
