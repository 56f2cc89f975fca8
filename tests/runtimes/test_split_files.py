"""Split GGUFs hold the tensors of the whole one, and llama.cpp loads them by their first file."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

import phiquant as pq
from llama_cpp_peer import running
from places import DATA


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    out = tmp_path_factory.mktemp("split") / "tiny.gguf"
    return pq.convert(DATA / "phi35", "q4_k_m", out, split_size="1M")


def test_names_and_keys_are_llama_gguf_splits(split):
    count = len(split.files)
    assert count > 2
    for index, file in enumerate(split.files):
        assert file.path.endswith(f"tiny-{index + 1:05d}-of-{count:05d}.gguf")
        part = pq.open(file.path)
        assert part.metadata["split.no"] == index
        assert part.metadata["split.count"] == count
        assert part.metadata_types["split.no"] == part.metadata_types["split.count"] == "uint16"
        assert part.metadata["split.tensors.count"] == sum(len(f.tensors) for f in split.files)
        assert part.metadata_types["split.tensors.count"] == "int32"
        assert ("general.architecture" in part.metadata) == (index == 0)


def test_every_file_is_llama_gguf_splits(split):
    """Recorded: llama-gguf-split --split --split-max-size 1M (llama-cpp-python 0.3.36) of the whole."""
    recorded = (
        "7f493eed040e8e3a 5d4a00be606a5751 b7d7264dad3a0a9a"
        " bf35c2cf33ed790b f740d141f5522d9d 87fa647d0ca3fce0"
    )
    made = [hashlib.sha256(Path(file.path).read_bytes()).hexdigest()[:16] for file in split.files]
    assert made == recorded.split()


def test_no_file_holds_more_than_was_asked_for(split):
    for file in split.files:
        assert sum(t.nbytes for t in file.tensors) <= 1_000_000


def test_the_files_together_are_the_whole(split, converted):
    whole = pq.open(converted("phi35", "q4_k_m"))
    found = {}
    for file in split.files:
        part = pq.open(file.path)
        for name in part:
            assert name not in found
            tensor = part[name]
            found[name] = np.asarray(getattr(tensor, "data", tensor)).tobytes()
    assert list(found) == list(whole)
    for name, data in found.items():
        tensor = whole[name]
        assert data == np.asarray(getattr(tensor, "data", tensor)).tobytes(), name


def test_llama_cpp_runs_the_split_model_as_it_runs_the_whole(split, converted):
    prompts = json.loads((DATA / "phi35" / "reference.json").read_text())["prompts"]
    ids = np.load(DATA / "phi35" / "reference.npz")["select.ids"].tolist()
    assert prompts["select"]["tokens"] == len(ids)
    with running(split.path) as model:
        parts = model.logits(ids, 1)
    with running(converted("phi35", "q4_k_m")) as model:
        whole = model.logits(ids, 1)
    assert np.array_equal(parts, whole)


@pytest.mark.parametrize("size", ["", "4", "4X", "0G", "-1G", "G"])
def test_sizes_that_make_no_sense_are_refused(size, tmp_path):
    with pytest.raises(pq.UsageError, match="size"):
        pq.plan(DATA / "phi35", "q8_0", split_size=size)


def test_a_split_file_is_no_source(split, tmp_path):
    with pytest.raises(pq.UnsupportedError, match="split"):
        pq.plan(split.path, "q8_0", requantize=True)
