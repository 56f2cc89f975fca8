"""Where the tests' data stand, and the names that several tests go through."""

from __future__ import annotations

from pathlib import Path

TESTS = Path(__file__).parent
DATA = TESTS / "data"
GOLDEN = TESTS / "golden"
FIXTURES = ("phi35", "phi4mini", "phi3win")
PRESETS = (
    "f32", "f16", "bf16", "q8_0", "q4_0", "q5_0", "q5_1", "q4_k_s", "q4_k_m", "q5_k_s", "q5_k_m",
    "q6_k",
)  # fmt: skip
