"""The model card of an MLX folder: a front matter that hubs read, and how the model is run."""

from __future__ import annotations

import json

from phiquant.targets.model_card import Card

# What of the source's card says where the model comes from, and on what terms.
_KEPT = ("license", "license_name", "license_link", "language", "base_model")


def model_card(name: str, target: str, card: Card, notes: tuple[str, ...]) -> bytes:
    """The text of README.md.

    Parameters
    ----------
    name : str
        The source's.
    target : str
        As ``mlx:4bit``.
    card : Card
        Front matter of the source's card.
    notes : tuple of str
        What users of the output should know.
    """
    name = " ".join(name.split())  # a folder may be named anything, and this is one line
    # Strings of JSON are strings of YAML.
    lines = ["---", "library_name: mlx", "pipeline_tag: text-generation"]
    for key in _KEPT:
        if key in card:
            lines.append(f"{key}: {json.dumps(card[key], ensure_ascii=False)}")
    tags = card.get("tags", [])
    tags = [tags] if isinstance(tags, str) else tags
    lines.append(f"tags: {json.dumps(list(dict.fromkeys(['mlx', *tags])), ensure_ascii=False)}")
    lines += ["---", "", f"# {name}, {target}", ""]
    lines += [f"Made of {name} with `phiquant convert --to {target}`. Run it with mlx-lm:", ""]
    lines += ["    mlx_lm.generate --model FOLDER --prompt 'Hello'", ""]
    lines += [f"- {note}" for note in notes]
    return ("\n".join(lines).rstrip("\n") + "\n").encode()
