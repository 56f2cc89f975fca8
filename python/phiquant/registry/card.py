"""The model card of a result that has none: a front matter for hubs, and where it comes from."""

from __future__ import annotations

import json
from collections.abc import Sequence

from phiquant.registry.audit import verdict_text
from phiquant.registry.records import Model
from phiquant.texts import bytes_text


def card_of(model: Model | None, name: str, format_name: str) -> str:
    """The text of README.md.

    Parameters
    ----------
    model : Model or None
        What is known; None where nothing is.
    name : str
        The result's.
    format_name : str
        ``gguf``, ``onnx`` ...
    """
    name = " ".join(name.split())  # a file may be named anything, and this is one line
    facts = model.facts if model else {}
    source, licence = facts.get("source", {}), facts.get("licence", {})
    base = source.get("repository") or licence.get("base_model")
    front = {
        "pipeline_tag": "text-generation",
        "base_model": base,
        "base_model_relation": "quantized" if base else None,
        **{key: licence.get(key) for key in ("license", "license_name", "license_link")},
        "tags": [format_name, "phiquant"],
        "quantized_by": "phiquant",
    }
    # Strings and lists of JSON are strings and lists of YAML.
    lines = ["---"]
    lines += [f"{key}: {json.dumps(v, ensure_ascii=False)}" for key, v in front.items() if v]
    lines += ["---", "", f"# {name}", ""]
    if model is None:
        return "\n".join([*lines, f"Quantized weights ({format_name})."]) + "\n"
    revision = f" at revision {source['revision']}" if "revision" in source else ""
    lines += [
        f"Made of {source.get('repository') or source.get('name', '?')}{revision} with phiquant "
        f"{facts['phiquant']}: `{_command(model)}`. {bytes_text(model.nbytes)}, "
        f"{facts['bits_per_weight']:.2f} bits per weight.",
        "",
        *(f"- {note}" for note in facts.get("notes", ())),
    ]
    rows = [(f.name, str(f.nbytes), f.crc32c, f.sha256 or "") for f in model.files]
    lines += ["", *_table(("file", "bytes", "crc32c", "sha256"), rows)]
    found = [(one.kind, verdict_text(one)) for one in model.verdicts if one.kind in _KINDS]
    if found:
        lines += ["", *_table(("checked by", "found"), found)]
    return "\n".join(lines) + "\n"


_KINDS = ("verify", "eval", "bench")


def _command(model: Model) -> str:
    words = [f"phiquant convert --to {model.target}"]
    for key, value in model.facts.get("recipe", {}).items():
        option = f"--{key.replace('_', '-')}"
        if key == "quality" and value == "reference":
            continue
        if isinstance(value, bool):
            words.append(option)
        elif isinstance(value, list):
            words += [f"{option} '{one}'" for one in value]
        elif isinstance(value, dict):
            words.append(f"{option} {value['sha256'][:12]}")
        else:
            words.append(f"{option} {value}")
    return " ".join(words).replace("`", "'")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
