"""The audit report: all records as one JSON or HTML file that needs no other."""

from __future__ import annotations

import html
import json
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from phiquant import _core
from phiquant.errors import IoError, UsageError
from phiquant.registry.records import Model, Verdict
from phiquant.texts import bytes_text

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem;
  color: #1c1c1c; background: #fff }
section { border-top: 1px solid #bbb; margin-top: 2rem }
table { border-collapse: collapse; margin: .6rem 0 }
td, th { text-align: left; vertical-align: top; padding: .15rem .9rem .15rem 0;
  white-space: nowrap }
.facts td:last-child { white-space: normal; overflow-wrap: anywhere }
h2 { overflow-wrap: anywhere }
th { font-weight: 600 }
.scroll { overflow-x: auto }
@media (prefers-color-scheme: dark) {
  body { color: #e6e6e6; background: #161616 } section { border-color: #555 }
}"""


def export(models: Sequence[Model], path: Path, *, overwrite: bool = False) -> None:
    """Write a report of all that is known.

    Parameters
    ----------
    models : sequence of Model
    path : Path
        Its suffix says which kind: ``.json`` or ``.html``.
    overwrite : bool
        Replace what stands there.

    Raises
    ------
    phiquant.UsageError
        Another suffix, or the file exists.
    phiquant.IoError
        It cannot be written.
    """
    made = time.time()
    if path.suffix == ".json":
        facts = {
            "phiquant": _core.version,
            "made": made,
            "models": [model.to_json() for model in models],
        }
        text = json.dumps(facts, indent=2, allow_nan=False) + "\n"
    elif path.suffix in (".html", ".htm"):
        text = _page(models, made)
    else:
        raise UsageError(
            "the report is a .json or a .html file", file=path, remedy="Give it such a suffix."
        )
    if not overwrite and os.path.lexists(path):
        raise UsageError("exists already", file=path, remedy="Choose another, or pass --overwrite.")
    try:
        number, staged = tempfile.mkstemp(prefix=".phiquant-", dir=path.parent)
        try:
            with os.fdopen(number, "wb") as file:
                # Names of files need not be text: what has no sign is written as an escape.
                file.write(text.encode("utf-8", "backslashreplace"))
            umask = os.umask(0)
            os.umask(umask)
            Path(staged).chmod(0o666 & ~umask)
            Path(staged).replace(path)
        except BaseException:
            with suppress(OSError):
                Path(staged).unlink()
            raise
    except OSError as error:
        raise IoError(f"cannot be written: {error.strerror}", file=path) from error


def moment(seconds: float) -> str:
    """A time as people write it, in the machine's own time zone."""
    return time.strftime("%Y-%m-%d %H:%M:%S %z", time.localtime(seconds))


def source_of(model: Model) -> str:
    """The repository with its commit, or the path."""
    source = model.facts.get("source", {})
    if "repository" in source:
        return f"{source['repository']}@{str(source['revision'])[:12]}"
    return str(source.get("path", "?"))


def verdict_text(verdict: Verdict) -> str:
    """A verdict in a few words."""
    facts = verdict.facts
    if verdict.kind == "verify":
        checks = facts.get("checks", ())
        failed = [check["name"] for check in checks if not check["passed"]]
        end = f"failed: {', '.join(failed)}" if failed else f"passed {len(checks)} checks"
        words = f"{end} in {facts.get('runtime', '?')}"
    elif verdict.kind == "eval":
        words = (
            f"mean KLD {facts['mean_kld']:.5f}, perplexity ratio {facts['perplexity_ratio']:.4f}, "
            f"same top {facts['top1']:.2%}"
        )
    elif verdict.kind == "bench":
        words = (
            f"prompt {facts['prompt']['median']:.1f} and decoding {facts['decode']['median']:.1f} "
            f"tokens per second in {facts.get('runtime', '?')}"
        )
    else:
        words = ", ".join(f"{key}: {value}" for key, value in facts.items())
    return words + ("" if verdict.checksum else " (of other bytes than were recorded)")


def facts_table(model: Model) -> list[tuple[str, str]]:
    """What is known of a result, by lines: a name and a value."""
    facts = model.facts
    recipe = facts.get("recipe", {})
    licence = facts.get("licence", {})
    rows = [
        ("made", f"{moment(model.made)}, by phiquant {facts.get('phiquant', '?')}"),
        ("path", str(model.path)),
        ("target", model.target),
        ("recipe", ", ".join(f"{key}: {_plain(value)}" for key, value in recipe.items())),
        ("source", source_of(model)),
        ("size", f"{bytes_text(model.nbytes)}, {facts['bits_per_weight']:.2f} bits per weight"),
        ("time", f"{facts['seconds']:.2f} s, {facts['threads']} threads, {facts['arch']}"),
        ("licence", licence.get("license", "") or ("a text" if licence else "not known")),
        *(("note", str(note)) for note in facts.get("notes", ())),
        ("run it", str(facts.get("hint", ""))),
    ]
    if model.replaced:
        rows.insert(0, ("replaced", "another result has taken its path"))
    return [row for row in rows if row[1]]


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return " ".join(str(part) for part in value.values())
    if isinstance(value, (list, tuple)):
        return " ".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _page(models: Sequence[Model], made: float) -> str:
    total = bytes_text(sum(model.nbytes for model in models))
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>phiquant: {len(models)} models</title><style>{_STYLE}</style></head><body>",
        f"<h1>{len(models)} models, {total}</h1>",
        f"<p>phiquant {_text(_core.version)}, {_text(moment(made))}</p>",
        *(_section(model) for model in models),
        "</body></html>",
    ]
    return "\n".join(parts) + "\n"


def _section(model: Model) -> str:
    codecs = [
        (name, f"{one['tensors']:.0f}", bytes_text(one["bytes"]), f"{one['rms']:.3%}")
        for name, one in model.facts.get("codecs", {}).items()
    ]
    files = [(f.name, str(f.nbytes), f.crc32c, f.sha256 or "") for f in model.files]
    verdicts = [
        (one.kind, moment(one.made), verdict_text(one), one.checksum or "")
        for one in model.verdicts
    ]
    parts = [
        f'<section id="model-{model.id}"><h2>{model.id}. {_text(model.name)}</h2>',
        _rows((), facts_table(model)),
        _rows(("file", "bytes", "crc32c", "sha256"), files),
        _rows(("codec", "tensors", "size", "rms error"), codecs),
        _rows(("verdict", "made", "what was found", "of the bytes"), verdicts),
        "</section>",
    ]
    return "\n".join(part for part in parts if part)


def _rows(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    top = "".join(f"<th>{_text(cell)}</th>" for cell in head)
    lines = [f"<tr>{top}</tr>"] if head else []
    for row in rows:
        lines.append("<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>")
    kind = "scroll" if head else "facts"
    return f'<div class="{kind}"><table>' + "\n".join(lines) + "</table></div>"


def _text(text: str) -> str:
    return html.escape(text, quote=True)
