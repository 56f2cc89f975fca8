"""``phiquant plan``, and the planning that ``convert`` begins with."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, cast

import click

from phiquant.cli.commands import local
from phiquant.cli.options import (
    SETTINGS,
    Command,
    json_option,
    planning_options,
    source_argument,
    threads_option,
)
from phiquant.cli.terminal import Words, is_terminal, put, put_json
from phiquant.errors import UsageError
from phiquant.texts import bytes_text, printable

if TYPE_CHECKING:
    from phiquant.plan import Plan


class Wishes(TypedDict):
    """What the user said about the result, as :data:`planning_options` give it."""

    targets: tuple[str, ...]
    quality: str
    importance: str | None
    tensor: tuple[str, ...]
    output_type: str | None
    embedding_type: str | None
    pure: bool
    mix: Any
    requantize: bool
    split_size: str | None
    grid: str
    tokenizer: str | None


def make_plan(source: str, wishes: Wishes, words: Words) -> Plan:
    """Read the source's headers and decide everything."""
    import sys

    import phiquant

    if not wishes["targets"]:
        raise UsageError(
            "no target was given",
            remedy="Name one, such as --to q4_k_m: 'phiquant formats' lists them.",
        )
    return phiquant.plan(
        local(source),
        wishes["targets"],
        quality=wishes["quality"],
        mix=wishes["mix"],
        pure=wishes["pure"],
        output_type=wishes["output_type"],
        embedding_type=wishes["embedding_type"],
        tensor=wishes["tensor"],
        importance=None if wishes["importance"] is None else local(wishes["importance"]),
        requantize=wishes["requantize"],
        split_size=wishes["split_size"],
        grid=wishes["grid"].lower(),
        tokenizer=None if wishes["tokenizer"] is None else local(wishes["tokenizer"]),
        progress=not words.quiet and is_terminal(sys.stderr),
    )


def show_plan(
    plan: Plan,
    out: str | None,
    *,
    threads: int | None,
    overwrite: bool,
    modelfile: bool,
    as_json: bool,
) -> None:
    """Print what would be written, and refuse what a run would refuse."""
    from phiquant.preflight import preflight
    from phiquant.tensor import check_threads

    outputs = plan.outputs(out)
    workers = check_threads(threads)
    memory = plan.memory(threads)
    free = {folder: _free(folder) for folder in dict.fromkeys(path.parent for path in outputs)}
    if not as_json:
        put("\n".join(map(printable, str(plan).split("\n"))))
        put()
        for path in plan.paths(out):
            put(printable(f"output: {path}"))
        for folder, size in free.items():
            if size is not None:
                put(
                    printable(
                        f"disk:   {bytes_text(plan.nbytes)} to write, "
                        f"{bytes_text(size)} free in {folder.absolute()}"
                    )
                )
        threads_text = f"{workers} thread" + ("s" if workers != 1 else "")
        put(f"memory: {bytes_text(memory)} at most, with {threads_text}")
    extras = preflight(plan, outputs, overwrite=overwrite, companions=modelfile)
    if as_json:
        put_json(
            plan.to_json()
            | {
                "outputs": [os.fspath(path) for path in plan.paths(out)],
                "companions": [os.fspath(path) for path in extras],
                "threads": workers,
                "memory": memory,
                "disk_free": {os.fspath(folder): size for folder, size in free.items()},
            }
        )


def _free(folder: Path) -> int | None:
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None


@click.command(
    "plan",
    cls=Command,
    context_settings=SETTINGS,
    epilog="\b\nExample:\n  phiquant plan ./Phi-4-mini-instruct --to q4_k_m --to q8_0",
)
@source_argument
@planning_options
@threads_option
@json_option
def command(
    source: str,
    out: str | None,
    overwrite: bool,
    modelfile: bool,
    threads: int | None,
    as_json: bool,
    **wishes: Any,
) -> None:
    """Tell what a conversion would write, and write nothing.

    Every tensor's codec and size, the exact size of the files, the memory and the disk that it
    takes. What 'phiquant convert' would refuse is refused here, too.
    """
    plan = make_plan(source, cast("Wishes", wishes), Words(quiet=as_json))
    show_plan(plan, out, threads=threads, overwrite=overwrite, modelfile=modelfile, as_json=as_json)
