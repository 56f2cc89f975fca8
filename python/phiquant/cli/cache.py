"""``phiquant cache``."""

from __future__ import annotations

import re
import time

import click

from phiquant.cli.options import SETTINGS, Command, json_option, option, quiet_option
from phiquant.cli.terminal import Words, put, put_json
from phiquant.errors import UsageError

_EXAMPLES = """\b
Examples:
  phiquant cache
  phiquant cache --clear --older-than 30d"""

_WHICH = "Which"
_AGE = re.compile(r"(\d{1,6})([mhd])")
_SECONDS = {"m": 60, "h": 3600, "d": 24 * 3600}


@click.command("cache", cls=Command, context_settings=SETTINGS, epilog=_EXAMPLES)
@option("--clear", section="What to do", is_flag=True, help="Remove them.")
@option(
    "--older-than",
    section=_WHICH,
    metavar="AGE",
    help="Those that were not used for so long: 30d, 12h, 45m.",
)
@json_option
@quiet_option
def command(clear: bool, older_than: str | None, as_json: bool, quiet: bool) -> None:
    """List the measurements that are kept, or remove them.

    What 'phiquant eval' and 'phiquant calibrate' have done stands in the folder that the first line
    names; PHIQUANT_CACHE names another one. It is never needed: what is removed is measured again.
    What was not used for longest goes when the folder has more than 10 GB.
    """
    from phiquant.measure.store import Store
    from phiquant.texts import bytes_text, table

    age = _age(older_than)
    store = Store()
    if clear:
        found = store.clear(age)
    else:
        before = time.time() - age
        found = [one for one in store.entries() if not age or one.used < before]
    total = sum(one.nbytes for one in found)
    if as_json:
        where = None if store.place is None else str(store.place)
        entries = [one.to_json() for one in found]
        put_json({"folder": where, "removed": clear, "nbytes": total, "measurements": entries})
        return
    if clear:
        Words(quiet).say(f"removed {len(found)} measurements, {bytes_text(total)}")
        return
    put(f"{store.place}: {len(found)} measurements, {bytes_text(total)}")
    groups: dict[tuple[str, str], list[tuple[int, float, float]]] = {}
    for one in found:
        groups.setdefault((one.what, one.source), []).append((one.nbytes, one.made, one.used))
    rows = []
    for (what, source), members in groups.items():
        sizes, made, used = zip(*members, strict=True)
        ages = _ago(min(made)), _ago(max(used))
        rows.append((what, source, str(len(members)), bytes_text(sum(sizes)), *ages))
    if rows:
        put(table(("what", "source", "count", "size", "made", "last used"), rows, "llrrll"))


def _age(text: str | None) -> float:
    """Seconds of an age such as ``30d``; 0 where none is given."""
    if text is None:
        return 0.0
    match = _AGE.fullmatch(text.strip().lower())
    if match is None or not int(match[1]):
        raise UsageError(f"'{text}' is no age", remedy="Write it as 30d, 12h or 45m.")
    return float(int(match[1]) * _SECONDS[match[2]])


def _ago(moment: float) -> str:
    seconds = max(0.0, time.time() - moment)
    for unit, size in (("days", _SECONDS["d"]), ("hours", _SECONDS["h"]), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size:.0f} {unit} ago"
    return "just now"
