"""``phiquant inspect``: metadata and tensors of any checkpoint."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from phiquant.cli.commands import local
from phiquant.cli.options import SETTINGS, Command, json_option, option
from phiquant.cli.terminal import heading, is_terminal, put, put_json, shorten, width
from phiquant.texts import bytes_text, printable, table

if TYPE_CHECKING:
    from phiquant.inspection import Inspection

# Columns of a value where no terminal's width limits it.
_VALUE_COLUMNS = 160
# Characters of a string, or items of an array, that are looked at at all.
_FIRST = 400


@click.command("inspect", cls=Command, context_settings=SETTINGS)
@click.argument("path", type=click.Path())
@option(
    "--all",
    "every",
    section="Words",
    is_flag=True,
    help="On a terminal, too, a row for every tensor: layers that are alike share rows else.",
)
@json_option
def command(path: str, every: bool, as_json: bool) -> None:
    """Show metadata and tensors of a model's files.

    PATH is a folder with safetensors, a .safetensors or .gguf file of any types, or a hub id, which
    is downloaded first. Long values are shortened; --json has all of them whole.
    """
    import sys

    from phiquant.inspection import inspect

    found = inspect(local(path), progress=is_terminal(sys.stderr) and not as_json)
    if as_json:
        put_json(found.to_json())
        return
    columns = width()
    _show_summary(found)
    _show_config(found, columns)
    _show_metadata(found, columns)
    _show_tensors(found, columns, every or columns is None)
    _show_totals(found, columns)
    if found.problem:
        put()
        put(printable(f"phiquant cannot convert this: {found.problem}"))


def _show_summary(found: Inspection) -> None:
    checkpoint = found.checkpoint
    bits = 8 * checkpoint.nbytes / max(1, found.weights)
    files = _counted(len(checkpoint.files), "file")
    tensors = _counted(len(checkpoint), "tensor")
    put(
        f"{heading(printable(str(checkpoint.path)))}: {checkpoint.format}, {files}, "
        f"{bytes_text(found.file_bytes)}, {tensors}, {_weights(found.weights)} weights, "
        f"{bits:.2f} bits per weight"
    )


def _show_config(found: Inspection, columns: int | None) -> None:
    if not found.config:
        return
    put()
    put(heading("Config"))
    rows = [(key, value_text(value)) for key, value in found.config.items()]
    put(fitted(("key", "value"), rows, "ll", columns, wide=1))


def _show_metadata(found: Inspection, columns: int | None) -> None:
    rows = [(key, type_name, value_text(value)) for key, type_name, value in found.metadata()]
    if not rows:
        return
    put()
    put(heading("Metadata"))
    put(fitted(("key", "type", "value"), rows, "lll", columns, wide=2))


def _show_tensors(found: Inspection, columns: int | None, every: bool) -> None:
    from phiquant.inspection import layers_apart

    entries = found.checkpoint.entries.values()
    if not entries:
        return
    put()
    groups: dict[tuple[str, str, tuple[int, ...]], list[int]] = {}
    for entry in entries:
        name = entry.name if every else layers_apart(entry.name)
        groups.setdefault((name, entry.type, entry.shape), []).append(entry.nbytes)
    grouped = len(groups) < len(entries)
    put(heading("Tensors") + (" (* is the number of a layer; --all lists each)" if grouped else ""))
    rows: list[tuple[str, ...]] = [
        (
            name,
            " x ".join(map(str, shape)) or "scalar",
            *([str(len(sizes))] if grouped else []),
            type_name,
            bytes_text(sum(sizes)),
        )
        for (name, type_name, shape), sizes in groups.items()
    ]
    head = ("name", "shape", *(["count"] if grouped else []), "type", "size")
    put(fitted(head, rows, "lrrlr" if grouped else "lrlr", columns, wide=0))


def _show_totals(found: Inspection, columns: int | None) -> None:
    put()
    put(heading("Totals"))
    everything = max(1, found.checkpoint.nbytes)
    rows = [
        (
            total.type,
            str(total.tensors),
            _weights(total.weights),
            bytes_text(total.nbytes),
            f"{total.nbytes / everything:.1%}",
            f"{8 * total.nbytes / max(1, total.weights):.2f}",
        )
        for total in found.totals
    ]
    head = ("type", "tensors", "weights", "size", "share", "bits/weight")
    put(fitted(head, rows, "lrrrrr", columns, wide=0))


def fitted(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    align: str,
    columns: int | None,
    *,
    wide: int,
) -> str:
    """A table whose column ``wide`` is cut so that lines fit into ``columns`` (None: no limit)."""
    if columns is None:
        return table(head, rows, align)
    cells = [[printable(cell) for cell in row] for row in (head, *rows)]
    others = sum(max(len(row[i]) for row in cells) + 2 for i in range(len(head)) if i != wide)
    room = max(12, columns - others - 2)
    shown = [
        [shorten(cell, room) if i == wide else cell for i, cell in enumerate(row)] for row in cells
    ]
    lines = table(shown[0], shown[1:], align).split("\n")
    return "\n".join(shorten(line, columns) for line in lines)


def value_text(value: Any) -> str:
    """A metadata value on one line of bounded length; of an array, its length and first items."""
    if isinstance(value, bytes):
        value = value[:_FIRST].decode("utf-8", "backslashreplace")
    if isinstance(value, str):
        cut = printable(value[:_FIRST])
        if len(value) <= _FIRST and len(cut) <= _VALUE_COLUMNS:
            return cut
        return shorten(f"{len(value)} characters: {cut}...", _VALUE_COLUMNS)
    if isinstance(value, dict):
        return shorten(
            ", ".join(f"{key}: {value_text(item)}" for key, item in value.items()), _VALUE_COLUMNS
        )
    if hasattr(value, "__len__"):
        return _array_text(value)
    if isinstance(value, float):
        return f"{value:.8g}" if math.isfinite(value) else str(value)
    return (
        "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    )


def _array_text(values: Any) -> str:
    items = []
    room = 80
    for item in values[:_FIRST]:
        text = repr(item) if isinstance(item, str) else value_text(item)
        room -= len(text) + 2
        if room < 0:
            break
        items.append(text)
    if len(items) == len(values):
        return f"[{', '.join(items)}]"
    return f"{len(values)} items: {', '.join([*items, '...'])}"


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _weights(count: int) -> str:
    """A number of weights as model names tell it: 3.82 B."""
    for limit, unit in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if count >= limit:
            return f"{count / limit:.2f} {unit}"
    return str(count)
