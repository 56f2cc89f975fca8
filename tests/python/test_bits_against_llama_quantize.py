"""Every tensor's bytes and their order equal llama-quantize's, whatever the instruction set or thread count."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import DATA, FIXTURES, PRESETS

import phiquant as pq
from phiquant import _core


def digests_of(path: Path) -> list[tuple[str, str, str]]:
    """Name, type and digest of each tensor in file order, read by phiquant's own reader."""
    checkpoint = pq.open(path)
    raw = path.read_bytes()
    return [
        (e.name, e.type.upper(), hashlib.sha256(raw[e.offset : e.offset + e.nbytes]).hexdigest()[:16])
        for e in checkpoint.entries.values()
    ]


def expected(digests: dict, fixture: str, preset: str) -> list[tuple[str, str, str]]:
    return [(name, *facts) for name, facts in digests[fixture][preset.upper()].items()]


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("fixture", FIXTURES)
def test_bytes_and_order_are_llama_quantizes(fixture, preset, converted, digests):
    assert digests_of(converted(fixture, preset)) == expected(digests, fixture, preset)


@pytest.mark.parametrize("threads", [1, 2, 7])
@pytest.mark.parametrize("fixture", FIXTURES)
def test_thread_count_does_not_change_a_byte(fixture, threads, tmp_path, converted):
    path = tmp_path / "x.gguf"
    pq.convert(DATA / fixture, "q4_k_m", path, threads=threads)
    assert path.read_bytes() == converted(fixture, "q4_k_m").read_bytes()


@pytest.mark.parametrize("preset", ["q8_0", "q4_0", "q5_1", "q5_k_m", "q4_k_m", "q6_k", "f16"])
@pytest.mark.parametrize("arch", _core.available_archs())
def test_instruction_set_does_not_change_a_byte(arch, preset, tmp_path, converted):
    for fixture in FIXTURES:
        path = tmp_path / f"{fixture}.gguf"
        subprocess.run(
            [sys.executable, "-m", "phiquant", "convert", str(DATA / fixture), "--to", preset, "-o",
             str(path), "-q"],
            env={**os.environ, "PHIQUANT_ARCH": arch},
            check=True,
        )  # fmt: skip
        assert path.read_bytes() == converted(fixture, preset).read_bytes()
