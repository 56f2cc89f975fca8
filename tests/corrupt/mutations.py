"""Small changes of files that readers may not survive: of bytes, and of what a JSON file says."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

#: Values that stand where another was expected.
NASTY: list[Any] = [
    None, True, False, 0, 1, -1, 2, 31, 255, 1 << 31, 1 << 32, 1 << 63, (1 << 64) - 1, 10**30, 0.5,
    -0.0, 1e-320, 1e308, "", "x", "0", "\0", "é\U0001f642", "\x1b[2J", "../x", "/etc/passwd", "a" * 5000,
    "{{ 7*7 }}", "\ufeff", [], {}, [[]], [None], [0], ["x"], {"x": 1}, [1e308] * 40, [-1] * 3,
    {"": None}, [[[[[[[[]]]]]]]], ["a", "a"],
]  # fmt: skip

#: Pieces that mean something to one of the formats.
TOKENS = [
    b"{", b"}", b"[", b"]", b'"', b",", b":", b"null", b"NaN", b"-Infinity", b"1e999", b"\\ud800", b"\0",
    b"\xff", b"\xef\xbb\xbf", b"<", b">", b"/>", b"&e;", b"<!DOCTYPE x>", b"-1", b"0", b"9" * 30,
    b"18446744073709551616", b"\x00" * 8, b"\xff" * 8, b"\x80", b"GGUF", b"\n",
]  # fmt: skip


def change_bytes(chance: random.Random, data: bytes) -> bytes:
    """One to three changes somewhere: flipped, cut, doubled, moved, or a token put in."""
    out = bytearray(data)
    for _ in range(chance.randint(1, 3)):
        at = chance.randrange(len(out) + 1)
        end = min(len(out), at + chance.choice([1, 2, 4, 8, 40, 400]))
        kind = chance.randrange(7)
        if kind == 0 and at < len(out):
            out[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            out[at:end] = b""
        elif kind == 2:
            out[at:at] = out[at:end]
        elif kind == 3:
            out[at:at] = chance.choice(TOKENS)
        elif kind == 4:
            token = chance.choice(TOKENS)
            out[at : at + len(token)] = token
        elif kind == 5:
            there = chance.randrange(len(out) + 1)
            out[there:there] = out[at:end]
        elif chance.randrange(4) == 0:
            del out[at:]
    return bytes(out)


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path] if path else []
    if isinstance(value, dict):
        for key, inner in value.items():
            found += _places(inner, (*path, key))
    elif isinstance(value, list):
        # Long lists are vocabularies: a few of their items stand for all.
        for index in {*range(min(3, len(value))), *range(max(0, len(value) - 2), len(value))}:
            found += _places(value[index], (*path, index))
    return found


def _at(value: Any, path: tuple[Any, ...]) -> Any:
    for step in path:
        value = value[step]
    return value


def _thin(chance: random.Random, places: list[tuple[Any, ...]]) -> tuple[Any, ...]:
    """A place: the outermost ones as often as all the others."""
    outer = [place for place in places if len(place) <= 2]
    return chance.choice(chance.choice([outer or places, places]))


def change_json(chance: random.Random, data: bytes) -> bytes:
    """One or two changes of what a JSON file says; now and then of its bytes."""
    if chance.randrange(5) == 0:
        return change_bytes(chance, data)
    value = copy.deepcopy(json.loads(data))
    for _ in range(chance.randint(1, 2)):
        places = _places(value)
        if not places:
            break
        path = _thin(chance, places)
        holder, key = _at(value, path[:-1]), path[-1]
        kind = chance.randrange(6)
        if kind == 0:
            del holder[key]
        elif kind == 1:
            holder[key] = copy.deepcopy(_at(value, chance.choice(places)))
        elif kind == 2 and isinstance(holder, dict):
            holder[chance.choice(["", "x", "\0", "é", f"{key}x"])] = holder.pop(key)
        elif kind == 3 and isinstance(holder[key], (int, float)):
            holder[key] = chance.choice([-holder[key], holder[key] * 2, holder[key] + 1, 0])
        elif kind == 4 and isinstance(holder[key], list) and holder[key]:
            cut = chance.randrange(len(holder[key]))
            holder[key] = chance.choice([holder[key][:cut], holder[key] + holder[key][:cut]])
        else:
            holder[key] = copy.deepcopy(chance.choice(NASTY))
    return json.dumps(value, ensure_ascii=chance.random() < 0.5).encode("utf-8", "surrogatepass")
