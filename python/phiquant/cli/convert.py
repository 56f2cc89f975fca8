"""``phiquant convert``."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from phiquant.cli.entry import Interrupted
from phiquant.cli.html import html_option, put_page
from phiquant.cli.options import (
    SETTINGS,
    Command,
    json_option,
    option,
    planning_options,
    quiet_option,
    source_argument,
    threads_option,
)
from phiquant.cli.plan import Wishes, make_plan, show_plan
from phiquant.cli.progress import watcher
from phiquant.cli.terminal import Words, put_json, put_path
from phiquant.errors import UsageError

if TYPE_CHECKING:
    from phiquant.report import Report

_EXAMPLES = """\b
Examples:
  phiquant convert ./Phi-4-mini-instruct --to q4_k_m
  phiquant convert microsoft/Phi-4-mini-instruct --to q4_k_m --to q8_0 -o models/
  phiquant convert ./Phi-4-mini-instruct --to q4_k_m --tensor '*.down_proj.weight=q6_k'
  phiquant convert ./Phi-4-mini-instruct --to q4_k_m --modelfile -q"""


@click.command("convert", cls=Command, context_settings=SETTINGS, epilog=_EXAMPLES)
@source_argument
@planning_options
@threads_option
@option(
    "--sha256",
    section="How to run",
    is_flag=True,
    help="Hash the whole files, which reads them once more.",
)
@option("--dry-run", section="How to run", is_flag=True, help="Print the plan and write nothing.")
@html_option(
    "Words", "sizes, times, errors of all tensors, where the bytes go, weights against their codes"
)
@json_option
@quiet_option
def command(
    source: str,
    out: str | None,
    overwrite: bool,
    modelfile: bool,
    threads: int | None,
    sha256: bool,
    dry_run: bool,
    page: Path | None,
    as_json: bool,
    quiet: bool,
    **wishes: Any,
) -> None:
    """Convert a model.

    SRC is a folder of Hugging Face's kind, a GGUF file, or a hub id (owner/name[@revision]), which
    is downloaded first. The results' paths go to stdout, one a line.
    """
    if page and dry_run:
        raise UsageError("--html shows what was written, and --dry-run writes nothing")
    words = Words(quiet)
    if quiet:
        _hush()
    plan = make_plan(source, cast("Wishes", wishes), words)
    if dry_run:
        show_plan(
            plan, out, threads=threads, overwrite=overwrite, modelfile=modelfile, as_json=as_json
        )
        return
    outputs = plan.paths(out)
    before = {path: _identity(path) for path in outputs}
    try:
        report = plan.run(
            out,
            progress=watcher(words),
            overwrite=overwrite,
            threads=threads,
            sha256=sha256,
            companions=modelfile,
        )
    except KeyboardInterrupt:
        # Results appear all at once, at the very end: Ctrl-C can come just after.
        done = [str(path) for path in outputs if _identity(path) != before[path]]
        what = f"{', '.join(done)} had been written" if done else "nothing was written"
        raise Interrupted(what) from None
    if as_json:
        put_json(report.to_json())
    else:
        for result in report.results:
            put_path(result)
        _sum_up(report, words)
    if page:
        put_page(page, report.to_html(), words)


def _identity(path: Path) -> tuple[int, int, int] | None:
    try:
        facts = path.lstat()
    except OSError:
        return None
    return facts.st_dev, facts.st_ino, facts.st_mtime_ns


def _hush() -> None:
    """Keep libraries from talking."""
    import logging

    logging.getLogger("phiquant").setLevel(logging.ERROR)
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")


def _sum_up(report: Report, words: Words) -> None:
    words.say(str(report))
    for file in report.files:
        if file.sha256:
            words.say(f"sha256: {file.sha256}  {file.path}")
    for note in report.notes:
        words.note(note)
    for hint in report.hints:
        words.command("Run it", hint)
    for path in report.companions:
        if Path(path).name == "Modelfile":
            name = report.path.stem.lower()
            place = shlex.quote(path)
            words.command("With Ollama", f"ollama create {shlex.quote(name)} -f {place}")
