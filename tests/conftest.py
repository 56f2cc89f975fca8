"""What all tests share: where the data stand, and conversions that several tests look at."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).parent
DATA = TESTS / "data"
GOLDEN = TESTS / "golden"
FIXTURES = ("phi35", "phi4mini", "phi3win")
PRESETS = (
    "f32", "f16", "bf16", "q8_0", "q4_0", "q5_0", "q5_1", "q4_k_s", "q4_k_m", "q5_k_s", "q5_k_m",
    "q6_k",
)  # fmt: skip


@pytest.fixture(scope="session")
def digests() -> dict[str, Any]:
    """What llama-quantize wrote for every fixture and ftype; see golden/README.md."""
    return json.loads((GOLDEN / "llama-quantize-digests.json").read_text())


@pytest.fixture(scope="session")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """converted(fixture, preset) gives the path of that GGUF, made once a session."""
    import phiquant as pq

    folder = tmp_path_factory.mktemp("converted")

    def make(fixture: str, preset: str) -> Path:
        path = folder / f"{fixture}-{preset}.gguf"
        if not path.exists():
            pq.convert(DATA / fixture, preset, path)
        return path

    return make
