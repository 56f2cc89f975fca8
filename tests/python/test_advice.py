"""Advice keeps to the memory, to what was measured, and to what this version can write."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cli_process import environment

import phiquant as pq
from phiquant.advice import advise
from phiquant.advice.candidates import DEVICES, candidates
from phiquant.advice.models import KNOWN, shape_of
from phiquant.advice.ranking import PURPOSES
from phiquant.advice.record import loss_of
from phiquant.advice.sizes import parse_memory
from phiquant.architectures import spec_from_config
from phiquant.runtimes import runtime_of

ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests" / "data"
MODEL = "microsoft/Phi-4-mini-instruct"
PAIRS = [(d, p) for d in DEVICES for p in PURPOSES if p != "server" or d == "gpu"]


def lost(one: Any, purpose: str) -> float:
    if one.loss is None:
        return float("inf")
    return 1 - one.loss.same_top if PURPOSES[purpose][1] == "same_top" else one.loss.divergence


@pytest.mark.parametrize(("device", "purpose"), PAIRS)
def test_more_memory_never_makes_the_first_suggestion_worse(device: str, purpose: str) -> None:
    before = float("inf")
    fits = 0
    for megabytes in range(1000, 20000, 1000):
        try:
            found = advise(MODEL, memory=f"{megabytes}MB", device=device, purpose=purpose)
        except pq.UsageError as error:
            assert "nothing fits" in str(error) and not fits
            continue
        fits += 1
        assert all(one.memory <= megabytes * 10**6 for one in found.suggestions)
        now = lost(found.suggestions[0], purpose)
        assert now <= before, megabytes
        before = now
    assert fits > 5


@pytest.mark.parametrize("device", ["laptop", "mac", "npu", "gpu"])
@pytest.mark.parametrize("fixture", ("phi4mini", "phi3win"))
def test_every_suggestion_can_be_planned_and_is_as_large_as_told(fixture: str, device: str) -> None:
    source = DATA / fixture
    # The NPU's groups of 128 don't fit phi3win's rows of 320; whole rows do.
    found = advise(source, memory="1GB", device=device, context=128, most=99)
    assert found.suggestions
    for one in found.suggestions:
        needs = one.loss is not None and one.loss.importance
        plan = pq.plan(
            source,
            one.target,
            quality=one.quality,
            importance=source / "imatrix.gguf" if needs else None,
        )
        if needs:  # of the weights alone
            assert one.nbytes <= plan.nbytes < one.nbytes + 200_000
        else:
            assert one.nbytes == plan.nbytes
        assert (ROOT / one.page).exists()
        assert f"--to {one.target}" in one.commands[-1]
        assert ("--quality best" in one.commands[-1]) == (one.quality == "best")
    listed = {one.target for one in found.suggestions} | {target for target, _ in found.left_out}
    assert {target.replace(",context=long", "") for target in listed} == {
        one.target for one in candidates(device)
    }


def test_a_suggested_command_runs(tmp_path: Path) -> None:
    found = advise(DATA / "phi35", memory="100MB", device="phone", context=128)
    command = found.suggestions[0].commands[-1].removeprefix("phiquant ").split()
    done = subprocess.run(
        [sys.executable, "-m", "phiquant", *command], cwd=tmp_path, env=environment(), timeout=120
    )
    assert done.returncode == 0 and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("name", KNOWN)
def test_the_known_shapes_are_those_of_the_published_configs(name: str) -> None:
    config = json.loads((DATA / "configs" / f"{name.rpartition('/')[2].lower()}.json").read_text())
    known, real = shape_of(name), spec_from_config(config)
    assert known.tensors == real.tensors and known.context == real.context
    assert known.attention.kv_heads == real.attention.kv_heads
    assert known.attention.head_size == real.attention.head_size
    if real.rope.scaling:
        assert known.rope.original_context == real.rope.original_context


@pytest.mark.parametrize(
    "target", ("gguf:q4_0", "onnx:int4", "openvino:int4_sym", "mlx:4bit", "hf:w4a16")
)
@pytest.mark.filterwarnings("ignore")  # transformers has advice
def test_the_cache_is_counted_as_the_runtime_has_it(target: str, tmp_path: Path) -> None:
    path = tmp_path / ("x.gguf" if target.startswith("gguf") else "x")
    pq.convert(DATA / "phi4mini", target, path)
    candidate = next(
        one
        for device in ("cpu", "mac", "gpu")
        for one in candidates(device)
        if one.target == target
    )
    with runtime_of(path).load(path, context=64, threads=1, exact=False) as loaded:
        # 4 layers, keys and values, 2 heads of 32.
        assert loaded.kv_bytes_per_token == 4 * 2 * 2 * 32 * candidate.cache


def test_what_the_docs_name_as_rules_holds() -> None:
    for one in candidates("npu"):
        assert re.fullmatch(r"openvino:int4_sym,group=(128|channel)", one.target)
    assert {one.runtime for one in candidates("mac")} == {"mlx-lm", "llama.cpp"}
    server = advise(MODEL, memory="80GB", device="gpu", purpose="server", most=99)
    assert {one.target.partition(":")[0] for one in server.suggestions} == {"hf"}
    # Longrope's long factors, beyond the original context.
    long = advise(MODEL, memory="80GB", device="mac", purpose="documents", most=99)
    for one in long.suggestions:
        assert one.target.startswith("gguf:") or one.target.endswith(",context=long")


def test_a_search_is_advised_only_where_it_was_measured_to_lose_less() -> None:
    rows = json.loads((ROOT / "python/phiquant/advice/divergence.json").read_text())["rows"]
    found = {(r["target"], r["fixture"], r["quality"]): r["divergence"] for r in rows}
    for target, fixture, quality in found:
        loss = loss_of(target, fixture)
        assert loss is not None and loss.divergence == found[target, fixture, loss.quality]
        if quality == "best" and loss.quality == "best":
            assert found[target, fixture, "best"] < found[target, fixture, "reference"]


@pytest.mark.parametrize(
    ("text", "count"), [("8GB", 8 * 10**9), ("7.5 GiB", 7680 << 20), ("500m", 5 * 10**8), (9, 9)]
)
def test_sizes_of_memory(text: str | int, count: int) -> None:
    assert parse_memory(text) == count


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"memory": "8 GBs"}, "no size of memory"),
        ({"memory": "0GB"}, "no size of memory"),
        ({"memory": "-8GB"}, "no size of memory"),
        ({"device": "toaster"}, "no device 'toaster'"),
        ({"purpose": "fun"}, "no purpose 'fun'"),
        ({"purpose": "server"}, "many requests"),
        ({"context": 0}, "context must be"),
        ({"context": 10**7}, "131072 tokens at most"),
        ({"source": "microsoft/phi-5"}, "no published model"),
        ({"memory": "1MB"}, "nothing fits"),
    ],
)
def test_wrong_words_are_refused(wrong: dict[str, Any], words: str) -> None:
    asked = {"source": MODEL, "memory": "8GB", "device": "cpu"} | wrong
    with pytest.raises(pq.UsageError, match=words) as caught:
        advise(asked.pop("source"), **asked)
    assert caught.value.remedy or "context must" in words


def test_json_has_what_the_table_has() -> None:
    words = ["advise", "--memory", "8GB", "--device", "laptop", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "phiquant", *words],
        env=environment(),
        stdout=subprocess.PIPE,
        check=True,
        timeout=60,
    )
    found = json.loads(done.stdout)
    told = pq.advise(memory="8GB", device="laptop")
    assert found == json.loads(json.dumps(told.to_json()))
    assert {one["model"] for one in found["suggestions"]} <= set(KNOWN)
    assert all(one.target in str(told) for one in told.suggestions)
