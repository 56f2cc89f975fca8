"""``phiquant models``: what was made on this machine."""

from __future__ import annotations

import sys
from pathlib import Path

import click
from click.shell_completion import CompletionItem

from phiquant.cli.options import SETTINGS, Command, Group, json_option, option, quiet_option
from phiquant.cli.shares import watcher
from phiquant.cli.terminal import (
    Words,
    heading,
    put,
    put_json,
    put_path,
    say_error,
    shorten,
    width,
)

_EXAMPLES = """\b
Examples:
  phiquant models
  phiquant models show phi4-q4_k_m.gguf
  phiquant models verify
  phiquant models --export audit.html"""

#: Exit code where files are not as they were made.
CHANGED = 5


def complete_name(
    context: click.Context, parameter: click.Parameter, word: str
) -> list[CompletionItem]:
    """Names of what was recorded; none where the registry cannot be read."""
    from phiquant.errors import PhiquantError
    from phiquant.registry.store import Registry

    try:
        known = Registry().models()
    except PhiquantError:
        return []
    names = dict.fromkeys(model.name for model in known)
    return [CompletionItem(name) for name in names if name.startswith(word)]


name_argument = click.argument("name", metavar="NAME", shell_complete=complete_name)


@click.group(
    "models",
    cls=Group,
    invoke_without_command=True,
    context_settings=SETTINGS,
    epilog=_EXAMPLES,
)
@option(
    "--all", "replaced", section="What to list", is_flag=True,
    help="Also results whose path another one has taken since.",
)  # fmt: skip
@option(
    "--export", section="What to write", metavar="FILE", type=click.Path(),
    help="Write all that is known to FILE.json or FILE.html.",
)  # fmt: skip
@option("--overwrite", section="What to write", is_flag=True, help="Replace what stands there.")
@json_option
@quiet_option
@click.pass_context
def command(
    context: click.Context,
    replaced: bool,
    export: str | None,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """List what was made on this machine, and look after it.

    Every conversion is recorded in the file that the first line names; PHIQUANT_REGISTRY names
    another one, or is 'off'. NAME is a result's name, with or without its suffix, its path, or its
    number.
    """
    if context.invoked_subcommand is not None:
        return
    from phiquant.registry.audit import export as write_report
    from phiquant.registry.audit import source_of
    from phiquant.registry.store import Registry
    from phiquant.texts import bytes_text, table

    registry = Registry()
    models = registry.models(replaced=replaced)
    if export is not None:
        write_report(models, Path(export), overwrite=overwrite)
    if as_json:
        where = None if registry.path is None else str(registry.path)
        put_json({"registry": where, "models": [model.to_json() for model in models]})
        return
    if export is not None:
        put(export)
        return
    total = bytes_text(sum(model.nbytes for model in models))
    put(f"{registry.path or 'no registry'}: {len(models)} models, {total}")
    there = [model.is_there for model in models]
    rows = [
        (
            str(model.id),
            model.name,
            model.target,
            bytes_text(model.nbytes) if is_there else "gone",
            source_of(model),
            _day(model.made),
            ", ".join(dict.fromkeys(one.kind for one in model.verdicts)) or "-",
        )
        for model, is_there in zip(models, there, strict=True)
    ]
    if rows:
        head = ("", "name", "target", "size", "source", "made", "verdicts")
        columns = width()
        for line in table(head, rows, "rllrlll").splitlines():
            put(shorten(line, columns) if columns else line)
    if gone := there.count(False):
        Words(quiet).note(
            f"gone from the disk: {gone}; 'phiquant models forget --gone' removes such records"
        )


@command.command("show", cls=Command, context_settings=SETTINGS)
@name_argument
@json_option
def show(name: str, as_json: bool) -> None:
    """Show all that is known of a result: source, recipe, files, checksums, verdicts."""
    from phiquant.registry.audit import facts_table, verdict_text
    from phiquant.registry.store import Registry
    from phiquant.texts import bytes_text, table

    model = Registry().find(name)
    if as_json:
        put_json(model.to_json())
        return
    put(heading(f"{model.id}. {model.name}"))
    rows = facts_table(model)
    longest = max(len(key) for key, _ in rows)
    for key, value in rows:
        put(f"  {key:{longest}}  {value}")
    put()
    files = [(f.name, str(f.nbytes), f.crc32c, f.sha256 or "-") for f in model.files]
    put(table(("file", "bytes", "crc32c", "sha256"), files, "lrll"))
    codecs = [
        (one, f"{facts['tensors']:.0f}", bytes_text(facts["bytes"]), f"{facts['rms']:.3%}")
        for one, facts in model.facts.get("codecs", {}).items()
    ]
    put()
    put(table(("codec", "tensors", "size", "rms error"), codecs, "lrrr"))
    if model.verdicts:
        put()
        verdicts = [(one.kind, _day(one.made), verdict_text(one)) for one in model.verdicts]
        put(table(("verdict", "made", "what was found"), verdicts, "lll"))


@command.command("verify", cls=Command, context_settings=SETTINGS)
@click.argument("names", metavar="[NAME...]", nargs=-1, shell_complete=complete_name)
@json_option
@quiet_option
def verify(names: tuple[str, ...], as_json: bool, quiet: bool) -> None:
    """Read results once more, and tell which files are not as they were made.

    All results, unless some are named. Exit code 5 where a file is missing or has other bytes.
    """
    from phiquant.measure.bar import Bar
    from phiquant.registry.changes import changes
    from phiquant.registry.store import Registry
    from phiquant.texts import bytes_text

    registry = Registry()
    models = [registry.find(name) for name in names] if names else registry.models()
    total = sum(model.nbytes for model in models)
    done = 0
    shown = watcher(Words(quiet), "the bytes")
    with Bar(shown, total, about="reading", unit="B", begin=0) as advance_to:

        def advance(count: int) -> None:
            nonlocal done
            done += count
            advance_to(done)

        found = [change for model in models for change in changes(model, advance)]
    if as_json:
        put_json(
            {
                "models": len(models),
                "bytes": total,
                "changes": [change.to_json() for change in found],
            }
        )
    else:
        put(f"{len(models)} models, {bytes_text(total)}: {len(found)} files changed")
    for change in found:
        say_error(str(change))
    sys.stdout.flush()
    if found:
        raise click.exceptions.Exit(CHANGED)


@command.command("forget", cls=Command, context_settings=SETTINGS)
@click.argument("names", metavar="[NAME...]", nargs=-1, shell_complete=complete_name)
@option("--gone", section="Which", is_flag=True, help="All whose files are no longer there.")
@json_option
@quiet_option
def forget(names: tuple[str, ...], gone: bool, as_json: bool, quiet: bool) -> None:
    """Remove records, with their verdicts. The files themselves stay."""
    from phiquant.errors import UsageError
    from phiquant.registry.store import Registry

    if not names and not gone:
        raise UsageError("nothing is named", remedy="Name results, or pass --gone.")
    registry = Registry()
    models = {model.id: model for model in map(registry.find, names)}
    if gone:
        known = registry.models(replaced=True)
        models |= {model.id: model for model in known if not model.is_there}
    for model in models.values():
        registry.forget(model)
    if as_json:
        put_json({"forgotten": [model.to_json() for model in models.values()]})
    for model in models.values():
        Words(quiet).say(f"forgotten: {model.id} ({model.path})")


@command.command("ollama", cls=Command, context_settings=SETTINGS)
@name_argument
@option(
    "--as",
    "wanted",
    section="Where to put it",
    metavar="MODEL[:TAG]",
    help="Its name in Ollama. Default: the file's.",
)
@option(
    "--overwrite",
    section="Where to put it",
    is_flag=True,
    help="Replace another model of that name.",
)
@option("--force", section="Where to put it", is_flag=True, help="Also a file that changed since.")
@json_option
@quiet_option
def ollama(
    name: str, wanted: str | None, overwrite: bool, force: bool, as_json: bool, quiet: bool
) -> None:
    """Put a GGUF into Ollama's store, as 'ollama create' does from its Modelfile.

    The store is OLLAMA_MODELS, or ~/.ollama/models. The weights take no more room where it is on
    the same disk: they are linked. Ollama need not run. NAME may also be a GGUF that was not
    recorded.
    """
    from phiquant.measure.bar import Bar
    from phiquant.registry.ollama import name_for
    from phiquant.registry.ollama import put as put_into_ollama
    from phiquant.registry.store import Registry

    registry, path = Registry(), Path(name)
    model = registry.at(path) if path.is_file() else registry.find(name)
    if model is not None:
        path = model.home / model.files[0].name
    done = 0
    total = path.stat().st_size if path.is_file() else 0
    with Bar(
        watcher(Words(quiet), "the bytes"), total, about="reading", unit="B", begin=0
    ) as advance_to:

        def advance(count: int) -> None:
            nonlocal done
            done += count
            advance_to(done)

        stored = put_into_ollama(
            path,
            wanted or name_for(path),
            source=model.source_folder if model else None,
            crc32c=None if force or model is None else model.files[0].crc32c,
            overwrite=overwrite,
            progress=advance,
        )
    if as_json:
        put_json(stored.to_json())
        return
    put_path(stored.manifest)
    words = Words(quiet)
    words.say(f"weights {stored.how}: {stored.blob}")
    words.command("Run it", f"ollama run {stored.name}")


def _day(seconds: float) -> str:
    from phiquant.registry.audit import moment

    return moment(seconds)[:16]
