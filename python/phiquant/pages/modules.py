"""Where tensors stand in the model, from their names alone: a layer and a module."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

# Six digits: names are anyone's, and no model has a million layers.
_LAYER = re.compile(r"(?:^|\.)(\d{1,6})\.")
# What stands before the number in Hugging Face's names and in GGUF's.
_USUAL = ("model.layers", "blk")
# Parts of a decoder in the order of use: in Hugging Face's spelling and in GGUF's.
_ORDER = (
    *(("embed", "token_embd"), ("qkv",), ("q_proj", "attn_q"), ("k_proj", "attn_k")),
    *(("v_proj", "attn_v"), ("o_proj", "attn_output"), ("gate_up", "ffn_up"), ("gate",)),
    *(("up_proj",), ("down",), ("lm_head", "output")),
)


@dataclass(frozen=True)
class Place:
    """Where a tensor stands in the model.

    Attributes
    ----------
    layer : int or None
    module : str
        Equal for the same part of every layer: ``self_attn.qkv_proj``.
    """

    layer: int | None
    module: str


def place_of(name: str) -> Place:
    """The place that a tensor's name tells."""
    found = _LAYER.search(name)
    if found is None:
        return Place(None, name.removeprefix("model.").removesuffix(".weight") or name)
    before = name[: found.start()]
    rest = name[found.end() :].removesuffix(".weight")
    return Place(int(found[1]), rest if before in _USUAL else f"{before}.*.{rest}")


def model_order(modules: Iterable[str]) -> list[str]:
    """Modules in the order in which a token goes through them, others as they come."""

    def rank(module: str) -> int:
        known = (i for i, names in enumerate(_ORDER) if any(name in module for name in names))
        return next(known, len(_ORDER))

    return sorted(dict.fromkeys(modules), key=rank)


def short_modules(modules: Iterable[str]) -> dict[str, str]:
    """The shortest ends of dotted names that tell them apart."""
    names = list(dict.fromkeys(modules))
    found = {}
    for name in names:
        parts = name.split(".")
        for count in range(1, len(parts) + 1):
            end = ".".join(parts[-count:])
            if sum(other == end or other.endswith("." + end) for other in names) == 1:
                break
        found[name] = end
    return found
