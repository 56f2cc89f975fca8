"""Run llama.cpp's converter on the fixtures and record every metadata key that it writes.

    python make_converter_metadata.py --llama-cpp PATH [--keep FOLDER]

PATH is llama.cpp's source tree (``convert_hf_to_gguf.py`` and ``gguf-py`` in it); the interpreter needs
the converter's own requirements (torch, transformers, sentencepiece, numpy). With ``--keep`` the GGUF files
stay in FOLDER, otherwise they live in a temporary folder. Writes ``converter-metadata.json`` beside this file.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
DATA = HERE.parent / "data"
FIXTURES = ("phi35", "phi4mini", "phi3win")
LONGEST_WHOLE = 16  # arrays longer than this are stored as digest, first and last items

# The converter tells a byte-level BPE's pre-tokenizer from a hash of a probe text's ids, so that only vocabularies
# that it has seen are accepted. The fixture's own vocabulary cannot be among them; its split pattern is gpt-4o's.
RUN = """
import runpy, sys
sys.path.insert(0, sys.argv[1])
import os
sys.path.insert(1, os.path.join(sys.argv[1], "gguf-py"))
from conversion.base import TextModel
if sys.argv[2] != "-":
    TextModel.get_vocab_base_pre = lambda self, tokenizer, _pre=sys.argv[2]: _pre
script = os.path.join(sys.argv[1], "convert_hf_to_gguf.py")
sys.argv = [script] + sys.argv[3:]
runpy.run_path(script, run_name="__main__")
"""
FORCED_PRE = {"phi4mini": "gpt-4o"}


def template(*items: str) -> dict[str, object]:
    """A TemplateProcessing for one text "A" and for two, the second one's items repeated."""

    def item(text: str) -> dict[str, object]:
        kind = "Sequence" if text in ("A", "B") else "SpecialToken"
        return {kind: {"id": text, "type_id": 0}}

    pair = [*items, *("B" if text == "A" else text for text in items)]
    return {
        "type": "TemplateProcessing",
        "single": [item(text) for text in items],
        "pair": [item(text) for text in pair],
    }


BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False}
POST_PROCESSORS: list[dict[str, object]] = [
    BYTE_LEVEL,
    template("A"),
    template("<s>", "A"),
    template("A", "<|endoftext|>"),
    template("<s>", "A", "<|endoftext|>"),
    template("<|user|>", "A"),
    template("<s>", "A", "<|end|>"),
    {"type": "Sequence", "processors": [BYTE_LEVEL, template("<s>", "A")]},
]
# What else in tokenizer_config.json decides: nothing, the add flags, names of other roles.
CONFIGS: list[dict[str, object]] = [
    {},
    {"add_bos_token": True, "add_eos_token": True},
    {"bos_token": None, "eos_token": None, "cls_token": "<s>", "sep_token": {"content": "</s>"}},
    {"bos_token": None, "mask_token": "<|placeholder1|>", "add_sep_token": False},
]


def added(index: int, content: str, **flags: bool) -> dict[str, object]:
    """An entry of ``added_tokens``."""
    names = ("lstrip", "rstrip", "normalized", "single_word", "special")
    return {"id": index, "content": content, **dict.fromkeys(names, False), **flags}


# Changed copies of the fixtures: what is left out, and what is changed in which file. Objects are updated key by key,
# lists are lengthened, other values replaced.
VARIANTS: dict[str, dict[str, object]] = {
    "byte-level, added in tokenizer.json": {
        "fixture": "phi4mini",
        "changes": {
            "tokenizer.json": {
                "added_tokens": [
                    added(4010, "<tool>", special=True),
                    added(4011, "<|looks|>"),
                    added(4012, "\u2581plain", normalized=True),
                    added(4013, "<strip>", lstrip=True, rstrip=True),
                    added(4014, "<unused7>"),
                    added(4015, "a.b c", normalized=True),
                ]
            }
        },
    },
    "byte-level, added in tokenizer_config.json": {
        "fixture": "phi4mini",
        "changes": {
            "tokenizer.json": {"added_tokens": [added(4010, "<tool>"), added(4011, "<plain>")]},
            "tokenizer_config.json": {
                "added_tokens_decoder": {
                    "4010": {"content": "<tool>", "special": True},
                    "4012": {"content": "<config>", "special": False},
                }
            },
        },
    },
    "byte-level, without tokenizer.json": {"fixture": "phi4mini", "without": ["tokenizer.json"]},
    "byte-level, ByteLevel post-processor": {
        "fixture": "phi4mini",
        "changes": {"tokenizer.json": {"post_processor": BYTE_LEVEL}},
    },
    "pieces, added in tokenizer.json": {
        "fixture": "phi35",
        "changes": {
            "tokenizer.json": {
                "added_tokens": [
                    added(4011, "<tool>", special=True),
                    added(4013, "\u2581two words", rstrip=True),
                ]
            }
        },
    },
    "pieces, added in other files": {
        "fixture": "phi35",
        "changes": {
            "added_tokens.json": {"<x>": 4020, "<|z|>": 4021},
            "tokenizer_config.json": {"added_tokens_decoder": {"4022": {"content": "<c>"}}},
        },
    },
    "pieces, without tokenizer.json": {"fixture": "phi35", "without": ["tokenizer.json"]},
    "pieces, tokenizer.model and config.json alone": {
        "fixture": "phi35",
        "without": ["tokenizer.json", "tokenizer_config.json"],
    },
    "pieces, no template": {
        "fixture": "phi35",
        "changes": {
            "tokenizer_config.json": {"chat_template": None},
            "config.json": {"eos_token_id": [1, 2], "mask_token_id": 7},
        },
    },
    "pieces, two templates": {
        "fixture": "phi35",
        "changes": {
            "tokenizer_config.json": {
                "chat_template": [
                    {"name": "default", "template": "D"},
                    {"name": "tool use", "template": "T"},
                ],
                "eos_token": {"content": "<|end|>"},
                "unk_token": None,
            }
        },
    },
}


def change(value: dict[str, object], changes: dict[str, object]) -> None:
    """Apply a variant's changes to a JSON object."""
    for key, new in changes.items():
        old = value.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            change(old, new)
        elif isinstance(old, list) and isinstance(new, list):
            old.extend(new)
        else:
            value[key] = new


def make_variant(folder: Path, variant: dict[str, object]) -> None:
    """Write a changed copy of a fixture; the tests do the same."""
    shutil.copytree(DATA / str(variant["fixture"]), folder)
    for name in variant.get("without", []):  # type: ignore[attr-defined]
        (folder / name).unlink()
    for name, changes in variant.get("changes", {}).items():  # type: ignore[attr-defined]
        value = json.loads((folder / name).read_text(encoding="utf-8"))
        change(value, changes)
        (folder / name).write_text(json.dumps(value), encoding="utf-8")


def variants(llama_cpp: Path) -> list[dict[str, object]]:
    """The converter's tokenizer metadata for every variant."""
    found = []
    for name, variant in VARIANTS.items():
        with tempfile.TemporaryDirectory() as temporary:
            folder, out = Path(temporary) / "model", Path(temporary) / "vocabulary.gguf"
            make_variant(folder, variant)
            pre = FORCED_PRE.get(str(variant["fixture"]), "-")
            run = [sys.executable, "-c", RUN, str(llama_cpp), pre, str(folder)]
            subprocess.run([*run, "--vocab-only", "--outfile", str(out)], check=True)
            keys = [e for e in metadata(out) if str(e["key"]).startswith("tokenizer.")]
            found.append({"name": name, **variant, "metadata": keys})
    return found


def special_tokens() -> list[dict[str, object]]:
    """gguf-py's answers about the tokens around a text, for changed copies of a fixture."""
    import gguf

    found: list[dict[str, object]] = []
    for post_processor in POST_PROCESSORS:
        for changes in CONFIGS:
            with tempfile.TemporaryDirectory() as temporary:
                folder = Path(temporary)
                for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
                    shutil.copy(DATA / "phi35" / name, folder)
                for name, change in (
                    ("tokenizer.json", {"post_processor": post_processor}),
                    ("tokenizer_config.json", changes),
                ):
                    value = json.loads((folder / name).read_text(encoding="utf-8"))
                    (folder / name).write_text(json.dumps({**value, **change}), encoding="utf-8")
                special = gguf.SpecialVocab(folder, n_vocab=4096)
            found.append(
                {
                    "post_processor": post_processor,
                    "config": changes,
                    "ids": special.special_token_ids,
                    "add": special.add_special_token,
                }
            )
    return found


def convert(llama_cpp: Path, fixture: str, out: Path) -> None:
    """Write ``out`` as the converter does with ``--outtype bf16``."""
    subprocess.run(
        [
            *(sys.executable, "-c", RUN, str(llama_cpp), FORCED_PRE.get(fixture, "-")),
            *(str(DATA / fixture), "--outtype", "bf16", "--outfile", str(out)),
        ],
        check=True,
    )


def digest(values: list[object], item: str) -> str:
    """SHA-256 over the items as GGUF stores them: strings with a u64 length, numbers little-endian."""
    import numpy as np

    h = hashlib.sha256()
    if item == "string":
        for text in values:
            raw = str(text).encode("utf-8")
            h.update(len(raw).to_bytes(8, "little"))
            h.update(raw)
    else:
        h.update(np.asarray(values, dtype=np.dtype(item).newbyteorder("<")).tobytes())
    return h.hexdigest()


def metadata(path: Path) -> list[dict[str, object]]:
    """Every key of a GGUF in its order: name, type, and value or digest."""
    import gguf

    keys: list[dict[str, object]] = []
    for field in gguf.GGUFReader(path).fields.values():
        if field.name.startswith("GGUF."):
            continue  # the reader's own names for the header's counts
        entry: dict[str, object] = {"key": field.name}
        value = field.contents()
        kind = field.types[0]
        if kind == gguf.GGUFValueType.ARRAY:
            item = field.types[1].name.lower()
            entry["type"] = f"array:{item}"
            assert isinstance(value, list)
            entry["count"] = len(value)
            if len(value) > LONGEST_WHOLE:
                entry["sha256"] = digest(value, item)
                entry["first"], entry["last"] = value[:5], value[-3:]
            else:
                entry["value"] = value
        else:
            entry["type"] = kind.name.lower()
            entry["value"] = value
        keys.append(entry)
    return keys


def tensors(path: Path) -> list[dict[str, object]]:
    """Name, type, shape (in GGUF's order) and digest of every tensor, in file order."""
    import gguf

    return [
        {
            "name": t.name,
            "type": t.tensor_type.name.lower(),
            "shape": [int(n) for n in t.shape],
            "sha256": hashlib.sha256(t.data.tobytes()).hexdigest(),
        }
        for t in gguf.GGUFReader(path).tensors
    ]


def llama_cpp_version(tree: Path) -> str:
    """ggml's version out of its build file: the source archive holds no git history."""
    text = (tree / "ggml" / "CMakeLists.txt").read_text(encoding="utf-8")
    part = [re.search(rf"GGML_VERSION_{p} (\d+)", text) for p in ("MAJOR", "MINOR", "PATCH")]
    return "ggml " + ".".join(m.group(1) if m else "?" for m in part)


def main() -> None:
    """Convert every fixture and write the golden."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--llama-cpp", type=Path, required=True)
    parser.add_argument("--llama-cpp-python", default="", help="version that vendors this tree")
    parser.add_argument("--keep", type=Path, help="keep the GGUF files in this folder")
    args = parser.parse_args()
    tree = args.llama_cpp.resolve()
    sys.path.insert(0, str(tree / "gguf-py"))

    versions = {
        name: importlib.metadata.version(name)
        for name in ("torch", "transformers", "tokenizers", "sentencepiece", "numpy")
    }
    versions["llama.cpp"] = llama_cpp_version(tree)
    if args.llama_cpp_python:
        versions["llama-cpp-python"] = args.llama_cpp_python
    result: dict[str, object] = {"versions": versions, "forced_pre": FORCED_PRE}
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        models: dict[str, object] = {}
        for fixture in FIXTURES:
            out = folder / f"{fixture}.bf16.gguf"
            convert(tree, fixture, out)
            models[fixture] = {"metadata": metadata(out), "tensors": tensors(out)}
        result["models"] = models
    result["variants"] = variants(tree)
    result["special_tokens"] = special_tokens()
    text = json.dumps(result, indent=1, ensure_ascii=True)
    (HERE / "converter-metadata.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
