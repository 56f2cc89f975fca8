"""Reads the front matter of a model card (README.md): the flat part of its YAML, which suffices."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

#: Scalars as strings and lists of scalars as lists; anything nested is left out.
Card = Mapping[str, "str | list[str]"]

_MAX_BYTES = 4 << 20
_KEY = re.compile(r"^([A-Za-z0-9_.\-]+)\s*:(?:\s+(.*))?$")
_QUOTED = re.compile(r"""'(?:[^']|'')*'|"(?:[^"\\]|\\.)*\"""")
_NESTED = re.compile(r"^[A-Za-z0-9_.\-\"' ]+:(\s|$)")


def read_card(folder: Path) -> Card:
    """The front matter of ``folder/README.md``.

    Returns
    -------
    mapping
        Empty where there is no card, no front matter, or none that can be read: a card is not the
        model.
    """
    path = folder / "README.md"
    try:
        if not path.is_file() or path.stat().st_size > _MAX_BYTES:
            return {}
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return {}
    if not lines or lines[0] != "---" or "---" not in lines[1:]:
        return {}
    return parse_front_matter(lines[1 : lines.index("---", 1)])


def parse_front_matter(lines: list[str]) -> Card:
    """The top-level keys of a YAML mapping whose values are scalars or lists of scalars.

    Scalars stay text: ``no`` is Norwegian here, and ``1.0`` is a version.
    """
    card: dict[str, str | list[str]] = {}
    key, below = None, list[str]()
    for line in [*lines, "end:"]:
        match = _KEY.match(line)
        if not match:
            below.append(line)
            continue
        if key is not None:
            value = _block(below)
            if value is not None:
                card[key] = value
        key, below = None, []
        name, rest = match[1], _without_comment(match[2] or "")
        if rest == "" or rest[0] in "|>":
            key, below = name, [rest]
        elif rest.startswith("["):
            card[name] = [_scalar(item) for item in _split_flow(rest.strip("[]")) if item.strip()]
        elif not rest.startswith("{") and rest not in ("null", "~"):
            card[name] = _scalar(rest)
    return card


def _block(below: list[str]) -> str | list[str] | None:
    """What stands under a key: a list of scalars, or a text over lines; None for anything else."""
    style, lines = below[0], [line for line in below[1:] if not line.lstrip().startswith("#")]
    if style:
        words = [line.strip() for line in lines]
        text = ("\n" if style[0] == "|" else " ").join(words).strip()
        return text + ("" if style.endswith("-") else "\n")
    items: list[str] = []
    for line in lines:
        text = line.strip()
        if not text:
            continue
        if not text.startswith("- ") or _NESTED.match(text[2:].strip()):
            return None
        items.append(_scalar(_without_comment(text[2:])))
    return items or None


def _without_comment(text: str) -> str:
    text = text.strip()
    quoted = _QUOTED.match(text)
    if quoted:
        return quoted[0]
    return re.split(r"\s#", text, maxsplit=1)[0].strip()


def _scalar(text: str) -> str:
    text = text.strip()
    if len(text) >= 2 and text[0] == text[-1] and text[0] in "'\"":
        inner = text[1:-1]
        return inner.replace("''", "'") if text[0] == "'" else inner.replace('\\"', '"')
    return text


def _split_flow(text: str) -> list[str]:
    return re.findall(r"""(?:"[^"]*"|'[^']*'|[^,])+""", text)
