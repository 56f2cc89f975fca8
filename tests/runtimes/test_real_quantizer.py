"""phiquant's files are llama.cpp's: its quantizer, run on phiquant's BF16 file, writes the same bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import llama_cpp_peer as peer
import phiquant as pq
from phiquant.measure import read_importance
from phiquant.recipes.llama_quantize import ftype_number
from places import DATA, FIXTURES, PRESETS


def differing(ours: Path, theirs: Path) -> list[str]:
    """What differs between two GGUFs, as short as it can be said; empty when no byte does."""
    if ours.read_bytes() == theirs.read_bytes():
        return []
    a, b = pq.open(ours), pq.open(theirs)
    found = []
    if list(a.metadata) != list(b.metadata):
        found.append(f"keys: {list(a.metadata)} and {list(b.metadata)}")
    for key in a.metadata.keys() & b.metadata.keys():
        if a.metadata_types[key] != b.metadata_types[key] or not np.array_equal(
            a.metadata[key], b.metadata[key]
        ):
            found.append(f"{key}: {a.metadata[key]!r} and {b.metadata[key]!r}"[:300])
    if list(a) != list(b):
        found.append(f"tensors: {list(a)} and {list(b)}")
    for name in a.entries.keys() & b.entries.keys():
        x, y = a.entries[name], b.entries[name]
        if (x.type, x.shape) != (y.type, y.shape):
            found.append(f"{name}: {x.type} {x.shape} and {y.type} {y.shape}")
        elif a.files[0].read(x.offset, x.nbytes) != b.files[0].read(y.offset, y.nbytes):
            found.append(f"{name}: the bytes of its {x.type}")
    return found or ["padding or the header's own numbers"]


MORE = (
    *("q4_1", "q2_k", "q3_k_s", "q3_k_m", "q3_k_l", "iq4_nl", "iq4_xs", "iq3_s", "iq3_m"),
    *("tq1_0", "tq2_0", "q1_0", "q2_0", "mxfp4_moe"),
)


@pytest.mark.parametrize("preset", (*PRESETS, *MORE))
@pytest.mark.parametrize("fixture", FIXTURES)
def test_the_whole_file_is_llama_quantizes(
    fixture: str, preset: str, converted: Any, tmp_path: Path
) -> None:
    """Header, metadata, order, padding and tensors: no key differs."""
    if (fixture, preset) == ("phi3win", "q1_0"):
        # 320 columns are no multiple of 128, and Q1_0 has no fallback: both refuse.
        with pytest.raises(pq.UnsupportedError):
            converted(fixture, preset)
        return
    bf16 = converted(fixture, "bf16")
    theirs = peer.quantize(bf16, tmp_path / "theirs.gguf", ftype_number(preset))
    assert differing(converted(fixture, preset), theirs) == []


@pytest.mark.parametrize("preset", ["q4_k_m", "q4_0", "iq4_xs", "iq3_xxs", "iq2_xs", "iq1_m"])
@pytest.mark.parametrize("fixture", ["phi35", "phi4mini"])
def test_tensors_with_importance_are_llama_quantizes(
    fixture: str, preset: str, converted: Any, tmp_path: Path
) -> None:
    """The keys that tell of the matrix are the program llama-quantize's, not the function's."""
    matrix = DATA / fixture / "imatrix.gguf"
    ours = pq.convert(DATA / fixture, preset, tmp_path / "ours.gguf", importance=matrix).path
    theirs = peer.quantize(
        converted(fixture, "bf16"),
        tmp_path / "theirs.gguf",
        ftype_number(preset),
        importance=read_importance(matrix),
    )
    found = [line for line in differing(ours, theirs) if "quantize.imatrix" not in line]
    assert [line for line in found if ": the bytes" in line or "tensors:" in line] == []


CHOICES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("q4_k_m", {"pure": True}),
    ("q5_0", {"pure": True}),
    ("q4_k_m", {"output_type": "q8_0"}),
    ("q4_k_s", {"embedding_type": "q8_0"}),
    ("q4_0", {"output_type": "f16", "embedding_type": "q5_1"}),
    ("q6_k", {"output_type": "q4_k", "embedding_type": "q5_k"}),
)


@pytest.mark.parametrize(
    ("fixture", "preset", "options"),
    [
        (fixture, preset, options)
        for fixture in FIXTURES
        for preset, options in CHOICES
        # llama-quantize aborts where a type that was asked for does not divide 320 columns;
        # phiquant takes the fallback that llama-quantize takes for the types of its own choice.
        if fixture != "phi3win" or "q4_k" not in options.values()
    ],
)
def test_choices_of_codecs_are_llama_quantizes(
    fixture: str, preset: str, options: dict[str, Any], converted: Any, tmp_path: Path
) -> None:
    ours = tmp_path / "ours.gguf"
    pq.convert(DATA / fixture, preset, ours, **options)
    theirs = peer.quantize(
        converted(fixture, "bf16"), tmp_path / "theirs.gguf", ftype_number(preset), **options
    )
    assert differing(ours, theirs) == []
