"""Every tensor's bytes and their order equal llama-quantize's, whatever the instruction set or thread count."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

import phiquant as pq
from phiquant import _core
from places import DATA, FIXTURES, PRESETS


def digests_of(path: Path) -> list[tuple[str, str, str]]:
    """Name, type and digest of each tensor in file order, read by phiquant's own reader."""
    checkpoint = pq.open(path)
    raw = path.read_bytes()
    return [
        (
            e.name,
            e.type.upper(),
            hashlib.sha256(raw[e.offset : e.offset + e.nbytes]).hexdigest()[:16],
        )
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


@pytest.mark.parametrize("arch", _core.available_archs())
def test_instruction_set_does_not_change_a_byte(arch, tmp_path, converted):
    # One process for all: the instruction set is chosen once.
    code = (
        "import sys, phiquant as pq\n"
        "data, out, *presets = sys.argv[1:]\n"
        f"for fixture in {FIXTURES!r}:\n"
        "    for preset in presets:\n"
        "        report = pq.convert(f'{data}/{fixture}', preset, f'{out}/{fixture}-{preset}.gguf')\n"
        "print(report.arch)\n"
    )
    command = [sys.executable, "-c", code, str(DATA), str(tmp_path), *PRESETS]
    environment = {**os.environ, "PHIQUANT_ARCH": arch}
    output = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    assert output.stdout.split() == [arch]
    for fixture in FIXTURES:
        for preset in PRESETS:
            made = (tmp_path / f"{fixture}-{preset}.gguf").read_bytes()
            assert made == converted(fixture, preset).read_bytes(), (fixture, preset)
