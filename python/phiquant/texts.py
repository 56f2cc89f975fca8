"""Numbers and tables as people read them."""

from __future__ import annotations

from collections.abc import Sequence


def bytes_text(count: float) -> str:
    """Bytes in decimal units, as shops and file managers count them."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.2f} {unit}"
        count /= 1000
    raise AssertionError


def table(head: Sequence[str], rows: Sequence[Sequence[str]], align: str) -> str:
    """A plain table.

    Parameters
    ----------
    head : sequence of str
    rows : sequence of sequence of str
    align : str
        One letter a column: ``l`` or ``r``.
    """
    shown = [[printable(cell) for cell in row] for row in (head, *rows)]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    lines = []
    for row in shown:
        cells = [
            cell.rjust(width) if side == "r" else cell.ljust(width)
            for cell, width, side in zip(row, widths, align, strict=True)
        ]
        lines.append("  " + "  ".join(cells).rstrip())
    return "\n".join(lines)


def printable(text: str) -> str:
    """``text`` with escapes for control characters: names from files must not command terminals."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
