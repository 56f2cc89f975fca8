"""What all tests share: recorded answers, and conversions that several tests look at."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from places import DATA, GOLDEN


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of measurements for this session alone: tests know nothing of the user's own."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["PHIQUANT_CACHE"] = str(folder)
    return folder


@pytest.fixture(scope="session", autouse=True)
def registry_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry for this session alone: what tests convert is nobody's model."""
    file = tmp_path_factory.mktemp("registry") / "models.sqlite"
    os.environ["PHIQUANT_REGISTRY"] = str(file)
    return file


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
