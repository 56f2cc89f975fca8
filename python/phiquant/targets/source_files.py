"""The small files that go from a checkpoint's folder into an output's, as they are."""

from __future__ import annotations

import re
from pathlib import Path

from phiquant.errors import FormatError
from phiquant.tokenizer import files

#: What Hugging Face's tokenizers and generation are made of, and the most bytes of each.
_COPIED = {
    "tokenizer.json": files.MAX_TOKENIZER_JSON,
    "tokenizer.model": files.MAX_SENTENCEPIECE_MODEL,
    "vocab.json": files.MAX_VOCABULARY_FILE,
    "merges.txt": files.MAX_VOCABULARY_FILE,
    "tokenizer_config.json": files.MAX_CONFIG,
    "special_tokens_map.json": files.MAX_CONFIG,
    "added_tokens.json": files.MAX_CONFIG,
    "chat_template.jinja": files.MAX_CHAT_TEMPLATE,
    "chat_template.json": files.MAX_CHAT_TEMPLATE,
    "generation_config.json": files.MAX_CONFIG,
}

_LEGAL = re.compile(r"^(licen[cs]e|notice|copying)([-.][\w.-]+)?$", re.IGNORECASE)
_MAX_LEGAL = 1 << 20


def copied_files(folder: Path) -> dict[str, bytes]:
    """Tokenizer, generation settings and licences of a checkpoint, by name.

    Raises
    ------
    phiquant.FormatError
        There is no tokenizer, a file is larger than any honest one, or a link that leads outside.
    """
    found = {}
    for name, limit in _COPIED.items():
        path = files.find(folder, name)
        if path is not None:
            found[name] = files.read_bytes(path, limit)
    if not {"tokenizer.json", "tokenizer.model", "vocab.json"} & set(found):
        raise FormatError(
            "has no tokenizer, and the output would not run without one",
            file=folder,
            remedy="Give the model's whole folder, as it was published.",
        )
    for entry in sorted(folder.iterdir()):
        if _LEGAL.match(entry.name):
            path = files.find(folder, entry.name)
            if path is not None:
                found[entry.name] = files.read_bytes(path, _MAX_LEGAL)
    return found
