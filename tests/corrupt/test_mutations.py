"""Files changed at random: every reader reads them or refuses them by an error of its own.

Longer by hand: ``PHIQUANT_FUZZ_ROUNDS=5000 pytest tests/corrupt/test_mutations.py``. A failure names
the seed that repeats it.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mutations import change_bytes, change_json

import phiquant as pq
from phiquant.description import describe
from phiquant.errors import PhiquantError
from phiquant.measure.imatrix import read_importance
from places import DATA, GOLDEN
from tiny_model import config_of, weights_of, write_model

ROUNDS = int(os.environ.get("PHIQUANT_FUZZ_ROUNDS", "25"))
SEED = int(os.environ.get("PHIQUANT_FUZZ_SEED", "9"))

SMALL_FILES = (
    "config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "generation_config.json", "model.safetensors.index.json", "tokenizer.model",
)  # fmt: skip

FOLDERS = {
    "onnx:int4": ("model.onnx", "genai_config.json"),
    "openvino:int4_asym": ("openvino_model.xml", "config.json"),
    "mlx:4bit": ("config.json", "model.safetensors", "model.safetensors.index.json"),
    "hf:w4a16": ("config.json", "model.safetensors"),
    "q4_k_m": (".",),
}


def changes(name: str) -> Callable[[random.Random, bytes], bytes]:
    return change_json if name.endswith(".json") else change_bytes


def attempts(name: str) -> Iterator[tuple[int, random.Random]]:
    for seed in range(SEED, SEED + ROUNDS):
        yield seed, random.Random(f"{name} {seed}")


@contextlib.contextmanager
def only_refused(seed: int) -> Iterator[None]:
    """Sound, or an error of phiquant's own that blames the input, in words for a terminal."""
    try:
        yield
    except PhiquantError as error:
        assert error.exit_code in (3, 4), f"PHIQUANT_FUZZ_SEED={seed}: {error!r}"
        assert str(error).isprintable() and len(str(error)) < 20_000, f"seed {seed}"
    except Exception as error:
        raise AssertionError(f"PHIQUANT_FUZZ_SEED={seed} PHIQUANT_FUZZ_ROUNDS=1") from error


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small sound checkpoint in two shards, with the tokenizer's files of Phi-3.5."""
    return write_model(tmp_path_factory.mktemp("sound") / "model", shards=2)


@pytest.fixture(scope="module")
def other_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As ``source``, with the byte-level tokenizer of Phi-4-mini."""
    folder = tmp_path_factory.mktemp("sound4") / "model"
    shutil.copytree(DATA / "phi4mini", folder, ignore=shutil.ignore_patterns("*.npz", "*.gguf"))
    return folder


@pytest.mark.parametrize("name", SMALL_FILES)
def test_a_checkpoint_with_a_changed_file_is_planned_or_refused(
    name: str, source: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(source, folder)
    original = (folder / name).read_bytes()
    outcomes = set()
    for seed, chance in attempts(name):
        (folder / name).write_bytes(changes(name)(chance, original))
        outcome = "refused"
        with only_refused(seed):
            pq.plan(folder, chance.choice(["q4_k_m", "hf:w4a16", "mlx:4bit"]))
            outcome = "planned"
        outcomes.add(outcome)
    (folder / name).write_bytes(original)
    pq.plan(folder, "q4_k_m")
    assert "refused" in outcomes or name in ("generation_config.json", "special_tokens_map.json")


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "config.json"]
)
def test_a_byte_level_tokenizer_with_a_changed_file_is_planned_or_refused(
    name: str, other_tokenizer: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(other_tokenizer, folder)
    if name in ("vocab.json", "merges.txt"):
        (folder / "tokenizer.json").unlink()
    original = (folder / name).read_bytes()
    for seed, chance in attempts(name):
        (folder / name).write_bytes(changes(name)(chance, original))
        with only_refused(seed):
            pq.plan(folder, "q4_k_m")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source's small layers in every format that phiquant reads again."""
    folder = tmp_path_factory.mktemp("results")
    config = config_of(vocab_size=4096)
    model = write_model(folder / "tiny", weights_of(config))
    (folder / "out").mkdir()
    pq.convert(model, list(FOLDERS), f"{folder}/out/")
    return folder / "out"


def place_of(results: Path, to: str) -> Path:
    if ":" not in to:
        return results / f"tiny-{to}.gguf"
    return results / f"tiny-{to.replace(':', '-')}"


def read_all(path: Path) -> None:
    """Everything that phiquant reads of a result: its headers, its description, some weights."""
    checkpoint = pq.open(path)
    for name in list(checkpoint)[:8]:
        tensor: Any = checkpoint[name]
        values = tensor.dequantize() if isinstance(tensor, pq.QuantizedTensor) else tensor
        assert np.asarray(values).shape == tuple(tensor.shape)
    describe(checkpoint)


def header_end(path: Path) -> int:
    """Where to stop changing: behind a header's end there are only weights."""
    if path.suffix == ".gguf":
        return 4096
    if path.suffix == ".safetensors":
        return 8 + int.from_bytes(path.read_bytes()[:8], "little")
    return path.stat().st_size


@pytest.mark.parametrize(
    ("to", "name"), [(to, name) for to, names in FOLDERS.items() for name in names]
)
def test_a_changed_result_is_read_or_refused(
    to: str, name: str, results: Path, tmp_path: Path
) -> None:
    place = place_of(results, to)
    if place.is_dir():
        shutil.copytree(place, tmp_path / place.name)
    else:
        shutil.copy(place, tmp_path)
    copied = tmp_path / place.name
    path = copied / name if copied.is_dir() else copied
    original = path.read_bytes()
    end = header_end(path)
    read_all(copied)
    for seed, chance in attempts(f"{to} {name}"):
        changed = changes(name)(chance, original[:end])
        if path.suffix == ".safetensors" and chance.randrange(2):
            # The right length, so that the JSON is looked at.
            changed = (len(changed) - 8).to_bytes(8, "little") + changed[8:]
        path.write_bytes(changed + original[end:])
        with only_refused(seed):
            read_all(copied)


@pytest.mark.parametrize("name", ["imatrix-phi3win.dat", "imatrix-phi3win.gguf"])
def test_a_changed_importance_matrix_is_read_or_refused(name: str, tmp_path: Path) -> None:
    original = (GOLDEN / name).read_bytes()
    path = tmp_path / name
    refused = 0
    for seed, chance in attempts(name):
        path.write_bytes(change_bytes(chance, original[:4000]) + original[4000:])
        refused += 1
        with only_refused(seed):
            for values in read_importance(path).values():
                assert np.isfinite(values).all() and (values >= 0).all()
            refused -= 1
    assert refused
