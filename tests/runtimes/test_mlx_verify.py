"""verify, eval, bench and compare work with MLX folders; quality="best" is nearer to the source in mlx-lm."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers

import mlx_peer as peer
import phiquant as pq
from phiquant.cli.entry import run
from phiquant.evaluate import Verification, verify
from phiquant.reference import Decoder
from phiquant.runtimes import runtime_of
from phiquant.runtimes.mlx_lm import RUNTIME
from places import DATA, FIXTURES

assert peer  # fails with the install command where mlx is missing


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    base = tmp_path_factory.mktemp("mlx")

    def make(fixture: str, preset: str, **choices: Any) -> Path:
        path = base / f"{fixture}-{preset}-{len(choices)}".replace(",", "-")
        if not path.exists():
            pq.convert(DATA / fixture, f"mlx:{preset}", path, **choices)
        return path

    return make


def failed(result: Verification) -> set[str]:
    return {check.name for check in result.checks if not check.passed}


@pytest.mark.parametrize("fixture", FIXTURES)
@pytest.mark.parametrize("preset", ["bf16", "4bit", "mxfp4"])
def test_sound_outputs_pass(folder, fixture, preset):
    result = verify(folder(fixture, preset), DATA / fixture, threads=1)
    assert result.passed, str(result)
    assert result.runtime == "mlx-lm"


def test_rope_factors_for_other_lengths_are_found(folder):
    """The long context is a choice, but not for the short texts that verify reads."""
    found = failed(verify(folder("phi35", "bf16,context=long"), DATA / "phi35", threads=1))
    assert {"logits", "source"} <= found


def test_a_wrong_rope_is_found(folder, tmp_path):
    path = tmp_path / "wrong"
    shutil.copytree(folder("phi3win", "4bit"), path)
    config = json.loads((path / "config.json").read_text())
    config["rope_theta"] = 5000.0
    (path / "config.json").write_text(json.dumps(config))
    assert {"logits", "source"} <= failed(verify(path, DATA / "phi3win", threads=1))


def test_a_folder_that_mlx_lm_cannot_load_says_so_in_its_words(folder, tmp_path):
    path = tmp_path / "wrong"
    shutil.copytree(folder("phi3win", "4bit"), path)
    config = json.loads((path / "config.json").read_text())
    config["model_type"] = "phi999"
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(pq.FormatError, match="phi999"):
        RUNTIME.load(path, context=64, threads=1, exact=True)


def test_mlx_folders_have_their_runtime_and_others_do_not(folder):
    assert runtime_of(folder("phi3win", "4bit")) is RUNTIME
    assert runtime_of(folder("phi35", "bf16")) is RUNTIME
    assert not RUNTIME.recognizes(DATA / "phi35")
    assert not RUNTIME.recognizes(DATA / "phi35" / "config.json")


def logarithms(path: Path, fixture: str) -> np.ndarray:
    """Log probabilities of every next token of held-out text, 1024 tokens, in the reference run.

    mlx-lm's logits are the same (test_mlx_lm_runs_it.py), but take it far longer.
    """
    text = (DATA / "eval.txt").read_text(encoding="utf-8")
    tokenizer = tokenizers.Tokenizer.from_file(str(DATA / fixture / "tokenizer.json"))
    ids = np.array(tokenizer.encode(text[:8000]).ids[:1024]).reshape(8, 128)
    rows = Decoder(pq.open(path))(ids, last=128).astype(np.float64)
    return rows - np.logaddexp.reduce(rows, axis=-1, keepdims=True)


@pytest.mark.parametrize("fixture", ("phi35", "phi4mini"))
def test_best_quality_diverges_less(folder, fixture):
    source = logarithms(DATA / fixture, fixture)
    for preset in ("3bit", "4bit"):
        known, best = (
            float((np.exp(source) * (source - logarithms(path, fixture))).sum(axis=-1).mean())
            for path in (folder(fixture, preset), folder(fixture, preset, quality="best"))
        )
        # Measured: 21 to 30 % less.
        assert 0 < best < 0.9 * known


def test_eval_and_compare_take_folders(folder, capfd):
    path, source = str(folder("phi4mini", "4bit")), str(DATA / "phi4mini")
    text = str(DATA / "eval.txt")
    arguments = ["eval", path, "--against", source, "--text", text]
    arguments += ["--context", "128", "--tokens", "256", "--json"]
    assert run(arguments) == 0
    told = json.loads(capfd.readouterr().out)
    assert 0.001 < told["models"][0]["mean_kld"] < 0.1
    assert run(["compare", source, path, "--json"]) == 0


def test_bench_times_a_folder(folder, capfd):
    path = str(folder("phi3win", "4bit"))
    options = ["--prompt", "16", "--decode", "4", "--repeats", "1", "--json", "-q"]
    assert run(["bench", path, *options]) == 0
    told = json.loads(capfd.readouterr().out)
    assert "mlx-lm" in json.dumps(told)
