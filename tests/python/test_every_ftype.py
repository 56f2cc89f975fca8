"""Every ftype that llama-quantize recorded, with and without importance: the same bytes, everywhere."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import phiquant as pq
from phiquant import _core
from places import DATA, FIXTURES, GOLDEN

RECORDED = json.loads((GOLDEN / "llama-quantize-digests.json").read_text())
# Where llama-quantize refuses, the record is its reason and no table.
CASES = [(f, k) for f in FIXTURES for k, v in RECORDED[f].items() if isinstance(v, dict)]
REFUSED = [(f, k) for f in FIXTURES for k, v in RECORDED[f].items() if not isinstance(v, dict)]


def convert(fixture: str, key: str, path: Path, **more: object) -> None:
    preset, _, importance = key.partition("+")
    file = DATA / fixture / "imatrix.gguf" if importance else None
    pq.convert(DATA / fixture, preset, path, importance=file, **more)


def digests_of(path: Path) -> list[tuple[str, str, str]]:
    raw = path.read_bytes()
    return [
        (e.name, e.type.upper(), hashlib.sha256(raw[e.offset :][: e.nbytes]).hexdigest()[:16])
        for e in pq.open(path).entries.values()
    ]


@pytest.mark.parametrize(("fixture", "key"), CASES, ids=lambda value: str(value))
def test_bytes_and_order_are_llama_quantizes(fixture, key, tmp_path):
    convert(fixture, key, tmp_path / "x.gguf")
    expected = [(name, *facts) for name, facts in RECORDED[fixture][key].items()]
    assert digests_of(tmp_path / "x.gguf") == expected


@pytest.mark.parametrize(("fixture", "key"), REFUSED)
def test_what_llama_quantize_refuses_is_refused(fixture, key, tmp_path):
    with pytest.raises(pq.UnsupportedError, match="multiple"):
        convert(fixture, key, tmp_path / "x.gguf")
    assert not (tmp_path / "x.gguf").exists()


@pytest.mark.parametrize("arch", _core.available_archs())
def test_instruction_sets_and_threads_do_not_change_a_byte(arch, tmp_path):
    """One process for all ftypes, since the instruction set is chosen once; three threads."""
    script = (
        "import sys, phiquant as pq\n"
        "data, out, *cases = sys.argv[1:]\n"
        "for case in cases:\n"
        "    fixture, key = case.split(':')\n"
        "    preset, _, importance = key.partition('+')\n"
        "    file = f'{data}/{fixture}/imatrix.gguf' if importance else None\n"
        "    pq.convert(f'{data}/{fixture}', preset, f'{out}/{fixture}-{key}.gguf',\n"
        "               importance=file, threads=3)\n"
        "from phiquant import _core\n"
        "print(_core.active_arch())\n"
    )
    cases = [f"{fixture}:{key}" for fixture, key in CASES]
    done = subprocess.run(
        [sys.executable, "-c", script, str(DATA), str(tmp_path), *cases],
        env={**os.environ, "PHIQUANT_ARCH": arch},
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == [arch]
    for fixture, key in CASES:
        expected = [(name, *facts) for name, facts in RECORDED[fixture][key].items()]
        path = tmp_path / f"{fixture}-{key}.gguf"
        assert digests_of(path) == expected, (fixture, key)
        path.unlink()


NEED = ("iq2_xxs", "iq2_xs", "iq2_s", "iq2_m", "iq1_s", "iq1_m", "iq3_xxs", "iq3_xs", "q2_k_s")


@pytest.mark.parametrize("preset", NEED)
def test_what_needs_importance_says_so_before_any_work(preset, tmp_path):
    with pytest.raises(pq.UsageError, match="importance") as caught:
        pq.plan(DATA / "phi35", preset)
    assert "calibrate" in str(caught.value)


def test_importance_of_another_model_is_refused(tmp_path):
    with pytest.raises(pq.FormatError, match="importance of the shape"):
        pq.plan(DATA / "phi3win", "q4_k_m", importance=DATA / "phi35" / "imatrix.gguf")


def test_metadata_tell_of_the_importance(tmp_path):
    convert("phi35", "Q4_K_M+im", tmp_path / "x.gguf")
    found = pq.open(tmp_path / "x.gguf")
    keys = [key for key in found.metadata if key.startswith("quantize.imatrix.")]
    assert keys == list(found.metadata)[-len(keys) :]
    assert found.metadata["quantize.imatrix.file"].endswith("imatrix.gguf")
    assert found.metadata["quantize.imatrix.entries_count"] == 24
    assert found.metadata["quantize.imatrix.chunks_count"] == 45
