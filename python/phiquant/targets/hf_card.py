"""The model card of a Hugging Face folder: where it comes from, and how weights were rounded."""

from __future__ import annotations

import json
from collections import Counter

from phiquant.recipes.hf import Assignment
from phiquant.targets.model_card import Card

# What of the source's card says where the model comes from, and on what terms.
_KEPT = ("license", "license_name", "license_link", "language", "base_model")


def model_card(name: str, target: str, card: Card, assignment: Assignment, best: bool) -> bytes:
    """The text of README.md.

    Parameters
    ----------
    name : str
        The source's.
    target : str
        As ``hf:w4a16``.
    card : Card
        Front matter of the source's card.
    assignment : Assignment
    best : bool
        Whether scales were searched for.
    """
    held = Counter(str(scheme or "float") for scheme in assignment.schemes.values())
    quantized = any(scheme is not None for scheme in assignment.schemes.values())
    # Strings of JSON are strings of YAML.
    lines = ["---", "library_name: transformers", "pipeline_tag: text-generation"]
    for key in _KEPT:
        if key in card:
            lines.append(f"{key}: {json.dumps(card[key], ensure_ascii=False)}")
    tags = card.get("tags", [])
    tags = [tags] if isinstance(tags, str) else tags
    layouts = {scheme.layout for scheme in assignment.schemes.values() if scheme is not None}
    method = {"": "compressed-tensors", "awq": "awq"}.get(min(layouts, default=""), "gptq")
    own = [method] if quantized else []
    if own or tags:
        tags = list(dict.fromkeys([*own, *tags]))
        lines.append(f"tags: {json.dumps(tags, ensure_ascii=False)}")
    lines += ["---", "", f"# {name}, {target}", ""]
    lines += [f"Made of {name} with `phiquant convert --to {target}`."]
    if quantized:
        rule = (
            "Scales and zero points were searched for the least squared error of the weights"
            if best
            else "Weights are rounded to the nearest codes, as compressed-tensors does"
        )
        if method != "compressed-tensors":
            rule += (
                f", and laid out as {method.upper()} has them; {method.upper()} itself was not run"
            )
        lines += ["", f"{rule}; no calibration data were used. Linear layers:", ""]
        lines += [f"- {count} x {scheme}" for scheme, count in held.items()]
        if method == "compressed-tensors":
            lines += ["", "transformers loads it with `pip install compressed-tensors`."]
        else:
            lines += ["", "transformers loads it with `pip install gptqmodel optimum`."]
    return ("\n".join(lines).rstrip("\n") + "\n").encode()
