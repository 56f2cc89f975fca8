"""A whole BF16 file against convert_hf_to_gguf.py's: every key, type, value and tensor, and what differs.

What differs, and why:

- ``general.quantization_version`` and ``general.file_type`` stand last, and tensors in the order of
  layer and name: so llama-quantize leaves them, and so one pass must. ``test_real_quantizer`` shows
  that llama.cpp's quantizer, run over phiquant's file, changes no byte.
- ``general.name`` is spelled so that llama.cpp tokenizes as Hugging Face does (it tells Phi-3's rules
  for white space from the name alone): "Phi 3 Mini" becomes "Phi-3-Mini", and elsewhere "phi3"
  becomes "phi 3". For the three fixtures it is the converter's own.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import phiquant as pq
from places import DATA, FIXTURES, GOLDEN

CONVERTED: dict[str, Any] = json.loads((GOLDEN / "converter-metadata.json").read_text())["models"]
GENERAL: dict[str, Any] = json.loads((GOLDEN / "general-metadata.json").read_text())["cases"]
# Counted from the weights where the name says none; the recorded case counted others.
SIZE_LABELS = {"no front matter": "7.2M"}
LAST = ("general.quantization_version", "general.file_type")


def digest(kind: str, values: Any) -> str:
    """SHA-256 over an array's items as GGUF stores them, as ``make_converter_metadata.py`` does it."""
    found = hashlib.sha256()
    if kind == "array:string":
        for text in values:
            raw = text.encode("utf-8")
            found.update(len(raw).to_bytes(8, "little") + raw)
    else:
        stored = np.dtype(kind.removeprefix("array:")).newbyteorder("<")
        found.update(np.asarray(values, stored).tobytes())
    return found.hexdigest()


def pairs(path: Path) -> list[tuple[str, str, Any]]:
    """Key, type and value; of arrays that are recorded so, number of items and digest."""
    checkpoint = pq.open(path)
    found = []
    for key, value in checkpoint.metadata.items():
        kind = checkpoint.metadata_types[key]
        long = kind.startswith("array:") and len(value) > 16
        found.append((key, kind, (len(value), digest(kind, value)) if long else value))
    return found


def recorded(fixture: str) -> list[tuple[str, str, Any]]:
    """The converter's pairs, the two that llama-quantize sets moved to the end as it does."""
    rows = CONVERTED[fixture]["metadata"]
    ordered = [row for row in rows if row["key"] not in LAST]
    ordered += [row for key in LAST for row in rows if row["key"] == key]
    return [
        (
            row["key"],
            row["type"],
            (row["count"], row["sha256"]) if "sha256" in row else row["value"],
        )
        for row in ordered
    ]


@pytest.mark.parametrize("fixture", FIXTURES)
def test_every_key_type_and_value_is_the_converters(fixture: str, converted: Any) -> None:
    assert pairs(converted(fixture, "bf16")) == recorded(fixture)


@pytest.mark.parametrize("fixture", FIXTURES)
def test_every_tensor_is_the_converters(fixture: str, converted: Any) -> None:
    checkpoint = pq.open(converted(fixture, "bf16"))
    found = {
        entry.name: (
            entry.type,
            list(reversed(entry.shape)),
            hashlib.sha256(checkpoint.files[0].read(entry.offset, entry.nbytes)).hexdigest(),
        )
        for entry in checkpoint.entries.values()
    }
    wanted = {
        row["name"]: (row["type"], row["shape"], row["sha256"])
        for row in CONVERTED[fixture]["tensors"]
    }
    assert found == wanted


@pytest.mark.parametrize("preset", ["q4_k_m", "f32", "q8_0"])
def test_other_presets_differ_in_the_files_type_alone(preset: str, converted: Any) -> None:
    number = {"f32": 0, "q8_0": 7, "q4_k_m": 15}[preset]  # llama_ftype in llama.h
    wanted = [*recorded("phi35")[:-1], ("general.file_type", "uint32", number)]
    assert pairs(converted("phi35", preset)) == wanted


@pytest.mark.parametrize(
    ("fixture", "case", "name"),
    [
        ("phi3win", "phi-3-mini-4k", "Phi-3-Mini-4k-Instruct"),
        ("phi35", "phi-3.5-mini", "Phi-3.5-Mini-Instruct"),
        ("phi35", "no front matter", "My Model (Phi-3)"),
        ("phi4mini", "phi-4-mini", "Phi 4 Mini Instruct"),
    ],
)
def test_the_name_is_the_only_key_that_differs(
    fixture: str, case: str, name: str, tmp_path: Path
) -> None:
    """In folders with published names and cards, whose ``general.*`` the converter was asked for."""
    row = GENERAL[case]
    folder = tmp_path / row["name"]
    shutil.copytree(DATA / fixture, folder)
    for file, content in (
        ("generation_config.json", row["generation"] and json.dumps(row["generation"])),
        ("README.md", row["card"]),
    ):
        (folder / file).unlink(missing_ok=True)
        if content is not None:
            (folder / file).write_text(content, encoding="utf-8")
    pq.convert(folder, "bf16", tmp_path / "x.gguf")
    own = {"general.architecture", "general.type", *LAST}  # the others come from name and card
    found, theirs = pairs(tmp_path / "x.gguf"), [(*pair,) for pair in row["metadata"]]
    general = [pair for pair in found if pair[0].startswith("general.") and pair[0] not in own]
    named = {"general.name": name, "general.size_label": SIZE_LABELS.get(case, "")}
    assert general == [
        (key, kind, named[key] or value if key in named else value) for key, kind, value in theirs
    ]
    rest = [pair for pair in recorded(fixture) if pair[0] not in named]
    assert [pair for pair in found if pair not in general] == rest


def test_a_name_that_llama_cpp_would_refuse_is_spelled_otherwise(tmp_path: Path) -> None:
    """With "phi3" in its name llama.cpp aborts on a vocabulary without Phi-3's tokens."""
    shutil.copytree(DATA / "phi4mini", tmp_path / "better-than-phi3")
    pq.convert(tmp_path / "better-than-phi3", "bf16", tmp_path / "x.gguf")
    assert pq.open(tmp_path / "x.gguf").metadata["general.name"] == "Better Than Phi 3"
