"""Greedy texts of the reference run are llama.cpp's, token for token, where both compute in float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import llama_cpp_peer as peer
import phiquant as pq
from phiquant.evaluate.evaluation import BUILT_IN
from phiquant.measure.windows import read_text, windows
from phiquant.reference import Decoder
from phiquant.reference.generation import greedy
from places import DATA

# Longer than phi3win's sliding window, with what follows.
PROMPTS, LENGTH, COUNT = 3, 40, 24
WINDOWS = {"phi35": None, "phi4mini": None, "phi3win": 47}


def prompts(fixture: str) -> np.ndarray:
    source = pq.open(DATA / fixture)
    ids = windows(source, read_text(BUILT_IN), vocabulary=4096, context=LENGTH, tokens=400)
    return ids[:PROMPTS]


@pytest.mark.parametrize("fixture", WINDOWS)
def test_texts_are_llama_cpps(fixture: str, converted: Any) -> None:
    ids = prompts(fixture)
    with peer.running(converted(fixture, "f32"), window=WINDOWS[fixture]) as run:
        wanted = [run.greedy(prompt, COUNT) for prompt in ids.tolist()]
    decoder = Decoder(pq.open(DATA / fixture), threads=1)
    found = greedy(decoder, ids, COUNT)
    assert found == wanted
    # Guesses change nothing, whether they are right, wrong, or right for a while.
    half = [text[: COUNT // 2] + [7] * COUNT for text in wanted]
    for hints in (wanted, [[5] * COUNT] * PROMPTS, half):
        assert greedy(decoder, ids, COUNT, hints=hints) == wanted


def test_right_guesses_save_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = Decoder(pq.open(DATA / "phi35"), threads=1)
    ids = prompts("phi35")
    text = greedy(decoder, ids, COUNT)
    passes = []
    load = Decoder._load

    def spy(self: Decoder, index: int) -> Any:
        passes.append(index)
        return load(self, index)

    monkeypatch.setattr(Decoder, "_load", spy)
    assert greedy(decoder, ids, COUNT, hints=text) == text
    # One for the prompt and its first token, and then eight tokens each.
    assert passes.count(0) <= 1 + -(-(COUNT - 1) // 8) + 2


def test_texts_of_quantized_weights_are_llama_cpps(tmp_path: Path) -> None:
    """Where llama.cpp is given the decoded weights, and rounds no activations."""
    quantized, whole = tmp_path / "q.gguf", tmp_path / "f.gguf"
    pq.convert(DATA / "phi35", "q2_0", quantized)
    pq.convert(quantized, "f32", whole, requantize=True)
    ids = prompts("phi35")
    with peer.running(whole) as run:
        wanted = [run.greedy(prompt, COUNT) for prompt in ids.tolist()]
    assert greedy(Decoder(pq.open(quantized), threads=1), ids, COUNT) == wanted
