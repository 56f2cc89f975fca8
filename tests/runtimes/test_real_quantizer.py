"""phiquant's files are llama.cpp's: its quantizer, run on phiquant's BF16 file, writes the same bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import llama_cpp_peer as peer
import phiquant as pq
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


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("fixture", FIXTURES)
def test_the_whole_file_is_llama_quantizes(
    fixture: str, preset: str, converted: Any, tmp_path: Path
) -> None:
    """Header, metadata, order, padding and tensors: no key differs."""
    bf16 = converted(fixture, "bf16")
    theirs = peer.quantize(bf16, tmp_path / "theirs.gguf", ftype_number(preset))
    assert differing(converted(fixture, preset), theirs) == []


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
