"""phiquant verify passes sound outputs in llama.cpp, and finds wrong metadata, tokens and weights."""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path
from typing import Any

import pytest

import llama_cpp_peer as peer
import phiquant as pq
from phiquant.cli.entry import run
from phiquant.evaluate import Verification, verify
from places import DATA, FIXTURES
from tiny_model import write_model

sys.path.insert(0, str(Path(__file__).parents[1] / "python"))

assert peer  # fails with the install command where llama-cpp-python is missing


def failed(result: Verification) -> set[str]:
    return {check.name for check in result.checks if not check.passed}


@pytest.mark.parametrize("fixture", FIXTURES)
@pytest.mark.parametrize("preset", ["bf16", "q8_0", "q4_k_m"])
def test_sound_outputs_pass(fixture: str, preset: str, converted: Any) -> None:
    result = verify(converted(fixture, preset), DATA / fixture, threads=1)
    assert result.passed, str(result)
    names = [check.name for check in result.checks]
    assert names == ["loads", "vocabulary", "tokens", "logits", "source", "greedy text"]


def changed(source: Path, out: Path, key: bytes, value: bytes) -> Path:
    """A copy of a GGUF with other bytes after a key and its type, or instead of a token."""
    data = bytearray(source.read_bytes())
    at = data.index(struct.pack("<Q", len(key)) + key) + 8 + len(key) + 4
    data[at : at + len(value)] = value
    out.write_bytes(data)
    return out


def test_a_wrong_rope_is_found(tmp_path: Path, converted: Any) -> None:
    """The file is sound and runs; only the source knows that its metadata are wrong."""
    value = struct.pack("<f", 5000.0)
    model = changed(converted("phi35", "q8_0"), tmp_path / "x", b"phi3.rope.freq_base", value)
    assert pq.open(model).metadata["phi3.rope.freq_base"] == 5000.0
    assert {"logits", "source"} <= failed(verify(model, DATA / "phi35", threads=1))


def test_wrong_tokens_are_found(tmp_path: Path, converted: Any) -> None:
    data = converted("phi35", "q8_0").read_bytes()
    token = struct.pack("<Q", 6) + "▁the".encode()
    assert data.count(token) == 1
    model = tmp_path / "x.gguf"
    model.write_bytes(data.replace(token, struct.pack("<Q", 6) + "▁tqe".encode()))
    assert failed(verify(model, DATA / "phi35", threads=1)) == {"tokens"}


def test_what_llama_cpp_does_not_load_fails_with_its_words(tmp_path: Path, converted: Any) -> None:
    data = converted("phi4mini", "q8_0").read_bytes()
    assert data.count(b"gpt-4o") == 1  # a split of text that llama.cpp knows
    model = tmp_path / "x.gguf"
    model.write_bytes(data.replace(b"gpt-4o", b"gpt-4x"))
    result = verify(model, DATA / "phi4mini", threads=1)
    assert failed(result) == {"loads"}
    assert "gpt-4x" in result.checks[-1].found


def test_without_llama_cpp_python_its_install_command_is_named(
    monkeypatch: pytest.MonkeyPatch, converted: Any
) -> None:
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    with pytest.raises(pq.UnsupportedError, match=r"pip install 'phiquant\[llama\]'"):
        verify(converted("phi35", "q8_0"), DATA / "phi35", threads=1)


def test_other_models_and_formats_are_refused(converted: Any, tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    with pytest.raises(pq.UsageError, match="they are different models"):
        verify(converted("phi35", "q8_0"), DATA / "phi4mini")
    with pytest.raises(
        pq.UnsupportedError, match="is no output that a runtime here runs: GGUF files"
    ):
        verify(model / "model.safetensors", model)


def test_the_command_says_pass_or_fail(
    tmp_path: Path, converted: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    model = converted("phi35", "q4_k_m")
    options = ["--against", str(DATA / "phi35"), "--threads", "1"]
    assert run(["verify", str(model), *options]) == 0
    shown = capsys.readouterr()
    assert shown.out.count("  pass  ") == 6 and not shown.err
    value = struct.pack("<f", 500.0)
    model = changed(model, tmp_path / "x", b"phi3.rope.freq_base", value)
    assert run(["verify", str(model), *options, "--json"]) == 5
    shown = capsys.readouterr()
    assert f"{model}: logits: KLD" in shown.err
    facts = json.loads(shown.out)
    assert facts["passed"] is False and facts["runtime"] == "llama.cpp"
