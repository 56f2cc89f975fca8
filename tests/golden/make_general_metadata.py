"""Record what llama.cpp's converter makes of names, configs and model cards (``general.*``).

    python make_general_metadata.py --llama-cpp PATH

PATH is llama.cpp's source tree with ``gguf-py`` in it; the interpreter needs numpy and pyyaml. The cards below are
written in the manner of the published ones. Writes ``general-metadata.json`` beside this file.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent

PHI35_CARD = """\
---
license: mit
license_link: https://huggingface.co/microsoft/Phi-3.5-mini-instruct/resolve/main/LICENSE

language:
- multilingual
pipeline_tag: text-generation
tags:
- nlp
- code
widget:
- messages:
  - role: user
    content: Can you provide ways to eat combinations of bananas and dragonfruits?
library_name: transformers
---

## Model Summary
"""
PHI4_MINI_CARD = """\
---
language:
- "multilingual"
- "ar"
- "zh"
- "cs"
- no
library_name: transformers
license: mit
license_link: https://huggingface.co/microsoft/Phi-4-mini-instruct/resolve/main/LICENSE
pipeline_tag: text-generation
tags:
- nlp
- code
widget:
- messages:
  - role: user
    content: Can you provide ways to eat combinations of bananas and dragonfruits?
---
"""
PHI4_CARD = """\
---
license: mit
license_link: https://huggingface.co/microsoft/phi-4/resolve/main/LICENSE
language:
- en
pipeline_tag: text-generation
tags:
- phi
- nlp
- math
- code
- chat
- conversational
inference:
  parameters:
    temperature: 0
widget:
- messages:
  - role: user
    content: How should I explain the Internet?
library_name: transformers
---
"""
FINETUNE_CARD = """\
---
base_model: microsoft/Phi-3.5-mini-instruct  # what it was tuned from
datasets:
  - allenai/c4
  - https://huggingface.co/datasets/somebody
  - https://huggingface.co/HuggingFaceH4/ultrachat_200k
  - https://example.org/corpus.zip
language: en
license: other
license_name: "my 'own' licence"
license_link: LICENSE
model_name: My Tuned Phi
author: 'A. Author'
version: v2.1
description: >
  A model that was
  tuned.
tags: [chat, "fine, tuned", 'phi']
model_creator: nobody
empty:
nothing: null
---
"""
MERGE_CARD = """\
---
base_model:
- microsoft/Phi-4-mini-instruct
- ./local/Phi-4-mini-7b1
- Phi-3-medium-128k-instruct
license: apache-2.0
tags: []
---
"""

# name of the folder, weights, config.json, generation_config.json, README.md
CASES: dict[str, tuple[str, int, dict[str, object], dict[str, object] | None, str | None]] = {
    "phi-3-mini-4k": (
        "Phi-3-mini-4k-instruct",
        3_821_079_552,
        {"_name_or_path": "Phi-3-mini-4k-instruct"},
        None,
        None,
    ),
    "phi-3-mini-128k": ("Phi-3-mini-128k-instruct", 3_821_079_648, {}, None, None),
    "phi-3-medium": (
        "snapshot",
        13_960_238_080,
        {"_name_or_path": "microsoft/Phi-3-medium-4k-instruct"},
        {"eos_token_id": [32000, 32001, 32007]},
        None,
    ),
    "phi-3.5-mini": (
        "Phi-3.5-mini-instruct",
        3_821_079_648,
        {"_name_or_path": "Phi-3.5-mini-instruct"},
        {"eos_token_id": [32007, 32001, 32000]},
        PHI35_CARD,
    ),
    "phi-4": ("phi-4", 14_659_507_200, {}, None, PHI4_CARD),
    "phi-4-mini": ("Phi-4-mini-instruct", 3_836_021_856, {}, None, PHI4_MINI_CARD),
    "phi-4-mini-reasoning": (
        "Phi-4-mini-reasoning",
        3_836_021_856,
        {},
        {
            "temperature": 0.8,
            "top_p": 0.95,
            "top_k": 50,
            "do_sample": True,
            "repetition_penalty": 1.1,
        },
        "---\nlicense: mit\n---\n",
    ),
    "fine-tune": ("out", 3_821_079_648, {"_name_or_path": "/home/me/phi/x"}, None, FINETUNE_CARD),
    "merge": ("Phi-4-merge-F16-v1.2-lora", 3_836_021_856, {}, None, MERGE_CARD),
    "no front matter": ("my model", 7_212_288, {}, None, "# A model\n"),
    "small": ("tiny-phi-500k-chat", 512_345, {}, {"temperature": 1, "top_k": None}, None),
    "seven": ("Somebody_phi3-7b1-Instruct-2024", 7_100_000_000, {}, None, None),
    "exact": ("phi", 1_000_000, {}, None, None),
    "large": ("Phi-1.5T-xl", 1_500_000_000_000, {}, None, None),
    "ninety-nine": ("x-mini-mini", 99_600_000, {}, None, None),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--llama-cpp", type=Path, required=True)
    sys.path.insert(0, str(parser.parse_args().llama_cpp / "gguf-py"))
    import gguf

    cases = {}
    for case, (name, weights, config, generation, card) in CASES.items():
        with tempfile.TemporaryDirectory() as parent:
            folder = Path(parent) / name
            folder.mkdir()
            (folder / "config.json").write_text(json.dumps(config))
            if generation is not None:
                (folder / "generation_config.json").write_text(json.dumps(generation))
            if card is not None:
                (folder / "README.md").write_text(card)
            metadata = gguf.Metadata.load(None, folder, None, weights)
            # As ModelBase.prepare_metadata of the converter does before it writes.
            metadata.name = metadata.name or folder.name
            metadata.size_label = metadata.size_label or gguf.size_label(weights, weights, 0, 0)
            writer = gguf.GGUFWriter(None, "phi3")
            metadata.set_gguf_meta_model(writer)
        pairs = []
        for key, value in writer.kv_data[0].items():
            if key == "general.architecture":
                continue
            kind = value.type.name.lower()
            pairs.append([key, "array:string" if kind == "array" else kind, value.value])
        cases[case] = {
            "name": name,
            "parameters": weights,
            "config": config,
            "generation": generation,
            "card": card,
            "metadata": pairs,
        }
    out = {"made_with": "gguf-py of the llama.cpp in llama-cpp-python 0.3.36", "cases": cases}
    (HERE / "general-metadata.json").write_text(
        json.dumps(out, indent=1, ensure_ascii=False) + "\n"
    )


if __name__ == "__main__":
    main()
