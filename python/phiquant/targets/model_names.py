"""Takes a model's name apart into base, size, fine-tune and version, as llama.cpp's converter does.

Names follow GGUF's naming convention (ggml's docs/gguf.md). What the converter makes of
``Phi-3-mini-4k-instruct`` is what people search for, so the same parts must come out.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_VERSION = re.compile(r"(v|iter)?\d+([.]\d+)*", re.IGNORECASE)
_TYPE = re.compile(r"i?q\d(_\w)*|b?fp?(16|32)", re.IGNORECASE)
_SIZE = re.compile(
    r"(([A]|\d+[x])?\d+([._]\d+)?[KMBT][\d]?|small|mini|medium|large|x?xl)", re.IGNORECASE
)
_FINETUNE = re.compile(r"chat|instruct|vision|lora", re.IGNORECASE)
_KEEP_CASE = re.compile(r"v\d+(?:\.\d+)*|\d.*")


@dataclass(frozen=True)
class NameParts:
    """A model id taken apart; None for what it does not tell."""

    name: str
    organization: str | None = None
    basename: str | None = None
    finetune: str | None = None
    version: str | None = None
    size_label: str | None = None


@dataclass
class _Part:
    text: str
    kind: str | None = None
    in_base: bool = False


def title(name: str) -> str:
    """``phi-4-mini-instruct`` as ``Phi 4 Mini Instruct``; words with capitals and versions stay."""
    words = name.strip().replace("-", " ").split()
    return " ".join(
        word.title() if word.islower() and not _KEEP_CASE.fullmatch(word) else word
        for word in words
    )


def size_label(parameters: int) -> str:
    """The number of weights with two digits at least: ``3.8B``, ``15B``, ``7.2M``."""
    units = ((1e12, 1e-12, "T"), (1e9, 1e-9, "B"), (1e6, 1e-6, "M"), (-1, 1e-3, "K"))
    unit, suffix = next((unit, suffix) for least, unit, suffix in units if parameters > least)
    scaled = parameters * unit
    digits = len(str(round(scaled)).lstrip("0"))
    return f"{scaled:.{max(2 - digits, 0)}f}{suffix}"


def name_parts(model_id: str, parameters: int) -> NameParts:
    """Take apart a hub id or the name of a folder.

    Parameters
    ----------
    model_id : str
        As ``microsoft/Phi-3-mini-4k-instruct``; the owner may be absent. With a space in it, it is
        a name as it is.
    parameters : int
        The model's size: ``4k`` is no size label of a model with 3.8 billion weights but its
        context.
    """
    if " " in model_id:
        return NameParts(model_id)
    organization, slash, name = model_id.partition("/")
    if not slash:
        organization, name = "", model_id
    parts = [_Part(text) for text in name.split("-") if text]
    for index, part in enumerate(parts):
        _classify(part, index, parameters)
    _drop_word_sizes(parts)
    _mark_base(parts)

    def joined(kind: str) -> str | None:
        return "-".join(part.text for part in parts if part.kind == kind) or None

    base = "-".join(part.text for part in parts if part.in_base) or None
    sizes = dict.fromkeys(part.text for part in parts if part.kind == "size_label")
    versions = [part.text for part in parts if part.kind == "version" and not part.in_base]
    size, finetune, version = (
        "-".join(sizes) or None,
        joined("finetune"),
        "-".join(versions) or None,
    )
    if size is None and finetune is None and version is None:
        base = None  # the whole name, which tells nothing
    owner = organization if organization and not organization.startswith(".") else None
    return NameParts(name, owner, base, finetune, version, size)


def _classify(part: _Part, index: int, parameters: int) -> None:
    if _VERSION.fullmatch(part.text):
        part.kind = "version"
    elif _TYPE.fullmatch(part.text):
        part.kind, part.text = "type", part.text.upper()
    elif index > 0 and _SIZE.fullmatch(part.text):
        text = part.text.replace("_", ".")
        if text[-1].isdecimal():  # "7b1" means 7.1B
            text = f"{text[:-2]}.{text[-1]}{text[-2]}"
        if len(text) > 1 and text[-2].isdecimal() and text[-1] in "kmbt":
            text = text[:-1] + text[-1].upper()
        part.kind = "size_label"
        if _far_from(text, parameters):
            part.kind, text = "finetune", text[:-1] + text[-1].lower()
        part.text = text
    elif index > 0 and _FINETUNE.fullmatch(part.text):
        part.kind = "finetune"


def _far_from(label: str, parameters: int) -> bool:
    """Whether a label such as ``128K`` is too far from the model's size: a context length then."""
    try:
        said = float(label[:-1]) * 1000.0 ** " KMBT".find(label[-1])
    except ValueError:
        return False
    return abs(said - parameters) > 7 * parameters // 8


def _drop_word_sizes(parts: list[_Part]) -> None:
    """With a number among the sizes, words such as ``mini`` are no sizes."""
    sizes = [part for part in parts if part.kind == "size_label"]
    if any(character.isdecimal() for part in sizes for character in part.text):
        for part in sizes:
            if part.text.isalpha():
                part.kind = None


def _mark_base(parts: list[_Part]) -> None:
    """The base name is the words and versions at the start, without a version at its end."""
    at_start = True
    for part in parts:
        if at_start and (part.kind == "version" or (part.kind is None and part.text[0].isalpha())):
            part.in_base = True
        else:
            at_start = False
            part.kind = part.kind or "finetune"
    for part in reversed(parts):
        if not (part.in_base and part.kind is not None):
            break
        part.in_base = False
